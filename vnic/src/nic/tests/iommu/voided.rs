//! Translations that are void: by an invalidation, with the memory, with the rings that used them.

use std::sync::atomic::Ordering;

use super::*;

#[test]
fn once_an_invalidation_is_answered_the_old_page_is_not_touched() {
    for features in formats() {
        let mut behind = Behind::ready(&LinkKind::Loopback, features);
        let (old, new) = (0x2_0000, 0x2_8000);
        behind.rig.ram.write(old, &[0xaa; 200]).unwrap();
        behind.rig.ram.write(new, &[0xbb; 200]).unwrap();
        // The rounds after the first find everything in the queues' own copies.
        behind.rig.rx.add(&[Buffer::writable(iova(RECEIVE), PAGE as u32)]);
        behind.send(iova(PAYLOAD), 200);
        behind.misses(2);
        behind.give_shifted(HEADER, "r");
        behind.give_page(iova(PAYLOAD), old, "r");
        behind.misses(1);
        behind.give_shifted(RECEIVE, "w");
        behind.rig.tx.used();
        behind.rig.rx.used();
        for (from, to) in [(old, new), (new, old)].repeat(4) {
            assert_eq!(behind.round(iova(PAYLOAD), 200), behind.rig.ram.read(from, 200).unwrap());
            behind.invalidate(iova(PAYLOAD), iova(PAYLOAD) + PAGE - 1);
            behind.send(iova(PAYLOAD), 200);
            assert_eq!(behind.misses(1), [(iova(PAYLOAD), Access::Read)]);
            behind.rig.rx.add(&[Buffer::writable(iova(RECEIVE), PAGE as u32)]);
            behind.give_page(iova(PAYLOAD), to, "r");
            behind.rig.tx.used();
            behind.rig.rx.used();
            let got = behind.rig.ram.read(RECEIVE + NET_HEADER_LEN as u64, 200).unwrap();
            assert_eq!(got, behind.rig.ram.read(to, 200).unwrap());
            // And without an invalidation, a translation that replaces one.
            behind.give_page(iova(PAYLOAD), from, "r");
            behind.send(iova(PAYLOAD), 200);
            behind.misses(1);
            behind.give_page(iova(PAYLOAD), to, "r");
            behind.rig.rx.add(&[Buffer::writable(iova(RECEIVE), PAGE as u32)]);
            behind.rig.tx.used();
            behind.rig.rx.used();
        }
    }
}

#[test]
fn a_ring_whose_translation_is_void_is_left_alone_and_goes_on_when_it_is_back() {
    for features in formats() {
        let mut behind = Behind::ready(&LinkKind::Sink, features);
        behind.send(iova(PAYLOAD), 100);
        behind.misses(2);
        behind.give_shifted(HEADER, "r");
        behind.give_shifted(PAYLOAD, "r");
        behind.rig.tx.used();
        let ring = behind.rig.tx.layout.desc;
        behind.invalidate(iova(ring), iova(ring) + PAGE - 1);
        assert_eq!(behind.misses(2), [(iova(ring), Access::Read), (iova(ring), Access::Write)]);
        assert_eq!(behind.state(TX), QueueState::Waiting);
        let before = behind.rig.ram.read(ring, PAGE as usize).unwrap();
        // What the driver does meanwhile has no effect until the ring is back; it may be elsewhere.
        behind.send(iova(PAYLOAD), 200);
        behind.send(iova(PAYLOAD), 300);
        assert!(behind.is_silent());
        let after = behind.rig.ram.read(ring, PAGE as usize).unwrap();
        assert_ne!(before, after, "the driver wrote");
        assert_eq!(behind.rig.counter(TX, "chains"), 1);
        behind.give_shifted(ring, "rw");
        behind.rig.tx.used();
        behind.rig.tx.used();
        assert_eq!((behind.rig.counter(TX, "bytes"), behind.rig.counter(TX, "errors")), (600, 0));
    }
}

#[test]
fn other_memory_voids_every_translation() {
    let mut behind = Behind::ready(&LinkKind::Sink, FEATURES);
    behind.send(iova(PAYLOAD), 100);
    behind.misses(2);
    behind.give_shifted(HEADER, "r");
    behind.give_shifted(PAYLOAD, "r");
    behind.rig.tx.used();
    let file = behind.rig.ram.fd().try_clone_to_owned().unwrap();
    let again = memory::Memory::map(vec![(behind.rig.ram.specs()[0], file)]).unwrap();
    behind.rig.device.set_memory(Arc::new(again)).unwrap();
    assert_eq!(behind.status().iotlb.unwrap().entries, 0);
    behind.give_rings();
    behind.send(iova(PAYLOAD), 100);
    behind.misses(2);
    behind.give_shifted(HEADER, "r");
    behind.give_shifted(PAYLOAD, "r");
    behind.rig.tx.used();
    assert_eq!(behind.rig.counter(TX, "bytes"), 200);
}

