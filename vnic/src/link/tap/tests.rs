//! A tap in a network namespace of the test's own; the kernel is the other end.

mod bursts;
mod queues;
mod receive;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use smoltcp::socket::tcp;

use super::device::CLONE_DEVICE;
use super::*;
use crate::link::testing::{Clock, Lab, Offload};
use crate::net::features::OFFERED;
use crate::net::testing::{Nic, offer};
use crate::spec::net::{GSO_UDP_L4, HDR_F_NEEDS_CSUM, NetHeader};

/// Runs `test` in a thread with a network namespace of its own, or says why not.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let done = std::thread::spawn(|| {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            return Some(format!("no network namespace of its own ({error}): needs root"));
        }
        if !std::path::Path::new(CLONE_DEVICE).exists() {
            return Some(format!("no {CLONE_DEVICE}"));
        }
        if Command::new("ip").arg("-V").output().is_err() {
            return Some("no `ip` program".to_owned());
        }
        test();
        None
    });
    match done.join() {
        Ok(None) => {}
        Ok(Some(reason)) => skip(&reason),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[expect(clippy::print_stderr, reason = "how a test says that it was skipped")]
fn skip(reason: &str) {
    eprintln!("SKIP: {reason}");
}

pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The share of the only worker of a device with one pair.
const ONE: Share = Share { pairs: 1, worker: 0, workers: 1 };

/// Opens a tap. One that was closed just now can still be open in a child of another test, between `fork` and `exec`.
fn open(name: &str, share: Share) -> Tap {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match Tap::open(name, share) {
            Err(TapError::Busy { .. }) if Instant::now() < deadline => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

fn tap() -> Tap {
    with_address(open("vnic0", ONE))
}

fn with_address(tap: Tap) -> Tap {
    ip("addr add 10.0.2.2/24 dev vnic0");
    ip("-6 addr add fec0::2/64 dev vnic0 nodad");
    ip("link set vnic0 up");
    tap
}

#[test]
fn nothing_stays_behind_when_a_guest_moves_from_a_tap() {
    in_namespace(|| assert_eq!(tap().stays(), None));
}

fn lab(offload: Offload) -> Lab<Tap> {
    Lab::new(tap(), offload, Clock::Real)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 253) as u8).collect()
}

/// Keeps `count` frames of the same bytes on `pair`.
fn keep(nic: &mut Nic, tap: &mut Tap, pair: usize, count: usize) {
    let bytes = vec![0; 12 + 60];
    for _ in 0..count {
        let kept = nic.with_frame(&bytes, &[], |frame| tap.transmit(pair, &frame.unwrap()).unwrap());
        assert!(matches!(kept, Transmitted::Kept { .. }), "{kept:?}");
    }
}

#[test]
fn a_stream_to_the_kernel_and_back_in_large_segments() {
    in_namespace(|| {
        for address in ["10.0.2.2", "fec0::2"] {
            let mut lab = lab(Offload::Tso);
            let address: IpAddr = address.parse().unwrap();
            let listener = TcpListener::bind((address, 9000)).unwrap();
            let data = pattern(3 << 20);
            let expected = data.clone();
            let kernel = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut got = Vec::new();
                stream.read_to_end(&mut got).unwrap();
                stream.write_all(&got).unwrap();
                got == expected
            });
            let handle = lab.connect(address, 9000, 40_000);
            let (mut sent, mut back) = (0, Vec::new());
            lab.until("there and back", |lab| {
                let socket = lab.socket(handle);
                if socket.may_send() {
                    sent += socket.send_slice(&data[sent..]).unwrap();
                    if sent == data.len() {
                        socket.close();
                    }
                }
                while socket.can_recv() {
                    let take = |bytes: &mut [u8]| {
                        back.extend_from_slice(bytes);
                        (bytes.len(), ())
                    };
                    socket.recv(take).unwrap();
                }
                sent == data.len() && !socket.may_recv() && socket.state() != tcp::State::SynSent
            });
            assert!(kernel.join().unwrap(), "the kernel got something else");
            assert!(back == data, "the guest got something else");
            assert!(lab.merged > 0 && lab.longest > 30_000, "{} {}", lab.merged, lab.longest);
            assert!(lab.longest_received > 3000, "the kernel segmented for a driver that takes TSO");
            let counters = lab.port.counters().to_map();
            assert!(counters.iter().all(|(name, count)| !name.starts_with("dropped") || *count == 0), "{counters:?}");
            assert!(counters["transmitted_bytes"] > 3 << 20 && counters["received_bytes"] > 3 << 20);
        }
    });
}

