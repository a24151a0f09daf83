//! The device half of a ring in the hands of a guest that changes its memory at any moment.
//!
//! Operation: the bytes become a ring's size and features, and a list of steps: what the guest writes, and what the device
//! does. A step can also be laid in wait: it then happens just before a certain load of ring memory, between two loads of
//! one and the same chain. So a run has all the races there are, and still happens the same way every time.
//!
//! What must hold whatever the guest writes:
//! - no panic;
//! - every segment handed out is guest memory, at the host address where that is; chains are no longer than allowed, and
//!   their sums are right;
//! - no head is out twice; no more comes back than was taken; what is not out cannot be returned;
//! - after an error nothing has moved and nothing stays in the arena;
//! - the device writes into its own part of the ring, and nowhere else;
//! - popping and draining find the same in a ring that keeps still, through a cold arena and a warm one.

mod guest;
mod look;

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use vnic::memory::Access;
use vnic::memory::testing::GuestRam;
use vnic::ring::{
    Chain, Device, DeviceRing, Disposition, DrainEnd, RingError, RingLayout, Segments, Touch, interrupted,
};
use vnic::spec::{Feature, Features};

pub use guest::Format;
use guest::{Guest, LEN, Length, RAM, REGIONS, RING, Write};
use look::{Describe, Look, check_chain, describe};

const STEPS: usize = 96;

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Step {
    Write(Write),
    /// The guest writes once that many loads of ring memory have passed.
    Ambush(u8, Write),
    Pop,
    /// A disposition for each chain, two bits each; which of the single-buffer chains a batch takes.
    Drain {
        limit: u8,
        dispositions: u32,
        batches: u8,
    },
    Return {
        which: u8,
        written: Length,
    },
    /// The last ones popped go back.
    Unpop(u8),
    /// One that was returned already, or never was out.
    ReturnAgain(u8),
    Publish,
    Arm,
    Disarm,
    Available,
    /// The queue is stopped and started again where it stood.
    Restart,
    /// New devices find the same in this ring, however they look.
    Compare,
    /// Receive buffers, as many as there are of them.
    PopBuffers(u8),
}

/// A device, and what is known of it.
struct Bench {
    guest: Rc<RefCell<Guest>>,
    features: Features,
    device: Device,
    segments: Segments,
    /// Chains that are out, in the order they were popped.
    out: Vec<Chain>,
    returned: Vec<Chain>,
    /// Heads that came back and whose return is perhaps not published.
    unpublished: HashSet<u16>,
    taken: u64,
    back: u64,
    /// Comparisons that may still come: each makes five devices.
    comparisons: u8,
}

/// Plays `data` on a ring.
pub fn run(format: Format, data: &[u8]) {
    let mut bytes = Unstructured::new(data);
    let _ = play(format, &mut bytes);
}

fn play(format: Format, bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let (size, bits, start) = (bytes.arbitrary::<u8>()?, bytes.arbitrary::<u8>()?, bytes.arbitrary::<u16>()?);
    let all = [Feature::IndirectDesc, Feature::EventIdx, Feature::InOrder];
    let mut features = all
        .iter()
        .enumerate()
        .fold(Features::NONE, |set, (at, feature)| if bits >> at & 1 == 1 { set.with(*feature) } else { set });
    let (layout, base) = match format {
        Format::Split => {
            // Small ones more often: they are full soon.
            let (layout, _) = RingLayout::split_at(RING, 1 << if size < 128 { size % 3 } else { size % 8 })
                .expect("such a ring can be");
            (layout, u32::from(start))
        }
        Format::Packed => {
            features = features.with(Feature::RingPacked);
            let size = u16::from(if size < 128 { size % 4 } else { size % 128 }) + 1;
            let (layout, _) = RingLayout::packed_at(RING, size).expect("such a ring can be");
            (layout, u32::from((start % size) | (start & 0x8000)))
        }
    };
    let ram = RAM.take().unwrap_or_else(|| GuestRam::with_regions(&REGIONS).expect("guest memory"));
    ram.write(0, &[0; LEN as usize]).expect("guest memory");
    let guest =
        Guest { ram, shadow: vec![0; LEN as usize], format, layout, avail_idx: base as u16, ambushes: VecDeque::new() };
    let guest = Rc::new(RefCell::new(guest));
    if format == Format::Split {
        guest.borrow_mut().write(Write::Idx(base as u16));
    }
    let mut bench = Bench::new(&guest, features, base);
    let result = {
        let guest = guest.clone();
        let trap = move |touch, host| spring(&guest, touch, host);
        interrupted(trap, || steps(&mut bench, bytes))
    };
    drop(bench);
    let guest = Rc::into_inner(guest).expect("nobody else has it").into_inner();
    RAM.set(Some(guest.check_memory()));
    result
}

