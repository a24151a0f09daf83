//! Messages as bytes and as types; no I/O.
//!
//! Place: the socket hands over a header, a payload and a number of file descriptors; the session gets a [`Request`] in
//! which every size and count has been checked. Whether an index, an address or a feature makes sense is the session's
//! to say.
//!
//! Operation: [`RULES`] says for each request what it must look like; [`parse`] checks a message against its rule before
//! it reads a field. "vhost-user protocol, Message Specification".

mod encode;
mod fields;

pub use encode::{Reply, backend_iotlb, needs_reply};

use crate::memory::RegionSpec;
use crate::spec::Features;
use crate::spec::vhost_user::{
    FLAG_REPLY, FLAG_VERSION_MASK, HEADER_LEN, Header, Inflight, Iotlb, LogArea, MAX_CONFIG, MAX_PAYLOAD,
    MAX_TABLE_REGIONS, MEMORY_REGION_LEN, ProtocolFeature, ProtocolFeatures, RequestCode, VERSION, VRING_FD_NOFD,
    VringAddr, VringState,
};

use super::error::SessionError;
use fields::Fields;

/// What a front-end asks, as far as a net device of ours understands it. File descriptors travel beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Which features are offered?
    GetFeatures,
    /// These are accepted.
    SetFeatures(Features),
    /// The session begins.
    SetOwner,
    /// All rings are to be disabled.
    ResetOwner,
    /// The whole memory map; one fd per region.
    SetMemTable(Vec<RegionSpec>),
    /// A vring's size.
    SetVringNum(VringState),
    /// A vring's addresses.
    SetVringAddr(VringAddr),
    /// Where a vring goes on.
    SetVringBase(VringState),
    /// Stop a vring; where does it stand?
    GetVringBase(VringState),
    /// A vring's kick file, if it has one.
    SetVringKick(VringFile),
    /// A vring's call file, if it has one.
    SetVringCall(VringFile),
    /// A vring's err file, if it has one.
    SetVringErr(VringFile),
    /// Which protocol features are offered?
    GetProtocolFeatures,
    /// These are in use.
    SetProtocolFeatures(ProtocolFeatures),
    /// How many queues are there?
    GetQueueNum,
    /// A vring may pass data (1) or may not (0).
    SetVringEnable(VringState),
    /// Announce this MAC.
    SendRarp([u8; 6]),
    /// The guest was told this MTU.
    NetSetMtu(u64),
    /// Back to the initial state.
    ResetDevice,
    /// How many memory regions can there be?
    GetMaxMemSlots,
    /// One region more; one fd.
    AddMemReg(RegionSpec),
    /// One region less.
    RemMemReg(RegionSpec),
    /// The device status.
    SetStatus(u64),
    /// What is the device status?
    GetStatus,
    /// The socket for requests of the back-end; one fd.
    SetBackendReqFd,
    /// A translation, or the end of some.
    IotlbMsg(Iotlb),
    /// What stands in this part of the configuration space?
    GetConfig(ConfigAccess),
    /// This is to stand there.
    SetConfig(ConfigAccess),
    /// An area for what is in flight.
    GetInflightFd(InflightArea),
    /// The same, given back; one fd.
    SetInflightFd(InflightArea),
    /// Where dirty pages are marked; one fd.
    SetLogBase(LogArea),
    /// To be told that some were; one fd.
    SetLogFd,
}

/// The payload of `GET_INFLIGHT_FD` and `SET_INFLIGHT_FD`. "Inflight description".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InflightArea {
    /// What it says.
    pub told: Inflight,
    /// Some front-ends send it with four bytes more, as a C compiler lays it out.
    pub padded: bool,
}

/// Bytes of an inflight description without padding.
const INFLIGHT_LEN: usize = 20;

/// A part of the configuration space. "Virtio device config space".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigAccess {
    /// Where it begins, bytes.
    pub offset: u32,
    /// 0: the driver writes; 1: a migration does.
    pub flags: u32,
    /// What stands there; in a question, as many bytes as are asked for.
    pub bytes: Vec<u8>,
}

/// The payload of `SET_VRING_KICK`, `_CALL`, `_ERR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringFile {
    /// The vring's index.
    pub index: u32,
    /// Does a file come with it?
    pub present: bool,
}

