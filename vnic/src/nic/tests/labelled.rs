//! Whose memory the buffers of frames are, from the worker's stamp to what a client reads.

use super::*;
use crate::backend::guest::{Guest as _, Served};
use crate::backend::labels::StamperCopy;
use crate::introspect::testing::{Image, UPTODATE};
use crate::observe::protocol::{Reply, Report, SourceKind};
use crate::serve::Keeping;
use crate::serve::control::{Control, ControlSocket, Device as Looked};

const FILE: u64 = 0xa00;
const SOCKET: u64 = 0xa18;
const START: u64 = 0x5_0000;

/// A guest with a kernel in it, a file's page and a block of a socket's, and the head of a TCP frame.
fn guest() -> (Image, GuestRam) {
    let mut image = Image::new(16 << 20);
    let root = image.file_system("ext4", "vda1", None);
    let file = image.file(&root, root.root, "big.bin", 12);
    image.page(FILE, UPTODATE, file.mapping, 7);
    image.page(SOCKET, 0, 0, 0);
    image.block(SOCKET, 3);
    let mut head = vec![0; NET_HEADER_LEN + 12];
    head.extend([8, 0, 0x45, 0]);
    head.extend((40 + 4096 + 100_u16).to_be_bytes());
    head.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2, 0, 80, 200, 0]);
    head.extend([0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, 16, 1, 0, 0, 0, 0, 0]);
    image.put_bytes(START, &head);
    let ram = GuestRam::new(16 << 20).unwrap();
    ram.write(0, &image.bytes).unwrap();
    (image, ram)
}

