//! The conversation between the host and the agent inside the guest, one JSON object per line, over a virtio-serial
//! port (never over the NIC under test).
//!
//! Operation:
//! 1. The agent opens the port [`PORT_NAME`] and says [`Event::Ready`].
//! 2. The host sends one [`Request`] at a time; the agent answers with the event named beside it, or with
//!    [`Event::Failed`] / [`Event::Unsupported`].
//! 3. For [`Request::Transfer`] the agent prepares everything (file, socket connected), says
//!    [`Event::TransferBegin`] and *waits* for [`Request::Go`]: by then the device watches the flow. Then it sends the
//!    file and says [`Event::TransferEnd`]. With [`TransferSpec::pause`] it says [`Event::Paused`] after the first chunk
//!    and waits for another `Go`.
//!    Before that `Go`, and after `TransferEnd`, it may be asked to [`Request::Touch`] the file's pages: the control of a
//!    witness that counts every access.
//! 4. For [`Request::Hazard`] the agent says [`Event::Shown`] last. Before it:
//!    - `truncate`, `lease`: nothing, no help is needed.
//!    - `observer`: two transfers, each `TransferBegin`, (`Go`), `TransferEnd` as in step 3, the first without and the
//!      second with a packet capture open in the guest. The host may judge each as a row.
//!    - `mutate`: `TransferBegin`; the host holds the guest's transmitq and says `Go`; the program sends one chunk, changes
//!      the file and says `Paused`; the host releases the queue and says `Go`. No `TransferEnd`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::run::NicState;
pub use vnic::memory::PageRun;

/// The virtio-serial port's name (`-device virtserialport,name=…`).
pub const PORT_NAME: &str = "vnic.record";

/// How the reason of a copying function begins that was not counted because this kernel has none of that name.
pub const LACKS: &str = "this kernel has no ";

/// Among the copying functions: the pages that the program's own writes had copied.
pub const COPY_ON_WRITE: &str = "copy-on-write";

/// Among the copying functions: what a cipher read in one place and wrote, enciphered, in another.
pub const CIPHER: &str = "cipher";

/// Where the image has the kernel modules that the user brought: `NAME.ko`.
pub const KERNEL_MODULES: &str = "/lib/kernel-modules";

/// Bytes of a page in every record.
pub const PAGE_SIZE: u64 = 4096;

/// What the host asks of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Do one transfer; answered by `TransferBegin`, then, after `Go`, `TransferEnd`.
    Transfer(TransferSpec),
    /// The device watches: send now. After [`Event::Paused`]: go on.
    Go,
    /// Show a hazard; answered by `TransferBegin` and `Paused` where the hazard needs the device's help, then by `Shown`.
    Hazard {
        /// Its name: `truncate`, `lease`, `mutate`, `observer`.
        name: String,
        /// The method it happens to: `sendfile`, `read-write`, …
        method: String,
        /// The receiver.
        to: SocketAddr,
    },
    /// Read one byte of each page of the transfer's file; answered by `Touched`. In place of the first `Go`, which is still
    /// waited for, or after `TransferEnd`.
    Touch,
    /// Run a program in the guest; answered by `Ran`.
    Run {
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// Sync, power off; answered by the port closing.
    PowerOff,
}

/// One transfer to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TransferSpec {
    /// Method name without suffix: `sendfile`, `read-write`, …
    pub method: String,
    /// Bytes to send.
    pub bytes: u64,
    /// Where in the file they start; the file is `offset + bytes` long.
    #[serde(default)]
    pub offset: u64,
    /// Bytes per system call.
    pub chunk: u64,
    /// `tmpfs` or `ext4`: where the file is made.
    pub filesystem: String,
    /// The receiver, which answers at FIN with [`Receipt`] as `bytes N sha256 HEX\n`.
    pub to: SocketAddr,
    /// What to switch on the NIC first (`ethtool -K`).
    #[serde(default)]
    pub nic: NicWish,
    /// For the method `program`: the program and its arguments. The file is its standard input, the connection its
    /// standard output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub program: Vec<String>,
    /// Have none of the file in memory when the transfer starts.
    #[serde(default)]
    pub cold: bool,
    /// What its connection is.
    #[serde(default)]
    pub over: Over,
    /// The kernel module to have loaded meanwhile, and at no other time: one of those that the image was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Stop after the first chunk, with everything as the sending call left it (buffers, mappings, pipes), say `Paused`,
    /// and go on after `Go`: meanwhile the host looks at the guest's memory.
    #[serde(default)]
    pub pause: bool,
    /// Keep the guest kernel's accounts of copies and switches.
    #[serde(default)]
    pub accounts: bool,
}

/// NIC switches to set before a transfer; `None` leaves one at its default (on, where the device offers it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NicWish {
    /// Scatter-gather.
    pub sg: Option<bool>,
    /// Transmit checksum offload.
    pub csum: Option<bool>,
    /// TCP segmentation offload.
    pub tso: Option<bool>,
    /// The largest packet; `None` is an Ethernet's 1,500 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// What a transfer's connection is, where its method sends a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// TCP to the receiver.
    #[default]
    Tcp,
    /// The program asks for Multipath TCP; a receiver that does not know it makes it TCP.
    Mptcp,
    /// Multipath TCP to a receiver in the guest, which does know it: it never meets the NIC.
    MptcpHere,
    /// A socket of `AF_UNIX`, to a receiver in the guest: it never meets the NIC.
    Unix,
}

