//! Features that a link refuses.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::link::{LinkCounters, LinkError};

/// What the workers' links were told, and whether one is to refuse.
#[derive(Debug, Default)]
struct Seen {
    refuse: AtomicBool,
    told: [Mutex<Vec<spec::Features>>; 2],
}

struct Choosy {
    seen: Arc<Seen>,
    number: usize,
}

impl Port for Choosy {
    fn negotiated(&mut self, features: spec::Features) -> Result<(), LinkError> {
        self.seen.told[self.number].lock().unwrap().push(features);
        if self.number == 1 && self.seen.refuse.swap(false, Ordering::Relaxed) {
            return Err(LinkError::Refused { bytes: 0, reason: "not these" });
        }
        Ok(())
    }

    fn poll(&mut self, _now: Instant) {}

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::new(LinkCounters::new(&[]))
    }
}

#[test]
fn features_that_one_worker_refuses_are_in_force_on_none() {
    let seen = Arc::<Seen>::default();
    let ports = [0, 1].map(|number| Choosy { seen: Arc::clone(&seen), number });
    let (mut device, shared, ..) = on_ports(ports, PollMode::Adaptive, 2);
    device.set_features(FEATURES).unwrap();
    seen.refuse.store(true, Ordering::Relaxed);
    let error = device.set_features(FEATURES.without(Feature::MrgRxbuf)).unwrap_err();
    assert!(error.to_string().contains("not these"), "{error}");
    let last = seen.told.each_ref().map(|told| told.lock().unwrap().last().copied());
    assert_eq!(last, [Some(FEATURES); 2]);
    assert_eq!(shared.view().negotiated, FEATURES);
}
