//! What programs make of a capture: tshark with our plugin, and whoever reads the custom option.

use super::*;

/// What tshark says of a capture with vnic's plugin, line by line; `None`: there is no tshark.
fn tshark(path: &Path, options: &[&str]) -> Option<Vec<String>> {
    let plugin = concat!("lua_script:", env!("CARGO_MANIFEST_DIR"), "/../contrib/wireshark/vnic.lua");
    let mut tshark = Command::new("tshark");
    let Ok(output) = tshark.args(["-n", "-X", plugin, "-r"]).arg(path).args(options).output() else {
        #[expect(clippy::print_stderr, reason = "how a test says that it was skipped")]
        {
            eprintln!("SKIP: no tshark");
        }
        return None;
    };
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    let complaints: Vec<&str> = complaints.lines().filter(|line| !line.contains("as user \"root\"")).collect();
    assert!(output.status.success() && complaints.is_empty(), "{complaints:?}");
    Some(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

/// Says that the second buffer is a file's, page by page, and the first a socket's.
#[derive(Debug)]
struct OfFile;

impl Labels for OfFile {
    fn label(&self, _at: Duration, buffers: &[super::super::Buffer], labels: &mut Vec<Option<Whose>>) {
        let of = |(at, _): (usize, _)| match at {
            0 => Whose { words: "socket buffers".to_owned(), kind: SourceKind::Socket },
            _ => Whose { words: format!("/srv/big (1).bin page {at}"), kind: SourceKind::File },
        };
        labels.extend(buffers.iter().enumerate().map(of).map(Some));
    }
}

#[test]
fn wiresharks_plugin_makes_fields_of_it_to_filter_by() {
    let path = Scratch::new("plugin");
    let capture = Capture::create(&path.0).unwrap();
    capture.label_by(Box::new(OfFile));
    record_three(&capture);
    drop(capture);
    let fields = [
        "frame.number",
        "vnic.queue",
        "vnic.head",
        "vnic.desc.count",
        "vnic.desc.page_cache",
        "vnic.label",
        "vnic.written",
        "vnic.header.flags",
        "vnic.header.gso_type",
        "vnic.header.gso_size",
        "vnic.header.hdr_len",
        "vnic.header.csum_start",
        "vnic.header.csum_offset",
        "vnic.verdict",
        "vnic.malformed",
    ];
    let mut options = vec!["-T", "fields"];
    options.extend(fields.iter().flat_map(|field| ["-e", field]));
    let Some(lines) = tshark(&path.0, &options) else { return };
    let labels = "socket buffers,/srv/big (1).bin page 1";
    assert_eq!(
        lines,
        [
            format!("1\ttransmitq0\t0\t2\t0,1\t{labels}\t\t0x00\t\t\t\t\t\tzero-copy\t"),
            format!("2\ttransmitq0\t2\t2\t0,1\t{labels}\t\t0x01\t0x01\t1448\t54\t34\t16\tzero-copy\t"),
            "3\treceiveq0\t3,4\t2\t\t\t60,94\t\t\t\t\t\t\t\t".to_owned(),
        ]
    );
    for (filter, found) in [
        ("vnic.desc.page_cache == 1", &["1", "2"][..]),
        ("vnic.desc.count > 2", &[]),
        ("vnic.label contains \"big (1)\"", &["1", "2"]),
        ("vnic.header.gso_type == 1", &["2"]),
        ("vnic.desc.addr == 0xff000", &["2"]),
        ("vnic.desc.writable == 1", &["3"]),
        ("vnic.verdict == \"copied\"", &[]),
        ("vnic.malformed", &[]),
    ] {
        let options = ["-Y", filter, "-T", "fields", "-e", "frame.number"];
        assert_eq!(tshark(&path.0, &options).unwrap(), *found, "{filter}");
    }
}

#[test]
fn a_comment_that_is_not_as_it_should_be_is_told_and_never_taken_for_an_empty_one() {
    let path = Scratch::new("malformed");
    let mut ring = Ring::new();
    ring.ram.write(0x1f000, &[&NetHeader::default().to_bytes()[..], &udp(100)].concat()).unwrap();
    let chain = ring.chain(&[Buffer::readable(0x1f000, 154)], Placement::Direct);
    let frame = Frame::new(ring.segments.view(chain), FEATURES).unwrap();
    let capture = Capture::create(&path.0).unwrap();
    // No queue is called so: what stands behind it looks like a chain, and is none.
    for queue in ["transmitq0", "transmitq0 head 1: R rubbish"] {
        capture.transmitted(queue, &frame, None, |_, _| (0, 0));
    }
    drop(capture);
    let Some(lines) = tshark(&path.0, &["-Y", "vnic.malformed", "-T", "fields", "-e", "frame.number"]) else { return };
    assert_eq!(lines, ["2"]);
}

#[test]
fn a_frame_that_comes_straight_back_is_on_record_once_and_looks_like_no_retransmission() {
    let path = Scratch::new("looped");
    let capture = Capture::create(&path.0).unwrap();
    let mut ring = Ring::new();
    let mut port = Loopback::new();
    port.negotiated(FEATURES).unwrap();
    let event = crate::provenance::testing::tcp(9000, 100);
    let frame = [&NetHeader::default().to_bytes()[..], event.head(), &[0; 100]].concat();
    ring.ram.write(0x1f000, &frame).unwrap();
    let sent = ring.chain(&[Buffer::readable(0x1f000, frame.len() as u32)], Placement::Direct);
    let room = [ring.chain(&[Buffer::writable(0x30000, 1526)], Placement::Direct)];
    let mut space = ReceiveSpace::new(&ring.segments, &room, FEATURES);
    let frame = Frame::new(ring.segments.view(sent), FEATURES).unwrap();
    port.hairpin(&frame, &mut space).unwrap();
    capture.transmitted("transmitq0", &frame, Some(("receiveq0", &ring.segments, &space)), |_, _| (0, 0));
    drop(capture);
    let (packets, _) = read(&path.0);
    let comments: Vec<&str> = packets.iter().map(|packet| packet.2.as_str()).collect();
    assert_eq!(comments, ["transmitq0 head 0: R 0x1f000+166; receiveq0 head 1: W 0x30000+1526, written 166"]);
    let fields = ["-T", "fields", "-e", "vnic.desc.count", "-e", "tcp.analysis.retransmission", "-e", "vnic.malformed"];
    let Some(lines) = tshark(&path.0, &fields) else { return };
    assert_eq!(lines, ["2\t\t"]);
}

/// The custom option of each packet.
fn options(path: &Path) -> Vec<serde_json::Value> {
    let mut reader = PcapNgReader::new(File::open(path).unwrap()).unwrap();
    let mut found = Vec::new();
    while let Some(block) = reader.next_block() {
        let Block::EnhancedPacket(packet) = block.unwrap().0 else { continue };
        found.extend(packet.options.iter().filter_map(|option| match option {
            EnhancedPacketOption::Common(CommonOption::CustomUtf8Copiable(custom)) => {
                assert_eq!(custom.pen, option::VENDOR);
                Some(serde_json::from_str::<serde_json::Value>(&custom.value).unwrap())
            }
            _ => None,
        }));
    }
    found
}

#[test]
fn programs_find_all_that_is_known_in_a_custom_option() {
    let path = Scratch::new("option");
    let capture = Capture::create(&path.0).unwrap();
    capture.label_by(Box::new(OfFile));
    record_three(&capture);
    drop(capture);
    let found = options(&path.0);
    let expected = serde_json::json!({
        "vnic": 1,
        "queue": "transmitq0",
        "chains": [{
            "head": 2, "idx": 1, "indirect": true, "descriptors": 2,
            "buffers": [
                {"addr": 0x1f000, "gpa": 0x1f000, "len": 54, "writable": false, "label": "socket buffers", "source": "socket"},
                {"addr": 0xff000, "gpa": 0xff000, "len": 9000, "writable": false, "label": "/srv/big (1).bin page 1",
                 "source": "file"},
            ],
        }],
        "header": {"flags": 1, "gso_type": 1, "hdr_len": 54, "gso_size": 1448, "csum_start": 34, "csum_offset": 16},
        "verdict": "zero-copy",
    });
    assert_eq!(found.len(), 3);
    assert_eq!(found[1], expected);
    assert_eq!(found[2]["chains"][1]["written"], 94);
    assert_eq!(found[2]["verdict"], serde_json::Value::Null);
}
