//! When chains came: at which look at its ring the device found each of them available.
//!
//! Place: while somebody traces, the worker has it look at a ring before a burst, and ask afterwards for the chains that went
//! through. It does not look while the tracer has no room for events. Of those that lay there when it began to look, the time is
//! that of the first look.
//!
//! Limits: a packed ring does not say how many chains it holds (VIRTIO 1.3, 2.8); there, the one that is next is known to wait,
//! and those behind it come when they are taken.

use crate::ring::{Device, DeviceRing};

/// See the [module](self). Takes no memory before the first look.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// By slot, nanoseconds since the tracer's epoch.
    times: Box<[u64]>,
    /// Where the chains end whose times are known: split, a free-running index; packed, the place of the only one.
    until: Option<u16>,
    packed: bool,
    /// Since when those wait that somebody has just let go, and where they end.
    held: Option<(u64, u16)>,
}

impl Arrivals {
    /// Looks at the ring; what was not there at the last look came now.
    pub(super) fn look(&mut self, ring: &mut Device, now_ns: u64) {
        // What is wrong with the ring is said when a chain is taken.
        let Ok(available) = ring.available() else { return };
        let (size, base) = (ring.size(), ring.base());
        if self.times.len() != usize::from(size) {
            *self = Arrivals { times: vec![0; usize::from(size)].into(), ..Arrivals::default() };
        }
        self.packed = matches!(ring, Device::Packed(_));
        let first = base as u16;
        // All of them are taken: what comes round to their places has not waited.
        self.held = self.held.filter(|(_, until)| match self.packed {
            true => *until == first,
            false => (1..=size).contains(&until.wrapping_sub(first)),
        });
        if self.packed {
            if available > 0 && self.until != Some(first) {
                self.set(first & SLOT, now_ns);
                self.until = Some(first);
            }
            return;
        }
        let end = first.wrapping_add(available);
        let known = self.until.map_or(0, |until| until.wrapping_sub(first));
        for at in (if known <= available { known } else { 0 })..available {
            self.set(first.wrapping_add(at), now_ns);
        }
        self.until = Some(end);
    }

    /// Has nothing come since the last look?
    #[inline]
    pub(super) fn is_current(&self, ring: &mut Device) -> bool {
        let Ok(available) = ring.available() else { return false };
        let end = if self.packed { 0 } else { available };
        self.until == Some((ring.base() as u16).wrapping_add(end))
    }

    /// Nothing is known any more; the memory is kept.
    pub(super) fn forget(&mut self) {
        (self.until, self.held) = (None, None);
    }

    /// The queue was held since then, and no longer is: what has been found in the ring so far has waited for that.
    pub(super) fn released(&mut self, since_ns: u64) {
        self.held = self.until.map(|until| (since_ns, until));
    }

    /// Since when the chain with this index has waited to be let go; `None`: nobody held it.
    pub(super) fn held(&self, idx: u16) -> Option<u64> {
        let (since, until) = self.held?;
        // One that came later has waited for less.
        self.is_before(until, idx).then(|| self.of(idx).map_or(since, |came| came.max(since)))
    }

    /// When the chain with this index came; `None`: it was not there at the last look.
    pub(super) fn of(&self, idx: u16) -> Option<u64> {
        let known = self.is_before(self.until?, idx);
        self.times.get(usize::from(idx) % self.times.len().max(1)).copied().filter(|_| known)
    }

    /// Is the chain with this index one of those that end there?
    fn is_before(&self, until: u16, idx: u16) -> bool {
        match self.packed {
            true => until & SLOT == idx,
            false => (1..=self.times.len()).contains(&usize::from(until.wrapping_sub(idx))),
        }
    }

    fn set(&mut self, idx: u16, now_ns: u64) {
        let at = usize::from(idx) % self.times.len().max(1);
        if let Some(time) = self.times.get_mut(at) {
            *time = now_ns;
        }
    }
}

