//! Messages to bytes.

use std::os::fd::OwnedFd;

use super::{ConfigAccess, INFLIGHT_LEN, InflightArea, Request};
use crate::memory::RegionSpec;
use crate::spec::vhost_user::{
    BackendCode, FLAG_NEED_REPLY, FLAG_REPLY, HEADER_LEN, Header, Inflight, Iotlb, MemoryRegion, RequestCode, VERSION,
    VRING_FD_NOFD, VringState,
};

impl Request {
    /// The request's code.
    #[must_use]
    pub const fn code(&self) -> RequestCode {
        match self {
            Request::GetFeatures => RequestCode::GetFeatures,
            Request::SetFeatures(_) => RequestCode::SetFeatures,
            Request::SetOwner => RequestCode::SetOwner,
            Request::ResetOwner => RequestCode::ResetOwner,
            Request::SetMemTable(_) => RequestCode::SetMemTable,
            Request::SetVringNum(_) => RequestCode::SetVringNum,
            Request::SetVringAddr(_) => RequestCode::SetVringAddr,
            Request::SetVringBase(_) => RequestCode::SetVringBase,
            Request::GetVringBase(_) => RequestCode::GetVringBase,
            Request::SetVringKick(_) => RequestCode::SetVringKick,
            Request::SetVringCall(_) => RequestCode::SetVringCall,
            Request::SetVringErr(_) => RequestCode::SetVringErr,
            Request::GetProtocolFeatures => RequestCode::GetProtocolFeatures,
            Request::SetProtocolFeatures(_) => RequestCode::SetProtocolFeatures,
            Request::GetQueueNum => RequestCode::GetQueueNum,
            Request::SetVringEnable(_) => RequestCode::SetVringEnable,
            Request::SendRarp(_) => RequestCode::SendRarp,
            Request::NetSetMtu(_) => RequestCode::NetSetMtu,
            Request::ResetDevice => RequestCode::ResetDevice,
            Request::GetMaxMemSlots => RequestCode::GetMaxMemSlots,
            Request::AddMemReg(_) => RequestCode::AddMemReg,
            Request::RemMemReg(_) => RequestCode::RemMemReg,
            Request::SetStatus(_) => RequestCode::SetStatus,
            Request::GetStatus => RequestCode::GetStatus,
            Request::SetBackendReqFd => RequestCode::SetBackendReqFd,
            Request::IotlbMsg(_) => RequestCode::IotlbMsg,
            Request::GetConfig(_) => RequestCode::GetConfig,
            Request::SetConfig(_) => RequestCode::SetConfig,
            Request::GetInflightFd(_) => RequestCode::GetInflightFd,
            Request::SetInflightFd(_) => RequestCode::SetInflightFd,
            Request::SetLogBase(_) => RequestCode::SetLogBase,
            Request::SetLogFd => RequestCode::SetLogFd,
        }
    }

    /// The request's payload as a front-end sends it.
    #[must_use]
    pub fn payload(&self) -> Vec<u8> {
        match self {
            Request::GetFeatures
            | Request::SetOwner
            | Request::ResetOwner
            | Request::GetProtocolFeatures
            | Request::GetQueueNum
            | Request::ResetDevice
            | Request::GetMaxMemSlots
            | Request::GetStatus
            | Request::SetBackendReqFd
            | Request::SetLogFd => Vec::new(),
            Request::SetLogBase(area) => words(&[area.mmap_size, area.mmap_offset]),
            Request::IotlbMsg(message) => iotlb_bytes(message),
            Request::GetConfig(access) | Request::SetConfig(access) => config_bytes(access),
            Request::GetInflightFd(area) | Request::SetInflightFd(area) => in_flight_bytes(area),
            Request::SetFeatures(features) => words(&[features.0]),
            Request::SetProtocolFeatures(features) => words(&[features.0]),
            Request::NetSetMtu(value) | Request::SetStatus(value) => words(&[*value]),
            Request::SendRarp(mac) => [mac.as_slice(), &[0; 2]].concat(),
            Request::SetVringNum(state)
            | Request::SetVringBase(state)
            | Request::GetVringBase(state)
            | Request::SetVringEnable(state) => words(&[two(state.index, state.num)]),
            Request::SetVringAddr(addr) => {
                words(&[two(addr.index, addr.flags), addr.descriptor, addr.used, addr.available, addr.log])
            }
            Request::SetVringKick(file) | Request::SetVringCall(file) | Request::SetVringErr(file) => {
                words(&[u64::from(file.index) | if file.present { 0 } else { VRING_FD_NOFD }])
            }
            Request::SetMemTable(regions) => {
                let mut bytes = words(&[regions.len() as u64]);
                regions.iter().for_each(|region| bytes.extend(region_bytes(region)));
                bytes
            }
            Request::AddMemReg(region) | Request::RemMemReg(region) => [words(&[0]), region_bytes(region)].concat(),
        }
    }

