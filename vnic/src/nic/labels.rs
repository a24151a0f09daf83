//! Whose memory the buffers in a capture are.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::backend::Shared;
use crate::backend::guest::{Guest as _, Served};
use crate::link::capture::{Labels, Mark};
use crate::observe::tracer::EventBuffer;
use crate::provenance::in_words;

/// Labels for the capture of a device.
#[derive(Debug)]
pub(super) struct CaptureLabels(Mutex<Served<Arc<Shared>>>);

impl CaptureLabels {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        CaptureLabels(Mutex::new(Served::new(shared)))
    }
}

impl Labels for CaptureLabels {
    fn label(&self, _at: Duration, marks: &[Mark], labels: &mut Vec<Option<String>>) {
        let mut guest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Of the kernel that runs now; that of the first frames is not known yet. Without one there is nothing to be said: the next one
        // may be there soon.
        let _ = guest.open();
        let mut of_one = Vec::new();
        let _ = guest.look(&mut |label| {
            for mark in marks {
                of_one.clear();
                let buffer = EventBuffer { gpa: mark.gpa, len: mark.len, ..EventBuffer::default() };
                label(&buffer, mark.stamp, &mut of_one);
                labels.push(in_words(&of_one));
            }
        });
    }
}
