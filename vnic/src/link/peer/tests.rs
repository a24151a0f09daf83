//! A second smoltcp is the guest; both queues between them are real, the clock is not.

use std::net::IpAddr;

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use smoltcp::socket::tcp;

use super::*;
use crate::link::testing::{Clock, Lab, Offload};
use crate::net::features::OFFERED;
use crate::net::testing::Nic;
use crate::spec::net::HDR_F_NEEDS_CSUM;

fn lab(offload: Offload) -> Lab<Peer> {
    Lab::new(Peer::new(1).unwrap(), offload, Clock::Virtual)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 253) as u8).collect()
}

const V4: IpAddr = IpAddr::V4(IPV4);
const V6: IpAddr = IpAddr::V6(IPV6);

/// Sends `data` to the digest port and returns the answer, up to the peer's FIN.
fn digest_transfer(lab: &mut Lab<Peer>, to: IpAddr, data: &[u8]) -> String {
    let handle = lab.connect(to, DIGEST_PORT, 40_000);
    let mut sent = 0;
    let mut answer = Vec::new();
    lab.until("digest transfer", |lab| {
        let socket = lab.socket(handle);
        if socket.may_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
            if sent == data.len() {
                socket.close();
            }
        }
        while socket.can_recv() {
            socket
                .recv(|bytes| {
                    answer.extend_from_slice(bytes);
                    (bytes.len(), ())
                })
                .unwrap();
        }
        sent == data.len() && !socket.may_recv() && socket.state() != tcp::State::SynSent
    });
    lab.until("the peer forgets the connection", |lab| lab.port.services.connections() == 0);
    lab.sockets.remove(handle);
    String::from_utf8(answer).unwrap()
}

fn expected(data: &[u8]) -> String {
    let hex: String = Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("bytes {} sha256 {hex}\n", data.len())
}

#[test]
fn a_stream_is_answered_with_its_length_and_digest() {
    let mut lab = lab(Offload::None);
    for (len, to) in [(0, V4), (1, V4), (1, V6), (1447, V4), (65_537, V6), (300_001, V4)] {
        let data = pattern(len);
        assert_eq!(digest_transfer(&mut lab, to, &data), expected(&data), "{len} bytes to {to}");
    }
    assert_eq!(lab.port.counters.get("payload_bytes"), 1 + 1 + 1447 + 65_537 + 300_001);
    assert_eq!(lab.port.counters.get("connections_opened"), 6);
    assert_eq!(lab.port.counters.get("connections_closed"), 6);
}

#[test]
fn frames_to_be_segmented_arrive_whole_over_both_versions() {
    for (offload, to) in [(Offload::Tso, V4), (Offload::Tso, V6), (Offload::TsoWithoutLength, V6)] {
        let mut lab = lab(offload);
        let data = pattern(8 << 20);
        assert_eq!(digest_transfer(&mut lab, to, &data), expected(&data), "{offload:?} to {to}");
        assert!(lab.merged > 50, "{} frames of several segments", lab.merged);
        assert!(lab.longest > 60_000, "{}", lab.longest);
        assert_eq!(lab.port.counters.get("dropped_bad_checksum"), 0);
        // Virtual time moves only when nothing else does: a retransmission would have cost a second.
        assert!(lab.elapsed < Duration::from_secs(1), "{:?}", lab.elapsed);
    }
}

#[test]
fn a_frame_is_read_once_and_copied_no_more() {
    let mut lab = lab(Offload::None);
    lab.connect(V4, DISCARD_PORT, 40_000);
    lab.guest.poll(smoltcp::time::Instant::ZERO, &mut lab.queues, &mut lab.sockets);
    let frame = lab.queues.from_guest.pop_front().unwrap();
    let taken = lab.nic.transmit(&mut lab.port, NetHeader::default(), &frame).unwrap();
    assert_eq!(taken, Transmitted::Taken { read: frame.len() as u32, copied: 0 });
}

#[test]
fn the_echo_port_sends_back_what_it_got() {
    let mut lab = lab(Offload::Tso);
    for to in [V4, V6] {
        let data = pattern(400_000);
        let handle = lab.connect(to, ECHO_PORT, 41_000);
        let (mut sent, mut back) = (0, Vec::new());
        lab.until("echo", |lab| {
            let socket = lab.socket(handle);
            if socket.may_send() {
                sent += socket.send_slice(&data[sent..]).unwrap();
                if sent == data.len() {
                    socket.close();
                }
            }
            while socket.can_recv() {
                socket
                    .recv(|bytes| {
                        back.extend_from_slice(bytes);
                        (bytes.len(), ())
                    })
                    .unwrap();
            }
            back.len() == data.len() && !socket.may_recv()
        });
        assert!(back == data);
        lab.sockets.remove(handle);
    }
}