/// How long a request's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payload {
    /// This many bytes.
    Bytes(usize),
    /// A count, padding, and as many memory regions.
    Regions,
    /// Offset, size and flags, and as many bytes as the size says.
    Config,
    /// An inflight description, padded or not.
    Inflight,
    /// This device never gets as far as to look.
    Any,
}

/// How many file descriptors come with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fds {
    None,
    One,
    /// One, unless the payload says that there is none.
    UnlessNoFd,
    /// One for each region.
    PerRegion,
    /// One that is to be closed unused: front-ends of old send it.
    Tolerated,
}

/// How a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Only if the front-end asks for an acknowledgement.
    OnDemand,
    /// It has a reply of its own.
    Always,
}

/// What a request must look like.
#[derive(Debug)]
pub struct Rule {
    /// The request.
    pub code: RequestCode,
    payload: Payload,
    fds: Fds,
    /// The protocol feature it belongs to.
    pub needs: Option<ProtocolFeature>,
    /// How it is answered.
    pub answer: Answer,
}

macro_rules! rules {
    ($($code:ident, $payload:expr, $fds:ident, $needs:expr, $answer:ident;)*) => {
        &[$(Rule {
            code: RequestCode::$code, payload: $payload, fds: Fds::$fds, needs: $needs, answer: Answer::$answer,
        },)*]
    };
}

use Payload::{Any, Bytes, Config, Inflight as InFlight, Regions};
use ProtocolFeature as P;

/// Bytes of a single memory region with its padding.
const SINGLE_REGION_LEN: usize = 8 + MEMORY_REGION_LEN;

/// Every request, in the order of its number.
#[rustfmt::skip]
pub const RULES: &[Rule] = rules! {
    // request            payload                    fds         needs                         answer
    GetFeatures,          Bytes(0),                  None,       Option::None,                 Always;
    SetFeatures,          Bytes(8),                  None,       Option::None,                 OnDemand;
    SetOwner,             Bytes(0),                  None,       Option::None,                 OnDemand;
    ResetOwner,           Bytes(0),                  None,       Option::None,                 OnDemand;
    SetMemTable,          Regions,                   PerRegion,  Option::None,                 OnDemand;
    SetLogBase,           Bytes(16),                 One,        Some(P::LogShmfd),            Always;
    SetLogFd,             Bytes(0),                  One,        Some(P::LogShmfd),            OnDemand;
    SetVringNum,          Bytes(8),                  None,       Option::None,                 OnDemand;
    SetVringAddr,         Bytes(40),                 None,       Option::None,                 OnDemand;
    SetVringBase,         Bytes(8),                  None,       Option::None,                 OnDemand;
    GetVringBase,         Bytes(8),                  None,       Option::None,                 Always;
    SetVringKick,         Bytes(8),                  UnlessNoFd, Option::None,                 OnDemand;
    SetVringCall,         Bytes(8),                  UnlessNoFd, Option::None,                 OnDemand;
    SetVringErr,          Bytes(8),                  UnlessNoFd, Option::None,                 OnDemand;
    GetProtocolFeatures,  Bytes(0),                  None,       Option::None,                 Always;
    SetProtocolFeatures,  Bytes(8),                  None,       Option::None,                 OnDemand;
    GetQueueNum,          Bytes(0),                  None,       Some(P::Mq),                  Always;
    SetVringEnable,       Bytes(8),                  None,       Option::None,                 OnDemand;
    SendRarp,             Bytes(8),                  None,       Some(P::Rarp),                OnDemand;
    NetSetMtu,            Bytes(8),                  None,       Some(P::NetMtu),              OnDemand;
    SetBackendReqFd,      Bytes(0),                  One,        Some(P::BackendReq),          OnDemand;
    IotlbMsg,             Bytes(32),                 None,       Some(P::BackendReq),          OnDemand;
    SetVringEndian,       Any,                       None,       Some(P::CrossEndian),         OnDemand;
    GetConfig,            Config,                    None,       Some(P::Config),              Always;
    SetConfig,            Config,                    None,       Some(P::Config),              OnDemand;
    CreateCryptoSession,  Any,                       None,       Some(P::CryptoSession),       Always;
    CloseCryptoSession,   Any,                       None,       Some(P::CryptoSession),       OnDemand;
    PostcopyAdvise,       Any,                       None,       Some(P::Pagefault),           Always;
    PostcopyListen,       Any,                       None,       Some(P::Pagefault),           OnDemand;
    PostcopyEnd,          Any,                       None,       Some(P::Pagefault),           Always;
    GetInflightFd,        InFlight,                     None,       Some(P::InflightShmfd),       Always;
    SetInflightFd,        InFlight,                  One,        Some(P::InflightShmfd),       OnDemand;
    GpuSetSocket,         Any,                       None,       Option::None,                 OnDemand;
    ResetDevice,          Bytes(0),                  None,       Some(P::ResetDevice),         OnDemand;
    VringKick,            Any,                       None,       Some(P::InbandNotifications), OnDemand;
    GetMaxMemSlots,       Bytes(0),                  None,       Some(P::ConfigureMemSlots),   Always;
    AddMemReg,            Bytes(SINGLE_REGION_LEN),  One,        Some(P::ConfigureMemSlots),   OnDemand;
    RemMemReg,            Bytes(SINGLE_REGION_LEN),  Tolerated,  Some(P::ConfigureMemSlots),   OnDemand;
    SetStatus,            Bytes(8),                  None,       Some(P::Status),              OnDemand;
    GetStatus,            Bytes(0),                  None,       Some(P::Status),              Always;
    GetSharedObject,      Any,                       None,       Some(P::SharedObject),        Always;
    SetDeviceStateFd,     Any,                       None,       Some(P::DeviceState),         Always;
    CheckDeviceState,     Any,                       None,       Some(P::DeviceState),         Always;
};

