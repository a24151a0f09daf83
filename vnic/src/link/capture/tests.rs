//! Captures as tshark and as pcap-file read them, and disks that fill up.

mod disks;
mod wireshark;

use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;
use std::sync::mpsc;
use std::time::Instant;

use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::blocks::interface_statistics::InterfaceStatisticsOption;
use pcap_file::pcapng::blocks::opt_common::CommonOption;
use pcap_file::pcapng::{Block, PcapNgReader};

use super::*;
use crate::link::Port;
use crate::link::loopback::Loopback;
use crate::memory::testing::GuestRam;
use crate::net::features::OFFERED;
use crate::ring::{Buffer, DeviceRing, DriverRing, Placement, RingLayout, SplitDevice, SplitDriver};
use crate::spec::net::{GSO_TCPV4, HDR_F_NEEDS_CSUM, NetHeader};
use crate::spec::{Feature, Features};

const FEATURES: Features = OFFERED;

/// A file of the test's own, gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Scratch(std::env::temp_dir().join(format!("vnic-capture-{}-{name}.pcapng", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A driver's ring with chains at known addresses. The second MiB begins a second region.
struct Ring {
    ram: GuestRam,
    driver: SplitDriver,
    device: SplitDevice,
    segments: Segments,
}

impl Ring {
    fn new() -> Self {
        let mib = 1 << 20;
        let ram = GuestRam::with_regions(&[(crate::memory::Gpa(0), mib), (crate::memory::Gpa(mib), mib)]).unwrap();
        let (layout, _) = RingLayout::split_at(0x1000, 4096).unwrap();
        let features = Features::of(&[Feature::IndirectDesc]);
        let driver = SplitDriver::new(layout, ram.memory().clone(), features).unwrap();
        let device = SplitDevice::new(layout, ram.memory().clone(), features, 0).unwrap();
        let segments = Segments::new(ram.memory().clone(), 8);
        Ring { ram, driver, device, segments }
    }

    fn chain(&mut self, buffers: &[Buffer], placement: Placement) -> crate::ring::Chain {
        self.driver.add(buffers, placement).unwrap();
        self.driver.publish();
        self.device.pop(&mut self.segments).unwrap().unwrap()
    }
}

/// An Ethernet frame with UDP inside, `payload` bytes long.
fn udp(payload: usize) -> Vec<u8> {
    let mut frame = [&[0x52, 0x55, 0x0a, 0, 2, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 0][..], &[0; 28]].concat();
    frame.extend((0..payload).map(|at| at as u8));
    let mut ip = smoltcp::wire::Ipv4Packet::new_unchecked(&mut frame[14..]);
    ip.set_version(4);
    ip.set_header_len(20);
    ip.set_total_len((28 + payload) as u16);
    ip.set_hop_limit(64);
    ip.set_next_header(smoltcp::wire::IpProtocol::Udp);
    ip.set_src_addr([10, 0, 2, 15].into());
    ip.set_dst_addr([10, 0, 2, 2].into());
    ip.fill_checksum();
    let mut udp = smoltcp::wire::UdpPacket::new_unchecked(ip.payload_mut());
    udp.set_src_port(1000);
    udp.set_dst_port(9000);
    udp.set_len((8 + payload) as u16);
    frame
}

