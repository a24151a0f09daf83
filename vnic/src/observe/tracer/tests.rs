//! Events written and read, one after the other and at once.

use super::*;

fn event(number: u64) -> Event {
    let mut event = Event {
        at_ns: number,
        available_ns: number.saturating_sub(1),
        head: number as u16,
        idx: 7,
        descriptors: 30,
        indirect: true,
        written: 5,
        frame_len: 65226,
        gso_size: 1448,
        head_len: 54,
        net_header: Some(EventHeader { flags: 1, gso_type: 0x81, hdr_len: 54, csum_start: 34, csum_offset: 16 }),
        net_header_len: 12,
        ..Event::default()
    };
    event.head_bytes[..54].fill(number as u8);
    for at in 0..30 {
        event.push(EventBuffer { addr: number << 20 | at, gpa: number << 40 | at, len: 4096, writable: at % 2 == 1 });
    }
    event.stamps = std::array::from_fn(|at| number << 8 | at as u64);
    event
}

fn ready() -> EventRing {
    let ring = EventRing::default();
    ring.make_room();
    ring
}

#[test]
fn nothing_is_recorded_before_there_is_room_and_the_reader_goes_on_then() {
    let ring = EventRing::default();
    let mut reader = ring.reader();
    ring.record(&event(1));
    assert_eq!((reader.read(), ring.is_ready()), (None, false));
    ring.make_room();
    ring.record(&event(2));
    assert_eq!(reader.read(), Some(Read::Event(Box::new(event(2)))));
}

#[test]
fn an_event_is_read_as_it_was_recorded() {
    let ring = ready();
    let mut reader = ring.reader();
    ring.record(&event(3));
    assert_eq!(reader.read(), Some(Read::Event(Box::new(event(3)))));
    assert_eq!(reader.read(), None);
    assert_eq!(event(3).buffers().len(), MAX_BUFFERS);
}

#[test]
fn many_rings_for_samples_are_small_ones() {
    let slots = |rings| EventRing::for_samples(rings).slots();
    assert_eq!([0, 1, 16, 32, 128, 4096].map(slots), [512, 512, 512, 256, 64, 64]);
    let ring = EventRing::for_samples(128);
    ring.make_room();
    let mut reader = ring.reader();
    (0..70).for_each(|number| ring.record(&event(number)));
    assert!(!ring.has_room());
    (0..63).for_each(|number| assert_eq!(reader.read(), Some(Read::Event(Box::new(event(number))))));
    assert_eq!((reader.read(), ring.has_room()), (Some(Read::Lost(7)), true));
}

#[test]
fn a_reader_makes_room_for_many_events_at_a_time() {
    let ring = ready();
    let mut reader = ring.reader();
    (0..SLOTS as u64).for_each(|number| ring.record(&event(number)));
    for number in 1..=SLOTS / 4 {
        assert!(!ring.has_room(), "after {number}");
        assert!(reader.read().is_some());
    }
    assert!(ring.has_room());
}

#[test]
fn a_slow_reader_learns_how_many_it_missed_and_reads_the_rest() {
    let ring = ready();
    let mut reader = ring.reader();
    let total = SLOTS as u64 + 100;
    for number in 0..total {
        ring.record(&event(number));
    }
    let kept = SLOTS as u64 - 1;
    for number in 0..kept {
        assert_eq!(reader.read(), Some(Read::Event(Box::new(event(number)))));
    }
    ring.record(&event(total));
    assert_eq!(reader.read(), Some(Read::Lost(total - kept)));
    assert_eq!(reader.read(), Some(Read::Event(Box::new(event(total)))));
    ring.lose(3);
    assert_eq!(reader.read(), Some(Read::Lost(3)));
    assert_eq!(reader.read(), None);
}

#[test]
fn a_reader_far_behind_the_foremost_learns_how_many_it_missed() {
    let ring = ready();
    let (mut slow, mut foremost) = (ring.reader(), ring.reader());
    let total = SLOTS as u64 + 100;
    for number in 0..total {
        ring.record(&event(number));
        assert_eq!(foremost.read(), Some(Read::Event(Box::new(event(number)))));
    }
    let Some(Read::Lost(lost)) = slow.read() else { panic!("must have lost some") };
    for number in lost..total {
        assert_eq!(slow.read(), Some(Read::Event(Box::new(event(number)))));
    }
    assert_eq!(slow.read(), None);
}

#[test]
fn nothing_read_beside_a_running_writer_is_torn() {
    let ring = ready();
    let total = 60_000;
    std::thread::scope(|scope| {
        let mut reader = ring.reader();
        scope.spawn(|| (0..total).for_each(|number| ring.record(&event(number))));
        let mut seen = 0;
        while seen < total {
            match reader.read() {
                Some(Read::Event(read)) => {
                    assert_eq!(*read, event(read.at_ns));
                    assert_eq!(read.at_ns, seen);
                    seen += 1;
                }
                Some(Read::Lost(lost)) => seen += lost,
                None => std::hint::spin_loop(),
            }
        }
    });
}
