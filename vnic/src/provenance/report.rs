//! What an account shows.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::source::Source;

/// From what the frames of a while came. Bytes are of TCP's and UDP's payload, and of the frames that were seen, unless said
/// otherwise.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// How long the while is.
    pub seconds: f64,
    /// The guest's kernel, as `uname -r` has it.
    pub kernel: Option<String>,
    /// Why the guest cannot be looked into, where it cannot.
    pub why: Option<String>,
    /// How much of what passed was seen, by bytes of the frames; by their number where nobody knows the bytes of those that
    /// were missed; `None`: nothing passed.
    pub seen_share: Option<f64>,
    /// All frames that passed. From outside, the bytes are those of the frames that were seen.
    pub passed: Passed,
    /// Those that were seen.
    pub seen: Passed,
    /// Payload.
    pub bytes: u64,
    /// Of it, what was read from files' pages and from programs' own memory.
    pub zero_copy_bytes: u64,
    /// Of it, what was read from memory of which nobody can say for sure whose it was.
    pub unsettled_bytes: u64,
    /// Headers in front of the payload.
    pub header_bytes: u64,
    /// Frames without such payload: acknowledgements, ARP.
    pub other_bytes: u64,
    /// By flow, those with most bytes first.
    pub flows: Vec<FlowReport>,
    /// By file.
    pub files: Vec<SourceReport>,
    /// By what else it was read from.
    pub elsewhere: Vec<SourceReport>,
    /// What is no more listed, for there are too many.
    pub others: Others,
}

/// Frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Passed {
    /// How many.
    pub frames: u64,
    /// Their bytes, headers included.
    pub bytes: u64,
}

impl Passed {
    /// How much of all these are; `None`: there are none.
    #[must_use]
    pub fn share_of(self, all: Passed) -> Option<f64> {
        let of = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        if self.bytes < all.bytes { of(self.bytes, all.bytes) } else { of(self.frames, all.frames) }
    }
}

/// One flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowReport {
    /// `10.0.2.15:80 > 10.0.2.2:51514`
    pub flow: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Payload.
    pub bytes: u64,
    /// Of it, from files' pages and programs' memory.
    pub zero_copy_bytes: u64,
    /// Of that, from files' pages.
    pub file_bytes: u64,
    /// Of it, not known.
    pub unsettled_bytes: u64,
    /// Frames with payload.
    pub frames: u64,
    /// Their descriptors.
    pub descriptors: u64,
    /// From what, what gave most first.
    pub sources: Vec<SourceReport>,
}

/// What was read from one source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SourceReport {
    /// Which.
    #[serde(flatten)]
    pub source: Source,
    /// Payload.
    pub bytes: u64,
}

/// What is summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Others {
    /// Flows that went silent first, and left the list.
    pub flows: u64,
    /// Their payload.
    pub flow_bytes: u64,
    /// Of it, from files' pages and programs' memory.
    pub flow_zero_copy_bytes: u64,
    /// Sources that left their list.
    pub sources: u64,
    /// What was read from them.
    pub source_bytes: u64,
}

impl Report {
    /// How much of the payload was zero-copy, of what is known; `None`: nothing is.
    #[must_use]
    pub fn zero_copy_share(&self) -> Option<f64> {
        share(self.zero_copy_bytes, self.bytes, self.unsettled_bytes)
    }
}

impl FlowReport {
    /// How much of it was zero-copy, of what is known; `None`: nothing is.
    #[must_use]
    pub fn zero_copy_share(&self) -> Option<f64> {
        share(self.zero_copy_bytes, self.bytes, self.unsettled_bytes)
    }
}

/// How many descriptors a MiB of payload took.
#[must_use]
pub fn descriptors_per_mib(descriptors: u64, bytes: u64) -> f64 {
    descriptors as f64 * f64::from(1 << 20) / bytes.max(1) as f64
}

fn share(zero_copy: u64, bytes: u64, unsettled: u64) -> Option<f64> {
    let known = bytes.saturating_sub(unsettled);
    (known > 0).then(|| zero_copy as f64 / known as f64)
}