#[test]
fn the_discard_port_takes_everything_and_closes_in_turn() {
    let mut lab = lab(Offload::Tso);
    let handle = lab.connect(V4, DISCARD_PORT, 42_000);
    let mut left = 2_000_000;
    lab.until("discard", |lab| {
        let socket = lab.socket(handle);
        if socket.may_send() {
            left -= socket.send_slice(&vec![5; left]).unwrap();
            if left == 0 {
                socket.close();
            }
        }
        left == 0 && matches!(socket.state(), tcp::State::TimeWait | tcp::State::Closed)
    });
    assert_eq!(lab.port.counters.get("payload_bytes"), 2_000_000);
}

#[test]
fn connections_are_bounded_and_room_comes_back() {
    let mut lab = lab(Offload::None);
    let flood: Vec<SocketHandle> = (0..40).map(|at| lab.connect(V4, DISCARD_PORT, 43_000 + at)).collect();
    lab.until("the flood settles", |lab| flood.iter().all(|handle| lab.socket(*handle).state() != tcp::State::SynSent));
    let open = |lab: &mut Lab<Peer>| {
        flood.iter().filter(|handle| lab.socket(**handle).state() == tcp::State::Established).count()
    };
    // The last place is kept for the digest port, which still serves.
    assert_eq!(open(&mut lab), MAX_CONNECTIONS - 1);
    let handle = lab.connect(V4, DIGEST_PORT, 42_999);
    lab.until("the last place is taken", |lab| lab.socket(handle).state() == tcp::State::Established);
    assert_eq!(lab.port.services.connections(), MAX_CONNECTIONS);
    lab.socket(handle).abort();
    for handle in &flood {
        lab.socket(*handle).abort();
    }
    lab.until("connections end", |lab| lab.port.services.connections() == 0);
    let data = pattern(10_000);
    assert_eq!(digest_transfer(&mut lab, V4, &data), expected(&data));
}

#[test]
fn a_port_without_service_refuses() {
    let mut lab = lab(Offload::None);
    let handle = lab.connect(V4, 80, 44_000);
    lab.until("refusal", |lab| lab.socket(handle).state() == tcp::State::Closed);
}

#[test]
fn ping_works_both_ways_and_over_both_versions() {
    let mut lab = lab(Offload::None);
    let ours = lab.sockets.add(ping::socket());
    for (at, to) in [V4, V6, IpAddr::V6(LINK_LOCAL)].into_iter().enumerate() {
        assert!(ping::send(lab.sockets.get_mut(ours), to, at as u16));
        let mut answered = 0;
        lab.until("the peer answers", |lab| {
            answered += ping::replies(lab.sockets.get_mut(ours));
            answered == 1
        });
    }
    let pinger = lab.port.pinger();
    for (at, to) in ["10.0.2.15", "fec0::15", "fe80::15"].into_iter().enumerate() {
        pinger.ping(to.parse().unwrap()).unwrap();
        lab.until("the guest answers", |lab| lab.port.counters.get("pings_answered") == at as u64 + 1);
    }
    assert_eq!(lab.port.counters.get("pings_sent"), 3);
}

