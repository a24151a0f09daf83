//! What a front-end does next, as a fuzzer's bytes say, and the messages that it is.

use arbitrary::Arbitrary;
use vnic::backend::Backend;
use vnic::memory::testing::USER_BASE;
use vnic::memory::{Gpa, RegionSpec, UserAddr};
use vnic::spec::vhost_user::{Iotlb, LogArea, ProtocolFeatures, VRING_ADDR_F_LOG, VringAddr, VringState};
use vnic::spec::{Feature, Features};
use vnic::vhost_user::Device;
use vnic::vhost_user::message::{Request, VringFile};

use super::RAM;
use super::files::Kind;

/// A request, nearly right.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub(super) enum Ask {
    Features(u64),
    /// The session's usual beginning, packed or not, in order or not.
    Begin(u8),
    Protocol(u64),
    Table {
        count: u8,
        size: u8,
        offset: u8,
    },
    AddRegion {
        at: u8,
        pages: u8,
        offset: u8,
    },
    RemoveRegion {
        at: u8,
        pages: u8,
    },
    Num(u8, u16),
    Addr {
        index: u8,
        desc: u16,
        avail: u16,
        used: u16,
    },
    GoodAddr(u8),
    Base(u8, u32),
    GetBase(u8),
    Kick(u8, bool),
    Call(u8, bool),
    Err(u8, bool),
    Enable(u8, u8),
    Status(u8),
    Owner,
    ResetOwner,
    ResetDevice,
    Get(u8),
    Mtu(u16),
    Channel,
    Iotlb {
        kind: u8,
        iova: u8,
        pages: u8,
        at: u8,
        permissions: u8,
    },
    /// A log of dirty pages: of so many bytes, turned on or off.
    Log {
        size: u16,
        offset: u8,
        on: bool,
    },
    LogFd,
    LoggedAddr(u8, u64),
    Rarp([u8; 6]),
}

#[derive(Debug, Clone, Arbitrary)]
pub(super) enum Step {
    Ask {
        ask: Ask,
        acknowledge: bool,
        files: [Kind; 2],
    },
    /// As it should be, with other files.
    WithFiles {
        ask: Ask,
        files: Vec<Kind>,
    },
    Message {
        code: u8,
        flags: u8,
        size: Option<u16>,
        payload: Vec<u8>,
        files: Vec<Kind>,
    },
    Bytes(Vec<u8>, Vec<Kind>),
    /// A ring of its own: set up as it should be, in one go.
    Start {
        index: u8,
        packed: bool,
    },
    /// Bytes into guest memory: rings, tables, buffers.
    Write {
        at: u16,
        bytes: [u8; 16],
    },
    /// A chain of a buffer, readable or not.
    Chain {
        queue: u8,
        addr: u16,
        len: u16,
        writable: bool,
    },
    KickIt,
    /// The memory file gets this many pages.
    Cut(u8),
}

