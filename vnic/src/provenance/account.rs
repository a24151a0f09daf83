//! The account: events and labels in, sums out.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use super::frame::{Attribution, Flow};
use super::report::{FlowReport, Others, Passed, Report, SourceReport};
use super::source::{Source, SourceKind};
use crate::introspect::Label;
use crate::net::parse::TCP;
use crate::observe::tracer::{Event, EventBuffer};

/// Flows that are listed, at most: where there are more, those that went silent first make room.
pub const MAX_FLOWS: usize = 256;
/// Sources that are listed, at most.
pub const MAX_SOURCES: usize = 256;
/// Sources of one flow that are listed, at most; what comes from further ones is in the flow's sums alone.
pub const MAX_FLOW_SOURCES: usize = 16;

/// Payload, and what is known of it.
#[derive(Debug, Clone, Copy, Default)]
struct Bytes {
    all: u64,
    zero_copy: u64,
    file: u64,
    unsettled: u64,
}

impl Bytes {
    fn add(&mut self, kind: SourceKind, bytes: u64) {
        self.all += bytes;
        let part = |is: bool| if is { bytes } else { 0 };
        self.zero_copy += part(kind.is_zero_copy());
        self.file += part(kind == SourceKind::File);
        self.unsettled += part(kind == SourceKind::Unsettled);
    }
}

#[derive(Debug, Default)]
struct FlowSums {
    bytes: Bytes,
    frames: u64,
    descriptors: u64,
    sources: Vec<(Arc<Source>, u64)>,
    /// When it was last seen, in events.
    seen_at: u64,
}

#[derive(Debug, Default)]
struct SourceSums {
    bytes: u64,
    seen_at: u64,
}

/// From what the frames of a while came. See the [module](super).
#[derive(Debug, Default)]
pub struct Account {
    seen: Passed,
    bytes: Bytes,
    headers: u64,
    other: u64,
    flows: HashMap<Flow, FlowSums>,
    sources: HashMap<Arc<Source>, SourceSums>,
    others: Others,
    /// The last frame, taken apart.
    frame: Attribution,
}

impl Account {
    /// A chain that went through a transmit queue, taken apart as [`Attribution`] does.
    pub fn add(&mut self, event: &Event, whose: impl FnMut(&EventBuffer, u64, &mut Vec<Label>)) {
        let mut frame = std::mem::take(&mut self.frame);
        frame.attribute(event, whose);
        self.count(&frame);
        self.frame = frame;
    }

    /// A frame that was taken apart.
    pub fn count(&mut self, frame: &Attribution) {
        self.seen.frames += 1;
        self.seen.bytes += frame.frame_len;
        match frame.flow {
            Some(flow) => {
                self.headers += frame.frame_len - frame.payload;
                self.sum(flow, frame.descriptors, &frame.parts);
            }
            None => self.other += frame.frame_len,
        }
    }

    fn sum(&mut self, flow: Flow, descriptors: u16, parts: &[(Source, u64)]) {
        let now = self.seen.frames;
        if !self.flows.contains_key(&flow) && self.flows.len() >= MAX_FLOWS {
            let others = &mut self.others;
            make_room(
                &mut self.flows,
                |sums| sums.seen_at,
                |gone| {
                    others.flows += 1;
                    others.flow_bytes += gone.bytes.all;
                    others.flow_zero_copy_bytes += gone.bytes.zero_copy;
                },
            );
        }
        let sums = self.flows.entry(flow).or_default();
        sums.seen_at = now;
        sums.frames += 1;
        sums.descriptors += u64::from(descriptors);
        for (source, bytes) in parts {
            let bytes = *bytes;
            self.bytes.add(source.kind, bytes);
            sums.bytes.add(source.kind, bytes);
            let source = match self.sources.get_key_value(source) {
                Some((known, _)) => known.clone(),
                None => {
                    if self.sources.len() >= MAX_SOURCES {
                        let others = &mut self.others;
                        make_room(
                            &mut self.sources,
                            |sums| sums.seen_at,
                            |gone| {
                                others.sources += 1;
                                others.source_bytes += gone.bytes;
                            },
                        );
                    }
                    Arc::new(source.clone())
                }
            };
            if let Some((_, sum)) = sums.sources.iter_mut().find(|(known, _)| *known == source) {
                *sum += bytes;
            } else if sums.sources.len() < MAX_FLOW_SOURCES {
                sums.sources.push((source.clone(), bytes));
            }
            let sums = self.sources.entry(source).or_default();
            sums.bytes += bytes;
            sums.seen_at = now;
        }
    }

    /// What it has come to. The caller adds what it knows beside.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut flows: Vec<FlowReport> = self.flows.iter().map(|(flow, sums)| flow.report(sums)).collect();
        flows.sort_by(|one, other| (other.bytes, &one.flow).cmp(&(one.bytes, &other.flow)));
        let listed = self.sources.iter().map(|(source, sums)| (source, sums.bytes));
        let (files, elsewhere) = sorted(listed).into_iter().partition(|one| one.source.kind == SourceKind::File);
        Report {
            seen: self.seen,
            bytes: self.bytes.all,
            zero_copy_bytes: self.bytes.zero_copy,
            unsettled_bytes: self.bytes.unsettled,
            header_bytes: self.headers,
            other_bytes: self.other,
            flows,
            files,
            elsewhere,
            others: self.others,
            ..Report::default()
        }
    }
}

impl Flow {
    fn report(&self, sums: &FlowSums) -> FlowReport {
        FlowReport {
            flow: format!("{} > {}", self.source, self.destination),
            protocol: if self.protocol == TCP { "tcp" } else { "udp" }.to_owned(),
            bytes: sums.bytes.all,
            zero_copy_bytes: sums.bytes.zero_copy,
            file_bytes: sums.bytes.file,
            unsettled_bytes: sums.bytes.unsettled,
            frames: sums.frames,
            descriptors: sums.descriptors,
            sources: sorted(sums.sources.iter().map(|(source, bytes)| (source, *bytes))),
        }
    }
}

fn sorted<'s>(sources: impl Iterator<Item = (&'s Arc<Source>, u64)>) -> Vec<SourceReport> {
    let mut all: Vec<SourceReport> =
        sources.map(|(source, bytes)| SourceReport { source: (**source).clone(), bytes }).collect();
    all.sort_by(|one, other| (other.bytes, &one.source.path).cmp(&(one.bytes, &other.source.path)));
    all
}

/// Takes out the half that was seen least recently.
fn make_room<K: Clone + Eq + Hash, S>(
    table: &mut HashMap<K, S>,
    seen_at: impl Fn(&S) -> u64,
    mut gone: impl FnMut(&S),
) {
    let mut times: Vec<u64> = table.values().map(&seen_at).collect();
    times.sort_unstable();
    let limit = times.get(times.len() / 2).copied().unwrap_or_default();
    table.retain(|_, sums| {
        let stays = seen_at(sums) > limit;
        if !stays {
            gone(sums);
        }
        stays
    });
}