/// A load is about to happen, or a store has happened.
fn spring(guest: &Rc<RefCell<Guest>>, touch: Touch, host: usize) {
    let mut guest = guest.borrow_mut();
    match touch {
        Touch::Load => match guest.ambushes.front_mut() {
            Some((0, what)) => {
                let what = *what;
                guest.ambushes.pop_front();
                guest.write(what);
            }
            Some((left, _)) => *left -= 1,
            None => {}
        },
        Touch::Store => {
            let origin = guest.ram.memory().slice(0, 1, Access::Read).expect("guest memory").as_ptr() as usize;
            assert!(guest.device_writes((host - origin) as u64), "the device stored at {:#x}", host - origin);
        }
    }
}

fn steps(bench: &mut Bench, bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    for _ in 0..STEPS {
        if bytes.is_empty() {
            break;
        }
        bench.step(bytes.arbitrary()?);
        assert_eq!(usize::from(bench.device.in_flight()), bench.out.len());
        assert!(bench.back <= bench.taken);
    }
    Ok(())
}

impl Bench {
    fn new(guest: &Rc<RefCell<Guest>>, features: Features, base: u32) -> Self {
        let (device, segments) = Self::device(guest, features, base, 64);
        Bench {
            guest: guest.clone(),
            features,
            device,
            segments,
            out: Vec::new(),
            returned: Vec::new(),
            unpublished: HashSet::new(),
            taken: 0,
            back: 0,
            comparisons: 3,
        }
    }

    fn device(guest: &RefCell<Guest>, features: Features, base: u32, capacity: usize) -> (Device, Segments) {
        let (layout, memory) = (guest.borrow().layout, Arc::clone(guest.borrow().ram.memory()));
        let device = Device::new(layout, Arc::clone(&memory), features, base).expect("the ring is guest memory");
        (device, Segments::new(memory, capacity))
    }

