//! Perfetto: a row per ring, a slice per chain from when it was available until the device was done with it, arrows from the
//! disk's reads to the frames that were sent out of their pages, and counters of what is in flight and how many bytes went by.
//!
//! Operation:
//! 1. A chain is a slice in one of its ring's [lanes], which all have one name: Perfetto draws them as one row.
//! 2. A disk's read waits until it is known which frames its pages went to ([`pages`]). Packets may come in any order.
//! 3. How many chains are in flight is counted when all chains of that time are known: [`InFlight`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use prost::Message;
use vnic::observe::protocol::{ChainEvent, TraceEvent};

use super::Export;
use crate::control::Wanted;
use lanes::Lanes;
use pages::{Fill, Pages};
use proto::{Annotation, Counter, Data, Event, Packet, Process, Track, Type, Unit, Value};

mod lanes;
mod pages;
mod proto;
#[cfg(test)]
mod tests;

/// Of the process, to which all belongs.
const PROCESS: u64 = 1;
/// Moments that are kept before the older half of them is counted.
const MOMENTS: usize = 1 << 20;

/// A trace in Perfetto's format.
pub(crate) struct Perfetto {
    out: BufWriter<Box<dyn Write>>,
    path: PathBuf,
    rings: BTreeMap<String, Ring>,
    next_uuid: u64,
    pages: Pages,
    chains: u64,
    lost: u64,
    /// Of the last event.
    now_ns: u64,
}

/// What is drawn of one ring.
#[derive(Debug)]
struct Ring {
    uuid: u64,
    lanes: Lanes,
    tracks: Vec<u64>,
    in_flight: InFlight,
    bytes: i64,
    counters: [u64; 2],
}

/// When chains came and went.
#[derive(Debug, Default)]
struct InFlight {
    /// Nanoseconds, and one more or one less.
    moments: Vec<(u64, i64)>,
    now: i64,
}

impl InFlight {
    fn add(&mut self, chain: &ChainEvent) {
        self.moments.extend([(chain.available_ns, 1), (chain.at_ns.max(chain.available_ns), -1)]);
    }

    /// The numbers at the times of which no more chains are to come, the first so many moments of them.
    fn take(&mut self, count: usize) -> Vec<(u64, i64)> {
        self.moments.sort_unstable_by_key(|(at, _)| *at);
        let mut numbers: Vec<(u64, i64)> = Vec::new();
        for (at, change) in self.moments.drain(..count) {
            self.now += change;
            match numbers.last_mut().filter(|(last, _)| *last == at) {
                Some((_, number)) => *number = self.now,
                None => numbers.push((at, self.now)),
            }
        }
        numbers
    }
}