    /// The whole message as a front-end sends it, with these flags beside the version.
    #[must_use]
    pub fn to_bytes(&self, flags: u32) -> Vec<u8> {
        framed(self.code() as u32, flags, &self.payload())
    }
}

const fn two(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn region_bytes(spec: &RegionSpec) -> Vec<u8> {
    let region = MemoryRegion {
        guest_address: spec.gpa.0,
        size: spec.size,
        user_address: spec.user_addr.0,
        mmap_offset: spec.mmap_offset,
    };
    words(&[region.guest_address, region.size, region.user_address, region.mmap_offset])
}

fn iotlb_bytes(message: &Iotlb) -> Vec<u8> {
    let last = u64::from(message.permissions) | u64::from(message.kind) << 8;
    words(&[message.iova, message.size, message.user_address, last])
}

fn config_bytes(access: &ConfigAccess) -> Vec<u8> {
    let ConfigAccess { offset, flags, bytes } = access;
    let head = [*offset, bytes.len() as u32, *flags];
    head.iter().flat_map(|field| field.to_le_bytes()).chain(bytes.iter().copied()).collect()
}

fn in_flight_bytes(area: &InflightArea) -> Vec<u8> {
    let Inflight { mmap_size, mmap_offset, num_queues, queue_size } = area.told;
    let mut bytes = words(&[mmap_size, mmap_offset, u64::from(num_queues) | u64::from(queue_size) << 16]);
    if !area.padded {
        bytes.truncate(INFLIGHT_LEN);
    }
    bytes
}

fn framed(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    for field in [request, VERSION | flags, payload.len() as u32] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// What a reply carries.
#[derive(Debug, Default)]
pub struct Reply {
    payload: Vec<u8>,
    /// Files that go with it.
    pub fds: Vec<OwnedFd>,
}

impl Reply {
    /// A number: features, counts, an acknowledgement (0: it worked).
    #[must_use]
    pub fn number(number: u64) -> Self {
        Reply { payload: words(&[number]), fds: Vec::new() }
    }

    /// A vring's state.
    #[must_use]
    pub fn state(state: VringState) -> Self {
        Reply::number(two(state.index, state.num))
    }

    /// A part of the configuration space; `None`: there is no such part. "Zero length of payload to indicate an error".
    #[must_use]
    pub fn config(access: Option<&ConfigAccess>) -> Self {
        Reply { payload: access.map(config_bytes).unwrap_or_default(), fds: Vec::new() }
    }

    /// An area for what is in flight, with its file, as long as the question was.
    #[must_use]
    pub fn in_flight(area: InflightArea, file: Option<OwnedFd>) -> Self {
        Reply { payload: in_flight_bytes(&area), fds: file.into_iter().collect() }
    }

    /// The whole reply to `request`.
    #[must_use]
    pub fn to_bytes(&self, request: u32) -> Vec<u8> {
        framed(request, FLAG_REPLY, &self.payload)
    }
}

/// A whole IOTLB message of the back-end, which asks for no acknowledgement. "Back-end message types".
#[must_use]
pub fn backend_iotlb(message: &Iotlb) -> Vec<u8> {
    framed(BackendCode::IotlbMsg as u32, 0, &iotlb_bytes(message))
}

/// Does the sender of `header` want an acknowledgement?
#[must_use]
pub const fn needs_reply(header: &Header) -> bool {
    header.flags & FLAG_NEED_REPLY != 0
}