#[test]
fn a_front_end_that_does_not_read_is_asked_again_with_its_next_message() {
    let mut behind = Behind::ready(&LinkKind::Sink, FEATURES);
    behind.rig.device.set_backend_channel(None).unwrap();
    behind.send(iova(PAYLOAD), 100);
    behind.rig.wait_for("waiting", |rig| rig.shared.queues[1].state() == QueueState::Waiting);
    let (front_end, back_end) = UnixStream::pair().unwrap();
    front_end.set_read_timeout(Some(PATIENCE)).unwrap();
    behind.front_end = front_end;
    behind.rig.device.set_backend_channel(Some(BackendChannel::new(back_end.into()))).unwrap();
    behind.invalidate(0, 0);
    assert_eq!(behind.misses(2), [(iova(HEADER), Access::Read), (iova(PAYLOAD), Access::Read)]);
}

#[test]
fn a_reset_forgets_the_iommu() {
    let mut behind = Behind::ready(&LinkKind::Sink, FEATURES);
    behind.rig.device.stop_queue(TX).unwrap();
    behind.rig.device.stop_queue(RX).unwrap();
    behind.rig.device.reset();
    assert_eq!(behind.status().iotlb, None);
    // A driver without an IOMMU comes next.
    behind.rig.device.set_features(FEATURES).unwrap();
    behind.rig.tx = Queue::new(&behind.rig.ram, 0x8000, FEATURES);
    let setup = behind.rig.tx.setup(0);
    behind.rig.device.start_queue(TX, setup).unwrap();
    behind.rig.send(100);
    behind.rig.tx.used();
}

/// A front-end without STATUS resets nothing when the driver goes: it stops the rings, and says of no translation that it is
/// void.
#[test]
fn translations_end_with_the_last_ring() {
    for features in formats() {
        let mut behind = Behind::ready(&LinkKind::Sink, features);
        behind.send(iova(PAYLOAD), 100);
        behind.misses(2);
        behind.give_shifted(HEADER, "r");
        behind.give_shifted(PAYLOAD, "r");
        behind.rig.tx.used();
        for index in [TX, RX] {
            behind.rig.device.stop_queue(index).unwrap();
        }
        // The next driver has mapped anew.
        behind.rig.tx = Queue::new(&behind.rig.ram, 0x8000, behind.features());
        behind.rig.rx = Queue::new(&behind.rig.ram, 0x1000, behind.features());
        behind.start(TX, start_of(features));
        behind.start(RX, start_of(features));
        behind.give_rings();
        behind.send(iova(PAYLOAD), 100);
        assert_eq!(behind.misses(2), [(iova(HEADER), Access::Read), (iova(PAYLOAD), Access::Read)]);
        behind.give_shifted(HEADER, "r");
        behind.give_page(iova(PAYLOAD), 0x2_0000, "r");
        behind.rig.tx.used();
    }
}

#[test]
fn an_invalidation_ends_the_frames_in_flight_that_lie_there_and_no_others() {
    for features in formats() {
        let seen = Arc::<late::Seen>::default();
        let served = on_ports([late::Late::new(Arc::clone(&seen))], PollMode::Adaptive, 1);
        let mut behind = Behind::on(served, features);
        behind.give_rings();
        behind.send(iova(PAYLOAD), 100);
        behind.misses(2);
        behind.give_shifted(HEADER, "r");
        behind.give_shifted(PAYLOAD, "r");
        let ended = || [&seen.kept, &seen.quiesced].map(|count| count.load(Ordering::Relaxed));
        behind.rig.wait_for("the frame in flight", |_| ended() == [1, 0]);
        behind.give_shifted(PAYLOAD + PAGE, "r");
        behind.invalidate(iova(PAYLOAD) + PAGE, iova(PAYLOAD) + 2 * PAGE - 1);
        assert_eq!(ended(), [1, 0], "nothing in flight lies there");
        behind.invalidate(iova(PAYLOAD) + 99, iova(PAYLOAD) + 99);
        assert_eq!(ended(), [0, 1], "answered while the link has the frame");
        behind.rig.tx.used();
    }
}
