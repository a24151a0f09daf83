//! `target/run/run.json`: the record of a transfer run.
//!
//! A figure that could not be measured is `null`, and `reasons` of its object says why, under the figure's name.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vnic::hardware::{Figures, Shapes};

/// A whole run: one guest, several transfers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// The guest's `uname -r`.
    pub kernel: String,
    /// QEMU's version.
    pub qemu: Option<String>,
    /// `kvm` or `tcg`.
    pub accel: Option<String>,
    /// The file that was sent.
    pub file: FileInfo,
    /// Kernel modules of the user's own that were loaded for rows that name them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_modules: Vec<KernelModule>,
    /// One entry per transfer, in the order they ran; or per flow, where a VM was watched.
    pub methods: Vec<Method>,
    /// Where no transfer was conducted, but a VM watched: what was seen of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watched: Option<Watched>,
    /// Why a figure of this object is `null`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<String, String>,
}

/// A kernel module of the user's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelModule {
    /// As rows name it: `copy-splice`.
    pub name: String,
    /// Of its file, lower-case hex.
    pub sha256: String,
}

/// What was seen of a VM that was watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Watched {
    /// For so long.
    pub seconds: f64,
    /// How much of what it sent was seen, by bytes of the frames; `null`: it sent nothing.
    pub seen_share: Option<f64>,
    /// Bytes of all frames it sent.
    pub passed_bytes: u64,
    /// The files whose own pages were sent.
    pub files: Vec<WatchedFile>,
}

/// A file whose own pages were sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WatchedFile {
    /// Its path, with file system and device: in words.
    pub name: String,
    /// Its path.
    pub path: Option<String>,
    /// Its file system's type.
    pub filesystem: Option<String>,
    /// Payload from its pages: none of it was copied.
    pub bytes: u64,
}

/// The file of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileInfo {
    /// Its size, bytes.
    pub bytes: u64,
    /// The file system it is on; several with commas between.
    pub filesystem: String,
    /// Bytes per system call of the methods that work in pieces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<u64>,
}

/// What the guest's NIC does, read back from the guest's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct NicState {
    /// Transmit checksum offload.
    pub csum: bool,
    /// Scatter-gather.
    pub sg: bool,
    /// TCP segmentation offload.
    pub tso: bool,
}

impl fmt::Display for NicState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on: Vec<&str> = [(self.sg, "sg"), (self.csum, "csum"), (self.tso, "tso")]
            .into_iter()
            .filter_map(|(on, name)| on.then_some(name))
            .collect();
        f.pad(&if on.is_empty() { "none".to_owned() } else { on.join("+") })
    }
}

/// One transfer and what the witnesses saw of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Method {
    /// The row's name: method and suffix.
    pub method: String,
    /// The file system, where the run is about several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<String>,
    /// The NIC while it ran.
    pub nic: NicState,
    /// Payload bytes the program sent.
    pub bytes_sent: Option<u64>,
    /// Did the receiver get exactly the file's bytes?
    pub sha256_ok: Option<bool>,
    /// First byte to receipt, seconds.
    pub seconds: Option<f64>,
    /// The guest kernel's accounts.
    pub guest: GuestAccounts,
    /// What the device saw.
    pub device: DeviceAccounts,
    /// What the guest's memory showed from outside.
    pub memory: MemoryAccounts,
    /// What the guest kernel's structures, read from outside, say of the pages that the payload lay in.
    #[serde(default)]
    pub introspection: Option<IntrospectionAccounts>,
    /// What the guest's CPU did in the file's pages, where every access was counted.
    #[serde(default)]
    pub touches: Option<TouchAccounts>,
    /// What the NIC's gathering costs.
    #[serde(default)]
    pub dma: Dma,
    /// What happened to one page of the file, where that was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_life: Option<PageLife>,
    /// Bytes copied by the CPU per payload byte, by the guest's accounts.
    pub cpu_copies: Option<f64>,
    /// Bytes copied by DMA per payload byte: from the disk, by the guest's accounts, and to the NIC, by the device's.
    pub dma_copies: Option<f64>,
    /// The judgement.
    pub verdict: Option<Verdict>,
    /// What the judgement rests on, one sentence.
    pub why: String,
    /// What this row should show on a kernel that does as documented; `null` where nothing is expected.
    pub expected: Option<Verdict>,
    /// What is to be known beside the figures: by whom scatter-gather was switched off, that the guest was not quiet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Why a figure of this object, or of the ones inside, is `null`; the key is the path, `guest.syscalls`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<String, String>,
}

/// What happened to a page of the file that was sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PageLife {
    /// Which page of the file, from 0.
    pub page: u64,
    /// Where it is, guest-physical.
    pub gpa: u64,
    /// What devices did with it, in the order of time.
    pub steps: Vec<PageStep>,
    /// Chains of any page that the recorder was not shown.
    pub missed_chains: u64,
    /// What happened to pages all over the file, each as often as a device had it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<PageDot>,
}

/// A device had a page of the file: a dot in the picture of all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PageDot {
    /// Which page of the file, from 0.
    pub page: u64,
    /// When, in seconds since the device was first served.
    pub seconds: f64,
    /// What for.
    pub what: Had,
}

/// What a device had a page for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Had {
    /// A disk filled it.
    Filled,
    /// A NIC sent it.
    Sent,
    /// A device put something else there.
    Overwritten,
    /// A device read it for something else.
    Read,
}

