//! A tap in a network namespace of the test's own; the kernel is the other end.

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
fn in_namespace(test: impl FnOnce() + Send + 'static) {
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

fn ip(arguments: &str) {
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

fn lab(offload: Offload) -> Lab<Tap> {
    Lab::new(tap(), offload, Clock::Real)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 253) as u8).collect()
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

#[test]
fn without_guest_offloads_the_kernel_segments_and_finishes_checksums() {
    in_namespace(|| {
        let mut tap = tap();
        let features = OFFERED.without(Feature::GuestCsum);
        tap.negotiated(features).unwrap();
        assert_eq!(tap.pending(0), Some(1518));
        assert_eq!(tap.pending(1), None);
        let mut nic = Nic::new(features, 100, 1526);
        ip("neigh add 10.0.2.15 lladdr 52:54:00:12:34:56 dev vnic0");
        let socket = UdpSocket::bind(("10.0.2.2", 0)).unwrap();
        socket.send_to(b"hello", ("10.0.2.15", 7)).unwrap();
        let (header, frame) = udp_frame(&mut nic, &mut tap);
        assert_eq!(header, NetHeader { num_buffers: 1, ..NetHeader::default() });
        assert!(frame.ends_with(b"hello"));
        let body = smoltcp::wire::Ipv4Packet::new_checked(&frame[14..]).unwrap();
        let udp = smoltcp::wire::UdpPacket::new_checked(body.payload()).unwrap();
        assert!(udp.verify_checksum(&body.src_addr().into(), &body.dst_addr().into()));
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
            tap.batch = None;
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

#[test]
fn a_driver_with_few_buffers_still_gets_what_fits() {
    in_namespace(|| {
        let mut tap = tap();
        tap.negotiated(OFFERED).unwrap();
        assert_eq!(tap.pending(0), Some(MAX_RECEIVE));
        let mut nic = Nic::new(OFFERED, 3, 600);
        ip("neigh add 10.0.2.15 lladdr 52:54:00:12:34:56 dev vnic0");
        let socket = UdpSocket::bind(("10.0.2.2", 0)).unwrap();
        for len in [10, 1400] {
            socket.send_to(&vec![7; len], ("10.0.2.15", 7)).unwrap();
            let (header, frame) = udp_frame(&mut nic, &mut tap);
            assert_eq!(header.num_buffers, if len == 10 { 1 } else { 3 });
            assert!(frame.ends_with(&vec![7; len]));
        }
        assert_eq!(tap.counters.get("dropped_no_room"), 0);
    });
}

#[test]
fn a_frame_that_may_have_been_cut_off_is_not_given_to_the_driver() {
    in_namespace(|| {
        let mut tap = tap();
        let features = OFFERED.without(Feature::MrgRxbuf);
        tap.negotiated(features).unwrap();
        let mut nic = Nic::new(features, 8, 62);
        ip("neigh add 10.0.2.15 lladdr 52:54:00:12:34:56 dev vnic0");
        let socket = UdpSocket::bind(("10.0.2.2", 0)).unwrap();
        socket.send_to(&[1; 900], ("10.0.2.15", 7)).unwrap();
        let mut lost = 0;
        for _ in 0..50 {
            tap.poll(Instant::now());
            while let Some(received) = nic.receive(&mut tap) {
                lost += u64::from(received.is_err());
            }
            if lost > 0 {
                break;
            }
            let mut fds = [nix::poll::PollFd::new(tap.readable_fds()[0], nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut fds, 100_u16).unwrap();
        }
        assert!(lost > 0);
        assert_eq!(tap.counters.get("dropped_no_room"), lost);
    });
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
fn a_burst_goes_out_with_one_call_and_each_frame_is_done_with_once() {
    in_namespace(|| {
        let mut tap = tap();
        tap.negotiated(OFFERED).unwrap();
        if tap.batch.is_none() {
            #[expect(clippy::print_stderr, reason = "how a test says that it was skipped")]
            {
                eprintln!("SKIP: this host allows no io_uring");
            }
            return;
        }
        let mut nic = Nic::new(OFFERED, 0, 0);
        for burst in 1..=20 {
            keep(&mut nic, &mut tap, 0, 100);
            tap.flush();
            tap.flush();
            let mut tickets: Vec<u16> = std::iter::from_fn(|| tap.completed()).map(|done| done.ticket).collect();
            tickets.sort_unstable();
            tickets.dedup();
            assert_eq!(tickets.len(), 100, "a tap takes its frames at once");
            assert_eq!(
                (tap.counters.get("transmit_calls"), tap.counters.get("transmitted_frames")),
                (burst, burst * 100)
            );
        }
        // As many as it keeps, and no more.
        keep(&mut nic, &mut tap, 0, usize::from(Tap::KEEPS));
        let full = nic.with_frame(&[0; 72], &[], |frame| tap.transmit(0, &frame.unwrap()).unwrap());
        assert_eq!(full, Transmitted::Full);
        tap.quiesce(0);
        assert_eq!(std::iter::from_fn(|| tap.completed()).count(), usize::from(Tap::KEEPS));
        // What it has when it is dropped goes out.
        keep(&mut nic, &mut tap, 0, 3);
        drop(tap);
    });
}

#[test]
fn a_pair_of_several_has_a_queue_of_its_own_and_only_those_in_use_are_given_frames() {
    in_namespace(|| {
        let share = |worker| Share { pairs: 3, worker, workers: 2 };
        let mut first = open("vnic0", share(0));
        let mut second = open("vnic0", share(1));
        assert_eq!((first.queues.len(), second.queues.len()), (2, 1));
        first = with_address(first);
        for tap in [&mut first, &mut second] {
            tap.negotiated(OFFERED).unwrap();
        }
        ip("neigh add 10.0.2.15 lladdr 52:54:00:12:34:56 dev vnic0");
        // Frames by pair, of as many flows.
        let arrived = |first: &mut Tap, second: &mut Tap| {
            let sockets: Vec<UdpSocket> = (0..90).map(|_| UdpSocket::bind(("10.0.2.2", 0)).unwrap()).collect();
            for socket in &sockets {
                socket.send_to(b"hello", ("10.0.2.15", 7)).unwrap();
            }
            let mut frames = [0; 3];
            let mut taken = |tap: &mut Tap, pair: usize| {
                let Some(place) = tap.queue(pair).map(|_| tap.share.place(pair)) else { return };
                tap.poll(Instant::now());
                while tap.queues[place].settle(tap.shape, &tap.counters) && tap.pending(pair) != Some(tap.shape.largest)
                {
                    if tap.queues[place].drained {
                        break;
                    }
                    tap.queues[place].forget();
                    frames[pair] += 1;
                }
            };
            for pair in 0..3 {
                taken(first, pair);
                taken(second, pair);
            }
            frames
        };
        let [all, 0, 0] = arrived(&mut first, &mut second) else { panic!("frames for a pair that is not in use") };
        assert!(all >= 90, "{all}");
        second.set_receiving(1, true);
        first.set_receiving(2, true);
        second.set_receiving(1, true);
        let spread = arrived(&mut first, &mut second);
        assert!(spread.iter().all(|frames| *frames > 0), "{spread:?}");
        second.set_receiving(1, false);
        let [some, 0, more] = arrived(&mut first, &mut second) else { panic!("frames for a pair that was given up") };
        assert!(some > 0 && more > 0);
        let mut nic = Nic::new(OFFERED, 0, 0);
        keep(&mut nic, &mut first, 2, 1);
        keep(&mut nic, &mut second, 1, 1);
        // To send, a pair needs no receiveq in use.
        for (tap, pair) in [(&mut first, 2), (&mut second, 1)] {
            tap.flush();
            let done = tap.completed().unwrap();
            assert_eq!((done.pair, done.read), (pair, Some(60)));
        }
    });
}

#[test]
fn a_tap_made_beforehand_serves_one_pair_and_several_if_it_was_made_for_that() {
    in_namespace(|| {
        let several = Share { pairs: 2, worker: 0, workers: 1 };
        ip("tuntap add vnic1 mode tap");
        ip("tuntap add vnic2 mode tap multi_queue");
        for (name, share) in [("vnic1", ONE), ("vnic2", ONE), ("vnic2", several)] {
            assert_eq!(open(name, share).queues.len(), share.pairs, "{name}");
        }
        let error = Tap::open("vnic1", several).unwrap_err();
        assert!(matches!(error, TapError::OneQueue { pairs: 2, .. }), "{error}");
        assert!(error.to_string().contains("multi_queue"), "{error}");
        let _used = open("vnic1", ONE);
        assert!(matches!(Tap::open("vnic1", several), Err(TapError::OneQueue { .. })));
        assert!(matches!(Tap::open("lo", several), Err(TapError::WrongKind { .. })));
    });
}

#[test]
fn what_is_wrong_with_a_tap_is_said_in_one_sentence() {
    in_namespace(|| {
        let tap = tap();
        let busy = Tap::open("vnic0", ONE).unwrap_err();
        assert!(matches!(busy, TapError::Busy { .. }), "{busy}");
        drop(tap);
        let wrong = Tap::open("lo", ONE).unwrap_err();
        assert!(matches!(wrong, TapError::WrongKind { .. }), "{wrong}");
        ip("tuntap add vnic1 mode tap user 12345");
        // From here on without the right to make devices, or to use others'.
        let nobody = nix::unistd::Uid::from_raw(65_534);
        // For this thread alone, as `nix` would do it for all.
        // SAFETY: a system call without pointers.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, nobody.as_raw(), nobody.as_raw(), nobody.as_raw()) }, 0);
        let missing = Tap::open("vnic7", ONE).unwrap_err();
        let foreign = Tap::open("vnic1", ONE).unwrap_err();
        // The clone device itself may be root's alone.
        if std::fs::OpenOptions::new().read(true).write(true).open(CLONE_DEVICE).is_ok() {
            assert!(matches!(missing, TapError::Missing { .. }), "{missing}");
            assert!(missing.to_string().contains("ip tuntap add vnic7 mode tap user"), "{missing}");
            assert!(matches!(foreign, TapError::NotPermitted { .. }), "{foreign}");
        } else {
            assert!(matches!(missing, TapError::DriverNotPermitted { .. }), "{missing}");
            assert!(matches!(foreign, TapError::DriverNotPermitted { .. }), "{foreign}");
        }
        for error in [busy, wrong, missing, foreign] {
            assert!(!error.to_string().contains('\n'));
        }
    });
}
