//! Guest memory that is taken away while queues run: nobody touches the old one afterwards.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::memory::Memory;

/// The rig's memory, mapped once more: its own mappings go when the last who uses them has let go.
fn mapped_again(rig: &Rig) -> Arc<Memory> {
    let file = rig.ram.fd().try_clone_to_owned().unwrap();
    Arc::new(Memory::map(vec![(rig.ram.specs()[0], file)]).unwrap())
}

/// Memory replaced with chains on their way: the answer comes when nothing uses the old memory any more.
#[test]
fn replaced_memory_has_no_user_left_once_the_request_is_answered() {
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Loopback, features);
        let mut old: Weak<Memory> = Weak::new();
        for round in 0..50_u32 {
            // Frames wait in the link, buffers in the ring: both queues are in the middle of something.
            for _ in 0..3 {
                rig.tx.add(&[Buffer::readable(HEADER, 12 + 600)]);
                rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
            }
            let new = mapped_again(&rig);
            let next = Arc::downgrade(&new);
            rig.device.set_memory(new).unwrap();
            assert!(old.upgrade().is_none(), "round {round}: somebody has the memory that was taken away");
            old = next;
            for _ in 0..3 {
                rig.tx.used();
                assert_eq!(rig.rx.used().written, 612);
            }
        }
        assert_eq!(rig.counter(TX, "errors") + rig.counter(RX, "errors"), 0, "{features:?}");
    }
}

/// CVE-2021-3748: QEMU wrote `num_buffers` after it had unmapped the buffer. Once a buffer is back, the device writes
/// nothing into it: not when the frame's later buffers come, not when later frames do.
#[test]
fn a_buffer_that_came_back_is_never_written_again() {
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Loopback, features);
        for _ in 0..20 {
            for buffer in 0..3 {
                rig.rx.add(&[Buffer::writable(RECEIVE + 0x1000 * buffer, 1000)]);
            }
            rig.tx.add(&[Buffer::readable(HEADER, 12 + 2500)]);
            rig.tx.used();
            for (buffer, written) in (0..).zip([1000, 1000, 512]) {
                assert_eq!(rig.rx.used().written, written);
                if buffer == 0 {
                    assert_eq!(rig.ram.read(RECEIVE + 10, 2).unwrap(), [3, 0], "num_buffers is there from the first");
                }
                // From here on it is the driver's.
                rig.ram.write(RECEIVE + 0x1000 * buffer, &[0xee; 1000]).unwrap();
            }
            // A frame into buffers elsewhere passes after it, and with it whatever the worker still had to do.
            rig.rx.add(&[Buffer::writable(RECEIVE + 0x8000, 2000)]);
            rig.tx.add(&[Buffer::readable(HEADER, 12 + 100)]);
            rig.tx.used();
            assert_eq!(rig.rx.used().written, 112);
            for buffer in 0..3 {
                assert_eq!(rig.ram.read(RECEIVE + 0x1000 * buffer, 1000).unwrap(), [0xee; 1000]);
            }
        }
    }
}

/// CVE-2020-16843: a full receiveq froze Firecracker's device. Here what has no room waits, the worker answers, and
/// one receive buffer more sets everything going again.
#[test]
fn a_receiveq_without_buffers_freezes_nothing() {
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Loopback, features);
        for round in 0..20 {
            for _ in 0..10 {
                rig.send(100);
            }
            rig.wait_for("starving", |rig| rig.counter(RX, "no_buffers") > round);
            assert!(rig.workers.hold(RX, false), "the worker answers");
            for _ in 0..10 {
                rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
                assert_eq!(rig.rx.used().written, 112);
                rig.tx.used();
            }
        }
        assert_eq!(rig.counter(TX, "drops") + rig.counter(RX, "drops"), 0);
    }
}

/// A guest that changes descriptors, indices and buffers of a ring at work: errors at most, and the other queue and the
/// worker live on.
#[test]
fn a_ring_that_is_scribbled_over_at_work_hurts_only_itself() {
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Loopback, features);
        let stop = AtomicBool::new(false);
        let memory = mapped_again(&rig);
        let at = rig.tx.layout.desc;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut state = 1_u64;
                while !stop.load(Ordering::Relaxed) {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let _ = memory.write(at + (state >> 33) % 0x1000, &(state >> 40).to_le_bytes()[..2]);
                }
            });
            for _ in 0..200 {
                let _ = rig.tx.driver.add(&[Buffer::readable(HEADER, 12 + 60)], Placement::Direct);
                let _ = rig.tx.driver.publish();
                nix::unistd::write(&rig.tx.kick, &1_u64.to_ne_bytes()).unwrap();
                assert!(rig.workers.hold(RX, false), "the worker answers");
                if rig.shared.queues[1].state() == QueueState::Stopped {
                    let base =
                        if features.has(Feature::RingPacked) { VringBase(0x8000_8000) } else { VringBase::split(0) };
                    rig.device.stop_queue(TX).unwrap();
                    rig.tx = Queue::new(&rig.ram, 0x8000, features);
                    rig.device.start_queue(TX, rig.tx.setup_at(base)).unwrap();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_ne!(rig.shared.queues[0].state(), QueueState::Stopped);
    }
}
