//! Driver half against device half, in both formats.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::*;
use crate::memory::testing::GuestRam;
use crate::memory::{Gpa, Memory};
use crate::spec::{Feature, Features};

const INDIRECT: Features = Features::of(&[Feature::IndirectDesc]);
const EVENT_IDX: Features = Features::of(&[Feature::EventIdx]);
const IN_ORDER: Features = Features::of(&[Feature::InOrder]);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    Split,
    Packed,
}

impl Format {
    fn layout(self, base: u64, size: u16) -> (RingLayout, u64) {
        match self {
            Format::Split => RingLayout::split_at(base, size).unwrap(),
            Format::Packed => RingLayout::packed_at(base, size).unwrap(),
        }
    }

    fn features(self, features: Features) -> Features {
        if self == Format::Packed { features.with(Feature::RingPacked) } else { features }
    }

    /// What a ring starts from.
    fn base(self) -> u32 {
        if self == Format::Packed { 0x8000 } else { 0 }
    }

    fn driver(self, layout: RingLayout, memory: &Arc<Memory>, features: Features) -> Box<dyn DriverRing> {
        let memory = Arc::clone(memory);
        match self {
            Format::Split => Box::new(SplitDriver::new(layout, memory, features).unwrap()),
            Format::Packed => Box::new(PackedDriver::new(layout, memory, features).unwrap()),
        }
    }
}

/// Both ends of one ring. The ring is in the first MiB; from 1 MiB to 1 MiB + 64 KiB lies a second region.
struct Pair {
    features: Features,
    ram: GuestRam,
    layout: RingLayout,
    driver: Box<dyn DriverRing>,
    device: Device,
    segments: Segments,
}

impl Pair {
    fn new(format: Format, size: u16, features: Features) -> Self {
        let ram = GuestRam::with_regions(&[(Gpa(0), 1 << 20), (Gpa(1 << 20), 1 << 16)]).unwrap();
        let (layout, _) = format.layout(0x1000, size);
        let features = format.features(features);
        let driver = format.driver(layout, ram.memory(), features);
        let device = Device::new(layout, Arc::clone(ram.memory()), features, format.base()).unwrap();
        let segments = Segments::new(Arc::clone(ram.memory()), 64);
        Pair { features, ram, layout, driver, device, segments }
    }

    fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.driver.add(buffers, Placement::Direct).unwrap();
        self.driver.publish();
        head
    }

    fn pop(&mut self) -> Option<Chain> {
        self.device.pop(&mut self.segments).unwrap()
    }

    /// Pops one chain, returns it, and takes it back.
    fn round_trip(&mut self, written: u32) -> Used {
        let chain = self.pop().unwrap();
        self.segments.clear();
        self.device.push_used(&chain, written).unwrap();
        self.device.publish().unwrap();
        self.driver.pop_used().unwrap().unwrap()
    }

    /// Address, length of the readable, then of the writable segments.
    fn buffers(&self, chain: &Chain) -> Vec<(u64, usize, char)> {
        let readable = self.segments.view(*chain).readable().map(|s| (s.addr(), s.len(), 'R'));
        readable.chain(self.segments.view(*chain).writable().map(|s| (s.addr(), s.len(), 'W'))).collect()
    }
}

/// Each test once for either format.
macro_rules! for_both_formats {
    ($(fn $name:ident($format:ident: Format) $body:block)*) => {
        $(fn $name($format: Format) $body)*
        mod split {
            $(#[test] fn $name() { super::$name(super::Format::Split) })*
        }
        mod packed {
            $(#[test] fn $name() { super::$name(super::Format::Packed) })*
        }
    };
}

// Behind the macro, which they use.
mod bounds;
mod chains;
mod notifications;
mod order;
mod traffic;
