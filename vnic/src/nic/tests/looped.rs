//! Frames that go from the transmitq straight into the receiveq.

use super::*;

#[test]
fn a_looped_frame_waits_for_receive_buffers_and_spans_as_many_as_it_takes() {
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Loopback, features);
        let frame: Vec<u8> = (0..3000u32).map(|at| at as u8).collect();
        rig.ram.write(PAYLOAD, &frame).unwrap();
        rig.send(3000);
        rig.wait_for("starving", |rig| rig.counter(RX, "no_buffers") > 0 && rig.counter(TX, "link_full") > 0);
        rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
        rig.rx.add(&[Buffer::writable(RECEIVE + 0x1000, 2000)]);
        assert_eq!(rig.rx.used().written, 2000);
        assert_eq!(rig.rx.used().written, 1012);
        rig.tx.used();
        let header = rig.ram.read(RECEIVE, NET_HEADER_LEN).unwrap();
        assert_eq!(header[10..12], [2, 0], "num_buffers");
        let mut received = rig.ram.read(RECEIVE + 12, 1988).unwrap();
        received.extend(rig.ram.read(RECEIVE + 0x1000, 1012).unwrap());
        assert_eq!(received, frame);
        let counters = ["dma_read_bytes", "device_copied_bytes", "drops"].map(|name| rig.counter(TX, name));
        assert_eq!((counters, rig.counter(RX, "bytes")), ([3000, 0, 0], 3000));
    }
}

#[test]
fn a_frame_longer_than_all_the_buffers_of_a_full_ring_is_dropped_and_the_next_one_comes() {
    for features in formats() {
        for indirect in [false, true] {
            let mut rig = Rig::with(&LinkKind::Loopback, features);
            for n in 0..u64::from(SIZE) {
                let placement = if indirect { Placement::Indirect(0x4_0000 + 64 * n) } else { Placement::Direct };
                rig.rx.driver.add(&[Buffer::writable(RECEIVE + 100 * n, 100)], placement).unwrap();
            }
            rig.rx.kick_if_wanted();
            rig.send(u32::from(SIZE) * 100);
            rig.tx.used();
            rig.send(u32::from(SIZE) * 100 - 12);
            rig.tx.used();
            for _ in 0..SIZE {
                assert_eq!(rig.rx.used().written, 100);
            }
            assert_eq!((rig.counter(TX, "drops"), rig.counter(RX, "chains")), (1, u64::from(SIZE)), "{features:?}");
        }
    }
}

#[test]
fn looped_frames_wait_in_the_transmitq_and_none_is_lost() {
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Loopback, features);
        for _ in 0..SIZE / 2 {
            rig.send(60_000);
        }
        rig.wait_for("push back", |rig| rig.counter(TX, "link_full") > 0);
        assert!(rig.tx.driver.pop_used().unwrap().is_none(), "a frame went back before there was room for it");
        for _ in 0..SIZE / 2 {
            rig.rx.add(&[Buffer::writable(RECEIVE, 60_012)]);
            assert_eq!(rig.rx.used().written, 60_012);
            rig.tx.used();
        }
        assert_eq!(rig.counter(TX, "drops") + rig.counter(RX, "drops"), 0);
    }
}

#[test]
fn bursts_of_looped_frames_leave_the_buffers_they_do_not_need() {
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Loopback, features);
        for slot in 0..u64::from(SIZE) {
            rig.rx.add(&[Buffer::writable(RECEIVE + 0x100 * slot, 0x100)]);
        }
        // More and fewer than the device takes at a time, in sums that share no period with the ring.
        for burst in [1_u16, 40, 3, 17, 31].into_iter().cycle().take(40) {
            rig.ram.write(PAYLOAD, &[burst as u8; 60]).unwrap();
            let frame = [Buffer::readable(HEADER, 12), Buffer::readable(PAYLOAD, 60)];
            let sent = (0..burst).filter(|_| rig.tx.driver.add(&frame, Placement::Direct).is_ok()).count() as u64;
            rig.tx.kick_if_wanted();
            for _ in 0..sent {
                let used = rig.rx.used();
                assert_eq!(used.written, 72);
                rig.tx.used();
            }
            for slot in 0..sent {
                rig.rx.add(&[Buffer::writable(RECEIVE + 0x100 * slot, 0x100)]);
            }
        }
        let chains = [TX, RX].map(|queue| rig.counter(queue, "chains"));
        assert!(chains[0] > 500 && chains[0] == chains[1], "{chains:?}");
    }
}

#[test]
fn a_looped_frame_that_a_full_receiveq_cannot_hold_is_dropped_and_the_next_one_goes_through() {
    let small = FEATURES.without(Feature::MrgRxbuf);
    for (features, buffers) in [(FEATURES, SIZE), (small, 2)] {
        let mut rig = Rig::with(&LinkKind::Loopback, features);
        for _ in 0..buffers {
            rig.rx.add(&[Buffer::writable(RECEIVE, 100)]);
        }
        rig.send(60_000);
        rig.tx.used();
        assert_eq!(rig.counter(TX, "drop_link_error"), 1);
        rig.send(88);
        assert_eq!(rig.rx.used().written, 100);
        rig.tx.used();
    }
}

#[test]
fn a_looped_frame_waits_while_its_receiveq_is_held() {
    let mut rig = Rig::new(&LinkKind::Loopback);
    rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
    assert!(rig.workers.hold(RX, true));
    rig.send(100);
    // Two answers from the worker: it has looked at its queues in between.
    assert!(rig.workers.hold(RX, true) && rig.workers.hold(RX, true));
    assert!(rig.tx.driver.pop_used().unwrap().is_none() && rig.rx.driver.pop_used().unwrap().is_none());
    assert!(rig.workers.hold(RX, false));
    assert_eq!(rig.rx.used().written, 112);
    rig.tx.used();
}

#[test]
fn a_looped_frame_is_traced_on_either_queue() {
    let mut rig = Rig::new(&LinkKind::Loopback);
    rig.shared.tracers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let queues = [RX, TX].map(|queue| Arc::clone(&rig.shared.queues[usize::from(queue)]));
    queues.iter().for_each(|queue| queue.events.make_room());
    let mut readers = queues.each_ref().map(|queue| queue.events.reader());
    rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
    rig.send(100);
    rig.rx.used();
    rig.tx.used();
    for (reader, written) in readers.iter_mut().zip([112, 0]) {
        let Some(Read::Event(event)) = reader.read() else { panic!("no event") };
        assert_eq!((event.frame_len, event.written), (100, written));
    }
}
