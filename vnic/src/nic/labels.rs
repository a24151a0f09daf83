//! Whose memory the buffers in a capture are.

use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::Shared;
use crate::backend::labels::EyesStamper;
use crate::link::capture::{Labels, Mark};
use crate::provenance::in_words;

/// Labels for the capture of a device.
#[derive(Debug)]
pub(super) struct CaptureLabels {
    shared: Arc<Shared>,
    /// As long as it is here, the workers take stamps.
    stamper: Mutex<Option<Arc<EyesStamper>>>,
}

impl CaptureLabels {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        CaptureLabels { shared, stamper: Mutex::default() }
    }
}

impl Labels for CaptureLabels {
    fn label(&self, marks: &[Mark], labels: &mut Vec<Option<String>>) {
        let Some(memory) = self.shared.view().memory.clone() else { return };
        // Of the kernel that runs now; that of the first frames is not known yet.
        let stamper = self.shared.labels.want_stamps(&memory).ok();
        *self.stamper.lock().unwrap_or_else(PoisonError::into_inner) = stamper;
        let mut of_one = Vec::new();
        // Without a kernel there is nothing to be said: the next one may be there soon.
        let _ = self.shared.labels.watch(&memory, |eyes| {
            for mark in marks {
                of_one.clear();
                eyes.labels_of(mark.gpa, mark.len, mark.stamp, &mut of_one);
                labels.push(in_words(&of_one));
            }
        });
    }
}
