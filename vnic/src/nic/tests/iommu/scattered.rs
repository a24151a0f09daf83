//! Rings and buffers whose pages the IOMMU has in any order.

use super::*;

/// A ring of four pages and more, each somewhere else.
#[test]
fn a_ring_need_not_lie_in_one_piece() {
    for features in formats() {
        let mut behind = Behind::ready(&LinkKind::Sink, features);
        behind.rig.device.stop_queue(TX).unwrap();
        // The driver half has it in one piece, of which every page is moved to where the IOMMU says.
        let base = 0x28_0000;
        let mut queue = Queue::sized(&behind.rig.ram, base, behind.features(), 1024);
        let pages = 8;
        let moved = |page: u64| 0x38_0000 + (page * 5 % pages) * PAGE;
        let file = behind.rig.ram.fd().try_clone_to_owned().unwrap();
        let region = |page: u64, offset| memory::RegionSpec {
            gpa: Gpa(base + page * PAGE),
            size: PAGE,
            user_addr: memory::UserAddr(base + page * PAGE),
            mmap_offset: offset,
        };
        let pieces = (0..pages).map(|page| (region(page, moved(page)), file.try_clone().unwrap())).collect();
        let scattered = memory::Memory::map(pieces).unwrap();
        let scattered = Arc::new(scattered.behind(identity(base, pages)));
        queue.driver = if features.has(Feature::RingPacked) {
            Box::new(PackedDriver::new(queue.layout, scattered, behind.features()).unwrap())
        } else {
            Box::new(SplitDriver::new(queue.layout, scattered, behind.features()).unwrap())
        };
        behind.rig.tx = queue;
        behind.start(TX, start_of(features));
        behind.rig.wait_for("waiting", |rig| rig.shared.queues[1].state() == QueueState::Waiting);
        while behind.state(TX) == QueueState::Waiting {
            let miss = behind.said();
            let page = (miss.iova - iova(base)) / PAGE;
            behind.give_page(miss.iova, moved(page), "rw");
            // A command later it has been taken notice of.
            assert!(behind.rig.workers.hold(RX, false));
        }
        behind.send(iova(PAYLOAD), 100);
        behind.misses(2);
        behind.give_shifted(HEADER, "r");
        behind.give_shifted(PAYLOAD, "r");
        behind.rig.tx.used();
        for _ in 0..3000 {
            behind.send(iova(PAYLOAD), 100);
            behind.rig.tx.used();
        }
        assert_eq!((behind.rig.counter(TX, "bytes"), behind.rig.counter(TX, "errors")), (300_100, 0));
        assert_eq!(crate::serve::status::rings(&behind.rig.shared, Some(TX))[0].faults, Vec::<String>::new());
    }
}

/// An IOMMU that leaves these pages where they are.
fn identity(base: u64, pages: u64) -> Arc<memory::Iotlb> {
    let iotlb = memory::Iotlb::for_observers();
    for page in 0..pages {
        let at = base + page * PAGE;
        iotlb.update(&IotlbEntry { iova: Iova(at), size: PAGE, gpa: Gpa(at), read: true, write: true });
    }
    Arc::new(iotlb)
}
