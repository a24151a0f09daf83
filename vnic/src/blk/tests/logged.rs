//! The log of dirty pages: what is read from the disk into the guest's memory is marked, and the status.

use super::*;
use crate::memory::LOG_PAGE;
use crate::nic::tests::dirty::{Pages, changed, ring_pages};

#[test]
fn what_is_read_from_the_disk_is_marked_also_where_it_was_under_way_before_there_was_a_log() {
    for setup in setups() {
        let mut rig = Rig::new(setup);
        rig.scratch.file.write_all_at(&pattern(1 << 20), 0).unwrap();
        for round in 0..20_u64 {
            // Added while nobody looks; what comes from the device alone is seen.
            let base = rig.device.stop_queue(0).unwrap();
            let pages = Pages::new();
            let mut may: std::collections::BTreeSet<u64> = ring_pages(&rig.queue, setup.features);
            for at in 0..8 {
                let (data, status) = (DATA + 0x8000 * at + 0xe00, STATUS + 0x1000 * at);
                let header = HEADER + 16 * at;
                rig.ram.write(header, &BlkHeader { kind: T_IN, sector: round + 7 * at }.to_bytes()).unwrap();
                rig.ram.write(status, &[0xee]).unwrap();
                let chain = [
                    Buffer::readable(header, 16),
                    Buffer::writable(data, 512 * (1 + 9 * at as u32)),
                    Buffer::writable(status, 1),
                ];
                rig.queue.driver.add(&chain, Placement::Direct).unwrap();
                rig.queue.driver.publish();
                may.extend(data / LOG_PAGE..=(data + 512 * (1 + 9 * at)) / LOG_PAGE);
                may.insert(status / LOG_PAGE);
            }
            let before = rig.ram.read(0, RAM as usize).unwrap();
            if round % 2 == 0 {
                rig.device.set_log(pages.log()).unwrap();
            }
            rig.device.start_queue(0, rig.queue.setup_at(base)).unwrap();
            if round % 2 == 1 {
                // Whatever is under way by now.
                rig.device.set_log(pages.log()).unwrap();
            }
            let goal = 8 * (round + 1);
            wait_for("the requests", || rig.count("chains") == goal);
            let base = rig.device.stop_queue(0).unwrap();
            let changed = changed(&before, &rig.ram.read(0, RAM as usize).unwrap());
            let marked = pages.take();
            if round % 2 == 0 {
                assert!(changed.is_subset(&marked), "{changed:x?} {marked:x?} {setup:?}");
            }
            assert!(marked.is_subset(&may), "{marked:x?} {may:x?} {setup:?}");
            (0..8).for_each(|_| assert!(rig.queue.driver.pop_used().unwrap().is_some()));
            rig.device.set_log(None).unwrap();
            rig.device.start_queue(0, rig.queue.setup_at(base)).unwrap();
        }
    }
}
