//! The chains of a trace as rows: one each, its descriptors a list in it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use vnic::net::parse::{Packet, Transport, parse};
use vnic::observe::protocol::{BufferSnapshot, ChainEvent, NetHeaderStatus};

use crate::views;

use super::table::{Column, Kind, Table, Value};

/// Whose trace it is.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The machine's name.
    pub(crate) machine: String,
    /// The device's socket.
    pub(crate) socket: String,
    /// The process that serves it.
    pub(crate) pid: u32,
}

/// A row.
#[derive(Debug)]
pub(crate) struct Chain {
    origin: Arc<Origin>,
    /// Microseconds since 1970.
    read_at: i64,
    event: ChainEvent,
    lost_before: u64,
    flow: Option<Flow>,
}

/// Who talks to whom.
#[derive(Debug)]
struct Flow {
    transport: Transport,
    /// As `vnic top` names it.
    name: String,
    source: String,
    destination: String,
}

impl Chain {
    /// Of an event that was read now; so many of its queue were lost since the one before.
    pub(crate) fn new(origin: &Arc<Origin>, event: ChainEvent, lost_before: u64) -> Self {
        let read_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let flow = flow(&event);
        Chain { origin: origin.clone(), read_at: i64::try_from(read_at).unwrap_or(i64::MAX), event, lost_before, flow }
    }

    fn net_header(&self, of: impl Fn(&NetHeaderStatus) -> u32) -> Value<'_> {
        self.event.headers.as_ref().and_then(|headers| headers.net.as_ref()).map(of).into()
    }

    fn flow<'c, T: Into<Value<'c>>>(&'c self, of: impl Fn(&'c Flow) -> T) -> Value<'c> {
        self.flow.as_ref().map(of).into()
    }
}

/// The flow of a frame whose first bytes the event has.
fn flow(event: &ChainEvent) -> Option<Flow> {
    let headers = event.headers.as_ref()?;
    // A disk's request has headers of its own.
    if event.queue.contains("requestq") {
        return None;
    }
    let Packet::Transport(transport) = parse(&views::headers::bytes(&headers.bytes), headers.frame_len) else {
        return None;
    };
    let Transport { source, destination, .. } = transport;
    let name = format!("{source} > {destination}");
    Some(Flow { transport, name, source: source.ip().to_string(), destination: destination.ip().to_string() })
}

/// A column of the chains.
const fn chain(name: &'static str, kind: Kind, about: &'static str, of: fn(&Chain) -> Value<'_>) -> Column<Chain> {
    Column { name, kind, about, of }
}

/// A column of their descriptors.
const fn buffer(
    name: &'static str,
    kind: Kind,
    about: &'static str,
    of: fn(&BufferSnapshot) -> Value<'_>,
) -> Column<BufferSnapshot> {
    Column { name, kind, about, of }
}

