//! All that is known of a frame beside its bytes, as a custom option of its packet: JSON, for programs that read pcapng by themselves.
//!
//! The option's number for a vendor is that which RFC 5612 has for examples: the project has none of its own. `vnic` is the form's
//! version.

use serde::Serialize;

use super::comment::MAX_LEN;
use super::packet::Buffer;
use super::{Record, Whose};
use crate::observe::protocol::NetHeaderStatus;

/// RFC 5612, Private Enterprise Number for Documentation Use.
pub(super) const VENDOR: u32 = 32473;

#[derive(Debug, Serialize)]
struct Told<'a> {
    vnic: u32,
    queue: &'a str,
    chains: Vec<ToldChain<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<NetHeaderStatus>,
    /// Of the payload: `zero-copy`, `copied` or `mixed`; `null` where whose memory it is was not asked, or is not known for sure.
    verdict: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct ToldChain<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<&'a str>,
    head: u16,
    idx: u16,
    indirect: bool,
    /// In all; there may be fewer buffers listed.
    descriptors: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<u32>,
    buffers: Vec<ToldBuffer<'a>>,
}

#[derive(Debug, Serialize)]
struct ToldBuffer<'a> {
    #[serde(flatten)]
    buffer: Buffer,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    whose: Option<&'a Whose>,
}

/// The option's text.
pub(super) fn of(record: &Record, whose: &[Option<Whose>], verdict: Option<&str>) -> String {
    let mut most = record.packet.buffers.len();
    loop {
        let text = serde_json::to_string(&told(record, whose, verdict, most)).unwrap_or_default();
        if text.len() <= MAX_LEN || most == 0 {
            // So many chains that there is no room for them, even so.
            return if text.len() <= MAX_LEN { text } else { String::new() };
        }
        most /= 2;
    }
}

fn told<'a>(record: &'a Record, whose: &'a [Option<Whose>], verdict: Option<&'a str>, most: usize) -> Told<'a> {
    let mut left = most;
    let chains = record.packet.with(whose).enumerate().map(|(at, (chain, buffers, whose))| {
        let whose = whose.iter().map(Option::as_ref).chain(std::iter::repeat(None));
        let listed = buffers.len().min(left);
        left -= listed;
        ToldChain {
            queue: Some(record.looped.as_str()).filter(|looped| at > 0 && !looped.is_empty()),
            head: chain.head,
            idx: chain.idx,
            indirect: chain.indirect,
            descriptors: chain.descriptors,
            written: chain.written,
            buffers: buffers
                .iter()
                .zip(whose)
                .take(listed)
                .map(|(buffer, whose)| ToldBuffer { buffer: *buffer, whose })
                .collect(),
        }
    });
    let chains = chains.collect();
    let header = record.packet.header.map(|header| NetHeaderStatus {
        flags: header.flags,
        gso_type: header.gso_type,
        hdr_len: header.hdr_len,
        gso_size: header.gso_size,
        csum_start: header.csum_start,
        csum_offset: header.csum_offset,
    });
    Told { vnic: 1, queue: &record.queue, chains, header, verdict }
}
