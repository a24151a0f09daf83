//! The engine in time: when a card of this model would be done with a chain.
//!
//! Place: no clock. Whoever drives it says when a chain was there, on whatever clock, and does not let go of it before the time
//! it is told.
//!
//! Operation: each part of a card (either direction of its bus, the IOMMU, the port) takes the chains in their order, and begins
//! the next when it is done with the one before. A chain is done when the last of its parts is. What is done for many chains
//! at a time (doorbells, fetches, write-backs, interrupts, head reads) is shared out among them, so that a row of chains without
//! end takes as long as the [account](super::Account) says.

use std::time::Duration;

use super::account::{Direction, WIRE_OVERHEAD};
use super::bus::Bus;
use super::model::{Hardware, IoPage, IoTlb, REGISTER, RingWork};
use super::shapes::{Kind, Recent};
use super::traffic::Traffic;

/// Bytes in both directions, with the shares of what is done for many at a time.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    up: f64,
    down: f64,
}

impl Share {
    /// One of so many; of none: nothing.
    fn of(traffic: Traffic, count: u16) -> Self {
        match count {
            0 => Share::default(),
            count => Share {
                up: traffic.up.bytes as f64 / f64::from(count),
                down: traffic.down.bytes as f64 / f64::from(count),
            },
        }
    }

    fn plus(self, other: Share, times: f64) -> Self {
        Share { up: self.up + other.up * times, down: self.down + other.down * times }
    }
}

/// What each chain and each descriptor of a ring cost beside the data.
#[derive(Debug, Clone, Copy)]
struct RingShare {
    chain: Share,
    descriptor: Share,
}

impl RingShare {
    fn new(bus: &Bus, work: &RingWork) -> Self {
        let group = |count: u16| u64::from(count) * u64::from(work.descriptor);
        RingShare {
            chain: Share::of(bus.host_writes(REGISTER), work.doorbell)
                .plus(Share::of(bus.device_writes(REGISTER), work.interrupt), 1.0)
                .plus(Share::of(bus.host_reads(REGISTER), work.head_read), 1.0),
            descriptor: Share::of(bus.device_reads(group(work.fetch)), work.fetch)
                .plus(Share::of(bus.device_writes(group(work.write_back)), work.write_back), 1.0),
        }
    }
}

/// The parts of a card that are busy one by one.
const PARTS: usize = 5;

/// See the [module](self).
#[derive(Debug)]
pub struct Engine {
    hardware: Hardware,
    transmit: RingShare,
    receive: RingShare,
    seconds_per_byte: f64,
    iotlb: Option<(IoTlb, Recent)>,
    /// Until when each part is busy, seconds.
    busy: [f64; PARTS],
}

impl Engine {
    /// An idle card.
    #[must_use]
    pub fn new(hardware: &Hardware) -> Self {
        let bus = &hardware.bus;
        let recent = |iotlb: IoTlb| {
            let recent = match iotlb.page {
                IoPage::Small => Recent::small(),
                IoPage::Huge => Recent::huge(),
            };
            (iotlb, recent)
        };
        Engine {
            transmit: RingShare::new(bus, &hardware.transmit),
            receive: RingShare::new(bus, &hardware.receive),
            seconds_per_byte: bus.seconds(1),
            iotlb: hardware.iotlb.map(recent),
            busy: [0.0; PARTS],
            hardware: hardware.clone(),
        }
    }

