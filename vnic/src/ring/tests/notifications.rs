//! Who wakes whom, and when not.

use super::*;

for_both_formats! {
    fn nobody_sleeps_through_a_notification(format: Format) {
        for features in [Features::NONE, EVENT_IDX] {
            two_threads(Pair::new(format, 8, features));
        }
    }

    fn what_was_available_before_notifications_were_asked_for_is_not_missed(format: Format) {
        for features in [Features::NONE, EVENT_IDX] {
            let mut pair = Pair::new(format, 8, features);
            pair.device.disable_notifications();
            assert_eq!(pair.device.enable_notifications(), Ok(false));
            pair.device.disable_notifications();
            pair.add(&[Buffer::readable(0x8000, 1)]);
            assert_eq!(pair.device.enable_notifications(), Ok(true));
            pair.pop().unwrap();
            assert_eq!(pair.device.enable_notifications(), Ok(false));
            pair.driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct).unwrap();
            assert!(pair.driver.publish(), "the device asked for a kick");
        }
    }

    fn a_polling_device_is_not_kicked(format: Format) {
        let mut pair = Pair::new(format, 8, Features::NONE);
        pair.device.disable_notifications();
        pair.driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct).unwrap();
        assert!(!pair.driver.publish());
    }

    fn with_event_idx_one_kick_is_enough_until_the_device_asks_again(format: Format) {
        let mut pair = Pair::new(format, 8, EVENT_IDX);
        pair.device.enable_notifications().unwrap();
        let mut kicks = Vec::new();
        for _ in 0..3 {
            pair.driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct).unwrap();
            kicks.push(pair.driver.publish());
        }
        assert_eq!(kicks, [true, false, false]);
    }

    fn calls_are_suppressed_as_the_driver_asks(format: Format) {
        for features in [Features::NONE, EVENT_IDX] {
            let mut pair = Pair::new(format, 8, features);
            let mut call = |wanted: bool| {
                if wanted {
                    assert!(!pair.driver.enable_notifications());
                } else {
                    pair.driver.disable_notifications();
                }
                pair.add(&[Buffer::readable(0x8000, 1)]);
                let chain = pair.pop().unwrap();
                pair.device.push_used(&chain, 0).unwrap();
                let call = pair.device.publish().unwrap();
                pair.driver.pop_used().unwrap().unwrap();
                call
            };
            assert!(call(false), "the first: what the driver was told before is not known");
            assert_eq!([call(true), call(false), call(false), call(true)], [true, false, false, true]);
        }
    }

    fn a_burst_is_one_call(format: Format) {
        let mut pair = Pair::new(format, 8, EVENT_IDX);
        for _ in 0..5 {
            pair.add(&[Buffer::readable(0x8000, 1)]);
        }
        while let Some(chain) = pair.pop() {
            pair.device.push_used(&chain, 0).unwrap();
        }
        assert!(pair.device.publish().unwrap());
        assert!(!pair.device.publish().unwrap(), "nothing new");
    }
}

/// Both halves on threads of their own, each asleep whenever it may be. A notification that is not sent when the other
/// side needs it leaves both asleep for good.
fn two_threads(pair: Pair) {
    const CHAINS: u32 = if cfg!(miri) { 60 } else { 50_000 };
    const DEADLINE: Duration = Duration::from_secs(60);
    let Pair { mut driver, mut device, mut segments, ram: _ram, .. } = pair;
    // As an eventfd: however often it is signalled, one wake-up.
    let (kick, kicked) = mpsc::sync_channel(1);
    let (call, called) = mpsc::sync_channel(1);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut served = 0;
            while served < CHAINS {
                while let Some(chain) = device.pop(&mut segments).unwrap() {
                    device.push_used(&chain, 0).unwrap();
                    segments.clear();
                    served += 1;
                    if served % 3 == 0 && device.publish().unwrap() {
                        let _full = call.try_send(());
                    }
                }
                if device.publish().unwrap() {
                    let _full = call.try_send(());
                }
                if served < CHAINS && !device.enable_notifications().unwrap() {
                    kicked.recv_timeout(DEADLINE).expect("a kick");
                }
                device.disable_notifications();
            }
        });
        let (mut added, mut back) = (0, 0);
        while back < CHAINS {
            while added < CHAINS && driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct).is_ok() {
                added += 1;
                if added % 2 == 0 && driver.publish() {
                    let _full = kick.try_send(());
                }
            }
            if driver.publish() {
                let _full = kick.try_send(());
            }
            while driver.pop_used().unwrap().is_some() {
                back += 1;
            }
            if back < CHAINS && driver.out() > 0 && !driver.enable_notifications() {
                called.recv_timeout(DEADLINE).expect("a call");
            }
            driver.disable_notifications();
        }
    });
}
