//! Whose memory the buffers in a capture are.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::backend::Shared;
use crate::backend::guest::{Guest as _, Served};
use crate::link::capture::{Buffer, Labels, Whose};
use crate::observe::tracer::EventBuffer;
use crate::provenance::{SourceKind, in_words};

/// Labels for the capture of a device.
#[derive(Debug)]
pub(super) struct CaptureLabels(Mutex<Served<Arc<Shared>>>);

impl CaptureLabels {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        CaptureLabels(Mutex::new(Served::new(shared)))
    }
}

impl Labels for CaptureLabels {
    fn label(&self, _at: Duration, buffers: &[Buffer], labels: &mut Vec<Option<Whose>>) {
        let mut guest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Of the kernel that runs now; that of the first frames is not known yet. Without one there is nothing to be said: the next one
        // may be there soon.
        let _ = guest.open();
        let mut of_one = Vec::new();
        let _ = guest.look(&mut |label| {
            for Buffer { gpa, len, stamp, .. } in buffers {
                of_one.clear();
                label(&EventBuffer { gpa: *gpa, len: *len, ..EventBuffer::default() }, *stamp, &mut of_one);
                let mut kinds = of_one.iter().map(SourceKind::of);
                let first = kinds.next();
                let kind = first.filter(|first| kinds.all(|kind| kind == *first)).unwrap_or(SourceKind::Unsettled);
                labels.push(in_words(&of_one).map(|words| Whose { words, kind }));
            }
        });
    }
}
