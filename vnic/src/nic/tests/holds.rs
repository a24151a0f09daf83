//! Queues that are held: nothing comes back, and nothing is lost.

use super::*;

#[test]
fn a_held_queue_keeps_its_buffers_until_released_and_loses_none() {
    let mut rig = Rig::new(&LinkKind::Sink);
    assert!(rig.workers.hold(TX, true));
    for _ in 0..10 {
        rig.send(500);
    }
    // A command later the worker has seen the kicks and left the ring alone.
    assert!(rig.workers.hold(TX, true));
    assert_eq!(rig.shared.queues[1].state(), QueueState::Held);
    assert_eq!(rig.counter(TX, "chains"), 0);
    assert!(rig.workers.hold(TX, false));
    for _ in 0..10 {
        rig.tx.used();
    }
    assert_eq!(rig.counter(TX, "bytes"), 5000);
}

#[test]
fn a_hold_ends_with_the_session_and_the_next_one_gets_what_was_held() {
    let mut rig = Rig::new(&LinkKind::Sink);
    assert!(rig.workers.hold(TX, true));
    for _ in 0..3 {
        rig.send(500);
    }
    // The front-end goes away: nothing waits for the buffers, and none was taken.
    let base = rig.device.stop_queue(TX).unwrap();
    rig.device.reset();
    assert_eq!(base, VringBase::split(0));
    assert_eq!(rig.shared.queues[1].state(), QueueState::Off);
    assert!(!rig.workers.hold(TX, false), "there is nothing to release");

    // The next one comes with the same rings.
    rig.device.set_features(FEATURES).unwrap();
    rig.device.set_memory(Arc::clone(rig.ram.memory())).unwrap();
    rig.device.start_queue(TX, rig.tx.setup(0)).unwrap();
    rig.wait_for("running", |rig| rig.shared.queues[1].state() == QueueState::Running);
    rig.send(500);
    for _ in 0..4 {
        rig.tx.used();
    }
    assert_eq!(rig.counter(TX, "bytes"), 2000);
}

#[test]
fn memory_replaced_under_a_held_queue_leaves_it_held() {
    let mut rig = Rig::new(&LinkKind::Sink);
    assert!(rig.workers.hold(TX, true));
    rig.send(500);
    let file = rig.ram.fd().try_clone_to_owned().unwrap();
    let again = memory::Memory::map(vec![(rig.ram.specs()[0], file)]).unwrap();
    rig.device.set_memory(Arc::new(again)).unwrap();
    assert!(rig.workers.hold(TX, true));
    assert_eq!(rig.shared.queues[1].state(), QueueState::Held);
    assert_eq!(rig.counter(TX, "chains"), 0);
    assert!(rig.workers.hold(TX, false));
    rig.tx.used();
    assert_eq!(rig.counter(TX, "bytes"), 500);
}
