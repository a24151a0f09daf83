//! The control socket's protocol: one JSON object per line, on a Unix stream socket.
//!
//! Operation: a client sends one [`Request`] line and reads one [`Reply`] line; it may then send the next. After
//! [`Request::Trace`] the connection carries [`TraceEvent`] lines until either side closes it. A client that instead
//! sends `GET /metrics` gets the counters in Prometheus text form over HTTP. A request that is not of [`Request`] goes to the
//! [extension](crate::serve::Extension) of the program that serves the device.
//!
//! Everything here is passive but `Hold` and `Release`, which say what they do. Behind a guest's IOMMU a look into a held
//! queue asks the front-end for the translations that its chains miss.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::hardware::Figures;
pub use crate::introspect::{Kind, Label};
pub use crate::life::{Life, Owner, Segment, Step, Use};
pub use crate::provenance::{FlowReport, Passed, Report, Source, SourceKind, SourceReport};
pub use crate::ring::snapshot::{BufferSnapshot, ChainSnapshot, EventSuppression, NotifyWhen, RingSnapshot};
pub use crate::sandbox::Report as SandboxReport;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// The whole state: [`Reply::Status`].
    Status,
    /// A snapshot of the rings: [`Reply::Rings`].
    Rings {
        /// Only this queue.
        queue: Option<String>,
    },
    /// From now on, every chain: [`Reply::Done`], then [`TraceEvent`] lines.
    Trace {
        /// With whose memory the buffers are that the device has read.
        #[serde(default)]
        labels: bool,
        /// With the headers of the frames.
        #[serde(default)]
        headers: bool,
    },
    /// From what the frames come that the guest sends: [`Reply::Done`], then a [`Reply::Top`] each time so much has gone by,
    /// until either side closes the connection.
    Top {
        /// Milliseconds between two reports.
        every_ms: u64,
        /// Since the device was first served, as far as it keeps that: then the first report comes at once. Else from now on.
        #[serde(default)]
        so_far: bool,
    },
    /// Stop taking and returning buffers of a queue: [`Reply::Done`].
    Hold {
        /// The queue's name.
        queue: String,
    },
    /// Go on: [`Reply::Done`].
    Release {
        /// The queue's name.
        queue: String,
    },
    /// Have the link's peer ping an address of the guest once: [`Reply::Done`] when it is on its way. What comes of it is
    /// in the link's counters: `pings_sent`, `pings_answered`.
    Ping {
        /// Whom.
        to: IpAddr,
    },
    /// Whose the pages at these addresses are: [`Reply::Page`].
    Page {
        /// Guest-physical.
        addresses: Vec<u64>,
    },
    /// What has happened to a page, or to a file's pages: [`Reply::Life`].
    Life(LifeOf),
}

/// Whose life it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "of", rename_all = "kebab-case")]
pub enum LifeOf {
    /// The page's at this address.
    Page {
        /// Guest-physical.
        gpa: u64,
    },
    /// That of the pages of a file.
    File {
        /// Its path, as labels have it.
        path: String,
    },
    /// The pages' at these addresses, one page after the other.
    Pages {
        /// Guest-physical.
        addresses: Vec<u64>,
    },
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Done as asked.
    Done,
    /// Answer to `Status`.
    Status(Box<Status>),
    /// Answer to `Rings`.
    Rings {
        /// One per queue that is set up.
        rings: Vec<RingSnapshot>,
    },
    /// Answer to `Page`.
    Page {
        /// One per address, in the order asked.
        labels: Vec<Label>,
        /// The names of the flags that the guest's kernel has set on each page.
        #[serde(default)]
        flags: Vec<Vec<String>>,
        /// When a device last had the page, and what for; empty where that is not recorded.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        last_uses: Vec<Option<Step>>,
    },
    /// Answer to `Life`.
    Life(Box<Life>),
    /// After `Top`.
    Top(Box<Report>),
    /// It could not be done; one sentence.
    Error {
        /// The sentence.
        message: String,
    },
}

/// `vnic status`: of a device; of the first, with all in `devices`, where there are several.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The kind of device: `net`, `rng`.
    #[serde(default)]
    pub device: String,
    /// All devices of the process, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Status>,
    /// The vhost-user socket.
    pub socket: String,
    /// The process serving it.
    pub pid: u32,
    /// What is behind it: a NIC's link as given, a disk's image.
    pub link: String,
    /// Is a front-end connected?
    pub connected: bool,
    /// Front-ends served so far, this one included.
    pub sessions: u64,
    /// How the last session ended, where it ended badly.
    pub last_error: Option<String>,
    /// Features, by the spec's names.
    pub features: FeatureSets,
    /// vhost-user protocol features, by name.
    pub protocol_features: Vec<String>,
    /// Guest memory.
    pub regions: Vec<RegionStatus>,
    /// Can the guest move to another host while it runs?
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationStatus>,
    /// The guest's IOMMU, where the driver's addresses go through one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iotlb: Option<IotlbStatus>,
    /// What its chains would cost a card of hardware, where it was told a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<HardwareStatus>,
    /// What the process has given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxReport>,
    /// What `vnic proxy` stands between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyStatus>,
    /// One per queue.
    pub queues: Vec<QueueStatus>,
    /// Nanoseconds in which the workers had nothing to do, all of them together, up to the last work they found.
    #[serde(default)]
    pub idle_ns: u64,
    /// The host side of the link: frames and bytes by direction, drops by reason.
    pub link_counters: BTreeMap<String, u64>,
}

