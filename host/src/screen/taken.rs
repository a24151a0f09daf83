//! Has the terminal shown what was written to it? Over a slow line a picture takes seconds, and whatever lies between (the kernel, ssh)
//! takes many more at once: without asking, what is seen would be from ever longer ago.
//!
//! Operation: behind a picture the terminal is asked where its cursor is, which it answers once it has come to that. Until then no
//! other is drawn, of a terminal that has answered before; one that never does is not asked for long, and gets them as they come.

use std::time::{Duration, Instant};

/// `DSR`, for which a terminal sends a `CPR`. ECMA-48, 8.3.35 and 8.3.14.
pub(super) const QUESTION: &str = "\x1b[6n";

/// How long an answer may take, of one that answers, and of one that may.
const MOST: Duration = Duration::from_secs(20);

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Taken {
    asked: Option<Instant>,
    /// It has answered once.
    answers: bool,
    /// It never has.
    mute: bool,
}

impl Taken {
    /// Is it to be asked behind this picture? Then it is.
    pub(super) fn asks(&mut self) -> bool {
        let asks = self.asked.is_none() && !self.mute;
        if asks {
            self.asked = Some(Instant::now());
        }
        asks
    }

    /// It has answered.
    pub(super) fn answered(&mut self) {
        (self.asked, self.answers) = (None, true);
    }

    /// How long it may take at most until it has shown the last picture; `None`: the next may come.
    pub(super) fn left(&mut self) -> Option<Duration> {
        let left = self.asked.map(|asked| MOST.saturating_sub(asked.elapsed()))?;
        if left.is_zero() {
            (self.asked, self.mute) = (None, !self.answers);
        }
        Some(left).filter(|left| self.answers && !left.is_zero())
    }

    /// Will there be an answer yet?
    pub(super) fn is_owed(&self) -> bool {
        self.answers && self.asked.is_some()
    }
}