#[test]
fn a_ping_wakes_the_peers_thread_and_too_many_are_refused() {
    let mut peer = Peer::new(1).unwrap();
    let readable = |peer: &Peer| {
        let fds = peer.readable_fds();
        let mut polled = [nix::poll::PollFd::new(fds[0], nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut polled, nix::poll::PollTimeout::ZERO).unwrap() == 1
    };
    assert!(!readable(&peer));
    let pinger = peer.pinger();
    while pinger.ping(V4).is_ok() {}
    assert!(readable(&peer));
    peer.poll(Instant::now());
    assert!(!readable(&peer));
    let sum = peer.counters.get("pings_sent") + peer.counters.get("pings_dropped");
    assert_eq!(sum, 64);
    pinger.ping("10.0.2.77".parse().unwrap()).unwrap();
    assert!(readable(&peer));
}

#[test]
fn a_wrong_checksum_is_dropped_unless_it_is_partial() {
    let mut lab = lab(Offload::None);
    let handle = lab.connect(V4, DISCARD_PORT, 45_000);
    lab.until("connected", |lab| lab.socket(handle).may_send());
    lab.socket(handle).send_slice(b"hello").unwrap();
    lab.guest.poll(
        smoltcp::time::Instant::from_micros(lab.elapsed.as_micros() as i64),
        &mut lab.queues,
        &mut lab.sockets,
    );
    let mut frame = lab.queues.from_guest.pop_back().unwrap();
    let last = frame.len() - 1;
    frame[last] ^= 1;
    lab.nic.transmit(&mut lab.port, NetHeader::default(), &frame).unwrap();
    lab.port.poll(lab.start + lab.elapsed);
    assert_eq!(lab.port.counters.get("dropped_bad_checksum"), 1);
    assert_eq!(lab.port.counters.get("payload_bytes"), 0);
    let partial = NetHeader { flags: HDR_F_NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..NetHeader::default() };
    lab.nic.transmit(&mut lab.port, partial, &frame).unwrap();
    lab.port.poll(lab.start + lab.elapsed);
    assert_eq!(lab.port.counters.get("payload_bytes"), 5);
}

#[test]
fn a_driver_that_receives_nothing_is_pushed_back_and_loses_nothing() {
    let mut lab = lab(Offload::None);
    let handle = lab.connect(V4, DISCARD_PORT, 46_000);
    lab.until("connected", |lab| lab.socket(handle).may_send());
    let arp = [
        &[0xff; 6][..],
        &[0x52, 0x54, 0, 0x12, 0x34, 0x56],
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &[0x52, 0x54, 0, 0x12, 0x34, 0x56],
        &[10, 0, 2, 15],
        &[0; 6],
        &[10, 0, 2, 2],
    ]
    .concat();
    let mut asked = 0;
    while lab.nic.transmit(&mut lab.port, NetHeader::default(), &arp).unwrap() != Transmitted::Full {
        asked += 1;
        assert!(asked < 10_000);
    }
    lab.port.poll(lab.start + lab.elapsed);
    // The cable is full: time makes no room, so there is nothing to wake up for.
    assert_eq!(lab.port.deadline(lab.start + lab.elapsed), None);
    let mut answers = 0;
    while let Some(frame) = lab.nic.receive(&mut lab.port) {
        answers += usize::from(frame.unwrap().1[20..22] == [0, 2]);
    }
    assert_eq!(answers, asked);
    assert_eq!(lab.port.counters.get("transmit_full"), 1);
}

#[test]
fn a_frame_longer_than_the_drivers_buffers_is_counted() {
    let mut lab = lab(Offload::None);
    let small = OFFERED.without(Feature::MrgRxbuf);
    lab.nic = Nic::new(small, 16, 40);
    lab.port.negotiated(small).unwrap();
    lab.port.pinger().ping("10.0.2.15".parse().unwrap()).unwrap();
    lab.port.poll(lab.start);
    assert!(lab.nic.receive(&mut lab.port).unwrap().is_err());
    assert_eq!(lab.port.counters.get("dropped_no_room"), 1);
}

#[test]
fn an_idle_peer_has_no_deadline() {
    let mut lab = lab(Offload::None);
    lab.port.poll(lab.start);
    assert_eq!(lab.port.deadline(lab.start), None);
    assert_eq!(lab.port.pending(0), None);
    let data = pattern(1000);
    digest_transfer(&mut lab, V4, &data);
    lab.until("quiet", |lab| !lab.turn());
    assert_eq!(lab.port.deadline(lab.start + lab.elapsed), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_frame_makes_the_peer_panic(
        frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 14..200), 1..20),
        kind in prop_oneof![Just([8_u8, 0]), Just([0x86, 0xdd]), Just([8, 6])],
        partial in any::<bool>(),
    ) {
        let mut lab = lab(Offload::None);
        let flags = if partial { HDR_F_NEEDS_CSUM } else { 0 };
        for mut frame in frames {
            frame[..6].copy_from_slice(&MAC);
            frame[12..14].copy_from_slice(&kind);
            if let Some(first) = frame.get_mut(14) {
                *first = if kind == [8, 0] { 0x45 } else { 0x60 };
            }
            lab.nic.transmit(&mut lab.port, NetHeader { flags, ..NetHeader::default() }, &frame).unwrap();
            lab.port.poll(lab.start);
            while lab.receive_one() {}
        }
    }
}

#[test]
fn a_frame_of_too_many_datagrams_is_not_cut() {
    let mut frame = vec![0; 12];
    frame.extend([8, 0, 0x45, 0, 4, 4, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    frame.extend([0x9c, 0x40, 0, 7, 3, 0xf0, 0, 0]);
    frame.extend([0; 1000]);
    let of = |gso_size| NetHeader {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        gso_size,
        csum_start: 34,
        csum_offset: 6,
        ..NetHeader::default()
    };
    assert_eq!(datagrams(&frame, of(8)).unwrap().pieces(), 125);
    assert!(datagrams(&frame, of(7)).is_none(), "143 datagrams");
}