impl Perfetto {
    /// Begins the file; `process` is what is looked at, and its number.
    pub(crate) fn create(path: &Path, process: (&str, u32)) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Perfetto::to(Box::new(file), path, process)
    }

    fn to(out: Box<dyn Write>, path: &Path, (name, pid): (&str, u32)) -> Result<Self> {
        let mut own = Perfetto {
            out: BufWriter::new(out),
            path: path.to_owned(),
            rings: BTreeMap::new(),
            next_uuid: PROCESS + 1,
            pages: Pages::default(),
            chains: 0,
            lost: 0,
            now_ns: 0,
        };
        let process = Process { pid: pid as i32, process_name: name.to_owned() };
        let track = Track { uuid: PROCESS, name: name.to_owned(), process: Some(process), ..Track::default() };
        own.packet(None, Data::Track(track))?;
        Ok(own)
    }

    fn packet(&mut self, timestamp: Option<u64>, data: Data) -> Result<()> {
        let packet = Packet { timestamp, trusted_packet_sequence_id: 1, data: Some(data) };
        let trace = proto::Trace { packet: vec![packet] };
        self.out.write_all(&trace.encode_to_vec()).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// A new track under another.
    fn track(&mut self, parent: u64, name: &str, unit: Option<Unit>) -> Result<u64> {
        let uuid = self.next_uuid;
        self.next_uuid += 1;
        let counter = unit.map(|unit| Counter { unit: unit.into() });
        let track = Track { uuid, name: name.to_owned(), parent_uuid: Some(parent), counter, ..Track::default() };
        self.packet(None, Data::Track(track))?;
        Ok(uuid)
    }

    /// The ring of this name, which has its rows from its first chain on.
    fn ring(&mut self, queue: &str) -> Result<&mut Ring> {
        if !self.rings.contains_key(queue) {
            let uuid = self.track(PROCESS, queue, None)?;
            let counters =
                [self.track(uuid, "in flight", Some(Unit::Count))?, self.track(uuid, "bytes", Some(Unit::SizeBytes))?];
            let ring = Ring {
                uuid,
                lanes: Lanes::default(),
                tracks: Vec::new(),
                in_flight: InFlight::default(),
                bytes: 0,
                counters,
            };
            self.rings.insert(queue.to_owned(), ring);
        }
        self.rings.get_mut(queue).context("a ring that was just added is gone")
    }

    fn chain(&mut self, chain: &ChainEvent) -> Result<()> {
        self.now_ns = self.now_ns.max(chain.at_ns);
        self.chains += 1;
        let ring = self.ring(&chain.queue)?;
        ring.in_flight.add(chain);
        ring.bytes += bytes(chain) as i64;
        let (uuid, number, [counter, bytes]) = (ring.uuid, ring.bytes, ring.counters);
        let numbers = match ring.in_flight.moments.len() {
            MOMENTS.. => ring.in_flight.take(MOMENTS / 2),
            _ => Vec::new(),
        };
        let lane = ring.lanes.place(chain.available_ns, chain.at_ns);
        let track = match ring.tracks.get(lane) {
            Some(track) => *track,
            None => {
                let track = self.track(uuid, "chains", None)?;
                self.ring(&chain.queue)?.tracks.push(track);
                track
            }
        };
        self.counts(counter, &numbers)?;
        self.counts(bytes, &[(chain.at_ns, number)])?;
        if is_read(chain) {
            let over = self.pages.filled(chain.clone(), track);
            return self.fills(over);
        }
        let over = self.pages.overwritten(chain);
        self.fills(over)?;
        let arrows = self.pages.sent(chain);
        self.slice(chain, track, Vec::new(), arrows)
    }

    /// Reads of which no frame can come any more.
    fn fills(&mut self, fills: Vec<Fill>) -> Result<()> {
        fills.into_iter().try_for_each(|fill| self.slice(&fill.chain, fill.track, fill.arrows, Vec::new()))
    }

    fn slice(&mut self, chain: &ChainEvent, track: u64, from_here: Vec<u64>, to_here: Vec<u64>) -> Result<()> {
        let begin = Event {
            r#type: Type::SliceBegin.into(),
            track_uuid: track,
            name: name(&chain.summary),
            flow_ids: from_here,
            terminating_flow_ids: to_here,
            debug_annotations: annotations(chain),
            ..Event::default()
        };
        self.packet(Some(chain.available_ns), Data::Event(begin))?;
        let end = Event { r#type: Type::SliceEnd.into(), track_uuid: track, ..Event::default() };
        self.packet(Some(chain.at_ns.max(chain.available_ns)), Data::Event(end))
    }

    fn counts(&mut self, track: u64, numbers: &[(u64, i64)]) -> Result<()> {
        for (at, number) in numbers {
            let event = Event {
                r#type: Type::Counter.into(),
                track_uuid: track,
                counter_value: Some(*number),
                ..Event::default()
            };
            self.packet(Some(*at), Data::Event(event))?;
        }
        Ok(())
    }
}

impl Export for Perfetto {
    fn wanted(&self) -> Wanted {
        Wanted { labels: false, headers: true }
    }

    fn event(&mut self, event: &TraceEvent) -> Result<()> {
        match event {
            TraceEvent::Chain(chain) => self.chain(chain),
            TraceEvent::Lost { queue, events } => {
                self.lost += events;
                let (name, at) = (format!("{events} chains were not recorded"), self.now_ns);
                let track_uuid = self.ring(queue)?.uuid;
                let event = Event { r#type: Type::Instant.into(), track_uuid, name, ..Event::default() };
                self.packet(Some(at), Data::Event(event))
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.out.flush().with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn end(mut self: Box<Self>) -> Result<String> {
        let fills = self.pages.take_all();
        self.fills(fills)?;
        let mut last = Vec::new();
        for ring in self.rings.values_mut() {
            let count = ring.in_flight.moments.len();
            last.push((ring.counters[0], ring.in_flight.take(count)));
        }
        last.iter().try_for_each(|(counter, numbers)| self.counts(*counter, numbers))?;
        self.flush()?;
        let lost = if self.lost > 0 { format!(", {} more were not recorded", self.lost) } else { String::new() };
        Ok(format!(
            "{}: {} chains of {} rings, {} arrows from disk to NIC{lost}; open it in ui.perfetto.dev",
            self.path.display(),
            self.chains,
            self.rings.len(),
            self.pages.arrows(),
        ))
    }
}

/// Of a disk, something that it has read into the guest's memory.
fn is_read(chain: &ChainEvent) -> bool {
    chain.summary.starts_with("read sector")
}

/// The bytes of the frame or of the request; where its headers are not known, those of its buffers.
fn bytes(chain: &ChainEvent) -> u64 {
    match &chain.headers {
        Some(headers) => headers.frame_len.into(),
        None if chain.written > 0 => chain.written.into(),
        None => chain.buffers.iter().filter(|buffer| !buffer.writable).map(|buffer| u64::from(buffer.len)).sum(),
    }
}

/// What is the same for many: `10.0.2.15:34512 > 10.0.2.2:9000 tcp`, `read`.
fn name(summary: &str) -> String {
    let words: Vec<&str> = summary.split(' ').collect();
    match words.as_slice() {
        [from, ">", to, what, ..] => format!("{from} > {to} {what}"),
        [] | [""] => "chain".to_owned(),
        [first, ..] => (*first).to_owned(),
    }
}

fn annotations(chain: &ChainEvent) -> Vec<Annotation> {
    let of = |name: &str, value| Annotation { name: name.to_owned(), value: Some(value), array_values: Vec::new() };
    let number = |name: &str, number: u64| of(name, Value::Uint(number));
    let mut all = vec![
        number("idx", chain.idx.into()),
        number("head", chain.head.into()),
        number("descriptors", chain.descriptors.into()),
        of("indirect", Value::Bool(chain.indirect)),
        number("written", chain.written.into()),
        number("bytes", bytes(chain)),
    ];
    if !chain.summary.is_empty() {
        all.push(of("summary", Value::Text(chain.summary.clone())));
    }
    // In the ring's notation, each by itself.
    let buffers = chain.buffers.iter().map(|buffer| Annotation {
        name: String::new(),
        value: Some(Value::Text(buffer.to_string())),
        array_values: Vec::new(),
    });
    all.push(Annotation { name: "buffers".to_owned(), value: None, array_values: buffers.collect() });
    all
}