/// A device had a page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PageStep {
    /// When, in seconds since the device was first served.
    pub seconds: f64,
    /// In words: `filled from sector 2048 by requestq0 #12`.
    pub what: String,
    /// Bytes of it.
    pub bytes: u32,
}

/// The judgement on a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// The NIC gathered the file's own pages.
    #[serde(rename = "zero-copy")]
    ZeroCopy,
    /// The NIC was given copies.
    #[serde(rename = "copied")]
    Copied,
    /// Some of both.
    #[serde(rename = "mixed")]
    Mixed,
    /// The witnesses contradict one another.
    #[serde(rename = "witnesses disagree")]
    WitnessesDisagree,
}

impl Verdict {
    /// In a word or two.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verdict::ZeroCopy => "zero-copy",
            Verdict::Copied => "copied",
            Verdict::Mixed => "mixed",
            Verdict::WitnessesDisagree => "witnesses disagree",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The guest kernel's own accounts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct GuestAccounts {
    /// System calls of the transfer program.
    pub syscalls: Option<u64>,
    /// Two per system call, two per page fault in user mode.
    pub mode_switches: Option<u64>,
    /// Page faults in user mode.
    pub page_faults: Option<u64>,
    /// Page faults that the kernel took on the program's behalf, inside its system calls: no mode switch.
    #[serde(default)]
    pub kernel_page_faults: Option<u64>,
    /// Context switches.
    pub context_switches: ContextSwitches,
    /// Payload bytes through each copying function.
    pub copied_bytes: BTreeMap<String, Option<u64>>,
    /// What the kernel claims of the method (completions of MSG_ZEROCOPY).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, u64>,
    /// Bytes that the disk's DMA brought into memory; 0 where the file is on none.
    #[serde(default)]
    pub disk_read_bytes: Option<u64>,
    /// CPU time in user mode, microseconds.
    pub user_us: Option<u64>,
    /// CPU time in the kernel, microseconds.
    pub system_us: Option<u64>,
}

/// Context switches of the transfer program.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ContextSwitches {
    /// It waited.
    pub voluntary: Option<u64>,
    /// It was another's turn.
    pub involuntary: Option<u64>,
}

/// What the device saw of the flow. Payload is what follows the Ethernet, IP and TCP headers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct DeviceAccounts {
    /// Chains that carried payload of the flow.
    pub chains: Option<u64>,
    /// Their descriptors.
    pub descriptors: Option<u64>,
    /// Payload bytes, each counted the first time it was sent.
    pub payload_bytes: Option<u64>,
    /// Payload bytes sent again.
    pub retransmitted_bytes: Option<u64>,
    /// Of `payload_bytes`, those that lie in the file's page-cache pages.
    pub from_page_cache_bytes: Option<u64>,
    /// The others.
    pub from_elsewhere_bytes: Option<u64>,
    /// Payload bytes the device read out of guest memory.
    pub dma_read_bytes: Option<u64>,
    /// Payload bytes the device copied once more before they left it.
    pub device_copied_bytes: Option<u64>,
}

/// The first of the two DMAs, by the disk's own descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct DiskAccounts {
    /// Reads that the disk did while the flow was watched.
    pub requests: u64,
    /// Their pieces of the guest's memory: a descriptor each.
    pub descriptors: u64,
    /// Bytes it wrote there.
    pub bytes: u64,
    /// Of them, those in pages that the NIC gathered payload from.
    pub bytes_in_pages_sent: u64,
    /// Payload bytes that lay in pages that the disk had filled.
    pub payload_bytes_in_pages_read: u64,
}

/// What a NIC has to do for the flow, and what that would cost one of hardware.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Dma {
    /// The disk's own part of it: what its descriptors brought into memory.
    pub disk: Option<DiskAccounts>,
    /// The chains that carried payload of the flow, as far as a model of hardware must know them.
    pub shapes: Option<Shapes>,
    /// What they would have cost the card that `serve --hardware` was told.
    pub hardware: Option<Figures>,
}

/// Whose the pages were that the payload lay in, by the guest kernel's own structures. Retransmitted bytes are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct IntrospectionAccounts {
    /// Payload bytes whose pages were looked up.
    pub payload_bytes: u64,
    /// Of them, those in pages of the file that was sent, each at its place.
    pub from_page_cache_bytes: u64,
    /// Of them, those in a page that changed meanwhile, or that a file has been given since.
    pub unsettled_bytes: u64,
    /// The file that was sent, by the guest's own name for it.
    pub paths: Vec<String>,
}

/// What the guest's CPU did in the pages that the file lay in before the transfer, by the emulator that is this CPU.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct TouchAccounts {
    /// Bytes it loaded from them, from the first call until the agent had its receipt.
    pub loaded: u64,
    /// Of them, those loaded by programs, not by the kernel.
    pub loaded_by_programs: u64,
    /// Bytes it stored to them.
    pub stored: u64,
    /// Whether the counting can be believed.
    pub control: TouchControl,
}

/// The control of the counting: the guest reads a byte of each page, which must count as one byte loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct TouchControl {
    /// Pages of the file: bytes that had to be counted.
    pub pages: u64,
    /// Bytes that were, before the transfer.
    pub before: u64,
    /// And after it.
    pub after: u64,
}

/// What a scan of the guest's memory showed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MemoryAccounts {
    /// How often a held chunk's bytes stood in the guest's memory.
    pub physical_instances: Option<u64>,
}
