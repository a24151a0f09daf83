//! A driver's chain as a request for a disk.
//!
//! What must hold: no panic; a request that is accepted touches sectors of the disk alone, as many as its data are, and none of a disk that
//! is read-only for writing; what is described to be moved are those data, and not a byte beside them.

use std::cell::RefCell;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use vnic::blk::{Touched, touched};
use vnic::memory::testing::GuestRam;
use vnic::memory::transfer::Transfer;
use vnic::ring::{Buffer, DeviceRing, DriverRing, Placement, RingLayout, Segments, SplitDevice, SplitDriver};
use vnic::spec::Features;
use vnic::spec::blk::{BlkHeader, BlkRange, SECTOR};

const RAM: u64 = 1 << 20;
const SIZE: u16 = 64;
const READ: u64 = 0x1_0000;
const WRITTEN: u64 = 0x8_0000;

/// A chain, and a disk.
#[derive(Debug, Arbitrary)]
struct Input<'b> {
    kind: u8,
    sector: u64,
    range: (u64, u32, u32),
    /// The header as it comes, in place of one of this kind and sector.
    raw: bool,
    sectors: u16,
    shrunk: u16,
    read_only: bool,
    cuts: [u8; 6],
    room: [u16; 5],
    behind: &'b [u8],
}

thread_local! {
    static RAM_OF: RefCell<Option<GuestRam>> = const { RefCell::new(None) };
}

/// Plays `data`.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let ram = RAM_OF.take().unwrap_or_else(|| GuestRam::new(RAM).expect("guest memory"));
    play(&ram, &input);
    RAM_OF.set(Some(ram));
}

fn play(ram: &GuestRam, input: &Input<'_>) {
    let (layout, _) = RingLayout::split_at(0x1000, SIZE).expect("such a ring can be");
    ram.write(0x1000, &[0; 0x2000]).expect("guest memory");
    let memory = || Arc::clone(ram.memory());
    let mut driver = SplitDriver::new(layout, memory(), Features::NONE).expect("the ring is guest memory");
    let mut device = SplitDevice::new(layout, memory(), Features::NONE, 0).expect("the ring is guest memory");
    let header = BlkHeader { kind: u32::from(input.kind % 16), sector: input.sector }.to_bytes();
    let (sector, sectors, flags) = input.range;
    let range = BlkRange { sector, sectors, flags }.to_bytes();
    let behind: Vec<u8> = input.behind.iter().copied().cycle().take(input.behind.len() * 64).take(8192).collect();
    let bytes = match (input.raw, input.kind & 0x80) {
        (true, _) => behind,
        (_, 0) => [&header[..], &behind].concat(),
        _ => [&header[..], &range, &behind].concat(),
    };
    let (mut buffers, mut rest, mut at) = (Vec::new(), bytes.as_slice(), READ);
    for cut in input.cuts.iter().map(|cut| usize::from(*cut)).chain([usize::MAX]) {
        let (piece, others) = rest.split_at(cut.min(rest.len()));
        ram.write(at, piece).expect("guest memory");
        buffers.push(Buffer::readable(at, piece.len() as u32));
        at += piece.len() as u64 + 3;
        rest = others;
    }
    let mut at = WRITTEN;
    let mut room = 0;
    for len in input.room {
        let len = u32::from(len % 0x1200);
        buffers.push(Buffer::writable(at, len));
        at += u64::from(len) + 5;
        room += u64::from(len);
    }
    driver.add(&buffers, Placement::Direct).expect("there is room");
    driver.publish();
    let mut segments = Segments::new(memory(), 64);
    let chain = device.pop(&mut segments).expect("a good ring").expect("a chain");
    let view = segments.view(chain);
    let bytes = u64::from(input.sectors) * SECTOR;
    let there = u64::from(input.shrunk) * SECTOR;
    let Ok(Touched { offset, len, writes, data }) = touched(view, bytes, there, input.read_only) else { return };
    assert!(room > 0, "nobody can be told");
    assert!(offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR));
    assert!(offset.checked_add(len).is_some_and(|end| end <= bytes), "{offset} + {len} of {bytes}");
    assert!(!writes || (!input.read_only && offset + len <= there));
    let mut transfer = Transfer::default();
    if data && writes {
        view.gather_readable(16, &mut transfer);
        assert_eq!(transfer.left(), len);
    } else if data {
        view.gather_writable(&mut transfer);
        assert_eq!(transfer.left(), len);
    }
    transfer.finish(0x5a);
    if data {
        let last = buffers.iter().rev().find(|buffer| buffer.writable && buffer.len > 0).expect("there is room");
        let status = ram.read(last.addr + u64::from(last.len) - 1, 1).expect("guest memory");
        assert_eq!(status, [0x5a], "the status is the last byte");
    }
}
