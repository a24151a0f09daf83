//! An rng's driver, good and bad.

use std::sync::Arc;

use super::*;
use crate::backend::{About, Backend};
use crate::memory::LOG_PAGE;
use crate::memory::testing::GuestRam;
use crate::nic::tests::dirty::{Pages, ring_pages};
use crate::nic::tests::{FEATURES, Queue as Driven, RAM, formats, start_of, wait_for, with_workers};
use crate::ring::{Buffer, Placement};
use crate::spec;
use crate::vhost_user::Device;

const AT: u64 = 0x10_0000;

/// Random bytes that can be foretold: each the number of its place, modulo 251.
struct Counting(usize);

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for byte in &mut *buffer {
            *byte = (self.0 % 251) as u8;
            self.0 += 1;
        }
        Ok(buffer.len())
    }
}

struct Rig {
    ram: GuestRam,
    device: Backend,
    shared: Arc<crate::backend::Shared>,
    queue: Driven,
}

impl Rig {
    fn new(features: spec::Features) -> Self {
        Rig::sized(features, 64)
    }

    fn sized(features: spec::Features, size: u16) -> Self {
        let model = Rng { queue_size: 64 };
        let about = About { offered: OFFERED, ..About::default() };
        let path = RngDataPath { source: Counting(0), piece: [0; PIECE] };
        let (shared, workers, _) =
            with_workers(about, ["requestq".to_owned()], |workers, plan| workers.add(path, plan));
        let mut device = Backend::new(model, shared.clone(), workers);
        let ram = GuestRam::new(RAM).unwrap();
        let queue = Driven::sized(&ram, 0x1000, features, size);
        device.set_features(features).unwrap();
        device.set_memory(Arc::clone(ram.memory())).unwrap();
        device.start_queue(0, queue.setup_at(start_of(features))).unwrap();
        Rig { ram, device, shared, queue }
    }

    fn count(&self, name: &str) -> u64 {
        self.shared.queues[0].counters.snapshot().get(name).copied().unwrap_or(0)
    }
}

/// The formats of a ring with nothing that an rng does not offer.
fn rng_formats() -> impl Iterator<Item = spec::Features> {
    formats().into_iter().map(|features| spec::Features(features.0 & OFFERED.0))
}

#[test]
fn the_pages_that_are_filled_are_marked_in_the_log() {
    for features in rng_formats() {
        let mut rig = Rig::new(features);
        let pages = Pages::new();
        rig.device.set_log(pages.log()).unwrap();
        rig.queue.add(&[Buffer::writable(AT, 10), Buffer::writable(AT + 0x5800, 5000)]);
        rig.queue.used();
        // Answered between two passes: the ring's pages are marked by then as well.
        rig.device.set_enabled(0, true).unwrap();
        let mut expected = ring_pages(&rig.queue, features);
        expected.extend([0, 5, 6].map(|page| AT / LOG_PAGE + page));
        assert_eq!(pages.take(), expected, "{features:?}");
    }
}

#[test]
fn a_request_comes_back_full_over_all_its_buffers() {
    for features in rng_formats() {
        let mut rig = Rig::new(features);
        rig.queue.add(&[Buffer::writable(AT, 10), Buffer::writable(AT + 0x5000, 5000)]);
        assert_eq!(rig.queue.used().written, 5010);
        let got = [rig.ram.read(AT, 10).unwrap(), rig.ram.read(AT + 0x5000, 5000).unwrap()].concat();
        let expected: Vec<u8> = (0..5010).map(|at| (at % 251) as u8).collect();
        assert!(got == expected, "{features:?}");
        assert_eq!(["chains", "descriptors", "bytes"].map(|name| rig.count(name)), [1, 2, 5010]);
    }
}

#[test]
fn a_ring_of_one_descriptor_is_served() {
    for features in rng_formats() {
        let mut rig = Rig::sized(features, 1);
        for at in 0..5 {
            rig.queue.add(&[Buffer::writable(AT + 100 * at, 100)]);
            assert_eq!(rig.queue.used().written, 100, "{features:?}");
        }
    }
}

#[test]
fn what_is_no_request_comes_back_untouched_by_name_and_the_next_is_served() {
    for features in rng_formats() {
        let mut rig = Rig::new(features);
        rig.queue.add(&[Buffer::readable(AT, 16), Buffer::writable(AT + 0x1000, 16)]);
        assert_eq!(rig.queue.used().written, 0);
        assert_eq!(rig.ram.read(AT + 0x1000, 16).unwrap(), [0; 16]);
        rig.queue.add(&[Buffer::writable(AT, 0)]);
        assert_eq!(rig.queue.used().written, 0);
        rig.queue.add(&[Buffer::writable(AT, 16)]);
        assert_eq!(rig.queue.used().written, 16);
        let counts = ["drop_readable_buffers", "drop_empty_request", "drops", "errors"].map(|name| rig.count(name));
        assert_eq!(counts, [1, 1, 2, 0], "{features:?}");
    }
}

#[test]
fn a_request_for_more_than_a_pass_gives_gets_that_much() {
    for features in rng_formats() {
        let mut rig = Rig::new(features);
        let huge = (RAM - AT) as u32;
        assert!(huge > BYTES_PER_PASS);
        rig.queue.add(&[Buffer::writable(AT, huge)]);
        assert_eq!(rig.queue.used().written, BYTES_PER_PASS);
        let behind = rig.ram.read(AT + u64::from(BYTES_PER_PASS), 64).unwrap();
        assert_eq!(behind, [0; 64]);
    }
}

#[test]
fn many_requests_are_all_served_pass_after_pass() {
    let mut rig = Rig::new(spec::Features(FEATURES.0 & OFFERED.0));
    for _ in 0..50 {
        for at in 0..16 {
            rig.queue.driver.add(&[Buffer::writable(AT + 0x2000 * at, 0x2000)], Placement::Direct).unwrap();
        }
        rig.queue.kick_if_wanted();
        // The last one that fits into a pass may be given less: at least a byte, as the specification wants it.
        (0..16).for_each(|_| assert!((1..=0x2000).contains(&rig.queue.used().written)));
    }
    assert_eq!(rig.count("chains"), 800);
}

#[test]
fn a_broken_chain_stops_the_queue_and_a_restart_recovers_it() {
    let features = spec::Features(FEATURES.0 & OFFERED.0);
    let mut rig = Rig::new(features);
    rig.queue.add(&[Buffer::writable(RAM - 4, 60)]);
    wait_for("stopped", || rig.count("error_unmapped") == 1);
    rig.device.stop_queue(0).unwrap();
    rig.queue = Driven::new(&rig.ram, 0x1000, features);
    rig.device.start_queue(0, rig.queue.setup_at(start_of(features))).unwrap();
    rig.queue.add(&[Buffer::writable(AT, 16)]);
    assert_eq!(rig.queue.used().written, 16);
}

#[test]
fn the_hosts_own_source_gives_different_bytes_each_time() {
    let mut path = RngDataPath::open().unwrap();
    let mut draw = || {
        let mut bytes = [0; 32];
        path.source.read_exact(&mut bytes).unwrap();
        bytes
    };
    assert_ne!(draw(), draw());
}
