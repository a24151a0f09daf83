//! What a front-end can get wrong, and what can befall its socket.

use std::error::Error;
use std::io;

use crate::memory::MemoryError;
use crate::spec::Features;
use crate::spec::vhost_user::{ProtocolFeature, ProtocolFeatures, RequestCode};

/// Why a device could not do what was asked; the session names the request around it.
pub type DeviceError = Box<dyn Error + Send + Sync>;

/// A front-end fault, or the end of its socket. Each variant names the request and the offending value.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A header with another protocol version.
    #[error("request {request}: protocol version {version}, only 1 is known")]
    Version {
        /// The request's number.
        request: u32,
        /// The version.
        version: u32,
    },
    /// A header that claims to be a reply.
    #[error("request {request} is marked as a reply, and none is awaited")]
    UnexpectedReply {
        /// The request's number.
        request: u32,
    },
    /// A header that announces more payload than any request has.
    #[error("request {request}: {size} bytes of payload announced, at most {max}")]
    PayloadTooLong {
        /// The request's number.
        request: u32,
        /// The announced size, bytes.
        size: u32,
        /// The bound.
        max: usize,
    },
    /// More file descriptors than a message may carry, or than this process may open.
    #[error(
        "a message carries more file descriptors than can be taken ({max} at most, fewer where this process may open no more)"
    )]
    TooManyFds {
        /// The bound.
        max: usize,
    },
    /// The connection ended within a message.
    #[error("the connection ended {missing} bytes before the end of a message")]
    CutShort {
        /// Bytes that were still to come.
        missing: usize,
    },
    /// The front-end does not read what it is sent.
    #[error("the front-end does not read what it is sent")]
    ReplyBlocked,
    /// A system call on the socket failed.
    #[error("cannot {action}: {source}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The front-end took back memory that it had shared.
    #[error("a memory region's file shrank while it was mapped")]
    MemoryLost,

    /// A request that the protocol does not have.
    #[error("request {request} is unknown")]
    Unknown {
        /// The request's number.
        request: u32,
    },
    /// A payload of the wrong length.
    #[error("{request}: {size} bytes of payload instead of {expected}")]
    Size {
        /// The request.
        request: RequestCode,
        /// What came, bytes.
        size: usize,
        /// What belongs there, bytes.
        expected: usize,
    },
    /// The wrong number of file descriptors.
    #[error("{request}: {fds} file descriptors instead of {expected}")]
    Fds {
        /// The request.
        request: RequestCode,
        /// What came.
        fds: usize,
        /// What belongs there.
        expected: usize,
    },
    /// A value out of its range.
    #[error("{request}: {what} {value:#x} is not allowed")]
    Value {
        /// The request.
        request: RequestCode,
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A request that belongs to a protocol feature which is not in use.
    #[error("{request} needs the protocol feature {feature}, which is not negotiated")]
    NotNegotiated {
        /// The request.
        request: RequestCode,
        /// The feature.
        feature: ProtocolFeature,
    },
    /// A request that no front-end sends to this kind of device.
    #[error("{request} is not supported")]
    Unsupported {
        /// The request.
        request: RequestCode,
    },
    /// Features that were not offered.
    #[error("SET_FEATURES: not offered: {0}")]
    FeaturesNotOffered(Features),
    /// Other features while rings run.
    #[error("SET_FEATURES: changed while vring {index} runs: {changed}")]
    FeaturesWhileRunning {
        /// A running vring.
        index: u16,
        /// The features that would change.
        changed: Features,
    },
    /// Protocol features that were not offered.
    #[error("SET_PROTOCOL_FEATURES: not offered: {0}")]
    ProtocolFeaturesNotOffered(ProtocolFeatures),
    /// A vring that does not exist.
    #[error("{request}: vring {index}, there are {vrings}")]
    NoSuchVring {
        /// The request.
        request: RequestCode,
        /// The vring's index.
        index: u32,
        /// How many there are.
        vrings: usize,
    },
    /// A change that a running vring does not allow.
    #[error("{request}: vring {index} is running")]
    VringRuns {
        /// The request.
        request: RequestCode,
        /// The vring's index.
        index: u16,
    },
    /// A vring that is to start before features are negotiated.
    #[error("{request}: vring {index} cannot start before SET_FEATURES")]
    NoFeatures {
        /// The request.
        request: RequestCode,
        /// The vring's index.
        index: u16,
    },
    /// A ring that is not wholly in guest memory.
    #[error("{request}: {part} of vring {index}: {source}")]
    Ring {
        /// The request.
        request: RequestCode,
        /// The vring's index.
        index: u16,
        /// Which part of it.
        part: &'static str,
        /// What is wrong with its address.
        source: MemoryError,
    },
    /// A ring that could not go on after the memory under it had changed.
    #[error("vring {index} cannot go on in the new memory: {source}")]
    Restart {
        /// The vring's index.
        index: u16,
        /// Why not.
        source: Box<SessionError>,
    },
    /// A ring of which nobody can say where it stands.
    #[error("vring {index} could not be stopped: {source}")]
    Stop {
        /// The vring's index.
        index: u16,
        /// What the device says.
        source: DeviceError,
    },
    /// Memory that cannot be used.
    #[error("{request}: {source}")]
    Memory {
        /// The request.
        request: RequestCode,
        /// What is wrong with it.
        source: MemoryError,
    },
    /// The device could not do it.
    #[error("{request}: {source}")]
    Device {
        /// The request.
        request: RequestCode,
        /// What the device says.
        source: DeviceError,
    },
}

impl SessionError {
    /// Can the session not go on after this? Either the stream of messages is lost, or a request was half done.
    #[must_use]
    pub const fn ends_the_session(&self) -> bool {
        matches!(
            self,
            SessionError::Version { .. }
                | SessionError::UnexpectedReply { .. }
                | SessionError::PayloadTooLong { .. }
                | SessionError::TooManyFds { .. }
                | SessionError::CutShort { .. }
                | SessionError::ReplyBlocked
                | SessionError::Socket { .. }
                | SessionError::MemoryLost
                | SessionError::Restart { .. }
                | SessionError::Stop { .. }
        )
    }
}