impl Ask {
    pub(super) fn requests(self, device: &Backend) -> Vec<Request> {
        let state = |index: u8, num: u32| VringState { index: index.into(), num };
        let file = |index: u8, present| VringFile { index: index.into(), present };
        let region = |at: u64, size: u64, offset: u64| RegionSpec {
            gpa: Gpa(at),
            size,
            user_addr: UserAddr(USER_BASE + at),
            mmap_offset: offset,
        };
        let page = |pages: u8| 0x1000 * u64::from(pages);
        vec![match self {
            Ask::Features(bits) => Request::SetFeatures(Features(bits)),
            Ask::Begin(how) => {
                let without = [Feature::RingPacked, Feature::InOrder, Feature::AccessPlatform, Feature::EventIdx];
                let features = without.iter().enumerate().fold(device.offered(), |set, (at, feature)| {
                    if how >> at & 1 == 1 { set } else { set.without(*feature) }
                });
                return vec![
                    Request::SetProtocolFeatures(device.protocol_features()),
                    Request::SetFeatures(features),
                    Request::SetMemTable(vec![region(0, RAM, 0)]),
                ];
            }
            Ask::Protocol(bits) => Request::SetProtocolFeatures(ProtocolFeatures(bits)),
            Ask::Table { count, size, offset } => {
                let count = u64::from(count % 10);
                let size = page(size % 65);
                Request::SetMemTable((0..count).map(|at| region(at * size, size, page(offset % 4))).collect())
            }
            Ask::AddRegion { at, pages, offset } => Request::AddMemReg(region(page(at), page(pages), page(offset))),
            Ask::RemoveRegion { at, pages } => Request::RemMemReg(region(page(at), page(pages), 0)),
            Ask::Num(index, size) => Request::SetVringNum(state(index % 6, size.into())),
            Ask::Addr { index, desc, avail, used } => Request::SetVringAddr(VringAddr {
                index: u32::from(index % 6),
                flags: 0,
                descriptor: USER_BASE + 8 * u64::from(desc),
                available: USER_BASE + 8 * u64::from(avail),
                used: USER_BASE + 8 * u64::from(used),
                log: 0,
            }),
            Ask::GoodAddr(index) => {
                let at = USER_BASE + ring(index % 4);
                Request::SetVringAddr(VringAddr {
                    index: u32::from(index % 4),
                    flags: 0,
                    descriptor: at,
                    available: at + 0x1000,
                    used: at + 0x1800,
                    log: 0,
                })
            }
            Ask::Base(index, base) => Request::SetVringBase(state(index % 6, base)),
            Ask::GetBase(index) => Request::GetVringBase(state(index % 6, 0)),
            Ask::Kick(index, present) => Request::SetVringKick(file(index % 6, present)),
            Ask::Call(index, present) => Request::SetVringCall(file(index % 6, present)),
            Ask::Err(index, present) => Request::SetVringErr(file(index % 6, present)),
            Ask::Enable(index, on) => Request::SetVringEnable(state(index % 6, u32::from(on % 3))),
            Ask::Status(status) => Request::SetStatus(status.into()),
            Ask::Owner => Request::SetOwner,
            Ask::ResetOwner => Request::ResetOwner,
            Ask::ResetDevice => Request::ResetDevice,
            Ask::Get(which) => match which % 5 {
                0 => Request::GetFeatures,
                1 => Request::GetProtocolFeatures,
                2 => Request::GetQueueNum,
                3 => Request::GetMaxMemSlots,
                _ => Request::GetStatus,
            },
            Ask::Mtu(mtu) => Request::NetSetMtu(mtu.into()),
            Ask::Channel => Request::SetBackendReqFd,
            Ask::Iotlb { kind, iova, pages, at, permissions } => Request::IotlbMsg(Iotlb {
                iova: page(iova),
                size: page(pages),
                user_address: USER_BASE + page(at),
                permissions: permissions % 5,
                kind: kind % 6,
            }),
            Ask::Log { size, offset, on } => {
                let area = LogArea { mmap_size: size.into(), mmap_offset: u64::from(offset) * 8 };
                let features = device.offered().without(Feature::RingPacked).without(Feature::InOrder);
                let features = features.without(Feature::AccessPlatform).without(Feature::EventIdx);
                let features = if on { features } else { features.without(Feature::LogAll) };
                return vec![Request::SetLogBase(area), Request::SetFeatures(features)];
            }
            Ask::LogFd => Request::SetLogFd,
            Ask::LoggedAddr(index, log) => {
                let at = USER_BASE + ring(index % 4);
                Request::SetVringAddr(VringAddr {
                    index: u32::from(index % 4),
                    flags: VRING_ADDR_F_LOG,
                    descriptor: at,
                    available: at + 0x1000,
                    used: at + 0x1800,
                    log,
                })
            }
            Ask::Rarp(mac) => Request::SendRarp(mac),
        }]
    }
}

/// Where `GoodAddr` has a queue's ring: descriptors, and two pages for the rest.
pub(super) fn ring(index: u8) -> u64 {
    0x1_0000 + 0x2000 * u64::from(index)
}