/// Transmits two frames and receives one, all on record.
fn record_three(capture: &Capture) {
    let mut ring = Ring::new();
    let mut port = Loopback::new();
    port.negotiated(FEATURES).unwrap();

    let plain = [&NetHeader::default().to_bytes()[..], &udp(100)].concat();
    ring.ram.write(0x1f000, &plain[..54]).unwrap();
    ring.ram.write(0x20000, &plain[54..]).unwrap();
    let sent = ring.chain(&[Buffer::readable(0x1f000, 54), Buffer::readable(0x20000, 100)], Placement::Direct);
    let frame = Frame::new(ring.segments.view(sent), FEATURES).unwrap();
    capture.transmitted("transmitq0", &frame, None, |segment, len| (segment.addr, len.into()));

    // To be segmented, in an indirect table, the second buffer across two regions.
    let header = NetHeader {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    let large = [&header.to_bytes()[..], &udp(9000)].concat();
    ring.ram.write(0x1f000, &large[..54]).unwrap();
    ring.ram.write(0xff000, &large[54..]).unwrap();
    let buffers = [Buffer::readable(0x1f000, 54), Buffer::readable(0xff000, 9000)];
    let chain = ring.chain(&buffers, Placement::Indirect(0x8000));
    let frame = Frame::new(ring.segments.view(chain), FEATURES).unwrap();
    capture.transmitted("transmitq0", &frame, None, |segment, len| (segment.addr, len.into()));

    let first = ring.chain(&[Buffer::writable(0x30000, 60)], Placement::Direct);
    let second = ring.chain(&[Buffer::writable(0x31000, 500)], Placement::Direct);
    let chains = [first, second];
    let mut space = ReceiveSpace::new(&ring.segments, &chains, FEATURES);
    // Sent from the same places once more, as the second frame has left its own there.
    ring.ram.write(0x1f000, &plain[..54]).unwrap();
    ring.ram.write(0x20000, &plain[54..]).unwrap();
    port.hairpin(&Frame::new(ring.segments.view(sent), FEATURES).unwrap(), &mut space).unwrap();
    capture.received("receiveq0", &ring.segments, &space);
}

const COMMENTS: [&str; 3] = [
    "transmitq0 head 0: R 0x1f000+54 -> R 0x20000+100",
    "transmitq0 head 2: indirect(2): R 0x1f000+54 -> R 0xff000+9000, csum 34+16, gso 1448 tcpv4, hdr 54",
    "receiveq0 head 3: W 0x30000+60, written 60; head 4: W 0x31000+500, written 94",
];

/// A packet: its interface, flags, comment and frame.
type Packet = (u32, u32, String, Vec<u8>);

/// The packets of a file as pcap-file reads them, and the interfaces.
fn read(path: &Path) -> (Vec<Packet>, Vec<String>) {
    let mut reader = PcapNgReader::new(File::open(path).unwrap()).unwrap();
    let (mut names, mut packets) = (Vec::new(), Vec::new());
    while let Some(block) = reader.next_block() {
        match block.unwrap().0 {
            Block::InterfaceDescription(interface) => names.push(format!("{:?}", interface.options[0])),
            Block::EnhancedPacket(packet) => {
                let comment = packet.options.iter().find_map(|option| match option {
                    EnhancedPacketOption::Common(CommonOption::Comment(text)) => Some(text.to_string()),
                    _ => None,
                });
                let flags = packet.options.iter().find_map(|option| match option {
                    EnhancedPacketOption::Flags(flags) => Some(*flags),
                    _ => None,
                });
                packets.push((packet.interface_id, flags.unwrap(), comment.unwrap(), packet.data.to_vec()));
            }
            other => panic!("{other:?}"),
        }
    }
    (packets, names)
}

/// Says what it was asked, but nothing of what has no stamp.
#[derive(Debug)]
struct Says;

impl Labels for Says {
    fn label(&self, _at: Duration, buffers: &[super::Buffer], labels: &mut Vec<Option<Whose>>) {
        let words = |gpa: u64| Whose { words: format!("at {gpa:#x}"), kind: SourceKind::Unsettled };
        labels.extend(buffers.iter().map(|buffer| (buffer.stamp != 54).then(|| words(buffer.gpa))));
    }
}

#[test]
fn a_comment_says_whose_memory_was_sent_where_somebody_knows() {
    let path = Scratch::new("labels");
    let capture = Capture::create(&path.0).unwrap();
    assert!(!capture.is_labelled());
    capture.label_by(Box::new(Says));
    record_three(&capture);
    drop(capture);
    let (packets, _) = read(&path.0);
    let comments: Vec<&str> = packets.iter().map(|packet| packet.2.as_str()).collect();
    let second = "indirect(2): R 0x1f000+54 -> R 0xff000+9000 (at 0xff000), csum 34+16, gso 1448 tcpv4, hdr 54";
    assert_eq!(comments[0], "transmitq0 head 0: R 0x1f000+54 -> R 0x20000+100 (at 0x20000)");
    assert_eq!(comments[1], format!("transmitq0 head 2: {second}"));
    assert_eq!(comments[2], COMMENTS[2]);
    if let Ok(tshark) = Command::new("tshark").args(["-T", "fields", "-e", "frame.comment", "-r"]).arg(&path.0).output()
    {
        let said = String::from_utf8_lossy(&tshark.stdout).into_owned();
        assert_eq!(said.lines().collect::<Vec<_>>(), comments);
    }
}

/// A record of one chain of these buffers, with labels.
fn told(buffers: &[(u32, bool, &str)], descriptors: u16) -> (Record, Vec<Option<Whose>>) {
    let mut record = Record { queue: "transmitq0".to_owned(), ..Record::default() };
    let buffer = |(at, (len, writable, _)): (u64, &(u32, bool, &str))| {
        let addr = 0x1000 * (at + 1);
        super::Buffer { addr, gpa: addr, len: *len, writable: *writable, stamp: 1 }
    };
    record.packet.buffers = (0..).zip(buffers).map(buffer).collect();
    let count = buffers.len();
    let chain = packet::Chain { head: 1, idx: 2, descriptors, indirect: false, written: None, buffers: count };
    record.packet.chains.push(chain);
    let whose = |words: &str| Whose { words: words.to_owned(), kind: SourceKind::File };
    (record, buffers.iter().map(|(_, _, words)| (!words.is_empty()).then(|| whose(words))).collect())
}

#[test]
fn labels_for_which_an_option_has_no_room_are_left_out() {
    let long = "x".repeat(59_000);
    let (record, whose) = told(&[(1, false, "a"), (1, false, &long), (1, false, &long), (1, false, "b")], 4);
    let said = comment::of(&record, &whose, None);
    assert_eq!(said.matches("xxx").count(), 59_000 / 3);
    assert!(said.ends_with(") -> R 0x3000+1 -> R 0x4000+1 (b)"), "{}", &said[59_000..]);
    let all: serde_json::Value = serde_json::from_str(&option::of(&record, &whose, None)).unwrap();
    let buffers = all["chains"][0]["buffers"].as_array().unwrap();
    assert_eq!((buffers.len(), &all["chains"][0]["descriptors"]), (2, &4.into()), "as many as there is room for");
}

#[test]
fn many_buffers_of_one_thing_are_counted_and_no_name_looks_like_more_of_the_comment() {
    let pages: Vec<String> = (0..6).map(|page| format!("/srv/a (1).bin page {page}")).collect();
    let mut buffers = vec![(78, false, "socket buffers")];
    buffers.extend(pages.iter().map(|page| (4096, false, page.as_str())));
    buffers.extend([(8, false, "/x) -> R 0x1+1 (y page 1"), (9, false, "")]);
    let (record, whose) = told(&buffers, 12);
    let said = comment::of(&record, &whose, Some("mixed"));
    assert_eq!(
        said,
        "transmitq0 head 1: R 0x1000+78 (socket buffers) -> R 0x2000+4096 (/srv/a (1).bin page 0) -> … 5 more, 20480 bytes -> \
         R 0x8000+8 (/x\\x29 -> R 0x1+1 \\x28y page 1) -> R 0x9000+9 -> … 3 more, mixed"
    );
}

/// The TCP frame of [`crate::provenance::testing`], with so many bytes of payload in each of these buffers.
#[test]
fn the_verdict_is_of_the_payload_and_there_is_none_where_not_all_of_it_is_known() {
    use SourceKind::{File, Socket, Unsettled};
    let verdict = |kinds: &[Option<SourceKind>]| {
        let event = crate::provenance::testing::tcp(9000, 100 * kinds.len() as u32);
        let mut parts = vec![(12 + 54, false, "head")];
        parts.extend(kinds.iter().map(|_| (100, false, "payload")));
        let (mut record, mut whose) = told(&parts, parts.len() as u16);
        record.frame = event.head().to_vec();
        record.frame.resize(event.frame_len as usize, 0);
        for (whose, kind) in whose.iter_mut().skip(1).zip(kinds) {
            *whose = kind.map(|kind| Whose { words: String::new(), kind });
        }
        verdict::of(&record, &whose)
    };
    assert_eq!(verdict(&[Some(File), Some(File)]), Some("zero-copy"));
    assert_eq!(verdict(&[Some(Socket), Some(Socket)]), Some("copied"));
    assert_eq!(verdict(&[Some(Socket), Some(File)]), Some("mixed"));
    assert_eq!([verdict(&[Some(File), Some(Unsettled)]), verdict(&[Some(File), None]), verdict(&[])], [None; 3]);
}

#[test]
fn every_frame_is_on_record_with_its_descriptors() {
    let path = Scratch::new("record");
    let capture = Capture::create(&path.0).unwrap();
    record_three(&capture);
    let counters = capture.counters();
    drop(capture);
    let expected = [("capture_frames", 3), ("capture_bytes", 142 + 9042 + 142), ("capture_lost_frames", 0)];
    for (name, count) in expected {
        assert_eq!(counters.get(name), count, "{name}");
    }
    let (packets, names) = read(&path.0);
    assert!(names[0].contains("transmitq0") && names[1].contains("receiveq0"), "{names:?}");
    let comments: Vec<&str> = packets.iter().map(|packet| packet.2.as_str()).collect();
    assert_eq!(comments, COMMENTS);
    assert_eq!(packets.iter().map(|packet| (packet.0, packet.1)).collect::<Vec<_>>(), [(0, 2), (0, 2), (1, 1)]);
    assert_eq!(packets[0].3, udp(100));
    assert_eq!(packets[1].3, udp(9000));
    assert_eq!(packets[2].3, udp(100), "what came back is what was sent");
}

#[test]
fn tshark_reads_it_without_complaint() {
    if Command::new("tshark").arg("-v").output().is_err() {
        #[expect(clippy::print_stderr, reason = "how a test says that it was skipped")]
        {
            eprintln!("SKIP: no tshark");
        }
        return;
    }
    let path = Scratch::new("tshark");
    let capture = Capture::create(&path.0).unwrap();
    record_three(&capture);
    drop(capture);
    let fields = ["frame.interface_name", "frame.len", "udp.dstport", "frame.comment", "frame.time_epoch"];
    let fields = fields.iter().flat_map(|field| ["-e", field]);
    let output = Command::new("tshark").arg("-n").arg("-r").arg(&path.0).args(["-T", "fields"]).args(fields).output();
    let output = output.unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<&str> = complaints.lines().filter(|line| !line.contains("as user \"root\"")).collect();
    assert!(output.status.success() && complaints.is_empty(), "{complaints:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines.len(), 3, "{text}");
    for ((line, comment), (queue, len)) in
        lines.iter().zip(COMMENTS).zip([("transmitq0", "142"), ("transmitq0", "9042"), ("receiveq0", "142")])
    {
        assert_eq!(line[..3], [queue, len, "9000"]);
        assert_eq!(line[3], comment);
        let seconds: f64 = line[4].parse().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - seconds).abs() < 60.0, "{seconds} is not about {now}");
    }
}