    fn size(&self) -> u16 {
        self.device.size()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(what) => self.guest.borrow_mut().write(what),
            Step::Ambush(after, what) => self.guest.borrow_mut().ambushes.push_back((after, what)),
            Step::Pop => self.pop(),
            Step::PopBuffers(limit) => self.pop_buffers(limit.into()),
            Step::Drain { limit, dispositions, batches } => self.drain(limit, dispositions, batches),
            Step::Return { which, written } => {
                if !self.out.is_empty() {
                    let chain = self.out[usize::from(which) % self.out.len()];
                    let written = written.bytes().min(chain.writable_len.saturating_add(1));
                    let result = self.device.push_used(&chain, written);
                    if written > chain.writable_len {
                        assert!(matches!(result, Err(RingError::WrittenTooMuch { .. })));
                        return;
                    }
                    assert_eq!(result, Ok(()));
                    self.out.retain(|other| other.head != chain.head);
                    self.returned.push(chain);
                    self.unpublished.insert(chain.head);
                    self.back += 1;
                }
            }
            Step::Unpop(count) => {
                let from = self.out.len().saturating_sub(usize::from(count % 8));
                let chains = self.out[from..].to_vec();
                let ours = self.are_last(&chains);
                let before = self.device.in_flight();
                match self.device.unpop(&chains) {
                    Ok(()) => {
                        assert!(ours);
                        self.out.truncate(from);
                        self.taken -= chains.len() as u64;
                    }
                    Err(_) => {
                        assert!(!ours);
                        // Some of them may have gone back: the caller's own mistake, which ends the queue.
                        let back = usize::from(before - self.device.in_flight());
                        self.taken -= back as u64;
                        self.out.truncate(self.out.len() - back);
                    }
                }
            }
            Step::ReturnAgain(which) => {
                if !self.returned.is_empty() {
                    let chain = self.returned[usize::from(which) % self.returned.len()];
                    if self.out.iter().all(|other| other.head != chain.head) {
                        assert!(matches!(self.device.push_used(&chain, 0), Err(RingError::NotInFlight { .. })));
                    }
                }
            }
            Step::Publish => {
                if self.publish() && !self.features.has(Feature::InOrder) {
                    self.unpublished.clear();
                }
                if self.out.is_empty() {
                    self.segments.clear();
                }
            }
            Step::Arm => drop(self.device.enable_notifications()),
            Step::Disarm => self.device.disable_notifications(),
            Step::Available => {
                if let Ok(waiting) = self.device.available() {
                    assert!(waiting <= self.size());
                }
            }
            Step::Restart => {
                // As a queue is stopped: all that is out comes back first.
                for chain in std::mem::take(&mut self.out) {
                    assert_eq!(self.device.push_used(&chain, 0), Ok(()));
                    self.back += 1;
                }
                self.publish();
                let base = self.device.base();
                (self.device, self.segments) = Self::device(&self.guest, self.features, base, 64);
                self.returned.clear();
                self.unpublished.clear();
            }
            Step::Compare => {
                if let Some(left) = self.comparisons.checked_sub(1) {
                    self.comparisons = left;
                    self.compare();
                }
            }
        }
    }

    /// False: the guest has moved `used.idx`, and sees nothing of what came back.
    fn publish(&mut self) -> bool {
        let moved = self.device.publish().err();
        assert!(moved.as_ref().is_none_or(|error| matches!(error, RingError::UsedMoved { .. })), "{moved:?}");
        moved.is_none()
    }

    /// Are these the youngest chains of all that were taken, one behind the other?
    fn are_last(&self, chains: &[Chain]) -> bool {
        let mut at = self.device.base() as u16;
        chains.iter().rev().all(|chain| {
            let size = self.size();
            let before = match self.guest.borrow().format {
                Format::Split => at.wrapping_sub(1),
                Format::Packed => {
                    (at & 0x7fff).checked_sub(chain.slots).unwrap_or_else(|| (at & 0x7fff) + size - chain.slots)
                }
            };
            at = before;
            chain.idx == before
        })
    }

    fn pop(&mut self) {
        let (kept, base, out) = (self.segments.len(), self.device.base(), self.device.in_flight());
        match self.device.pop(&mut self.segments) {
            Ok(Some(chain)) => {
                check_chain(&self.guest.borrow(), self.segments.view(chain), self.features);
                assert!(self.out.iter().all(|other| other.head != chain.head), "head {} is out twice", chain.head);
                self.out.push(chain);
                self.taken += 1;
            }
            Ok(None) => assert_eq!((self.segments.len(), self.device.base()), (kept, base)),
            Err(error) => {
                assert_eq!((self.segments.len(), self.device.base(), self.device.in_flight()), (kept, base, out));
                self.check_error(&error);
            }
        }
    }

    fn pop_buffers(&mut self, limit: u16) {
        let (kept, base) = (self.segments.len(), self.device.base());
        let mut chains = Vec::new();
        let popped = self.device.pop_buffers(&mut self.segments, limit, &mut chains);
        assert!(chains.len() <= usize::from(limit));
        for chain in chains {
            let view = self.segments.view(chain);
            check_chain(&self.guest.borrow(), view, self.features);
            assert_eq!((chain.descriptors, chain.readable, chain.indirect), (1, 0, false));
            assert!(self.out.iter().all(|other| other.head != chain.head), "head {} is out twice", chain.head);
            self.out.push(chain);
            self.taken += 1;
        }
        if let Err(error) = popped {
            assert_eq!((self.segments.len(), self.device.base()), (kept, base));
            self.check_error(&error);
        }
    }

    fn drain(&mut self, limit: u8, dispositions: u32, batches: u8) {
        let mut look = Look { guest: &self.guest, features: self.features, dispositions, batches, seen: Vec::new() };
        let mut burst = Segments::new(self.segments.memory().clone(), 64);
        let ended = self.device.drain(&mut burst, limit.into(), &mut look);
        let seen = look.seen;
        let left = seen.iter().filter(|(_, disposition)| *disposition == Disposition::Leave).count();
        assert_eq!(left, usize::from(ended == Ok(DrainEnd::Left)));
        assert!(seen.len() <= usize::from(limit) + left);
        for (chain, disposition) in seen {
            let twice = self.out.iter().any(|other| other.head == chain.head);
            assert!(!twice, "head {} is out twice", chain.head);
            match disposition {
                Disposition::Retain => self.out.push(chain),
                Disposition::Return => {
                    self.returned.push(chain);
                    self.unpublished.insert(chain.head);
                    self.back += 1;
                }
                Disposition::Leave => continue,
            }
            self.taken += 1;
        }
        if let Err(error) = ended {
            self.check_error(&error);
        }
        // The arena of the burst is gone, and with it the chains' segments; that they are out counts.
    }

    /// A head that is said to be out is out.
    fn check_error(&self, error: &RingError) {
        if let RingError::HeadInFlight { head, .. } = error {
            let out = self.out.iter().any(|chain| chain.head == *head) || self.unpublished.contains(head);
            assert!(out, "head {head} is not out");
        }
    }

    /// Nothing changes meanwhile: all ways to find out what is in the ring.
    fn compare(&mut self) {
        let ambushes = std::mem::take(&mut self.guest.borrow_mut().ambushes);
        let base = self.device.base();
        let new = |capacity| Self::device(&self.guest, self.features, base, capacity);
        let popped = |capacity: usize, warm: bool| {
            let (mut device, mut segments) = new(capacity);
            if warm {
                // Whatever comes first warms the arena; it goes back.
                if let Ok(Some(chain)) = device.pop(&mut segments) {
                    device.unpop(&[chain]).expect("it was the last");
                }
                segments.clear();
            }
            let mut chains = Vec::new();
            let end = loop {
                match device.pop(&mut segments) {
                    Ok(Some(chain)) => chains.push(describe(segments.view(chain))),
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            (chains, end)
        };
        let drained = |batches: u8| {
            let (mut device, mut segments) = new(64);
            let mut look = Describe { batches, chains: Vec::new(), in_batch: VecDeque::new() };
            let end = device.drain(&mut segments, u16::MAX, &mut look).map(drop);
            (look.chains, end)
        };
        let together = |limit: u16| {
            let (mut device, mut segments) = new(256);
            let (mut found, mut chains) = (Vec::new(), Vec::new());
            let end = loop {
                chains.clear();
                if let Err(error) = device.pop_buffers(&mut segments, limit, &mut chains) {
                    break Err(error);
                }
                found.extend(chains.iter().map(|chain| describe(segments.view(*chain))));
                match device.pop(&mut segments) {
                    Ok(Some(chain)) => found.push(describe(segments.view(chain))),
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            (found, end)
        };
        let first = popped(0, false);
        for (what, other) in [
            ("warm", popped(256, true)),
            ("buffers together", together(u16::MAX)),
            ("three buffers together", together(3)),
            ("drained", drained(0)),
            ("drained in batches", drained(u8::MAX)),
            ("drained in a batch now and then", drained(0b0110_1001)),
        ] {
            assert_eq!(first, other, "{what}");
        }
        self.guest.borrow_mut().ambushes = ambushes;
    }
}