/// A client of the device that has asked for something, and heard that it comes.
fn ask(path: &std::path::Path, request: &str) -> impl Iterator<Item = String> + use<> {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    std::io::Write::write_all(&mut stream, format!("{request}\n").as_bytes()).unwrap();
    let mut lines = std::io::BufReader::new(stream).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some(r#"{"reply":"done"}"#));
    lines
}

/// A device with that guest, at work, and its control socket at this path.
fn served(name: &str, keeping: Keeping) -> (Rig, Image, std::path::PathBuf, ControlSocket) {
    let (image, ram) = guest();
    let served = serve(vec![link::open(&LinkKind::Sink, 1).unwrap()], 1);
    let rig = Rig::in_ram(served, FEATURES, ram);
    let path = std::env::temp_dir().join(format!("vnic-{name}-{}", std::process::id()));
    let socket = ControlSocket::bind(&path).unwrap();
    let looked = Looked { shared: Arc::clone(&rig.shared), workers: Arc::clone(&rig.workers), pinger: None };
    socket.serve(Control::new(vec![looked], None).keeping(keeping)).unwrap();
    (rig, image, path, socket)
}

/// The head of the frame, a page of the file, and some of the socket's block.
fn send(rig: &mut Rig) {
    let head = (NET_HEADER_LEN + 54) as u32;
    let buffers = [(START, head), (FILE << 12, 4096), (SOCKET << 12, 100)];
    rig.tx.add(&buffers.map(|(at, len)| Buffer::readable(at, len)));
    rig.tx.used();
}

/// The first report of any payload.
fn first(lines: &mut impl Iterator<Item = String>) -> Box<Report> {
    let report = lines.find_map(|line| match serde_json::from_str(&line).unwrap() {
        Reply::Top(report) if report.bytes > 0 => Some(report),
        _ => None,
    });
    report.unwrap()
}

#[test]
fn what_was_sent_before_anybody_asked_is_told_at_once() {
    let (mut rig, _image, path, socket) = served("so-far", Keeping::Always);
    rig.wait_for("an account", |rig| rig.shared.sampled());
    // What is sent before the kernel is known counts, and is nobody's for sure.
    send(&mut rig);
    let known = |rig: &Rig| rig.shared.labels.stamper(&mut StamperCopy::default()).is_some();
    rig.wait_for("the kernel to be known", known);
    send(&mut rig);
    let mut now = ask(&path, r#"{"request":"top","every_ms":100}"#);
    let mut so_far = ask(&path, r#"{"request":"top","every_ms":3600000,"so_far":true}"#);
    let report = first(&mut so_far);
    assert_eq!((report.kernel.as_deref(), report.seen), (Some("6.12-test"), report.passed));
    assert_eq!((report.bytes, report.zero_copy_bytes, report.unsettled_bytes), (2 * 4196, 4096, 4196));
    assert_eq!(report.files[0].source.path.as_deref(), Some("/big.bin"));
    send(&mut rig);
    let report = first(&mut now);
    assert_eq!((report.seen.frames, report.bytes, report.zero_copy_bytes), (1, 4196, 4096));
    // The account goes on without clients; without the socket it would not.
    drop((now, so_far));
    assert!(rig.shared.sampled());
    drop(socket);
}

#[test]
fn the_workers_are_never_without_stamps_while_the_kernel_is_looked_for_again_and_again() {
    let (rig, _image, _, socket) = served("stamps", Keeping::Asked);
    let taken = |rig: &Rig| rig.shared.labels.stamper(&mut StamperCopy::default());
    assert!(taken(&rig).is_none(), "nobody asked");
    let mut guest = Served::new(Arc::clone(&rig.shared));
    assert_eq!(guest.open().as_deref(), Ok("6.12-test"));
    let before = taken(&rig).as_ref().map(Arc::downgrade).unwrap();
    assert_eq!(guest.open().as_deref(), Ok("6.12-test"));
    assert!(before.upgrade().is_some(), "for a moment there was none");
    drop(guest);
    assert!(taken(&rig).is_none(), "nobody wants any more");
    drop(socket);
}

#[test]
fn what_takes_stamps_is_gone_with_the_memory_whoever_still_wants_them() {
    let (rig, _image, _, socket) = served("gone", Keeping::Asked);
    let taken = |rig: &Rig| rig.shared.labels.stamper(&mut StamperCopy::default()).as_ref().map(Arc::downgrade);
    let mut guest = Served::new(Arc::clone(&rig.shared));
    assert_eq!(guest.open().as_deref(), Ok("6.12-test"));
    let before = taken(&rig).unwrap();
    rig.shared.labels.forget();
    assert!(before.upgrade().is_none() && taken(&rig).is_none(), "it keeps the memory");
    assert_eq!(guest.open().as_deref(), Ok("6.12-test"));
    assert!(taken(&rig).is_some());
    // The memory is another just when somebody begins to look.
    let old = rig.shared.guest_memory().unwrap();
    rig.shared.labels.forget();
    let wanted = rig.shared.labels.want_stamps(&old).unwrap();
    assert!(taken(&rig).is_none(), "of memory that is gone");
    drop((wanted, socket));
}

#[test]
fn what_is_sent_is_told_by_file_and_flow_though_its_pages_change_hands_at_once() {
    let (mut rig, mut image, path, socket) = served("labelled", Keeping::Asked);
    let mut top = ask(&path, r#"{"request":"top","every_ms":100}"#);
    let mut trace = ask(&path, r#"{"request":"trace","labels":true}"#);

    send(&mut rig);
    // The guest has the frame back: the socket's block goes to the next, who may be anybody.
    image.page(SOCKET, UPTODATE, 0x1235, 0);
    rig.ram.write(0x40_0000 + SOCKET * 64, &image.bytes[0x40_0000 + SOCKET as usize * 64..][..64]).unwrap();

    let report = first(&mut top);
    assert_eq!((report.kernel.as_deref(), report.seen), (Some("6.12-test"), report.passed));
    assert_eq!((report.bytes, report.zero_copy_bytes, report.header_bytes), (4196, 4096, 54));
    assert_eq!(report.flows[0].flow, "10.0.2.15:80 > 10.0.2.2:51200");
    assert_eq!(report.files[0].source.path.as_deref(), Some("/big.bin"));
    assert_eq!((report.elsewhere[0].source.kind, report.elsewhere[0].bytes), (SourceKind::Socket, 100));

    let TraceEvent::Chain(chain) = serde_json::from_str(&trace.next().unwrap()).unwrap() else { panic!("no chain") };
    let labels: Vec<_> = chain.buffers.iter().map(|buffer| buffer.label.as_deref().unwrap_or_default()).collect();
    assert_eq!(labels[1..], ["/big.bin page 7", "socket buffers"], "{chain:?}");
    drop((top, trace, socket));
    // Whoever followed is gone, and nobody records any more.
    rig.wait_for("nobody to follow", |rig| !rig.shared.traced() && !rig.shared.sampled());
}
