//! The log of dirty pages is by guest-physical address, wherever the IOMMU has them.

use super::*;
use crate::memory::LOG_PAGE;
use crate::nic::tests::dirty::{Pages, changed, ring_pages};

#[test]
fn pages_are_marked_where_they_are_and_not_where_the_driver_has_them() {
    /// Where the receive buffers' pages are.
    const ELSEWHERE: [u64; 2] = [0x3c_0000, 0x3a_0000];
    for features in formats() {
        let mut behind = Behind::ready(&LinkKind::Loopback, features);
        behind.rig.rx.add(&[Buffer::writable(iova(RECEIVE) + PAGE - 200, 2000)]);
        behind.send(iova(PAYLOAD), 1000);
        behind.misses(2);
        behind.give_shifted(HEADER, "r");
        behind.give_shifted(PAYLOAD, "r");
        behind.misses(2);
        for (at, gpa) in (0..).zip(ELSEWHERE) {
            behind.give_page(iova(RECEIVE) + at * PAGE, gpa, "w");
        }
        behind.rig.tx.used();
        behind.rig.rx.used();
        let pages = Pages::new();
        behind.rig.device.set_log(pages.log()).unwrap();
        let rings = ring_pages(&behind.rig.rx, behind.features())
            .into_iter()
            .chain(ring_pages(&behind.rig.tx, behind.features()));
        let rings: std::collections::BTreeSet<u64> = rings.collect();
        assert_eq!(pages.take(), rings, "what may have been written before");
        for round in 0..40_u8 {
            // Nothing goes on while the driver writes, nor while memory is looked at.
            let hold = |behind: &Behind, on| [RX, TX].iter().all(|index| behind.rig.workers.hold(*index, on));
            assert!(hold(&behind, true));
            behind.rig.ram.write(PAYLOAD, &[round; 1000]).unwrap();
            behind.rig.rx.add(&[Buffer::writable(iova(RECEIVE) + PAGE - 200, 2000)]);
            behind.send(iova(PAYLOAD), 1000);
            let before = behind.rig.ram.read(0, RAM as usize).unwrap();
            assert!(hold(&behind, false));
            let number = u64::from(round) + 2;
            let deadline = Instant::now() + PATIENCE;
            let counted = |index: &u16| behind.rig.counter(*index, "chains");
            while ![RX, TX].iter().all(|index| counted(index) == number) {
                let shared = &behind.rig.shared.queues;
                let states = [RX, TX]
                    .map(|index| (behind.state(index), counted(&index), shared[usize::from(index)].waits_for()));
                assert!(Instant::now() < deadline, "round {round}: {states:?} {features:?}");
                std::thread::yield_now();
            }
            assert!(hold(&behind, true));
            let changed = changed(&before, &behind.rig.ram.read(0, RAM as usize).unwrap());
            let marked = pages.take();
            assert!(changed.is_subset(&marked), "{changed:x?} {marked:x?} {features:?}");
            assert!(ELSEWHERE.iter().all(|gpa| marked.contains(&(gpa / LOG_PAGE))), "{marked:x?}");
            let may = rings.iter().copied().chain(ELSEWHERE.map(|gpa| gpa / LOG_PAGE));
            assert!(marked.is_subset(&may.collect()), "{marked:x?}");
            assert!(hold(&behind, false));
            behind.rig.tx.used();
            behind.rig.rx.used();
        }
    }
}
