//! A transfer's flow, and whose pages its payload was in.

use super::*;

/// An Ethernet + IPv4 + TCP header from 10.0.2.15:1000 to 10.0.2.2:9000 with this sequence number.
pub(super) fn tcp_header(seq: u32, payload: u16) -> Vec<u8> {
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
fn sum(parts: &[FlowWatch]) -> FlowBooks {
    parts.iter().fold(FlowBooks::default(), |sum, part| sum.plus(&part.books()))
}

/// Sends segments, each as (sequence number, address, length), while `watch` is watched. Returns the workers' parts of it.
fn send_watched(watch: &FlowWatch, segments: &[(u32, u64, u16)]) -> Vec<FlowWatch> {
    let mut rig = Rig::new(&LinkKind::SinkCopy);
    rig.workers.watch(Some(watch));
    for (seq, addr, len) in segments {
        let header = tcp_header(*seq, *len);
        rig.ram.write(HEADER + 12, &header).unwrap();
        rig.tx.add(&[Buffer::readable(HEADER, 12 + header.len() as u32), Buffer::readable(*addr, u32::from(*len))]);
        rig.tx.used();
    }
    rig.workers.watch(None)
}

/// The books of a flow whose file is the two pages at [`PAYLOAD`] (its pages 5 and 6), with these segments of it.
fn watched(segments: &[(u32, u64, u16)]) -> FlowBooks {
    let pages = Arc::new(FilePages::new(&[PageRun { page: 5, gpa: PAYLOAD, count: 2 }]).unwrap());
    sum(&send_watched(&FlowWatch::new(flow(), pages), segments))
}

#[test]
fn payload_in_the_files_pages_is_told_from_payload_elsewhere() {
    let books = watched(&[(u32::MAX - 999, PAYLOAD, 4096), (3096, PAYLOAD + 4096, 1000), (4096, RECEIVE, 500)]);
    assert_eq!(books.device.payload_bytes, Some(5596));
    assert_eq!(books.device.from_page_cache_bytes, Some(5096));
    assert_eq!(books.device.from_elsewhere_bytes, Some(500));
    assert_eq!(books.device.retransmitted_bytes, Some(0));
    assert_eq!(books.device.dma_read_bytes, Some(5596));
    assert_eq!(books.device.chains, Some(3));
    assert_eq!(books.misplaced_bytes, 0);
}

#[test]
fn bytes_sent_again_are_counted_apart() {
    let books = watched(&[(1, PAYLOAD, 1000), (501, PAYLOAD + 500, 1000), (1, PAYLOAD, 200)]);
    assert_eq!(books.device.payload_bytes, Some(1500));
    assert_eq!(books.device.retransmitted_bytes, Some(700));
    assert_eq!(books.device.from_page_cache_bytes, Some(1500));
}

#[test]
fn a_page_of_the_file_at_the_wrong_place_of_the_stream_is_told() {
    let books = watched(&[(1, PAYLOAD, 4096), (4097, PAYLOAD, 4096)]);
    assert_eq!(books.misplaced_bytes, 4096);
}

/// The same with datagrams: (kind, offset, address, length).
fn watched_datagrams(datagrams: &[(Kind, u64, u64, u16)]) -> FlowBooks {
    let mut rig = Rig::new(&LinkKind::SinkCopy);
    let flow =
        Flow { protocol: 17, local: "10.0.2.15:1000".parse().unwrap(), remote: "10.0.2.2:9000".parse().unwrap() };
    let pages = Arc::new(FilePages::new(&[PageRun { page: 0, gpa: PAYLOAD, count: 2 }]).unwrap());
    rig.workers.watch(Some(&FlowWatch::new(flow, pages)));
    for &(kind, offset, addr, len) in datagrams {
        // Ethernet and IPv4 of the TCP frame, with UDP in its place.
        let mut header = tcp_header(0, len + 12);
        header.truncate(34);
        header[23] = 17;
        header.extend(1000u16.to_be_bytes());
        header.extend(9000u16.to_be_bytes());
        header.extend((8 + HEADER_LEN as u16 + len).to_be_bytes());
        header.extend([0, 0]);
        header.extend(Header { kind, transfer: 5, offset }.to_bytes());
        rig.ram.write(HEADER + 12, &header).unwrap();
        rig.tx.add(&[Buffer::readable(HEADER, 12 + header.len() as u32), Buffer::readable(addr, u32::from(len))]);
        rig.tx.used();
    }
    sum(&rig.workers.watch(None))
}

#[test]
fn a_file_in_datagrams_is_attributed_without_the_headers_between() {
    let books = watched_datagrams(&[
        (Kind::Data, 0, PAYLOAD, 1408),
        (Kind::Data, 1408, PAYLOAD + 1408, 1408),
        (Kind::Data, 2816, RECEIVE, 500),
        (Kind::Data, 0, PAYLOAD, 100),
        (Kind::End, 3316, PAYLOAD, 0),
    ]);
    assert_eq!(books.device.payload_bytes, Some(3316));
    assert_eq!((books.device.from_page_cache_bytes, books.device.from_elsewhere_bytes), (Some(2816), Some(500)));
    assert_eq!((books.device.retransmitted_bytes, books.misplaced_bytes), (Some(100), 0));
    assert_eq!((books.device.dma_read_bytes, books.device.chains), (Some(3416), Some(4)));
}

#[test]
fn a_datagram_that_says_another_place_is_misplaced_and_no_offset_overflows() {
    let wrong = watched_datagrams(&[(Kind::Data, 0, PAYLOAD, 1000), (Kind::Data, 1000, PAYLOAD, 1000)]);
    assert_eq!(wrong.misplaced_bytes, 1000);
    let books = watched_datagrams(&[(Kind::Data, u64::MAX, PAYLOAD, 1000), (Kind::Data, u64::MAX - 5, PAYLOAD, 1000)]);
    assert_eq!(books.device.payload_bytes.unwrap() + books.device.retransmitted_bytes.unwrap(), 2000);
}

#[test]
fn a_file_whose_pages_are_known_only_afterwards_is_attributed_then() {
    let segments = [(1, PAYLOAD, 1000), (1001, PAYLOAD + 1000, 1000), (2001, RECEIVE, 1000)];
    let found = [PageRun { page: 0, gpa: PAYLOAD, count: 1 }];
    for (remembering, pages, cached) in [(true, &found[..], 2000), (true, &[], 0), (false, &found, 0)] {
        let watch = FlowWatch::new(flow(), Arc::default());
        let mut parts = send_watched(&if remembering { watch.remembering() } else { watch }, &segments);
        let pages = FilePages::new(pages).unwrap();
        parts.iter_mut().for_each(|part| part.settle(&pages));
        let books = sum(&parts);
        let attributed = (books.device.from_page_cache_bytes, books.device.from_elsewhere_bytes);
        assert_eq!(attributed, (Some(cached), Some(3000 - cached)), "remembering: {remembering}");
        assert_eq!((books.misplaced_bytes, books.forgotten_bytes), (0, 0));
    }
}

#[test]
fn another_flow_is_not_counted() {
    let mut rig = Rig::new(&LinkKind::Sink);
    let flow = Flow { protocol: 6, local: "10.0.2.15:1001".parse().unwrap(), remote: "10.0.2.2:9000".parse().unwrap() };
    rig.workers.watch(Some(&FlowWatch::new(flow, Arc::default())));
    let header = tcp_header(1, 100);
    rig.ram.write(HEADER + 12, &header).unwrap();
    rig.tx.add(&[Buffer::readable(HEADER, 12 + header.len() as u32), Buffer::readable(PAYLOAD, 100)]);
    rig.tx.used();
    assert_eq!(rig.workers.watch(None)[0].books().device.chains, Some(0));
}
