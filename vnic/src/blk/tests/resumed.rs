//! A disk whose back-end was killed: the next one goes on with what was in flight.

use std::collections::BTreeSet;

use super::*;
use crate::memory::SharedArea;
use crate::spec::vhost_user::Inflight;

/// What the driver of a killed back-end left behind.
struct Left {
    rig: Rig,
    area: SharedArea,
    heads: Vec<u16>,
}

/// A ring of three writes to the same sector. The back-end before took all of them, the first one last, answered the second, and died
/// between the used index and the record of it. Written out as the specification has it.
fn resumed(setup: Setup) -> Left {
    let mut rig = Rig::new(setup);
    rig.device.stop_queue(0).unwrap();
    let told = Inflight { mmap_size: 4096, mmap_offset: 0, num_queues: 1, queue_size: 64 };
    let file = SharedArea::file(4096).unwrap();
    let area = SharedArea::open(file.try_clone().unwrap(), 0, 4096).unwrap();
    rig.queue = Driven::new(&rig.ram, 0x1000, setup.features);
    let heads: Vec<u16> = (0..3)
        .map(|at| {
            // Of each its header, status and data in a page of its own.
            let page = DATA + 0x1000 * at;
            rig.ram.write(page, &BlkHeader { kind: T_OUT, sector: 3 }.to_bytes()).unwrap();
            rig.ram.write(page + 16, &[0xee]).unwrap();
            rig.ram.write(page + 512, &[at as u8 + 1; 512]).unwrap();
            let chain = [Buffer::readable(page, 16), Buffer::readable(page + 512, 512), Buffer::writable(page + 16, 1)];
            let head = rig.queue.driver.add(&chain, Placement::Direct).unwrap();
            rig.queue.driver.publish();
            head
        })
        .collect();
    let used = rig.queue.setup_at(start_of(setup.features)).addresses.device;
    let element = [u32::from(heads[1]).to_le_bytes(), 1_u32.to_le_bytes()].concat();
    rig.ram.write(used + 4, &element).unwrap();
    rig.ram.write(used + 2, &1_u16.to_le_bytes()).unwrap();
    area.half(8).unwrap().store(1, Ordering::Relaxed);
    area.half(10).unwrap().store(64, Ordering::Relaxed);
    area.half(12).unwrap().store(heads[1], Ordering::Relaxed);
    for (head, counter) in heads.iter().zip([9_u64, 7, 8]) {
        let entry = 16 + 16 * usize::from(*head);
        area.byte(entry).unwrap().store(1, Ordering::Relaxed);
        area.long(entry + 8).unwrap().store(counter, Ordering::Relaxed);
    }
    rig.device.set_in_flight_area(Some((file, told))).unwrap();
    rig.device.start_queue(0, rig.queue.setup_at(start_of(setup.features))).unwrap();
    let back: BTreeSet<u16> = (0..3).map(|_| rig.queue.used().head).collect();
    assert_eq!(back, heads.iter().copied().collect());
    Left { rig, area, heads }
}

/// For the test that every counter of a queue rises somewhere.
pub(crate) fn counts_of_a_resumed_queue() -> std::collections::BTreeMap<String, u64> {
    resumed(setups()[0]).rig.shared.queues[0].counters.snapshot()
}

#[test]
fn requests_in_flight_are_done_once_in_their_order_and_those_that_were_answered_are_not_done_again() {
    for setup in setups().into_iter().filter(|setup| !setup.features.has(Feature::RingPacked)) {
        let Left { mut rig, area, heads } = resumed(setup);
        let status = |at: u64| rig.ram.read(DATA + 0x1000 * at + 16, 1).unwrap()[0];
        assert_eq!([status(0), status(1), status(2)], [S_OK, 0xee, S_OK], "{setup:?}");
        assert_eq!([rig.count("resumed"), rig.count("chains"), rig.count("drops")], [2, 2, 0]);
        if setup.waiting {
            // One after the other: the first was taken last.
            let mut there = [0; 512];
            rig.scratch.file.read_exact_at(&mut there, 3 * 512).unwrap();
            assert_eq!(there, [1; 512]);
        }
        // All is crossed off, and the next starts with nothing.
        rig.device.stop_queue(0).unwrap();
        let in_flight = |head: &u16| area.byte(16 + 16 * usize::from(*head)).unwrap().load(Ordering::Relaxed);
        assert!(heads.iter().all(|head| in_flight(head) == 0));
        assert_eq!(area.half(14).unwrap().load(Ordering::Relaxed), 3);
    }
}

#[test]
fn a_record_that_contradicts_itself_stops_its_queue_by_name() {
    let mut rig = Rig::new(setups()[0]);
    rig.device.stop_queue(0).unwrap();
    let told = Inflight { mmap_size: 4096, mmap_offset: 0, num_queues: 1, queue_size: 64 };
    let file = SharedArea::file(4096).unwrap();
    let area = SharedArea::open(file.try_clone().unwrap(), 0, 4096).unwrap();
    area.half(8).unwrap().store(1, Ordering::Relaxed);
    area.half(14).unwrap().store(1000, Ordering::Relaxed);
    rig.device.set_in_flight_area(Some((file, told))).unwrap();
    rig.device.start_queue(0, rig.queue.setup_at(start_of(setups()[0].features))).unwrap();
    // The queue says why after it has counted.
    wait_for("stopped", || rig.shared.queues[0].error().is_some());
    assert_eq!(rig.count("error_in_flight_record"), 1);
    let error = rig.shared.queues[0].error().unwrap();
    assert!(error.contains("contradicts itself: used_idx 1000"), "{error}");
}
