//! A transfer's flow, and whose pages its payload was in.

use std::sync::Arc;

use vnic::datagram::{HEADER_LEN, Header, Kind};
use vnic::memory::testing::GuestRam;
use vnic::memory::{Memory, PageRun};
use vnic::net::Frame;
use vnic::ring::{
    Buffer, ChainView, Device, DeviceRing, Disposition, DriverRing, Placement, RingLayout, Segments, SingleBufferBatch,
    SplitDriver, Visitor,
};
use vnic::spec::net::HDR_F_NEEDS_CSUM;
use vnic::spec::{Feature, Features};

use super::*;

const HEADER: u64 = 0x10_0000;
const PAYLOAD: u64 = 0x20_0000;
const ELSEWHERE: u64 = 0x30_0000;
const SIZE: u16 = 64;
const FEATURES: Features = Features::of(&[Feature::Version1, Feature::Csum, Feature::HostUso]);

/// A transmitq whose frames a [`FlowWatch`] is shown: the driver half, the device half, and guest memory.
struct Transmitq {
    ram: GuestRam,
    driver: SplitDriver,
    device: Device,
    segments: Segments,
}

/// Shows each frame, as read and copied whole.
struct Show<'a>(&'a mut FlowWatch);

impl Visitor for Show<'_> {
    const READS: bool = true;

    fn takes_batches(&self) -> bool {
        false
    }

    fn visit_batch(&mut self, _: SingleBufferBatch<'_>) -> usize {
        0
    }

    fn visit(&mut self, chain: ChainView<'_>) -> Disposition {
        let frame = Frame::new(chain, FEATURES).unwrap();
        let (read, copied) = (frame.len, frame.len);
        self.0.transmitted(&TransmittedFrame { frame: &frame, read, copied, translated: None });
        Disposition::Return
    }
}

impl Transmitq {
    fn new() -> Self {
        let ram = GuestRam::new(4 << 20).unwrap();
        let (layout, _) = RingLayout::split_at(0x1000, SIZE).unwrap();
        let memory: &Arc<Memory> = ram.memory();
        let driver = SplitDriver::new(layout, memory.clone(), FEATURES).unwrap();
        let device = Device::new(layout, memory.clone(), FEATURES, 0).unwrap();
        let segments = Segments::new(memory.clone(), usize::from(SIZE));
        Transmitq { ram, driver, device, segments }
    }

    /// Sends `header` and behind it `len` bytes at `addr`, under the eyes of `watch`.
    fn send(&mut self, watch: &mut FlowWatch, header: &[u8], addr: u64, len: u16) {
        self.send_pieces(watch, header, &[(addr, len)]);
    }

    /// The same with bytes at several addresses.
    fn send_pieces(&mut self, watch: &mut FlowWatch, header: &[u8], pieces: &[(u64, u16)]) {
        self.ram.write(HEADER + 12, header).unwrap();
        let mut buffers = vec![Buffer::readable(HEADER, 12 + header.len() as u32)];
        let pieces = pieces.iter().filter(|(_, len)| *len > 0);
        buffers.extend(pieces.map(|&(addr, len)| Buffer::readable(addr, u32::from(len))));
        self.driver.add(&buffers, Placement::Direct).unwrap();
        self.driver.publish();
        self.device.drain(&mut self.segments, 1, &mut Show(watch)).unwrap();
        self.device.publish().unwrap();
        assert!(self.driver.pop_used().unwrap().is_some());
    }
}

