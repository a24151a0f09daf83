//! Waiting for what somebody else does: it is looked for again and again, for so long at most.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Between two looks.
const BETWEEN: Duration = Duration::from_millis(10);

/// What `look` finds, once it finds something; `None`: nothing by the deadline. It looks once at least.
///
/// # Errors
/// Those of a look.
pub(crate) fn until<T>(deadline: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let start = Instant::now();
    loop {
        let found = look()?;
        if found.is_some() || start.elapsed() >= deadline {
            return Ok(found);
        }
        thread::sleep(BETWEEN);
    }
}
