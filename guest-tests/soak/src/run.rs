//! What the actors share: how long, what next, what was done how often.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use guest_fixture::note;

/// One run.
#[derive(Debug)]
pub(crate) struct Run {
    seed: u64,
    began: Instant,
    lasts: Duration,
    over: AtomicBool,
    tally: Mutex<BTreeMap<&'static str, u64>>,
}

/// Something that an actor does: its name in the summary, how often it is chosen, and what it is.
pub(crate) type Action<A> = (&'static str, usize, fn(&mut A));

/// Has the others stop when it is dropped by a panic.
pub(crate) struct End<'r>(&'r Run);

impl Run {
    pub(crate) fn new(seed: u64, minutes: u64) -> Run {
        let lasts = Duration::from_secs(60 * minutes);
        Run { seed, began: Instant::now(), lasts, over: AtomicBool::new(false), tally: Mutex::default() }
    }

    pub(crate) fn ends(&self) -> End<'_> {
        End(self)
    }

    pub(crate) fn minutes(&self) -> f64 {
        self.began.elapsed().as_secs_f64() / 60.0
    }

    /// The same for the same seed and actor.
    pub(crate) fn rng(&self, actor: &str) -> Rng {
        Rng::with_seed(actor.bytes().fold(self.seed, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into())))
    }

    /// Something was done so often.
    pub(crate) fn did(&self, what: &'static str, times: u64) {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += times;
    }

    /// Does each action once, then what the seed says, until time is over. After each, `settled` is told whether that
    /// was the last of the first round, and how much of the time is over.
    pub(crate) fn play<A>(
        &self,
        rng: &mut Rng,
        actor: &mut A,
        actions: &[Action<A>],
        mut settled: impl FnMut(&mut A, bool, f64),
    ) {
        let mut chosen: Vec<usize> = actions.iter().enumerate().flat_map(|(at, action)| vec![at; action.1]).collect();
        rng.shuffle(&mut chosen);
        let mut first: Vec<usize> = (0..actions.len()).collect();
        while !self.over.load(Ordering::Relaxed) && (self.began.elapsed() < self.lasts || !first.is_empty()) {
            let in_first_round = !first.is_empty();
            let at = if in_first_round { first.remove(0) } else { chosen[rng.usize(..chosen.len())] };
            let (name, _, act) = actions[at];
            note(&format!("{:>6.1} s  {name}", self.began.elapsed().as_secs_f64()));
            act(actor);
            self.did(name, 1);
            let share = self.began.elapsed().as_secs_f64() / self.lasts.as_secs_f64();
            settled(actor, in_first_round && first.is_empty(), share);
        }
        // A run that was cut short by another actor's failure has nothing to say of this one.
        if !first.is_empty() {
            note("stops, as another actor failed");
        }
    }

    /// What was done how often.
    pub(crate) fn summary(&self) -> String {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
    }
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.over.store(true, Ordering::Relaxed);
        }
    }
}
