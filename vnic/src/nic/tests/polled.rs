//! Rings without a kick file: the front-end wants the device to poll them. "vhost-user protocol, SET_VRING_KICK".

use super::*;
use crate::link::loopback::Loopback;

/// A loopback whose driver never kicks. Each way to wait, each ring format.
fn each_without_kicks(test: impl Fn(Rig)) {
    for poll in [PollMode::Adaptive, PollMode::Never] {
        for features in [FEATURES, FEATURES.with(Feature::RingPacked)] {
            let mut rig = Rig::of(on_port(Loopback::new(), poll, 1), features);
            for index in [RX, TX] {
                rig.device.set_kick(index, None).unwrap();
            }
            test(rig);
        }
    }
}

#[test]
fn a_transmitq_without_a_kick_file_is_polled() {
    each_without_kicks(|mut rig| {
        for _ in 0..10 {
            rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
            rig.send(100);
            assert_eq!((rig.rx.used().written, rig.tx.used().written), (112, 0));
        }
    });
}

#[test]
fn a_receiveq_without_a_kick_file_is_polled() {
    each_without_kicks(|mut rig| {
        for round in 0..10 {
            rig.send(100);
            rig.wait_for("starving", |rig| rig.counter(RX, "no_buffers") > round);
            rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
            assert_eq!((rig.rx.used().written, rig.tx.used().written), (112, 0));
        }
    });
}