/// Of a place in a packed ring, the slot; the bit above is the wrap counter.
const SLOT: u16 = 0x7fff;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::memory::Gpa;
    use crate::memory::testing::GuestRam;
    use crate::ring::driver::{Buffer, DriverRing, Placement};
    use crate::ring::packed::PackedDriver;
    use crate::ring::split::SplitDriver;
    use crate::ring::{RingLayout, Segments};
    use crate::spec::{Feature, Features};

    #[test]
    fn what_lay_in_a_queue_that_was_held_has_waited_and_what_came_since_has_not() {
        let ram = GuestRam::with_regions(&[(Gpa(0), 1 << 20)]).unwrap();
        let (layout, _) = RingLayout::split_at(0x1000, 4).unwrap();
        let mut driver = SplitDriver::new(layout, ram.memory().clone(), Features::NONE).unwrap();
        let mut device = Device::new(layout, Arc::clone(ram.memory()), Features::NONE, 0).unwrap();
        let mut segments = Segments::new(Arc::clone(ram.memory()), 8);
        let mut arrivals = Arrivals::default();
        let mut add = |count| {
            (0..count).for_each(|_| {
                driver.add(&[Buffer::readable(0x8000, 64)], Placement::Direct).unwrap();
                driver.publish();
            })
        };
        add(2);
        arrivals.look(&mut device, 100);
        arrivals.released(70);
        add(1);
        arrivals.look(&mut device, 200);
        let held: Vec<Option<u64>> = (0..3)
            .map(|_| {
                let chain = device.pop(&mut segments).unwrap().unwrap();
                segments.clear();
                arrivals.held(chain.idx)
            })
            .collect();
        assert_eq!(held, [Some(100), Some(100), None]);
        // They are taken: what has their indices 65,536 chains later has not waited.
        arrivals.look(&mut device, 300);
        assert_eq!(arrivals.held(0), None);
    }

    /// Adds a chain at 1, two at 2; the device takes and returns one after each look. Returns when each came, round after round.
    fn times(packed: bool) -> Vec<Vec<Option<u64>>> {
        let ram = GuestRam::with_regions(&[(Gpa(0), 1 << 20)]).unwrap();
        let (layout, features, base) = match packed {
            true => (RingLayout::packed_at(0x1000, 4).unwrap().0, Features::of(&[Feature::RingPacked]), 0x8000),
            false => (RingLayout::split_at(0x1000, 4).unwrap().0, Features::NONE, 0),
        };
        let memory = ram.memory();
        let mut driver: Box<dyn DriverRing> = match packed {
            true => Box::new(PackedDriver::new(layout, memory.clone(), features).unwrap()),
            false => Box::new(SplitDriver::new(layout, memory.clone(), features).unwrap()),
        };
        let mut device = Device::new(layout, Arc::clone(memory), features, base).unwrap();
        let mut segments = Segments::new(Arc::clone(memory), 8);
        let mut arrivals = Arrivals::default();
        let add = |driver: &mut Box<dyn DriverRing>| {
            driver.add(&[Buffer::readable(0x8000, 64)], Placement::Direct).unwrap();
            driver.publish();
        };
        // Twice round the ring and more.
        let rounds = (0..5_u64).map(|round| {
            let now = 10 * round;
            add(&mut driver);
            arrivals.look(&mut device, now + 1);
            add(&mut driver);
            add(&mut driver);
            let mut came = Vec::new();
            for at in 0..3 {
                // While the first waits, too.
                arrivals.look(&mut device, now + 2 + at);
                arrivals.look(&mut device, now + 5 + at);
                let chain = device.pop(&mut segments).unwrap().unwrap();
                segments.clear();
                came.push(arrivals.of(chain.idx).map(|time| time - now));
                device.push_used(&chain, 0).unwrap();
                device.publish().unwrap();
                driver.pop_used().unwrap().unwrap();
            }
            came
        });
        rounds.collect()
    }

    #[test]
    fn nothing_is_new_until_a_chain_comes_and_nothing_known_after_a_while_without_a_look() {
        let ram = GuestRam::with_regions(&[(Gpa(0), 1 << 20)]).unwrap();
        let (layout, _) = RingLayout::split_at(0x1000, 4).unwrap();
        let mut driver = SplitDriver::new(layout, ram.memory().clone(), Features::NONE).unwrap();
        let mut device = Device::new(layout, Arc::clone(ram.memory()), Features::NONE, 0).unwrap();
        let mut arrivals = Arrivals::default();
        assert!(!arrivals.is_current(&mut device), "never looked");
        let wrong: Vec<bool> = (0..3)
            .map(|_| {
                driver.add(&[Buffer::readable(0x8000, 64)], Placement::Direct).unwrap();
                driver.publish();
                let before = arrivals.is_current(&mut device);
                arrivals.look(&mut device, 100);
                before || !arrivals.is_current(&mut device)
            })
            .collect();
        assert_eq!((wrong, arrivals.of(2)), (vec![false; 3], Some(100)));
        arrivals.forget();
        assert_eq!((arrivals.is_current(&mut device), arrivals.of(2)), (false, None));
        arrivals.look(&mut device, 200);
        assert_eq!(arrivals.of(0), Some(200));
    }

    #[test]
    fn each_chain_has_the_time_of_the_look_that_found_it() {
        assert_eq!(times(false), vec![vec![Some(1), Some(2), Some(2)]; 5]);
    }

    #[test]
    fn in_a_packed_ring_a_chain_is_found_when_it_is_the_next() {
        assert_eq!(times(true), vec![vec![Some(1), Some(3), Some(4)]; 5]);
    }

    #[test]
    fn of_a_chain_that_came_since_nothing_is_known() {
        let arrivals = Arrivals { times: vec![7; 4].into(), until: Some(1), ..Arrivals::default() };
        assert_eq!(
            [0, u16::MAX, 65533, 65532, 1, 2].map(|idx| arrivals.of(idx)),
            [Some(7), Some(7), Some(7), None, None, None]
        );
        assert_eq!(Arrivals::default().of(0), None);
    }
}