/// Can the guest move to another host while it runs, and does it?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MigrationStatus {
    /// Why it cannot; null: as far as this device goes, it can.
    pub cannot: Option<String>,
    /// What does not come along.
    pub stays: Option<String>,
    /// Does the front-end copy the guest elsewhere at the moment?
    pub logging: bool,
    /// Pages that the device has written since then, each as often as it was copied before.
    pub pages_marked: u64,
}

/// What `vnic proxy` stands between.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProxyStatus {
    /// Where the back-end listens.
    pub back_end: String,
    /// Is it connected, or waited for?
    pub back_end_connected: bool,
    /// The guest's kernel and the device's driver in it, or why none can be looked into; null: no ring is set up.
    pub kernel: Option<String>,
    /// Messages and files that were passed on; messages that were not understood, requests that the back-end refused.
    pub counters: BTreeMap<String, u64>,
}

/// What a NIC's chains would cost a card of hardware.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HardwareStatus {
    /// The model, in words.
    pub model: String,
    /// Are chains done with no earlier than that card would be?
    pub paced: bool,
    /// The queues of which chains were looked at.
    pub queues: Vec<QueueCost>,
}

/// What the chains of one queue would cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QueueCost {
    /// Its name.
    pub queue: String,
    /// All its chains.
    pub chains: u64,
    /// What those of them that were looked at would cost.
    pub cost: Figures,
}

/// Which features were offered, withheld, accepted, negotiated.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FeatureSets {
    /// What the device says it can do.
    pub offered: Vec<String>,
    /// What `--withhold` took away.
    pub withheld: Vec<String>,
    /// What the driver accepted; empty before it did.
    pub negotiated: Vec<String>,
}

/// One memory region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RegionStatus {
    /// Guest-physical address, bytes.
    pub gpa: u64,
    /// Size, bytes.
    pub size: u64,
    /// The front-end's own address, bytes.
    pub user_addr: u64,
    /// Offset in the shared file, bytes.
    pub offset: u64,
}

/// The IOTLB: what the front-end has said of the guest's IOMMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IotlbStatus {
    /// Translations there are.
    pub entries: u64,
    /// Bytes they translate.
    pub bytes: u64,
    /// Look-ups that found a translation.
    pub hits: u64,
    /// Translations the front-end was asked for.
    pub misses: u64,
    /// Translations it gave.
    pub updates: u64,
    /// Invalidations.
    pub invalidations: u64,
    /// Translations given up for want of room.
    pub evicted: u64,
    /// The first translations by address.
    pub first: Vec<TranslationStatus>,
}

/// One translation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TranslationStatus {
    /// First address, as descriptors have it.
    pub iova: u64,
    /// Size, bytes.
    pub size: u64,
    /// Where it leads, guest-physical.
    pub gpa: u64,
    /// May the device read there?
    pub read: bool,
    /// May it write there?
    pub write: bool,
}

/// One queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueueStatus {
    /// `receiveq0`, `transmitq0`, …
    pub queue: String,
    /// `off`, `disabled`, `running`, `held`, `waiting` (for the guest's IOMMU) or `stopped`.
    pub state: String,
    /// Behind an IOMMU: the translation it waits for, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// Why it stopped: the ring error.
    pub error: Option<String>,
    /// Queue size.
    pub size: u16,
    /// When each side of its ring wants to be notified, once it is set up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_suppression: Option<EventSuppression>,
    /// Counters by name; the same names as in the metrics.
    pub counters: BTreeMap<String, u64>,
}

/// One line of `vnic trace`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum TraceEvent {
    /// A chain that went through a queue.
    Chain(ChainEvent),
    /// Events that had no room, or were overwritten before they could be read.
    Lost {
        /// The queue's name.
        queue: String,
        /// How many.
        events: u64,
    },
}

/// A chain as it passed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChainEvent {
    /// When the device was done with it: nanoseconds since `serve` started.
    pub at_ns: u64,
    /// When the device first saw it in the ring, by the same clock; of what lay there when the trace began, then.
    #[serde(default)]
    pub available_ns: u64,
    /// The queue's name.
    pub queue: String,
    /// Head descriptor.
    pub head: u16,
    /// Free-running index.
    pub idx: u16,
    /// Indirect table?
    pub indirect: bool,
    /// The buffers, as many as the event had room for.
    pub buffers: Vec<BufferSnapshot>,
    /// Descriptors in all.
    pub descriptors: u16,
    /// Bytes written into device-writable buffers.
    pub written: u32,
    /// The frame in words: `10.0.2.15:34512 > 10.0.2.2:9000 tcp seq 1 len 65160 gso 1448`.
    pub summary: String,
    /// The frame's headers, where somebody has asked for them, and the chain has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
}

/// What stands in front of a frame's payload, or of a disk's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Headers {
    /// The virtio-net header; of a frame that the guest receives it is not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<NetHeaderStatus>,
    /// The frame's length, bytes, without the virtio-net header.
    pub frame_len: u32,
    /// Its first bytes, as many as a trace has room for, in hexadecimal digits.
    pub bytes: String,
}

/// A virtio-net header, as far as what was negotiated gives it a meaning (VIRTIO 1.3, 5.1.6 Device Operation).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct NetHeaderStatus {
    /// `flags`: 1, the checksum is to be completed.
    pub flags: u8,
    /// `gso_type`: 0 none, 1 TCP over IPv4, 3 UDP fragments, 4 TCP over IPv6, 5 UDP; and 0x80 with ECN.
    pub gso_type: u8,
    /// `hdr_len`: a hint, bytes.
    pub hdr_len: u16,
    /// `gso_size`: payload of a segment, bytes.
    pub gso_size: u16,
    /// `csum_start`: where the checksum begins, bytes from the frame's first.
    pub csum_start: u16,
    /// `csum_offset`: where it goes, bytes from `csum_start`.
    pub csum_offset: u16,
}
