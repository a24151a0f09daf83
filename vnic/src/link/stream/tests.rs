//! Against a far end of the test's own, and against passt where that is installed.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use super::*;
use crate::link::testing::{Clock, Lab, Offload};
use crate::net::features::OFFERED;
use crate::net::testing::Nic;
use crate::spec::net::{GSO_TCPV4, GSO_UDP_L4};

/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// Who listens, and the port's connection to it.
struct FarSide {
    listener: UnixListener,
    socket: UnixStream,
    folder: PathBuf,
}

impl Drop for FarSide {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl FarSide {
    fn new(name: &str, far_end: FarEnd, pairs: usize) -> (Self, Stream) {
        let folder = std::env::temp_dir().join(format!("vnic-stream-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let port = Stream::open(name.to_owned(), Connect(path), far_end, pairs).unwrap();
        let socket = accept(&listener);
        (FarSide { listener, socket, folder }, port)
    }

    fn frame(&mut self) -> Vec<u8> {
        let mut prefix = [0; 4];
        self.socket.read_exact(&mut prefix).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
        self.socket.read_exact(&mut frame).unwrap();
        frame
    }

    fn send(&mut self, frame: &[u8]) {
        self.socket.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
        self.socket.write_all(frame).unwrap();
    }
}

fn accept(listener: &UnixListener) -> UnixStream {
    let (socket, _) = listener.accept().unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// Polls the port until `done`.
fn until(port: &mut Stream, what: &str, mut done: impl FnMut(&mut Stream) -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done(port) {
        assert!(Instant::now() < deadline, "{what}: {:?}", port.counters.to_map());
        let mut fds = [nix::poll::PollFd::new(port.events.0.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, 20_u16).unwrap();
        port.poll(Instant::now());
    }
}

/// Ethernet, IPv4, TCP, and so much payload that counts up.
fn tcp_frame(payload: usize) -> (NetHeader, Vec<u8>) {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((40 + payload as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    let sum = checksum::of(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 0]);
    // As a driver leaves it: the pseudo header's sum.
    let pseudo = checksum::add(checksum::add(0, &frame[26..34]), &[0, 6]) + (20 + payload as u64);
    frame.extend((!checksum::finish(pseudo)).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((0..payload).map(|at| at as u8));
    let gso_type = if payload > 1460 { GSO_TCPV4 } else { GSO_NONE };
    let header = NetHeader {
        flags: HDR_F_NEEDS_CSUM,
        gso_type,
        gso_size: 1460,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::default()
    };
    (header, frame)
}

/// Checks a packet's TCP checksum, and returns its payload.
fn payload(frame: &[u8]) -> &[u8] {
    let sum = checksum::add(checksum::add(0, &frame[26..34]), &[0, 6]) + (frame.len() as u64 - 34);
    assert_eq!(checksum::finish(checksum::add(sum, &frame[34..])), 0, "the checksum is wrong");
    &frame[54..]
}

fn nic() -> Nic {
    Nic::new(OFFERED, 200, 1526)
}

fn count(port: &Stream, name: &str) -> u64 {
    port.counters.get(name)
}

#[test]
fn a_frame_goes_out_behind_its_length_with_its_checksum_complete() {
    let (mut far, mut port) = FarSide::new("checksum", FarEnd::Segments, 1);
    let (header, frame) = tcp_frame(1001);
    let taken = nic().transmit(&mut port, header, &frame).unwrap();
    assert_eq!(taken, Transmitted::Taken { read: 1055, copied: 1055 });
    port.poll(Instant::now());
    let got = far.frame();
    assert_eq!(payload(&got), &frame[54..]);
    assert_eq!(got[..50], frame[..50]);
}

#[test]
fn a_frame_of_many_segments_is_cut_or_goes_whole_as_the_far_end_takes_it() {
    for (far_end, lens) in [(FarEnd::Segments, vec![1460, 1460, 1080]), (FarEnd::SuperFrames, vec![4000])] {
        let (mut far, mut port) = FarSide::new(&format!("cut-{far_end:?}"), far_end, 1);
        let (header, frame) = tcp_frame(4000);
        let taken = nic().transmit(&mut port, header, &frame).unwrap();
        assert_eq!(taken, Transmitted::Taken { read: 4054, copied: 4054 });
        port.poll(Instant::now());
        let got: Vec<Vec<u8>> = lens.iter().map(|_| far.frame()).collect();
        assert_eq!(got.iter().map(|frame| payload(frame).len()).collect::<Vec<_>>(), lens);
        assert_eq!(got.iter().flat_map(|frame| payload(frame)).copied().collect::<Vec<_>>(), frame[54..]);
        assert_eq!(count(&port, "segmented_frames"), u64::from(lens.len() > 1));
    }
}

#[test]
fn a_frame_that_cannot_be_cut_is_dropped_and_counted() {
    let (_far, mut port) = FarSide::new("uncut", FarEnd::SuperFrames, 1);
    let (header, frame) = tcp_frame(4000);
    let hostile = [
        // TCP as UDP; pieces of a byte each, which are more than fit anywhere.
        NetHeader { gso_type: GSO_UDP_L4, csum_offset: 6, ..header },
        NetHeader { gso_size: 1, csum_offset: 6, ..header },
    ];
    for header in hostile {
        nic().transmit(&mut port, header, &frame).unwrap_err();
    }
    assert_eq!(count(&port, "dropped_unsegmentable"), 2);
    let (header, frame) = tcp_frame(60_000);
    let (_far, mut port) = FarSide::new("one-byte", FarEnd::Segments, 1);
    nic().transmit(&mut port, NetHeader { gso_size: 1, ..header }, &frame).unwrap_err();
    assert_eq!(count(&port, "dropped_unsegmentable"), 1);
}

#[test]
fn a_far_end_that_is_slow_pushes_back_and_loses_nothing() {
    let (mut far, mut port) = FarSide::new("slow", FarEnd::SuperFrames, 1);
    let mut nic = nic();
    let (header, mut frame) = tcp_frame(60_000);
    let mut sent = 0_u8;
    // Until neither socket nor buffer takes more.
    loop {
        frame[54] = sent;
        if nic.transmit(&mut port, header, &frame).unwrap() == Transmitted::Full {
            break;
        }
        sent += 1;
        assert!(sent < 200, "nothing pushes back");
    }
    assert!(count(&port, "full") > 0);
    let reader = std::thread::spawn(move || (0..sent).map(|_| far.frame()[54]).collect::<Vec<_>>());
    until(&mut port, "all frames", |_| reader.is_finished());
    assert_eq!(reader.join().unwrap(), (0..sent).collect::<Vec<_>>());
}

#[test]
fn what_the_far_end_has_taken_and_dropped_comes_again_though_the_driver_says_it_once() {
    let (mut far, mut port) = FarSide::new("dropped", FarEnd::SuperFrames, 1);
    let mut nic = nic();
    let (header, mut frame) = tcp_frame(1000);
    let mut says = |port: &mut Stream, seq: u32| {
        frame[38..42].copy_from_slice(&seq.to_be_bytes());
        nic.transmit(port, header, &frame).unwrap();
        port.poll(Instant::now());
    };
    let mut driver = self::nic();
    let mut answers = |far: &mut FarSide, port: &mut Stream, ack: u32| {
        let (_, mut answer) = tcp_frame(0);
        answer[26..34].rotate_left(4);
        answer[34..38].rotate_left(2);
        answer[42..46].copy_from_slice(&ack.to_be_bytes());
        far.send(&answer);
        until(port, "the answer", |port| port.pending(0).is_some());
        driver.receive(port).unwrap().unwrap();
    };
    says(&mut port, 1);
    far.frame();
    answers(&mut far, &mut port, 1001);
    says(&mut port, 1001);
    let dropped = far.frame();
    until(&mut port, "it comes again", |port| count(port, "sent_again") > 0);
    assert!(far.frame() == dropped);
    assert_eq!(count(&port, "transmitted_frames"), 2);
    answers(&mut far, &mut port, 2001);
    assert_eq!(port.deadline(Instant::now()).filter(|left| left.is_zero()), None);
}

#[test]
fn frames_to_the_driver_arrive_whole_however_they_are_cut_on_the_way() {
    let (mut far, mut port) = FarSide::new("receive", FarEnd::Segments, 1);
    let mut nic = nic();
    let (_, short) = tcp_frame(10);
    let (_, long) = tcp_frame(30_000);
    far.send(&short);
    let bytes = [&(long.len() as u32).to_be_bytes()[..], &long].concat();
    for part in [&bytes[..2], &bytes[2..7], &bytes[7..20_000]] {
        far.socket.write_all(part).unwrap();
    }
    until(&mut port, "the short frame", |port| port.pending(0).is_some());
    assert_eq!(nic.receive(&mut port).unwrap().unwrap(), (NetHeader { num_buffers: 1, ..NetHeader::default() }, short));
    assert_eq!(port.pending(0), None, "half a frame is none");
    far.socket.write_all(&bytes[20_000..]).unwrap();
    until(&mut port, "the long frame", |port| port.pending(0).is_some());
    assert_eq!(nic.receive(&mut port).unwrap().unwrap().1, long);
    assert_eq!((count(&port, "received_frames"), count(&port, "received_bytes")), (2, 64 + 30_054));
}

#[test]
fn with_several_pairs_an_answer_comes_back_on_the_pair_it_was_asked_on() {
    let (mut far, mut port) = FarSide::new("pairs", FarEnd::Segments, 2);
    (0..2).for_each(|pair| port.set_receiving(pair, true));
    let (header, frame) = tcp_frame(10);
    nic().with_frame(&[&header.to_bytes()[..], &frame].concat(), &[], |frame| {
        port.transmit(1, &frame.unwrap()).unwrap();
    });
    let mut answer = frame;
    answer[26..34].rotate_left(4);
    answer[34..38].rotate_left(2);
    far.send(&answer);
    until(&mut port, "the answer", |port| port.pending(1).is_some());
    assert_eq!(port.pending(0), None);
}

#[test]
fn a_far_end_that_is_gone_is_dialled_again_and_frames_meanwhile_are_counted() {
    let (mut far, mut port) = FarSide::new("gone", FarEnd::Segments, 1);
    let mut nic = nic();
    let (header, frame) = tcp_frame(10);
    far.socket.shutdown(std::net::Shutdown::Both).unwrap();
    until(&mut port, "the end", |port| port.pending(0).is_some() || count(port, "disconnected") == 1);
    nic.transmit(&mut port, header, &frame).unwrap_err();
    assert_eq!(count(&port, "dropped_not_connected"), 1);
    far.socket = accept(&far.listener);
    until(&mut port, "the next connection", |port| port.socket.is_some());
    nic.transmit(&mut port, header, &frame).unwrap();
    port.poll(Instant::now());
    assert_eq!(payload(&far.frame()), &frame[54..]);
}

/// Says for whom it is asked to connect.
#[derive(Debug)]
struct Told(Connect, std::sync::mpsc::Sender<Mac>);

impl Dial for Told {
    const ROLE: Role = Role::Connector;

    fn dial(&mut self, guest: Mac) -> io::Result<UnixStream> {
        let _ = self.1.send(guest);
        self.0.dial(guest)
    }
}

#[test]
fn a_new_far_end_is_told_the_guests_address() {
    let (far, _) = FarSide::new("address", FarEnd::Segments, 1);
    let (tell, told) = std::sync::mpsc::channel();
    let dial = Told(Connect(far.folder.join("socket")), tell);
    let mut port = Stream::open("address".to_owned(), dial, FarEnd::SuperFrames, 1).unwrap();
    assert_eq!(told.recv().unwrap(), SOMEBODY);
    let (header, mut frame) = tcp_frame(10);
    frame[6..12].copy_from_slice(&[0x52, 0x54, 0, 1, 2, 3]);
    nic().transmit(&mut port, header, &frame).unwrap();
    drop(accept(&far.listener));
    until(&mut port, "the end", |port| port.pending(0).is_some() || count(port, "disconnected") == 1);
    assert_eq!(told.recv_timeout(DEADLINE).unwrap(), [0x52, 0x54, 0, 1, 2, 3]);
}

#[test]
fn what_passt_has_of_a_connection_that_was_there_before_is_asked_for_once_each_time_it_is_connected_to() {
    for (name, payload) in [("older", 1000), ("older-large", 4000)] {
        let (mut far, mut port) = FarSide::new(name, FarEnd::Segments, 1);
        assert!(port.older.is_none(), "this test is no passt");
        port.older = Some(Older::new());
        let mut nic = nic();
        let (header, frame) = tcp_frame(payload);
        let pieces = payload.div_ceil(1460);
        for connected in 0..2_u64 {
            for asked in [true, false] {
                nic.transmit(&mut port, header, &frame).unwrap();
                port.poll(Instant::now());
                let lens: Vec<usize> = (0..pieces + usize::from(asked)).map(|_| far.frame().len()).collect();
                assert_eq!(lens.iter().filter(|len| **len == 55).count(), usize::from(asked), "{lens:?}");
            }
            assert_eq!(count(&port, "acknowledgements_asked_for"), connected + 1);
            if connected == 0 {
                far.socket = UnixStream::pair().unwrap().0;
                until(&mut port, "the end", |port| port.pending(0).is_some() || count(port, "disconnected") == 1);
                far.socket = accept(&far.listener);
                until(&mut port, "the next connection", |port| port.socket.is_some());
            }
        }
    }
}

#[test]
fn connections_stay_with_passt_when_the_guest_moves_and_pass_any_other_far_end() {
    for (far_end, name) in [(FarEnd::SuperFrames, "stays"), (FarEnd::Segments, "moves")] {
        let (_far, port) = FarSide::new(name, far_end, 1);
        assert_eq!(port.stays().is_some(), far_end == FarEnd::SuperFrames);
    }
}

#[test]
fn a_length_that_no_frame_has_ends_the_connection() {
    for length in [0_u32, 13, MAX_FRAME + 1, u32::MAX] {
        let (mut far, mut port) = FarSide::new(&format!("length-{length}"), FarEnd::Segments, 1);
        far.socket.write_all(&length.to_be_bytes()).unwrap();
        until(&mut port, "the end", |port| port.pending(0).is_some() || count(port, "disconnected") == 1);
        assert!(port.socket.is_none());
    }
}

const MAX_FRAME: u32 = crate::net::MAX_FRAME_LEN;

#[test]
fn nobody_at_the_path_is_an_error() {
    Stream::connect(Path::new("/nonexistent/socket"), 1).unwrap_err();
}

#[test]
#[expect(clippy::print_stderr, reason = "how a test says that it was skipped")]
fn a_guest_behind_passt_reaches_the_hosts_loopback_in_large_segments() {
    let port = match Stream::passt(&Network::default(), 1) {
        Ok(port) => port,
        Err(error) => {
            eprintln!("SKIP: {error}");
            return;
        }
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let to = listener.local_addr().unwrap().port();
    let data: Vec<u8> = (0..3_usize << 20).map(|at| (at * 31 + at / 253) as u8).collect();
    let expected = data.clone();
    let host = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = vec![0; expected.len()];
        stream.read_exact(&mut got).unwrap();
        stream.write_all(&got).unwrap();
        got == expected
    });
    let mut lab = Lab::new(port, Offload::Tso, Clock::Real);
    let handle = lab.connect(IpAddr::from([10, 0, 2, 2]), to, 40_000);
    let (mut sent, mut back) = (0, Vec::new());
    lab.until("there and back", |lab| {
        let socket = lab.socket(handle);
        if socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        if socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), back.extend_from_slice(bytes))).unwrap();
        }
        back.len() == data.len()
    });
    assert!(host.join().unwrap(), "the host got something else");
    assert!(back == data, "something else came back");
    assert!(lab.longest > 10_000, "no large segments: {}", lab.longest);
    assert_eq!(count(&lab.port, "segmented_frames"), 0, "they go whole");
}
