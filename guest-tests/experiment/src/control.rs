//! What the judge asks of the device, over its control socket: see [`vnic::observe::protocol`].

use std::any::Any;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vnic::memory::FilePages;
use vnic::observe::observer::{DiskObserver, Observer};
use vnic::serve::Extension;
use vnic::serve::control::Control;

use crate::disk::{self, DiskWatch};
use crate::flow::{FlowAccounts, FlowWatch};
use crate::introspection::{Introspected, testify};
use crate::run::DiskAccounts;
use crate::scan::{self, ScanReport};
use crate::wire::{Flow, PageRun};

/// What the judge asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Count how often what a held transmitq was given stands in the guest's memory: [`Reply::Scan`].
    Scan {
        /// The queue's name.
        queue: String,
    },
    /// Follow this flow and attribute its payload to these pages: [`Reply::Done`] once the data path does so. One flow
    /// at a time; a new one replaces the old.
    WatchFlow {
        /// The transfer's 5-tuple.
        flow: Flow,
        /// The file's pages.
        pages: Vec<PageRun>,
        /// The file is not in memory yet: remember where its bytes lie, for the pages that [`Request::EndWatch`] brings.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        later: bool,
    },
    /// What the watched flow showed so far, and stop watching: [`Reply::FlowAccounts`].
    EndWatch {
        /// The file's pages, where they could not be known before.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pages: Vec<PageRun>,
        /// Ask the guest's kernel, too, whose the pages are that the payload lay in.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        introspect: bool,
    },
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Done as asked.
    Done,
    /// Answer to `Scan`.
    Scan(ScanReport),
    /// Answer to `EndWatch`.
    #[serde(rename = "flow-books")]
    FlowAccounts(Box<FlowAccounts>),
    /// It could not be done; one sentence.
    Error {
        /// The sentence.
        message: String,
    },
}

/// Answers beside the device.
#[derive(Debug, Clone, Copy, Default)]
pub struct Witness;

impl Extension for Witness {
    fn answer(&self, request: &Value, device: &Control) -> Option<Value> {
        let answer = match Request::deserialize(request).ok()? {
            Request::Scan { queue } => scan(&queue, device),
            Request::WatchFlow { flow, pages, later } => watch(flow, &pages, later, device),
            Request::EndWatch { pages, introspect } => end_watch(&pages, introspect, device),
        };
        let answer = answer.unwrap_or_else(|message| Reply::Error { message });
        serde_json::to_value(answer).ok()
    }
}

fn scan(queue: &str, device: &Control) -> Result<Reply, String> {
    let ring = device.ring(queue)?;
    let memory = device.memory(queue).ok_or("no driver uses the device at the moment")?;
    scan::scan(&ring, || device.ring(queue).ok(), &memory)
        .map(Reply::Scan)
        .map_err(|error| format!("cannot look through the guest's memory: {error}"))
}

fn watch(flow: Flow, runs: &[PageRun], later: bool, device: &Control) -> Result<Reply, String> {
    let pages = Arc::new(FilePages::new(runs).map_err(|error| error.to_string())?);
    device.name_pages(Some(&pages));
    // Without a kernel that can be looked into there are no stamps, and the end of the watch says why.
    let watch = FlowWatch::new(flow, pages).stamped(device.stamper().ok());
    let watch = if later { watch.later() } else { watch };
    device.observe(|| Some(Box::new(watch.part())));
    device.observe_disks(|| Some(Box::new(DiskWatch::default())));
    Ok(Reply::Done)
}

fn end_watch(runs: &[PageRun], introspect: bool, device: &Control) -> Result<Reply, String> {
    device.name_pages(None);
    let parts = device.observe(|| None).into_iter().filter_map(|part: Box<dyn Observer>| {
        let part: Box<dyn Any> = part;
        part.downcast::<FlowWatch>().ok()
    });
    let parts: Vec<Box<FlowWatch>> = parts.collect();
    let disks = device.observe_disks(|| None).into_iter().filter_map(|part: Box<dyn DiskObserver>| {
        let part: Box<dyn Any> = part;
        part.downcast::<DiskWatch>().ok()
    });
    let disks: Vec<DiskWatch> = disks.map(|part| *part).collect();
    let disk = (!disks.is_empty()).then(|| disk_accounts(&disks, &parts));
    let introspection = introspect.then(|| introspected(&parts, device));
    let pages = FilePages::new(runs).map_err(|error| error.to_string())?;
    let accounts = parts.into_iter().fold(FlowAccounts::default(), |sum, mut part| {
        part.attribute_remembered(&pages);
        sum.plus(&part.accounts())
    });
    Ok(Reply::FlowAccounts(FlowAccounts { disk, introspection, ..accounts }.into()))
}

fn disk_accounts(disks: &[DiskWatch], parts: &[Box<FlowWatch>]) -> Result<DiskAccounts, String> {
    let forgotten: u64 = parts.iter().map(|part| part.trail().1).sum();
    if forgotten > 0 {
        return Err(format!("there was no room to remember where {forgotten} bytes of the payload lay"));
    }
    let sent: Vec<_> = parts.iter().flat_map(|part| part.trail().0).copied().collect();
    disk::accounts(disks, &sent)
}

fn introspected(parts: &[Box<FlowWatch>], device: &Control) -> Introspected {
    let forgotten: u64 = parts.iter().map(|part| part.trail().1).sum();
    if forgotten > 0 {
        return Introspected::Unknown(format!("there was no room to remember where {forgotten} bytes lay"));
    }
    let pieces = parts.iter().flat_map(|part| part.stamped_trail());
    match testify(pieces, |buffers| device.labels_of(buffers)) {
        Ok(accounts) => Introspected::Accounts(accounts),
        Err(why) => Introspected::Unknown(why),
    }
}

#[cfg(test)]
mod tests {
    use vnic::hardware::{Reuse, Shapes};

    use super::*;

    #[test]
    fn the_shapes_of_chains_come_through_the_socket() {
        let again = [(0, 7), (63, 1)].into();
        let shapes = Shapes {
            pieces: [(66, 2), (4096, 32)].into(),
            chain_pieces: [(17, 2)].into(),
            frame_pieces: [(3, 2)].into(),
            pages: Reuse { again, new: 4 },
            ..Shapes::default()
        };
        let reply = Reply::FlowAccounts(FlowAccounts { shapes, ..FlowAccounts::default() }.into());
        let line = serde_json::to_string(&reply).unwrap();
        assert_eq!(serde_json::from_str::<Reply>(&line).unwrap(), reply);
        let wrong = line.replace("\"4096\"", "\"many\"");
        assert!(serde_json::from_str::<Reply>(&wrong).unwrap_err().to_string().contains("a key is no number"));
    }

    #[test]
    fn names_on_the_socket_are_fixed() {
        for (json, request) in [
            (r#"{"request":"scan","queue":"transmitq0"}"#, Request::Scan { queue: "transmitq0".to_owned() }),
            (r#"{"request":"end-watch"}"#, Request::EndWatch { pages: Vec::new(), introspect: false }),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), json);
            assert_eq!(serde_json::from_str::<Request>(json).unwrap(), request);
        }
        let reply = serde_json::to_value(Reply::FlowAccounts(Box::default())).unwrap();
        assert_eq!(reply["reply"], "flow-books");
        for figure in ["device", "misplaced_bytes", "unparsed_frames", "forgotten_bytes"] {
            assert!(reply.get(figure).is_some(), "{figure}: {reply}");
        }
    }
}
