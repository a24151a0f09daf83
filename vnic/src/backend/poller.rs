//! How long an idle worker goes on looking before it asks for notifications and sleeps.
//!
//! Sleeping costs the driver a kick and the worker a wake-up; looking costs a CPU. As the kernel's halt polling does,
//! the window follows what would have paid: it grows when work came soon after the worker had fallen asleep, and shrinks
//! when it came late. A worker with nothing to do for long sleeps at once.

use std::str::FromStr;
use std::time::{Duration, Instant};

/// When a worker sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PollMode {
    /// Poll while there is work, then arm notifications and sleep.
    #[default]
    Adaptive,
    /// Never sleep.
    Always,
    /// Sleep as soon as a pass over the queues finds nothing; wait for a notification before every pass.
    Never,
    /// It has no thread, and nothing else runs: its asker's thread does what there is to do, the same every time.
    #[cfg(fuzzing)]
    Asked,
}

/// Not a poll mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a poll mode; use adaptive, always or never")]
pub struct UnknownPollMode(String);

impl FromStr for PollMode {
    type Err = UnknownPollMode;

    fn from_str(name: &str) -> Result<Self, UnknownPollMode> {
        match name {
            "adaptive" => Ok(PollMode::Adaptive),
            "always" => Ok(PollMode::Always),
            "never" => Ok(PollMode::Never),
            _ => Err(UnknownPollMode(name.to_owned())),
        }
    }
}

/// The longest window. A kick and a wake-up together take about a tenth of it.
const LONGEST: Duration = Duration::from_micros(50);
/// The shortest one that is not none.
const SHORTEST: Duration = Duration::from_micros(4);

/// The state of it.
#[derive(Debug)]
pub(super) struct AdaptivePoller {
    mode: PollMode,
    window: Duration,
    /// Since when there was nothing to do.
    idle: Option<Instant>,
}

impl AdaptivePoller {
    pub(super) fn new(mode: PollMode) -> Self {
        AdaptivePoller { mode, window: Duration::ZERO, idle: None }
    }

    /// A pass at `now` found work. Returns how long there was none.
    pub(super) fn work(&mut self, now: Instant) -> Duration {
        let Some(since) = self.idle.take() else { return Duration::ZERO };
        let idle = now.saturating_duration_since(since);
        if idle > LONGEST {
            self.window /= 2;
            if self.window < SHORTEST {
                self.window = Duration::ZERO;
            }
        } else if idle > self.window {
            self.window = (self.window * 2).clamp(SHORTEST, LONGEST);
        }
        idle
    }

    /// A pass at `now` found nothing. Returns whether to look again rather than sleep.
    pub(super) fn look_again(&mut self, now: Instant) -> bool {
        let since = *self.idle.get_or_insert(now);
        match self.mode {
            PollMode::Always => true,
            PollMode::Never => false,
            #[cfg(fuzzing)]
            PollMode::Asked => false,
            PollMode::Adaptive => now.saturating_duration_since(since) < self.window,
        }
    }

    /// May it look again and again for someone who never notifies?
    pub(super) const fn polls(&self) -> bool {
        !matches!(self.mode, PollMode::Never)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Idle for each of these many microseconds, then work: for how long does it look in the end?
    fn window_after(gaps: &[u64]) -> u64 {
        let mut poller = AdaptivePoller::new(PollMode::Adaptive);
        let mut now = Instant::now();
        for gap in gaps {
            poller.look_again(now);
            now += Duration::from_micros(*gap);
            poller.work(now);
        }
        poller.window.as_micros() as u64
    }

    #[test]
    fn work_that_comes_soon_after_sleeping_makes_it_look_longer() {
        assert_eq!(window_after(&[]), 0);
        assert_eq!(window_after(&[3]), 4);
        assert_eq!(window_after(&[3, 3, 3]), 4);
        assert_eq!(window_after(&[10, 10, 10, 10]), 16);
        assert_eq!(window_after(&[45, 45, 45, 45, 45, 45, 45]), 50);
    }

    #[test]
    fn work_that_comes_late_makes_it_sleep_at_once_in_the_end() {
        assert_eq!(window_after(&[45, 45, 45, 45, 45, 45, 45, 900]), 25);
        assert_eq!(window_after(&[45, 45, 45, 45, 45, 45, 45, 900, 900, 900, 900]), 0);
    }

    #[test]
    fn it_looks_for_the_window_and_then_sleeps() {
        let (mut poller, start) = (AdaptivePoller::new(PollMode::Adaptive), Instant::now());
        poller.look_again(start);
        poller.work(start + Duration::from_micros(20));
        let asked = |poller: &mut AdaptivePoller, micros| poller.look_again(start + Duration::from_micros(micros));
        assert_eq!([30, 33, 34, 90].map(|at| asked(&mut poller, at)), [true, true, false, false]);
    }

    #[test]
    fn always_never_sleeps_and_never_always_does() {
        let now = Instant::now();
        assert!(AdaptivePoller::new(PollMode::Always).look_again(now + Duration::from_secs(9)));
        assert!(!AdaptivePoller::new(PollMode::Never).look_again(now));
    }
}