impl Rule {
    /// The rule for the request with this number.
    ///
    /// # Errors
    /// There is no such request.
    pub fn of(request: u32) -> Result<&'static Rule, SessionError> {
        RULES.iter().find(|rule| rule.code as u32 == request).ok_or(SessionError::Unknown { request })
    }
}

/// Reads a header, and refuses one after which the stream could not be followed.
///
/// # Errors
/// Another protocol version, a reply, more payload than any request has.
pub fn parse_header(bytes: [u8; HEADER_LEN]) -> Result<Header, SessionError> {
    let header = header(bytes);
    check(header, MAX_PAYLOAD).map(|()| header)
}

/// A header as it came.
#[must_use]
pub(crate) fn header(bytes: [u8; HEADER_LEN]) -> Header {
    let mut fields = Fields(&bytes);
    Header { request: fields.u32(), flags: fields.u32(), size: fields.u32() }
}

/// Is it a request's, with no more payload than this?
///
/// # Errors
/// As [`parse_header`].
pub(crate) fn check(header: Header, max: usize) -> Result<(), SessionError> {
    let Header { request, flags, size } = header;
    if flags & FLAG_VERSION_MASK != VERSION {
        return Err(SessionError::Version { request, version: flags & FLAG_VERSION_MASK });
    }
    if flags & FLAG_REPLY != 0 {
        return Err(SessionError::UnexpectedReply { request });
    }
    if size as usize > max {
        return Err(SessionError::PayloadTooLong { request, size, max });
    }
    Ok(())
}