impl Over {
    /// Does it stay in the guest?
    #[must_use]
    pub fn stays_here(self) -> bool {
        matches!(self, Over::MptcpHere | Over::Unix)
    }
}

/// The 5-tuple of a transfer, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// IP protocol: 6 TCP, 17 UDP.
    pub protocol: u8,
    /// The guest's end.
    pub local: SocketAddr,
    /// The receiver's end.
    pub remote: SocketAddr,
}

#[cfg(feature = "device")]
impl Flow {
    /// Is this packet of the flow, sent by its local end?
    #[must_use]
    pub fn is_of(&self, packet: &vnic::net::parse::Transport) -> bool {
        (self.protocol, self.local, self.remote) == (packet.protocol, packet.source, packet.destination)
    }
}

/// What the receiver says it got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Payload bytes received.
    pub bytes: u64,
    /// Their SHA-256, lower-case hex.
    pub sha256: String,
}

/// What the agent tells the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The agent is up.
    Ready {
        /// `uname -r`.
        kernel: String,
        /// The NIC as it came up.
        nic: NicState,
    },
    /// File and socket are ready; the agent waits for `Go`.
    TransferBegin {
        /// The connection.
        flow: Flow,
        /// NIC switches in force, read back.
        nic: NicState,
        /// Where the file's page-cache pages are, before.
        pages: Vec<PageRun>,
        /// SHA-256 of the bytes the receiver will get, computed from the file's content apart from the transfer. Empty
        /// where the guest cannot foretell it: the receipt then proves nothing (`sha256_ok` is null).
        sha256: String,
        /// How many bytes the receiver will get where they are not the file's own (TLS records, say).
        #[serde(default)]
        stream_bytes: Option<u64>,
        /// File system the file is on.
        filesystem: String,
    },
    /// The first chunk is handed to the kernel, nothing else was done since; the agent waits for `Go`.
    Paused {
        /// Bytes the kernel has taken.
        taken: u64,
    },
    /// A byte of each page of the file was read, by the kernel.
    Touched {
        /// So many pages.
        pages: u64,
    },
    /// A hazard was shown.
    Shown {
        /// Did it go as described?
        as_described: bool,
        /// What happened, a line per step.
        story: Vec<String>,
    },
    /// The transfer is over.
    TransferEnd {
        /// Bytes the method says it sent.
        bytes_sent: u64,
        /// First to last byte acknowledged by the receiver's receipt, seconds.
        seconds: f64,
        /// What the receiver got.
        receipt: Receipt,
        /// Where the file's pages are, after.
        pages: Vec<PageRun>,
        /// The guest kernel's accounts.
        accounts: Accounts,
    },
    /// A program ended.
    Ran {
        /// Exit status, or 128 + signal.
        status: i32,
        /// Standard output and error together.
        output: String,
    },
    /// This guest cannot do that; the row says why.
    Unsupported {
        /// The reason, one sentence.
        why: String,
    },
    /// A request failed.
    Failed {
        /// What went wrong, with its causes.
        error: String,
    },
}

/// The guest kernel's own accounts of one transfer. `None` is "not measured"; the reason is in `reasons` under the
/// field's name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Accounts {
    /// System calls of the transfer program.
    pub syscalls: Option<u64>,
    /// Entries to the kernel and back: two per system call, two per page fault taken in user mode.
    pub mode_switches: Option<u64>,
    /// Page faults taken in user mode.
    pub page_faults: Option<u64>,
    /// Page faults taken in the kernel, on the program's memory: no mode switch (`write` from a mapping has these).
    #[serde(default)]
    pub kernel_page_faults: Option<u64>,
    /// The scheduler switched away because the program waited.
    pub voluntary_switches: Option<u64>,
    /// The scheduler switched away because it was another's turn.
    pub involuntary_switches: Option<u64>,
    /// Bytes that the disk brought into memory meanwhile; 0 where the file is on none.
    #[serde(default)]
    pub disk_read_bytes: Option<u64>,
    /// CPU time in user mode, microseconds.
    pub user_us: Option<u64>,
    /// CPU time in the kernel, microseconds.
    pub system_us: Option<u64>,
    /// Payload bytes through each copying function of the kernel, none counted twice: their sum is what the CPU copied.
    /// `None` where one could not be watched. Beside the functions: [`COPY_ON_WRITE`], [`CIPHER`].
    pub copied_bytes: BTreeMap<String, Option<u64>>,
    /// The method's own words: completions of MSG_ZEROCOPY, say.
    pub claims: BTreeMap<String, u64>,
    /// Why a figure is missing.
    pub reasons: BTreeMap<String, String>,
    /// What is to be known beside the figures: that other programs ran, say. One sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
