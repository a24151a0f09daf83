//! What a queue writes into the guest, in the log of dirty pages: for a front-end that copies the guest elsewhere while it runs.
//!
//! Operation: chains are marked where they go [back](super::complete), by what was written into them; the ring marks what it writes
//! itself (`RingLog`). A queue gets a log, or loses it, between two passes: nothing is negotiated anew, no frame is touched.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::queue::signal;
use crate::memory::DirtyLog;
use crate::ring::{ChainView, LogAddress};

/// The log of one queue.
#[derive(Debug, Clone)]
pub struct QueueLog {
    /// The pages.
    pub pages: Arc<DirtyLog>,
    /// Where the ring itself is logged beside where it lies.
    pub ring: LogAddress,
    /// Whom to tell that something was logged (`SET_LOG_FD`).
    pub told: Option<Arc<OwnedFd>>,
}

impl QueueLog {
    /// The first `written` bytes of a chain's writable part have been written.
    pub fn wrote(&self, chain: ChainView<'_>, written: u32) {
        let mut left = written as usize;
        for slice in chain.writable() {
            let here = slice.first(left);
            left -= here.len();
            if let (false, Some(gpa)) = (here.is_empty(), chain.memory().gpa_at(here.as_ptr())) {
                self.pages.mark(gpa.0, here.len() as u64);
            }
        }
    }

    /// Tells whoever wants to know that something was logged.
    pub fn tell(&self) {
        if let Some(told) = &self.told {
            signal(told.as_fd());
        }
    }
}
