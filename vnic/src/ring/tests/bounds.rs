//! What a driver may not do, and what it may though the text does not like it.

use super::*;
use crate::spec::ring::{DESC_F_NEXT, Descriptor};

/// Makes a chain of `len` buffers available, by an indirect table that the driver half would refuse to make where the ring is
/// shorter. Chain `n` of the ring, for packed ones.
fn add_long(pair: &mut Pair, format: Format, n: u16, len: u16) {
    const TABLE: u64 = 0x1_0000;
    let head = pair.driver.add(&[Buffer::readable(0x8000, 1)], Placement::Indirect(TABLE)).unwrap();
    // A packed ring's first descriptor is written then; the device looks at neither before it is asked.
    pair.driver.publish();
    for at in 0..len {
        let more = if at + 1 < len { DESC_F_NEXT } else { 0 };
        let (flags, next) = if format == Format::Packed { (0, 0) } else { (more, at + 1) };
        let desc = Descriptor { addr: 0x8000, len: 1, flags, next };
        pair.ram.write(TABLE + 16 * u64::from(at), &fixture::descriptor_bytes(desc)).unwrap();
    }
    let index = if format == Format::Packed { n } else { head };
    pair.ram.write(pair.layout.desc + 16 * u64::from(index) + 8, &(16 * u32::from(len)).to_le_bytes()).unwrap();
}

/// The flags of descriptor `index`: a split descriptor has them before its `next`, a packed one in its last bytes.
fn flags_at(pair: &Pair, format: Format, index: u16) -> u64 {
    pair.layout.desc + 16 * u64::from(index) + if format == Format::Packed { 14 } else { 12 }
}

for_both_formats! {
    fn the_buffers_of_one_pass_are_bounded_whatever_tables_there_are(format: Format) {
        // 1024 buffers a chain, as many as a chain may have here; of no bytes, so nothing else bounds them.
        let mut pair = Pair::new(format, 1024, INDIRECT);
        let empty = [Buffer::writable(0x8000, 0); 1024];
        let most = MAX_SEGMENTS / empty.len();
        for _ in 0..256 {
            pair.driver.add(&empty, Placement::Indirect(0x1_0000)).unwrap();
        }
        pair.driver.publish();
        for _ in 0..most {
            assert_eq!(pair.pop().unwrap().descriptors, 1024);
        }
        let error = pair.device.pop(&mut pair.segments).unwrap_err();
        assert_eq!(error.name(), "too_many_segments", "{error}");
        assert_eq!((pair.segments.len(), usize::from(pair.device.in_flight())), (MAX_SEGMENTS, most));
        // The chain was not taken: the next pass finds it.
        pair.segments.clear();
        assert_eq!(usize::from(pair.pop().unwrap().idx), most);
    }

    fn a_chain_longer_than_the_ring_is_taken_and_counted(format: Format) {
        let mut pair = Pair::new(format, 4, INDIRECT);
        for (n, (len, count)) in (0..).zip([(4, 0), (5, 1), (1024, 1)]) {
            add_long(&mut pair, format, n, len);
            let chain = pair.pop().unwrap();
            assert_eq!(chain.descriptors, len);
            assert_eq!(pair.segments.take_oddities(), Oddities { long_chains: count, unknown_flags: 0 }, "{len}");
        }
    }

    fn flags_without_a_meaning_change_nothing_and_are_counted(format: Format) {
        for buffers in [&[Buffer::readable(0x8000, 100)][..], &[Buffer::readable(0x8000, 10), Buffer::writable(0x9000, 10)]] {
            let mut pair = Pair::new(format, 8, INDIRECT);
            // The arena knows the region then, so the fast path could take it.
            pair.add(buffers);
            let good = pair.round_trip(0);
            assert_eq!(pair.segments.take_oddities(), Oddities::default());
            let head = pair.add(buffers);
            let index = if format == Format::Packed { buffers.len() as u16 } else { head };
            let at = flags_at(&pair, format, index);
            let flags = pair.ram.read(at, 2).unwrap();
            pair.ram.write(at, &[flags[0] | 0x30, flags[1]]).unwrap();
            let chain = pair.pop().unwrap();
            assert_eq!((usize::from(chain.descriptors), good.written), (buffers.len(), 0));
            assert_eq!(pair.segments.take_oddities(), Oddities { unknown_flags: 1, long_chains: 0 });
        }
    }

    fn a_ring_of_one_entry_works(format: Format) {
        let mut pair = Pair::new(format, 1, INDIRECT);
        for n in 0..10 {
            pair.add(&[Buffer::writable(0x8000, 100)]);
            assert_eq!(pair.driver.add(&[Buffer::writable(0x8000, 100)], Placement::Direct).ok(), None, "it is full");
            assert_eq!(pair.round_trip(n).written, n);
            add_long(&mut pair, format, 0, 3);
            assert_eq!(pair.round_trip(0).written, 0);
        }
    }

    fn parts_of_a_ring_over_one_another_are_refused_by_name(format: Format) {
        let pair = Pair::new(format, 8, Features::NONE);
        let start = |layout| Device::new(layout, Arc::clone(pair.ram.memory()), pair.features, format.base()).map(drop);
        let RingLayout { desc, avail, used, .. } = pair.layout;
        assert_eq!(start(pair.layout), Ok(()));
        for (layout, first, second) in [
            (RingLayout { avail: desc + 124, ..pair.layout }, "descriptor area", "driver area"),
            (RingLayout { used: desc, ..pair.layout }, "descriptor area", "device area"),
            (RingLayout { used: avail, ..pair.layout }, "driver area", "device area"),
            (RingLayout { avail: used, ..pair.layout }, "driver area", "device area"),
        ] {
            assert_eq!(start(layout), Err(RingError::PartsOverlap { first, second }), "{layout:?}");
        }
    }
}