/// The next UDP frame over IPv4 that the kernel sends; what else it says is passed over.
fn udp_frame(nic: &mut Nic, tap: &mut Tap) -> (NetHeader, Vec<u8>) {
    for _ in 0..50 {
        tap.poll(Instant::now());
        while let Some(received) = nic.receive(tap) {
            let (header, frame) = received.unwrap();
            if frame[12..14] == [8, 0] && frame[23] == 17 {
                return (header, frame);
            }
        }
        let mut fds = [nix::poll::PollFd::new(tap.readable_fds()[0], nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, 100_u16).unwrap();
    }
    panic!("the kernel sent no UDP frame");
}

/// A frame from the guest's port 1000 to the tap's address, port 7777, its checksum left out.
fn datagram(payload: &[u8]) -> Vec<u8> {
    let mut frame =
        [&[0x52, 0x55, 0x0a, 0, 2, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 0][..], &[0x45; 20], &[0; 8], payload]
            .concat();
    let len = payload.len() as u16;
    let mut ip = smoltcp::wire::Ipv4Packet::new_unchecked(&mut frame[14..]);
    ip.set_total_len(28 + len);
    ip.set_frag_offset(0);
    ip.set_more_frags(false);
    ip.set_hop_limit(64);
    ip.set_next_header(smoltcp::wire::IpProtocol::Udp);
    ip.set_src_addr([10, 0, 2, 15].into());
    ip.set_dst_addr([10, 0, 2, 2].into());
    ip.fill_checksum();
    let mut udp = smoltcp::wire::UdpPacket::new_unchecked(ip.payload_mut());
    udp.set_src_port(1000);
    udp.set_dst_port(7777);
    udp.set_len(8 + len);
    frame
}

#[test]
fn many_datagrams_in_one_frame_go_out_and_come_in() {
    in_namespace(|| {
        let mut tap = tap();
        if tap.lacks() != Features::NONE {
            return skip("this kernel segments no datagrams for a tap (Linux 6.2 does)");
        }
        tap.negotiated(OFFERED).unwrap();
        assert_eq!(tap.pending(0), Some(MAX_RECEIVE));
        let socket = UdpSocket::bind(("10.0.2.2", 7777)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        ip("link set vnic0 address 52:55:0a:00:02:02");
        ip("neigh add 10.0.2.15 lladdr 52:54:00:12:34:56 dev vnic0");
        let mut nic = Nic::new(OFFERED, 100, 1526);
        let (flags, gso_type) = (HDR_F_NEEDS_CSUM, GSO_UDP_L4);
        let header =
            NetHeader { flags, gso_type, gso_size: 1000, csum_start: 34, csum_offset: 6, hdr_len: 42, num_buffers: 0 };
        nic.transmit(&mut tap, header, &datagram(&pattern(4500))).unwrap();
        let mut got = [0; 2000];
        for piece in pattern(4500).chunks(1000) {
            let len = socket.recv(&mut got).unwrap();
            assert!(got[..len] == *piece, "{len} bytes for {}", piece.len());
        }
        // And the other way: the kernel leaves the cutting to whoever receives it.
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::UdpGsoSegment, &1000).unwrap();
        socket.send_to(&pattern(4500), ("10.0.2.15", 1000)).unwrap();
        let (header, frame) = udp_frame(&mut nic, &mut tap);
        assert_eq!((header.gso_type, header.gso_size, header.flags), (GSO_UDP_L4, 1000, HDR_F_NEEDS_CSUM));
        assert!(frame[42..] == pattern(4500));
        tap.negotiated(OFFERED.without(Feature::GuestUso6)).unwrap();
        socket.send_to(&pattern(2000), ("10.0.2.15", 1000)).unwrap();
        let (header, frame) = udp_frame(&mut nic, &mut tap);
        assert_eq!((header.gso_type, frame.len()), (0, 1042), "a driver that takes only one kind gets none");
    });
}

#[test]
fn a_partial_checksum_from_the_driver_is_finished_by_the_kernel() {
    in_namespace(|| {
        let mut tap = tap();
        tap.negotiated(OFFERED).unwrap();
        let socket = UdpSocket::bind(("10.0.2.2", 7777)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        ip("link set vnic0 address 52:55:0a:00:02:02");
        let frame = datagram(b"partial");
        let header = NetHeader { flags: HDR_F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..NetHeader::default() };
        let mut nic = Nic::new(OFFERED, 100, 1526);
        let taken = nic.transmit(&mut tap, header, &frame).unwrap();
        assert_eq!(taken, Transmitted::Taken { read: frame.len() as u32, copied: 0 });
        let mut got = [0; 100];
        let (len, from) = socket.recv_from(&mut got).unwrap();
        assert_eq!((&got[..len], from.to_string().as_str()), (&b"partial"[..], "10.0.2.15:1000"));
    });
}

#[test]
fn frames_that_cannot_go_out_are_counted_by_reason() {
    for io_uring in [true, false] {
        in_namespace(move || cannot_go_out(io_uring));
    }
}

fn cannot_go_out(io_uring: bool) {
    {
        let mut tap = tap();
        if !io_uring {
            tap.writes = None;
        }
        tap.negotiated(OFFERED).unwrap();
        let mut nic = Nic::new(OFFERED, 4, 1526);
        // A header the device accepts and the kernel does not: a segment type that is not the packet's.
        let tso = NetHeader {
            flags: HDR_F_NEEDS_CSUM,
            gso_type: crate::spec::net::GSO_TCPV6,
            gso_size: 100,
            hdr_len: 54,
            csum_start: 4000,
            csum_offset: 6,
            num_buffers: 0,
        };
        let mut frame = vec![0; 5000];
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        assert!(nic.transmit(&mut tap, tso, &frame).is_err());
        assert_eq!(tap.counters.get("dropped_refused_by_kernel"), 1);
        let bytes = [vec![0; 12], frame].concat();
        let in_pieces = |nic: &mut Nic, tap: &mut Tap, count| {
            nic.with_frame(&bytes, &vec![1; count], |frame| offer(tap, &frame.unwrap()).is_ok())
        };
        assert!(in_pieces(&mut nic, &mut tap, 12 + 1022));
        assert!(!in_pieces(&mut nic, &mut tap, 12 + 1023));
        assert_eq!(tap.counters.get("dropped_too_many_pieces"), 1);
        ip("link set vnic0 down");
        assert!(nic.transmit(&mut tap, NetHeader::default(), &[0; 60]).is_err());
        assert_eq!(tap.counters.get("dropped_tap_down"), 1);
    }
}