/// An Ethernet + IPv4 + TCP header from 10.0.2.15:1000 to 10.0.2.2:9000 with this sequence number.
fn tcp_header(seq: u32, payload: u16) -> Vec<u8> {
    let mut bytes = vec![0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x08, 0x00];
    bytes.extend([0x45, 0]);
    bytes.extend((40 + payload).to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    bytes.extend(1000u16.to_be_bytes());
    bytes.extend(9000u16.to_be_bytes());
    bytes.extend(seq.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    bytes
}

/// The flow of [`tcp_header`].
fn flow() -> Flow {
    Flow { protocol: 6, local: "10.0.2.15:1000".parse().unwrap(), remote: "10.0.2.2:9000".parse().unwrap() }
}

/// What all workers saw of a flow.
fn sum(parts: &[FlowWatch]) -> FlowAccounts {
    parts.iter().fold(FlowAccounts::default(), |sum, part| sum.plus(&part.accounts()))
}

/// Sends segments, each as (sequence number, address, length), while `watch` is watched. Returns the part that saw them.
fn send_watched(watch: &FlowWatch, segments: &[(u32, u64, u16)]) -> Vec<FlowWatch> {
    let (mut queue, mut part) = (Transmitq::new(), watch.part());
    for (seq, addr, len) in segments {
        queue.send(&mut part, &tcp_header(*seq, *len), *addr, *len);
    }
    vec![part]
}

/// The accounts of a flow whose file is the two pages at [`PAYLOAD`] (its pages 5 and 6), with these segments of it.
fn watched(segments: &[(u32, u64, u16)]) -> FlowAccounts {
    let pages = Arc::new(FilePages::new(&[PageRun { page: 5, gpa: PAYLOAD, count: 2 }]).unwrap());
    sum(&send_watched(&FlowWatch::new(flow(), pages), segments))
}

#[test]
fn the_shapes_of_chains_with_payload_are_told() {
    let shapes = watched(&[(0, PAYLOAD, 4096), (4096, PAYLOAD + 4096, 1000), (5096, ELSEWHERE, 0)]).shapes;
    assert_eq!(
        (shapes.chains, shapes.bytes),
        (2, 2 * 54 + 5096),
        "headers are gathered, too; an acknowledgement is not payload"
    );
    assert_eq!(shapes.pieces.into_iter().collect::<Vec<_>>(), [(54, 2), (1000, 1), (4096, 1)]);
    assert_eq!(shapes.chain_pieces.into_iter().collect::<Vec<_>>(), [(2, 2)]);
    assert_eq!(shapes.pages.of_lru(64), (1, 3), "the headers' page is used again");
}

#[test]
fn payload_in_the_files_pages_is_told_from_payload_elsewhere() {
    let accounts = watched(&[(u32::MAX - 999, PAYLOAD, 4096), (3096, PAYLOAD + 4096, 1000), (4096, ELSEWHERE, 500)]);
    assert_eq!(accounts.device.payload_bytes, Some(5596));
    assert_eq!(accounts.device.from_page_cache_bytes, Some(5096));
    assert_eq!(accounts.device.from_elsewhere_bytes, Some(500));
    assert_eq!(accounts.device.retransmitted_bytes, Some(0));
    assert_eq!(accounts.device.dma_read_bytes, Some(5596));
    assert_eq!(accounts.device.chains, Some(3));
    assert_eq!(accounts.misplaced_bytes, 0);
}

#[test]
fn bytes_sent_again_are_counted_apart() {
    let accounts = watched(&[(1, PAYLOAD, 1000), (501, PAYLOAD + 500, 1000), (1, PAYLOAD, 200)]);
    assert_eq!(accounts.device.payload_bytes, Some(1500));
    assert_eq!(accounts.device.retransmitted_bytes, Some(700));
    assert_eq!(accounts.device.from_page_cache_bytes, Some(1500));
}

#[test]
fn a_page_of_the_file_at_the_wrong_place_of_the_stream_is_told() {
    let accounts = watched(&[(1, PAYLOAD, 4096), (4097, PAYLOAD, 4096)]);
    assert_eq!(accounts.misplaced_bytes, 4096);
}

/// The same with datagrams: (kind, offset, address, length).
fn watched_datagrams(datagrams: &[(Kind, u64, u64, u16)]) -> FlowAccounts {
    let (mut queue, mut watch) = (Transmitq::new(), watch_datagrams());
    for &(kind, offset, addr, len) in datagrams {
        queue.send(&mut watch, &datagram_header(kind, offset, len), addr, len);
    }
    watch.accounts()
}

/// The flow of [`datagram_header`], of a file that is the two pages at [`PAYLOAD`].
fn watch_datagrams() -> FlowWatch {
    let pages = Arc::new(FilePages::new(&[PageRun { page: 0, gpa: PAYLOAD, count: 2 }]).unwrap());
    FlowWatch::new(Flow { protocol: 17, ..flow() }, pages)
}

/// Ethernet and IPv4 of the TCP frame, with UDP in its place, and a datagram's own header with `len` bytes behind it.
fn datagram_header(kind: Kind, offset: u64, len: u16) -> Vec<u8> {
    let mut header = tcp_header(0, len + 12);
    header.truncate(34);
    header[23] = 17;
    header.extend(1000u16.to_be_bytes());
    header.extend(9000u16.to_be_bytes());
    header.extend((8 + HEADER_LEN as u16 + len).to_be_bytes());
    header.extend([0, 0]);
    header.extend(Header { kind, transfer: 5, offset }.to_bytes());
    header
}

#[test]
fn a_file_in_datagrams_is_attributed_without_the_headers_between() {
    let accounts = watched_datagrams(&[
        (Kind::Data, 0, PAYLOAD, 1408),
        (Kind::Data, 1408, PAYLOAD + 1408, 1408),
        (Kind::Data, 2816, ELSEWHERE, 500),
        (Kind::Data, 0, PAYLOAD, 100),
        (Kind::End, 3316, PAYLOAD, 0),
    ]);
    assert_eq!(accounts.device.payload_bytes, Some(3316));
    assert_eq!((accounts.device.from_page_cache_bytes, accounts.device.from_elsewhere_bytes), (Some(2816), Some(500)));
    assert_eq!((accounts.device.retransmitted_bytes, accounts.misplaced_bytes), (Some(100), 0));
    assert_eq!((accounts.device.dma_read_bytes, accounts.device.chains), (Some(3416), Some(4)));
}

/// The accounts of a frame with these pieces behind the first datagram's header, and this in the NIC's header.
fn watched_frame(gso_type: u8, gso_size: u16, pieces: &[(u64, u16)]) -> FlowAccounts {
    let (mut queue, mut watch) = (Transmitq::new(), watch_datagrams());
    // A checksum at UDP's place is left to the device.
    let [low, high] = gso_size.to_le_bytes();
    queue.ram.write(HEADER, &[HDR_F_NEEDS_CSUM, gso_type, 0, 0, low, high, 34, 0, 6, 0]).unwrap();
    let len = pieces.iter().map(|(_, len)| len).sum();
    queue.send_pieces(&mut watch, &datagram_header(Kind::Data, 0, len), pieces);
    watch.accounts()
}

#[test]
fn a_frame_that_the_nic_cuts_has_a_header_in_front_of_each_datagrams_bytes() {
    const OWN: u16 = HEADER_LEN as u16;
    let pieces = [
        (PAYLOAD, 1000),
        (ELSEWHERE, OWN),
        // In two pieces, as where a page ends.
        (PAYLOAD + 1000, 600),
        (PAYLOAD + 1600, 400),
        (ELSEWHERE + 100, OWN),
        (ELSEWHERE + 200, 300),
    ];
    let figures = |accounts: &FlowAccounts| {
        let device = &accounts.device;
        let attributed = [device.payload_bytes, device.from_page_cache_bytes, device.from_elsewhere_bytes];
        (attributed.map(Option::unwrap), accounts.misplaced_bytes)
    };
    let cut = watched_frame(GSO_UDP_L4, 1000 + OWN, &pieces);
    assert_eq!(figures(&cut), ([2300, 2000, 300], 0));
    assert_eq!(
        (cut.device.chains, cut.device.descriptors, cut.device.retransmitted_bytes),
        (Some(1), Some(7), Some(0))
    );
    assert_eq!((cut.device.dma_read_bytes, cut.device.device_copied_bytes), (Some(2300), Some(2300)));
    // One datagram, and what stands between is payload like all else.
    for (gso_type, gso_size) in [(0, 0), (0, 1024), (GSO_UDP_L4, OWN)] {
        let whole = watched_frame(gso_type, gso_size, &pieces);
        assert_eq!(figures(&whole), ([2348, 2000, 348], 1000), "{gso_type} {gso_size}");
    }
    // More datagrams than any Linux asks for; and the last one shorter than a header.
    let many = [(PAYLOAD, 4096), (PAYLOAD + 4096, 4096)];
    assert_eq!(figures(&watched_frame(GSO_UDP_L4, OWN + 1, &many)), ([8192, 8192, 0], 0));
    assert_eq!(figures(&watched_frame(GSO_UDP_L4, 1000 + OWN, &[(PAYLOAD, 1000), (ELSEWHERE, 10)])).0[0], 986);
}

#[test]
fn a_datagram_that_says_another_place_is_misplaced_and_no_offset_overflows() {
    let wrong = watched_datagrams(&[(Kind::Data, 0, PAYLOAD, 1000), (Kind::Data, 1000, PAYLOAD, 1000)]);
    assert_eq!(wrong.misplaced_bytes, 1000);
    let accounts =
        watched_datagrams(&[(Kind::Data, u64::MAX, PAYLOAD, 1000), (Kind::Data, u64::MAX - 5, PAYLOAD, 1000)]);
    assert_eq!(accounts.device.payload_bytes.unwrap() + accounts.device.retransmitted_bytes.unwrap(), 2000);
}

#[test]
fn a_file_whose_pages_are_known_only_afterwards_is_attributed_then() {
    let segments = [(1, PAYLOAD, 1000), (1001, PAYLOAD + 1000, 1000), (2001, ELSEWHERE, 1000)];
    let found = [PageRun { page: 0, gpa: PAYLOAD, count: 1 }];
    for (later, pages, cached) in [(true, &found[..], 2000), (true, &[], 0), (false, &found, 0)] {
        let watch = FlowWatch::new(flow(), Arc::default());
        let mut parts = send_watched(&if later { watch.later() } else { watch }, &segments);
        let pages = FilePages::new(pages).unwrap();
        parts.iter_mut().for_each(|part| part.attribute_remembered(&pages));
        let accounts = sum(&parts);
        let attributed = (accounts.device.from_page_cache_bytes, accounts.device.from_elsewhere_bytes);
        assert_eq!(attributed, (Some(cached), Some(3000 - cached)), "later: {later}");
        assert_eq!((accounts.misplaced_bytes, accounts.forgotten_bytes), (0, 0));
    }
}

#[test]
fn another_flow_is_not_counted() {
    let other = Flow { local: "10.0.2.15:1001".parse().unwrap(), ..flow() };
    let backwards = Flow { local: flow().remote, remote: flow().local, ..flow() };
    for flow in [other, backwards] {
        let parts = send_watched(&FlowWatch::new(flow, Arc::default()), &[(1, PAYLOAD, 100)]);
        assert_eq!(sum(&parts).device.chains, Some(0));
    }
}

#[test]
fn a_flow_that_wanders_over_queues_and_workers_has_one_set_of_accounts() {
    for workers in [1, 2, 4] {
        let pages = Arc::new(FilePages::new(&[PageRun { page: 5, gpa: PAYLOAD, count: 2 }]).unwrap());
        let watch = FlowWatch::new(flow(), pages);
        let mut queues: Vec<_> = (0..workers).map(|_| (Transmitq::new(), watch.part())).collect();
        let mut segment = |pair: usize, seq, at, len| {
            let (queue, part) = &mut queues[pair % workers];
            queue.send(part, &tcp_header(seq, len), at, len);
        };
        segment(0, 1, PAYLOAD, 2000);
        segment(1, 2001, PAYLOAD + 2000, 2096);
        // Sent again on a queue that had not seen it, and at a wrong place in the file.
        segment(2, 1001, PAYLOAD + 1000, 1500);
        segment(3, 4097, PAYLOAD + 4096 + 100, 500);
        let accounts = queues.iter().fold(FlowAccounts::default(), |sum, (_, part)| sum.plus(&part.accounts()));
        assert_eq!((accounts.device.payload_bytes, accounts.device.retransmitted_bytes), (Some(4596), Some(1500)));
        assert_eq!((accounts.device.from_page_cache_bytes, accounts.device.chains), (Some(4596), Some(4)));
        assert_eq!(accounts.misplaced_bytes, 500);
    }
}
