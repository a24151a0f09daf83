//! The guest's memory, replaced and lost under running queues.

use super::*;

#[test]
fn memory_can_be_replaced_under_running_queues() {
    let mut rig = Rig::new(&LinkKind::Sink);
    rig.send(100);
    rig.tx.used();
    let file = rig.ram.fd().try_clone_to_owned().unwrap();
    let again = memory::Memory::map(vec![(rig.ram.specs()[0], file)]).unwrap();
    rig.device.set_memory(Arc::new(again)).unwrap();
    rig.send(100);
    rig.tx.used();
    assert_eq!(rig.counter(TX, "chains"), 2);
}

#[test]
fn memory_without_the_rings_is_refused_and_the_old_goes_on() {
    let mut rig = Rig::new(&LinkKind::Sink);
    let error = rig.device.set_memory(Arc::new(memory::Memory::empty())).unwrap_err();
    assert!(error.to_string().contains("receiveq0"), "{error}");
    rig.send(100);
    rig.tx.used();
}

#[test]
fn a_truncated_memory_file_is_told_and_survived() {
    let mut rig = Rig::new(&LinkKind::SinkCopy);
    nix::unistd::ftruncate(rig.ram.fd(), 0x10_0000).unwrap();
    rig.send(1000);
    let notice = rig.notices.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(notice, Notice::MemoryLost), "{notice:?}");
}

/// The ring's own indices become zeroes with the file: that is the front-end's doing, and no fault of the driver.
#[test]
fn a_memory_file_cut_to_nothing_is_not_blamed_on_the_driver() {
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Sink, features);
        for _ in 0..5 {
            rig.send(100);
            rig.tx.used();
        }
        nix::unistd::ftruncate(rig.ram.fd(), 0).unwrap();
        nix::unistd::write(&rig.tx.kick, &1u64.to_ne_bytes()).unwrap();
        let notice = rig.notices.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(notice, Notice::MemoryLost), "{notice:?}");
        let blamed =
            [RX, TX].map(|queue| (rig.counter(queue, "errors"), rig.shared.queues[usize::from(queue)].error()));
        assert_eq!(blamed, [(0, None), (0, None)], "{features:?}");
    }
}
