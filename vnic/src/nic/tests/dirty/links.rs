//! Every link, split and packed.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixListener;

use super::*;
use crate::link::tap::tests::{in_namespace, ip};

/// Rounds of a link: more than enough to go round the rings.
const ROUNDS: usize = 40;

fn on(link: &LinkKind, features: spec::Features) -> Logged {
    Logged::new(serve(vec![link::open(link, 1).unwrap()], 1), features)
}

#[test]
fn a_sink_writes_nothing_but_its_part_of_the_ring() {
    for features in formats() {
        for link in [LinkKind::Sink, LinkKind::SinkCopy] {
            let mut logged = on(&link, features);
            for round in 1..ROUNDS {
                let count = round * 13 % 200 + 1;
                let frame = logged.bytes(600);
                (0..count).for_each(|_| logged.send(&frame));
                let Round { back, changed } = logged.round(&[], [0, count as u64], || {});
                assert_eq!((back, changed > 0), ([0, count], true), "{link} {features:?}");
            }
        }
    }
}

#[test]
fn a_looped_frame_marks_the_buffers_that_it_was_written_into() {
    for features in formats() {
        let mut logged = on(&LinkKind::Loopback, features);
        for round in 1..ROUNDS {
            let count = round * 7 % 60 + 1;
            // Of several buffers each, and of one.
            let len = [60_usize, 1500, 1988, 1989, 5000][round % 5];
            let buffers = logged.post((count * (len + 12).div_ceil(BUFFER as usize)) as u64);
            for _ in 0..count {
                let frame = logged.bytes(len);
                logged.send(&frame);
            }
            let Round { back, changed } = logged.round(&buffers, [buffers.len() as u64, count as u64], || {});
            assert_eq!(back, [buffers.len(), count]);
            assert!(changed > count * len / LOG_PAGE as usize, "{changed} pages for {count} frames of {len}");
        }
    }
}

/// Who has 10.0.2.2? The peer answers.
fn arp_request() -> Vec<u8> {
    let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    let ethernet = [&[0xff; 6][..], &mac, &[8, 6]].concat();
    let asked = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac, &[10, 0, 2, 15], &[0; 6], &[10, 0, 2, 2]].concat();
    [ethernet, asked].concat()
}

#[test]
fn what_the_peer_answers_is_marked() {
    for features in formats() {
        let mut logged = on(&LinkKind::Peer, features);
        for round in 1..ROUNDS {
            let buffers = logged.post(1 + round as u64 % 5);
            logged.send(&arp_request());
            let Round { back, changed } = logged.round(&buffers, [1, 1], || {});
            assert_eq!((back, changed > 1), ([1, 1], true));
            // What was not used is still there: all but one.
            logged.drop_buffers();
        }
    }
}

#[test]
fn what_comes_out_of_a_stream_is_marked() {
    let folder = std::env::temp_dir().join(format!("vnic-dirty-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for features in formats() {
        let path = folder.join(format!("{:x}", features.0));
        let listener = UnixListener::bind(&path).unwrap();
        let mut logged = on(&LinkKind::Stream(path), features);
        let (mut far, _) = listener.accept().unwrap();
        for round in 1..ROUNDS {
            let count = round * 11 % 50 + 1;
            let buffers = logged.post(count as u64);
            let frame = logged.bytes(1200);
            let back = logged.round(&buffers, [count as u64, 0], || {
                for _ in 0..count {
                    std::io::Write::write_all(&mut far, &(frame.len() as u32).to_be_bytes()).unwrap();
                    std::io::Write::write_all(&mut far, &frame).unwrap();
                }
            });
            assert_eq!((back.back, back.changed > count / 3), ([count, 0], true), "{back:?}");
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_comes_out_of_a_tap_is_marked_and_what_goes_in_is_not() {
    in_namespace(|| {
        for features in formats() {
            let mut logged = on(&LinkKind::Tap("vnic0".to_owned()), features);
            ip("addr add 10.0.2.2/24 dev vnic0");
            ip("link set vnic0 up");
            ip("neigh add 10.0.2.15 lladdr 52:54:00:12:34:56 dev vnic0");
            let socket = UdpSocket::bind((Ipv4Addr::new(10, 0, 2, 2), 0)).unwrap();
            for round in 1..ROUNDS {
                let count = round * 11 % 40 + 1;
                let buffers = logged.post(200);
                let (payload, frame) = (logged.bytes(1200), logged.bytes(900));
                (0..count).for_each(|_| logged.send(&frame));
                // The kernel says other things, too: router solicitations, as often as it likes.
                let Round { back, changed } = logged.round(&buffers, [count as u64, count as u64], || {
                    for _ in 0..count {
                        socket.send_to(&payload, (Ipv4Addr::new(10, 0, 2, 15), 9)).unwrap();
                    }
                });
                assert!(back[0] >= count && back[1] == count && changed > count / 3, "{back:?}");
                logged.drop_buffers();
            }
        }
    });
}
