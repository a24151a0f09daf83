//! What a driver or a front-end breaks hurts its own queue, by name, and a restart recovers it.

use super::*;

#[test]
fn a_broken_chain_stops_its_ring_alone_and_a_restart_recovers_it() {
    let mut rig = Rig::new(&LinkKind::Loopback);
    rig.tx.add(&[Buffer::readable(RAM - 4, 60)]);
    assert!(readable(&rig.tx.err), "the err file tells");
    rig.wait_for("stopped", |rig| rig.shared.queues[1].state() == QueueState::Stopped);
    assert_eq!(rig.counter(TX, "error_unmapped"), 1);
    assert!(rig.shared.queues[1].error().unwrap().contains("0x3ffffc"), "{:?}", rig.shared.queues[1].error());
    assert_eq!(rig.shared.queues[0].state(), QueueState::Running);

    rig.device.stop_queue(TX).unwrap();
    rig.tx = Queue::new(&rig.ram, 0x8000, FEATURES);
    rig.device.start_queue(TX, rig.tx.setup(0)).unwrap();
    rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
    rig.send(100);
    rig.tx.used();
    assert_eq!(rig.rx.used().written, 112);
    assert_eq!(rig.shared.queues[1].error(), None);
}

#[test]
fn a_chain_that_holds_no_frame_is_dropped_by_name_and_comes_back() {
    let mut rig = Rig::new(&LinkKind::Sink);
    rig.tx.add(&[Buffer::readable(HEADER, 12)]);
    rig.tx.used();
    assert_eq!((rig.counter(TX, "drops"), rig.counter(TX, "drop_no_frame")), (1, 1));
    rig.send(64);
    rig.tx.used();
    assert_eq!(rig.counter(TX, "bytes"), 64);
}

#[test]
fn a_ring_whose_device_died_goes_on_where_its_used_ring_stands_whatever_the_front_end_says() {
    for base in [0, 9, 0x1234] {
        let mut rig = Rig::new(&LinkKind::Sink);
        for _ in 0..6 {
            rig.send(500);
            rig.tx.used();
        }
        rig.device.stop_queue(TX).unwrap();
        for _ in 0..3 {
            rig.send(500);
        }
        rig.device.start_queue(TX, rig.tx.setup(base)).unwrap();
        for _ in 0..3 {
            rig.tx.used();
        }
        assert_eq!((rig.counter(TX, "chains"), rig.counter(TX, "errors")), (9, 0), "base {base}");
    }
}

#[test]
fn a_ring_that_someone_else_moves_on_stops_and_is_not_moved_back() {
    // As QEMU does, which drops what is to be sent once it has lost the session.
    let mut rig = Rig::new(&LinkKind::Sink);
    rig.send(500);
    rig.tx.used();
    let used_idx = rig.tx.layout.used + 2;
    rig.ram.write(used_idx, &2_u16.to_le_bytes()).unwrap();
    rig.send(500);
    rig.wait_for("stopped", |rig| rig.shared.queues[1].state() == QueueState::Stopped);
    assert_eq!((rig.counter(TX, "error_used_moved"), rig.counter(TX, "errors")), (1, 1));
    assert_eq!(rig.ram.read(used_idx, 2).unwrap(), 2_u16.to_le_bytes());

    rig.device.stop_queue(TX).unwrap();
    rig.device.start_queue(TX, rig.tx.setup(0)).unwrap();
    rig.send(500);
    for _ in 0..2 {
        rig.tx.used();
    }
    assert_eq!(rig.counter(TX, "errors"), 1);
}

#[test]
fn a_kick_file_at_its_end_stops_the_queue_instead_of_spinning() {
    let mut rig = Rig::new(&LinkKind::Sink);
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(writer);
    rig.device.set_kick(TX, Some(Arc::new(reader))).unwrap();
    rig.wait_for("stopped", |rig| rig.counter(TX, "error_kick_file") == 1);
}

#[test]
fn a_full_pipe_for_a_call_file_does_not_hang_the_worker() {
    let mut rig = Rig::new(&LinkKind::Sink);
    let (_reader, writer) = nix::unistd::pipe().unwrap();
    let size = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETPIPE_SZ).unwrap();
    nix::unistd::write(&writer, &vec![0; size as usize]).unwrap();
    rig.device.set_call(TX, Some(Arc::new(writer)));
    rig.send(100);
    rig.wait_for("served", |rig| rig.counter(TX, "chains") == 1);
    assert!(rig.workers.hold(TX, false), "the worker still answers");
}
