//! Whose the guest's pages are, for the control socket: the eyes on the guest's kernel, opened when somebody asks.
//!
//! Operation: the kernel is found anew for a new driver and for other memory, since the guest may have booted another; and
//! where the one that was found runs no more. Invariants: whoever serves the session never waits here ([`Labels::forget`]),
//! and memory of a session that is over is let go.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};

use crate::introspect::{AttachError, Introspection, Label};
use crate::memory::{Memory, Onlooker};

/// The eyes on the guest's kernel.
#[derive(Debug, Default)]
pub struct Labels {
    /// Rises with each driver, and each time the memory is another.
    epoch: AtomicU64,
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    epoch: u64,
    eyes: Introspection<Onlooker>,
}

impl Labels {
    /// The guest's memory is another, or a driver began: what was found in it may be gone.
    pub(crate) fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.close_stale();
    }

    /// Closes eyes that are open on what is gone, unless somebody looks with them: he closes them himself then.
    fn close_stale(&self) {
        let mut open = match self.open.try_lock() {
            Ok(open) => open,
            Err(TryLockError::Poisoned(open)) => open.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if open.as_ref().is_some_and(|open| open.epoch != self.epoch.load(Ordering::Acquire)) {
            *open = None;
        }
    }

    /// Labels for these guest-physical addresses.
    ///
    /// # Errors
    /// There is no kernel in the memory that can be looked into.
    pub(crate) fn look(&self, memory: &Arc<Memory>, gpas: &[u64]) -> Result<Vec<Label>, AttachError> {
        let labels = self.look_locked(memory, gpas);
        self.close_stale();
        labels
    }

    fn look_locked(&self, memory: &Arc<Memory>, gpas: &[u64]) -> Result<Vec<Label>, AttachError> {
        let mut open = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let epoch = self.epoch.load(Ordering::Acquire);
        let usable = |open: &Open| open.epoch == epoch && open.eyes.is_alive();
        let eyes = match open.take_if(|open| !usable(open)).map_or(open.as_mut(), |_| None) {
            Some(open) => &mut open.eyes,
            None => {
                let eyes = Introspection::attach(Onlooker::new(memory)?)?;
                tracing::info!(kernel = eyes.release(), "looks into the guest's kernel");
                &mut open.insert(Open { epoch, eyes }).eyes
            }
        };
        Ok(gpas.iter().map(|gpa| eyes.label(*gpa)).collect())
    }
}