    /// A chain that was there at `from`: when the card is done with it. Chains come in the order in which they are taken.
    pub fn chain(
        &mut self,
        direction: Direction,
        kind: Kind,
        pieces: impl Iterator<Item = (u64, u64)>,
        from: Duration,
    ) -> Duration {
        let Hardware { bus, takes, line, context, .. } = &self.hardware;
        let ring = match direction {
            Direction::Transmit => self.transmit,
            Direction::Receive => self.receive,
        };
        let mut data = Traffic::default();
        let (mut bytes, mut misses) = (0_u64, 0_u64);
        let mut descriptors = if kind.segment > 0 { u64::from(*context) } else { 0 };
        for (gpa, len) in pieces {
            bytes += len;
            descriptors += len.div_ceil(u64::from(takes.max_piece.max(1)));
            data += match direction {
                Direction::Transmit => bus.device_reads(len),
                Direction::Receive => bus.device_writes(len),
            };
            if let Some((iotlb, recent)) = &mut self.iotlb {
                recent.walk(gpa, u32::try_from(len).unwrap_or(u32::MAX), |since| {
                    misses += u64::from(since.is_none_or(|since| since >= usize::from(iotlb.entries)));
                });
            }
        }
        let Share { up, down } = Share::of(data, 1).plus(ring.chain, 1.0).plus(ring.descriptor, descriptors as f64);
        let miss = self.iotlb.as_ref().map_or(0.0, |(iotlb, _)| iotlb.miss.as_secs_f64());
        let wire = bytes.saturating_add(kind.frames(bytes).saturating_mul(WIRE_OVERHEAD));
        let port = line.map_or(0.0, |line| wire as f64 * 8.0 / (line * 1e9));
        let sends = direction == Direction::Transmit;
        let costs = [
            up * self.seconds_per_byte,
            down * self.seconds_per_byte,
            misses as f64 * miss,
            if sends { port } else { 0.0 },
            if sends { 0.0 } else { port },
        ];
        let from = from.as_secs_f64();
        let mut done = from;
        for (busy, cost) in self.busy.iter_mut().zip(costs).filter(|(_, cost)| *cost > 0.0) {
            *busy = busy.max(from) + cost;
            done = done.max(*busy);
        }
        Duration::from_secs_f64(done)
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::Model;
    use super::super::shapes::Fold;
    use super::*;

    fn engine(model: &str) -> (Model, Engine) {
        let model: Model = model.parse().unwrap();
        let engine = Engine::new(model.hardware.as_ref().unwrap());
        (model, engine)
    }

    /// Pages, as `sendfile` has them: none is sent again.
    fn pages(chain: u64) -> impl Iterator<Item = (u64, u64)> {
        let headers = (0x100_0000, 66);
        std::iter::once(headers).chain((0..16).map(move |page| (0x1_0000_0000 + ((chain * 16 + page) << 12), 4096)))
    }

    #[test]
    fn a_row_of_chains_takes_as_long_as_the_account_says() {
        let kind = Kind { segment: 1448, headers: 66, indirect: true };
        for words in [
            "82599,pcie=gen1x1",
            "82599",
            "simple",
            "e810-like,itr=0ns",
            "82599,iotlb=64,pcie=gen5x16",
            "82599,line=1G",
        ] {
            for direction in [Direction::Transmit, Direction::Receive] {
                let (model, mut engine) = engine(words);
                let mut fold = Fold::default();
                let mut done = Duration::ZERO;
                // A multiple of all batches.
                for chain in 0..1280 {
                    fold.add(kind, pages(chain));
                    done = engine.chain(direction, kind, pages(chain), Duration::ZERO);
                }
                let expected = model.account(direction, &fold.shapes()).limit().1;
                let off = done.as_secs_f64() / expected - 1.0;
                assert!(off.abs() < 0.002, "{words} {direction:?}: {done:?} and {expected}");
            }
        }
    }

    #[test]
    fn a_card_that_was_idle_begins_when_the_chain_is_there() {
        let (_, mut engine) = engine("82599,pcie=gen1x1");
        let mut chain = |from| engine.chain(Direction::Transmit, Kind::default(), [(0, 1500)].into_iter(), from);
        let alone = chain(Duration::ZERO);
        let second = chain(Duration::ZERO);
        assert!(second > alone && second <= 2 * alone + Duration::from_nanos(1), "{alone:?}, {second:?}");
        let later = Duration::from_secs(1);
        let third = chain(later) - later;
        assert!(third.abs_diff(alone) < Duration::from_nanos(2), "{alone:?}, {third:?}");
    }

    #[test]
    fn directions_of_the_bus_do_not_wait_for_each_other() {
        let (_, mut engine) = engine("82599,pcie=gen1x1");
        let mut chain = |direction| engine.chain(direction, Kind::default(), [(0, 65536)].into_iter(), Duration::ZERO);
        let sent = chain(Direction::Transmit);
        let received = chain(Direction::Receive);
        assert!(received < sent + sent / 10, "{sent:?}, {received:?}");
    }
}