/// `vnic trace --parquet`.
pub(crate) static CHAINS: Table<Chain, BufferSnapshot> = Table {
    name: "chain",
    columns: &[
        chain("machine", Kind::Text, "The machine's name", |row| row.origin.machine.as_str().into()),
        chain("socket", Kind::Text, "The device's vhost-user socket", |row| row.origin.socket.as_str().into()),
        chain("pid", Kind::Integer, "The process that serves it", |row| row.origin.pid.into()),
        chain("read_at", Kind::Moment, "When the trace read it, by the machine's clock", |row| {
            Value::Integer(row.read_at)
        }),
        chain(
            "at_ns",
            Kind::Integer,
            "When the device was done with it: nanoseconds since `vnic serve` started",
            |row| row.event.at_ns.into(),
        ),
        chain("available_ns", Kind::Integer, "When it first saw it in the ring, by the same clock", |row| {
            row.event.available_ns.into()
        }),
        chain("queue", Kind::Text, "`receiveq0`, `transmitq0`, `requestq0`, …", |row| {
            row.event.queue.as_str().into()
        }),
        chain("idx", Kind::Integer, "Free-running index in the queue, modulo 65536", |row| row.event.idx.into()),
        chain("head", Kind::Integer, "Head descriptor, or buffer id", |row| row.event.head.into()),
        chain("indirect", Kind::Boolean, "Did its descriptors stand in an indirect table?", |row| {
            row.event.indirect.into()
        }),
        chain("descriptors", Kind::Integer, "How many it had; `buffers` has the first 24", |row| {
            row.event.descriptors.into()
        }),
        chain("written", Kind::Integer, "Bytes that the device has written", |row| row.event.written.into()),
        chain("lost_before", Kind::Integer, "Chains of this queue that the trace lost since the row before", |row| {
            row.lost_before.into()
        }),
        chain("summary", Kind::Text, "The frame, or the disk's request, in words", |row| {
            row.event.summary.as_str().into()
        }),
        chain("frame_bytes", Kind::Integer, "The frame's length, without virtio-net header", |row| {
            row.event.headers.as_ref().map(|headers| headers.frame_len).into()
        }),
        chain(
            "net_header.flags",
            Kind::Integer,
            "virtio-net header (VIRTIO 1.3, 5.1.6); null of received frames",
            |row| row.net_header(|net| net.flags.into()),
        ),
        chain(
            "net_header.gso_type",
            Kind::Integer,
            "0 none, 1 TCP over IPv4, 4 TCP over IPv6, 5 UDP; and 128 with ECN",
            |row| row.net_header(|net| net.gso_type.into()),
        ),
        chain("net_header.hdr_len", Kind::Integer, "A hint, bytes", |row| row.net_header(|net| net.hdr_len.into())),
        chain("net_header.gso_size", Kind::Integer, "Payload of a segment, bytes", |row| {
            row.net_header(|net| net.gso_size.into())
        }),
        chain("net_header.csum_start", Kind::Integer, "Where the checksum begins, bytes", |row| {
            row.net_header(|net| net.csum_start.into())
        }),
        chain("net_header.csum_offset", Kind::Integer, "Where it goes, bytes from there", |row| {
            row.net_header(|net| net.csum_offset.into())
        }),
        chain("flow.name", Kind::Text, "Of TCP and UDP: `10.0.2.15:80 > 10.0.2.2:51514`", |row| {
            row.flow(|flow| flow.name.as_str())
        }),
        chain("flow.protocol", Kind::Integer, "6 TCP, 17 UDP", |row| row.flow(|flow| flow.transport.protocol)),
        chain("flow.source", Kind::Text, "Address", |row| row.flow(|flow| flow.source.as_str())),
        chain("flow.source_port", Kind::Integer, "Port", |row| row.flow(|flow| flow.transport.source.port())),
        chain("flow.destination", Kind::Text, "Address", |row| row.flow(|flow| flow.destination.as_str())),
        chain("flow.destination_port", Kind::Integer, "Port", |row| row.flow(|flow| flow.transport.destination.port())),
        chain("flow.seq", Kind::Integer, "TCP's sequence number", |row| {
            row.flow(|flow| flow.transport.tcp.map(|tcp| tcp.seq))
        }),
        chain("flow.payload_bytes", Kind::Integer, "TCP's or UDP's payload", |row| {
            row.flow(|flow| flow.transport.payload_len)
        }),
    ],
    list: "buffers",
    items: |row| &row.event.buffers,
    item_columns: &[
        buffer("addr", Kind::Address, "As the descriptor has it: guest-physical, or an IOVA", |buffer| {
            buffer.addr.into()
        }),
        buffer("gpa", Kind::Address, "Where it is, guest-physical", |buffer| buffer.gpa.unwrap_or(buffer.addr).into()),
        buffer("len", Kind::Integer, "Bytes", |buffer| buffer.len.into()),
        buffer("writable", Kind::Boolean, "Is the device to write it?", |buffer| buffer.writable.into()),
        buffer(
            "file_page",
            Kind::Integer,
            "Its page of the file that is sent, where that is known (`vnic judge`)",
            |buffer| buffer.file_page.into(),
        ),
        buffer(
            "kind",
            Kind::Text,
            "Of what is read, with `--labels`: `file`, `anonymous`, `socket`, `other`, `unsettled`, `mixed`",
            |buffer| buffer.owner.as_ref().map(|owner| owner.kind.as_str()).into(),
        ),
        buffer("path", Kind::Text, "The file's path", |buffer| {
            buffer.owner.as_ref().and_then(|owner| owner.path.as_deref()).into()
        }),
        buffer("page", Kind::Integer, "Which page of the file its first is, from 0", |buffer| {
            buffer.owner.as_ref().and_then(|owner| owner.page).into()
        }),
        buffer("program", Kind::Text, "The program whose memory it is", |buffer| {
            buffer.owner.as_ref().and_then(|owner| owner.program.as_deref()).into()
        }),
        buffer("pid", Kind::Integer, "Its process", |buffer| buffer.owner.as_ref().and_then(|owner| owner.pid).into()),
        buffer("label", Kind::Text, "All this in words", |buffer| buffer.label.as_deref().into()),
    ],
};
