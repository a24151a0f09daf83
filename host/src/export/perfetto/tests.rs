//! What is written, read again by the same messages. Perfetto's own reader is asked in `tests/cli/perfetto.rs`.

use std::sync::{Arc, Mutex};

use vnic::observe::protocol::{BufferSnapshot, Headers};

use super::*;

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn chain(queue: &str, (available_ns, at_ns): (u64, u64), buffers: Vec<BufferSnapshot>, summary: &str) -> ChainEvent {
    ChainEvent {
        at_ns,
        available_ns,
        queue: queue.to_owned(),
        head: 1,
        idx: 7,
        indirect: false,
        descriptors: buffers.len() as u16,
        written: 0,
        buffers,
        summary: summary.to_owned(),
        headers: Some(Headers { net: None, frame_len: 1000, bytes: String::new() }),
    }
}

fn buffer(gpa: u64, len: u32, writable: bool) -> BufferSnapshot {
    BufferSnapshot { writable, ..BufferSnapshot::at(gpa, len) }
}

fn read(at: (u64, u64), gpa: u64, len: u32) -> ChainEvent {
    let buffers = vec![buffer(0x100, 16, false), buffer(gpa, len, true), buffer(0x200, 1, true)];
    chain("requestq0", at, buffers, &format!("read sector 8 len {len}"))
}

fn sent(at: (u64, u64), gpa: u64, len: u32) -> ChainEvent {
    let buffers = vec![buffer(0x300, 78, false), buffer(gpa, len, false)];
    chain("transmitq0", at, buffers, "10.0.2.15:4 > 10.0.2.2:9 tcp seq 1 len 4096")
}

/// Begin, end, name, and the arrows that begin and end there.
type Slice = (u64, u64, String, Vec<u64>, Vec<u64>);

fn written(events: &[TraceEvent]) -> (Vec<Packet>, String) {
    let out = Shared::default();
    let mut perfetto = Box::new(Perfetto::to(Box::new(out.clone()), Path::new("t"), ("vnic", 5)).unwrap());
    events.iter().for_each(|event| perfetto.event(event).unwrap());
    let said = perfetto.end().unwrap();
    let packets = proto::Trace::decode(out.0.lock().unwrap().as_slice()).unwrap().packet;
    (packets, said)
}

fn slices(packets: &[Packet]) -> Vec<Slice> {
    let mut open: BTreeMap<u64, Slice> = BTreeMap::new();
    let mut slices = Vec::new();
    for packet in packets {
        let Some(Data::Event(event)) = &packet.data else { continue };
        let at = packet.timestamp.unwrap();
        match event.r#type() {
            Type::SliceBegin => {
                let Event { name, flow_ids, terminating_flow_ids, .. } = event.clone();
                let before = open.insert(event.track_uuid, (at, 0, name, flow_ids, terminating_flow_ids));
                assert_eq!(before, None, "two slices at once on one track");
            }
            Type::SliceEnd => {
                let mut slice = open.remove(&event.track_uuid).unwrap();
                slice.1 = at;
                slices.push(slice);
            }
            _ => {}
        }
    }
    assert!(open.is_empty());
    slices.sort();
    slices
}

fn chains(list: Vec<ChainEvent>) -> Vec<TraceEvent> {
    list.into_iter().map(TraceEvent::Chain).collect()
}

#[test]
fn arrows_lead_from_a_disks_read_to_each_frame_out_of_its_pages() {
    let (packets, said) = written(&chains(vec![
        read((10, 20), 0x8000, 0x3000),
        read((12, 22), 0x20000, 0x1000),
        sent((30, 31), 0x8000, 0x1000),
        sent((32, 33), 0xa000, 0x1000),
        // Of neither.
        sent((34, 35), 0x40000, 0x1000),
        // The page is the disk's anew: the first read has two left, and what is sent then is of the later one.
        read((40, 50), 0x8000, 0x1000),
        sent((60, 61), 0x8000, 0x2000),
    ]));
    let slices = slices(&packets);
    let arrows: Vec<_> = slices.iter().map(|(at, _, _, from, to)| (*at, from.clone(), to.clone())).collect();
    assert_eq!(arrows[..2], [(10, vec![1, 2, 3], vec![]), (12, vec![], vec![])]);
    assert_eq!(arrows[2..5], [(30, vec![], vec![1]), (32, vec![], vec![2]), (34, vec![], vec![])]);
    assert_eq!(arrows[5..], [(40, vec![4], vec![]), (60, vec![], vec![3, 4])]);
    assert_eq!(slices[0].2, "read");
    assert_eq!(slices[2].2, "10.0.2.15:4 > 10.0.2.2:9 tcp");
    assert_eq!(said, "t: 7 chains of 2 rings, 4 arrows from disk to NIC; open it in ui.perfetto.dev");
}

#[test]
fn what_a_device_has_overwritten_is_not_the_disks_any_more() {
    let received = chain("receiveq0", (1, 25), vec![buffer(0x8000, 4096, true)], "a > b tcp");
    let (_, said) = written(&chains(vec![read((10, 20), 0x8000, 0x1000), received, sent((30, 31), 0x8000, 0x1000)]));
    assert!(said.contains(" 0 arrows"), "{said}");
}

#[test]
fn chains_in_flight_are_counted_by_the_time_they_came_and_went() {
    let lost = TraceEvent::Lost { queue: "transmitq0".to_owned(), events: 3 };
    let mut events = chains(vec![sent((20, 30), 0, 1), sent((10, 40), 0, 1), sent((25, 50), 0, 1)]);
    events.push(lost);
    let (packets, said) = written(&events);
    let track = |name: &str| {
        packets.iter().find_map(|packet| match &packet.data {
            Some(Data::Track(track)) if track.name == name => Some(track.uuid),
            _ => None,
        })
    };
    let counts = |uuid: Option<u64>| -> Vec<(u64, i64)> {
        let of = packets.iter().filter_map(|packet| match &packet.data {
            Some(Data::Event(event)) if Some(event.track_uuid) == uuid => {
                Some((packet.timestamp?, event.counter_value?))
            }
            _ => None,
        });
        of.collect()
    };
    assert_eq!(counts(track("in flight")), [(10, 1), (20, 2), (25, 3), (30, 2), (40, 1), (50, 0)]);
    assert_eq!(counts(track("bytes")), [(30, 1000), (40, 2000), (50, 3000)]);
    assert!(said.contains("3 more were not recorded"), "{said}");
    let instants = packets.iter().filter(|packet| match &packet.data {
        Some(Data::Event(event)) => event.r#type() == Type::Instant && event.name == "3 chains were not recorded",
        _ => false,
    });
    assert_eq!(instants.count(), 1);
}

#[test]
fn nothing_that_a_guest_does_makes_it_keep_more_than_so_much() {
    let mut pages = Pages::default();
    for at in 0..20_000_u64 {
        pages.filled(read((at, at), at << 24, u32::MAX), 1);
    }
    assert!(pages.sent(&sent((1, 2), 19_999 << 24, 0x1000)).len() == 1);
    assert!(pages.sent(&sent((1, 2), 0, 0x1000)).is_empty(), "the oldest are let go");
    let mut in_flight = InFlight::default();
    in_flight.add(&sent((u64::MAX, 0), 0, 1));
    assert_eq!(in_flight.take(2), [(u64::MAX, 0)]);
}