#[test]
fn a_capture_can_be_read_while_it_grows() {
    let path = Scratch::new("grows");
    let capture = Capture::create(&path.0).unwrap();
    record_three(&capture);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut reader = PcapNgReader::new(File::open(&path.0).unwrap()).unwrap();
        let mut packets = 0;
        while let Some(Ok((block, _))) = reader.next_block() {
            packets += usize::from(matches!(block, Block::EnhancedPacket(_)));
        }
        if packets == 3 {
            break;
        }
        assert!(Instant::now() < deadline, "{packets} of 3 packets on disk");
        std::thread::yield_now();
    }
    drop(capture);
}

#[test]
fn a_file_that_cannot_be_made_is_named_in_one_sentence() {
    let error = Capture::create(Path::new("/nonexistent/frames.pcapng")).unwrap_err().to_string();
    assert_eq!(error, "cannot write the capture /nonexistent/frames.pcapng: No such file or directory (os error 2)");
}

#[test]
fn a_comment_is_no_longer_than_an_option_can_be() {
    let mut ring = Ring::new();
    let buffers: Vec<Buffer> = (0..4000).map(|at| Buffer::readable(0x10_0000 + at * 64, 16)).collect();
    let chain = ring.chain(&buffers, Placement::Direct);
    let frame = Frame::new(ring.segments.view(chain), FEATURES).unwrap();
    let path = Scratch::new("long");
    let capture = Capture::create(&path.0).unwrap();
    capture.transmitted("transmitq0", &frame, None, |_, _| (0, 0));
    let counters = capture.counters();
    drop(capture);
    assert_eq!((counters.get("capture_frames"), counters.get("capture_failed")), (1, 0));
    // Alike, they are counted.
    assert_eq!(read(&path.0).0[0].2, "transmitq0 head 0: R 0x100000+16 -> … 3999 more, 63984 bytes");
    // Each of another thing, they are listed as far as there is room.
    let names: Vec<String> = (0..4000).map(|at| format!("/srv/file{at} page 1")).collect();
    let buffers: Vec<(u32, bool, &str)> = names.iter().map(|name| (16, false, name.as_str())).collect();
    let (record, whose) = told(&buffers, 4100);
    let said = comment::of(&record, &whose, None);
    assert!(said.len() < 65_536, "{}", said.len());
    assert!(said.ends_with(" more"), "{}", &said[59_900..]);
    assert!(option::of(&record, &whose, None).len() < 65_536);
}