/// Reads the message of `rule` with this payload, which came with `fds` file descriptors.
///
/// # Errors
/// Size or number of file descriptors are not the rule's; a count or flag in the payload says otherwise; the request is
/// none for this device.
pub fn parse(rule: &Rule, payload: &[u8], fds: usize) -> Result<Request, SessionError> {
    let request = rule.code;
    let size = payload.len();
    let mut fields = Fields(payload);
    let regions = match rule.payload {
        Payload::Bytes(expected) if size != expected => return Err(SessionError::Size { request, size, expected }),
        Payload::Regions => region_count(request, payload)?,
        Payload::Config => {
            check_config(request, payload)?;
            0
        }
        Payload::Inflight if size != INFLIGHT_LEN && size != size_of::<Inflight>() => {
            return Err(SessionError::Size { request, size, expected: size_of::<Inflight>() });
        }
        Payload::Any => return Err(SessionError::Unsupported { request }),
        Payload::Bytes(_) | Payload::Inflight => 0,
    };
    let expected = match rule.fds {
        Fds::None => 0,
        Fds::One => 1,
        Fds::UnlessNoFd => usize::from(Fields(payload).u64() & VRING_FD_NOFD == 0),
        Fds::PerRegion => regions,
        Fds::Tolerated => fds.min(1),
    };
    if fds != expected {
        return Err(SessionError::Fds { request, fds, expected });
    }
    Ok(match request {
        RequestCode::GetFeatures => Request::GetFeatures,
        RequestCode::SetFeatures => Request::SetFeatures(Features(fields.u64())),
        RequestCode::SetOwner => Request::SetOwner,
        RequestCode::ResetOwner => Request::ResetOwner,
        RequestCode::SetMemTable => {
            let _count_and_padding = fields.u64();
            Request::SetMemTable((0..regions).map(|_| fields.region()).collect())
        }
        RequestCode::SetVringNum => Request::SetVringNum(fields.state()),
        RequestCode::SetVringAddr => Request::SetVringAddr(VringAddr {
            index: fields.u32(),
            flags: fields.u32(),
            descriptor: fields.u64(),
            used: fields.u64(),
            available: fields.u64(),
            log: fields.u64(),
        }),
        RequestCode::SetVringBase => Request::SetVringBase(fields.state()),
        RequestCode::GetVringBase => Request::GetVringBase(fields.state()),
        RequestCode::SetVringKick => Request::SetVringKick(fields.vring_file(request)?),
        RequestCode::SetVringCall => Request::SetVringCall(fields.vring_file(request)?),
        RequestCode::SetVringErr => Request::SetVringErr(fields.vring_file(request)?),
        RequestCode::GetProtocolFeatures => Request::GetProtocolFeatures,
        RequestCode::SetProtocolFeatures => Request::SetProtocolFeatures(ProtocolFeatures(fields.u64())),
        RequestCode::GetQueueNum => Request::GetQueueNum,
        RequestCode::SetVringEnable => Request::SetVringEnable(fields.state()),
        RequestCode::SendRarp => Request::SendRarp(fields.array()),
        RequestCode::NetSetMtu => Request::NetSetMtu(fields.u64()),
        RequestCode::ResetDevice => Request::ResetDevice,
        RequestCode::GetMaxMemSlots => Request::GetMaxMemSlots,
        RequestCode::AddMemReg => {
            let _padding = fields.u64();
            Request::AddMemReg(fields.region())
        }
        RequestCode::RemMemReg => {
            let _padding = fields.u64();
            Request::RemMemReg(fields.region())
        }
        RequestCode::SetStatus => Request::SetStatus(fields.u64()),
        RequestCode::GetStatus => Request::GetStatus,
        RequestCode::SetBackendReqFd => Request::SetBackendReqFd,
        RequestCode::IotlbMsg => Request::IotlbMsg(fields.iotlb()),
        RequestCode::GetConfig => Request::GetConfig(fields.config()),
        RequestCode::SetConfig => Request::SetConfig(fields.config()),
        RequestCode::GetInflightFd => Request::GetInflightFd(fields.in_flight(size)),
        RequestCode::SetInflightFd => Request::SetInflightFd(fields.in_flight(size)),
        RequestCode::SetLogBase => Request::SetLogBase(LogArea { mmap_size: fields.u64(), mmap_offset: fields.u64() }),
        RequestCode::SetLogFd => Request::SetLogFd,
        _ => return Err(SessionError::Unsupported { request }),
    })
}

/// How many regions a memory table has; its length must fit.
fn region_count(request: RequestCode, payload: &[u8]) -> Result<usize, SessionError> {
    let size = payload.len();
    if size < 8 {
        return Err(SessionError::Size { request, size, expected: 8 });
    }
    let count = Fields(payload).u32();
    if count as usize > MAX_TABLE_REGIONS {
        return Err(SessionError::Value { request, what: "number of regions", value: u64::from(count) });
    }
    let expected = 8 + count as usize * MEMORY_REGION_LEN;
    if size != expected {
        return Err(SessionError::Size { request, size, expected });
    }
    Ok(count as usize)
}

/// Bytes in front of those of the configuration space: offset, size, flags.
const CONFIG_HEAD: usize = 12;

/// The size in the payload is that of the payload.
fn check_config(request: RequestCode, payload: &[u8]) -> Result<(), SessionError> {
    let size = payload.len();
    let told = Fields(payload.get(4..).unwrap_or_default()).u32() as usize;
    if told > MAX_CONFIG {
        return Err(SessionError::Value { request, what: "size", value: told as u64 });
    }
    let expected = CONFIG_HEAD + told;
    if size == expected { Ok(()) } else { Err(SessionError::Size { request, size, expected }) }
}
