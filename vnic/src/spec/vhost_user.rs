//! vhost-user constants and layouts: requests, header, payloads, protocol features.
//!
//! "vhost-user protocol" is QEMU's `docs/interop/vhost-user.rst`; section titles below are that document's. All fields are in
//! the host's byte order, which for this crate is little-endian.

use super::names::{codes, feature_set};
use std::mem::size_of;

/// Lower bits of the header's flags: the protocol's version. "Header".
pub const FLAG_VERSION_MASK: u32 = 0x3;
/// The only version there is.
pub const VERSION: u32 = 0x1;
/// The message is a reply.
pub const FLAG_REPLY: u32 = 1 << 2;
/// The sender wants to hear whether the request worked. "`REPLY_ACK`".
pub const FLAG_NEED_REPLY: u32 = 1 << 3;

/// In the payload of `SET_VRING_KICK`, `_CALL` and `_ERR`: the vring's index.
pub const VRING_FD_INDEX_MASK: u64 = 0xff;
/// In the same payloads: no file descriptor comes with the message.
pub const VRING_FD_NOFD: u64 = 1 << 8;

/// Memory regions in one `SET_MEM_TABLE`, at most (one fd each). "Multi-memory regions description".
pub const MAX_TABLE_REGIONS: usize = 8;
/// File descriptors in one message, at most.
pub const MAX_FDS: usize = MAX_TABLE_REGIONS;
/// Payload bytes in one message, at most: the longest request is `SET_CONFIG` with 256 bytes of configuration, the longest
/// that this back-end takes a full memory table.
pub const MAX_PAYLOAD: usize = 512;

/// Bytes of configuration space in one message, at most. "Virtio device config space".
pub const MAX_CONFIG: usize = 256;

/// "Vring address description", flags: used-ring writes are logged (`VHOST_VRING_F_LOG`).
pub const VRING_ADDR_F_LOG: u32 = 1;

/// "IOTLB message", type: a translation was missing (back-end to front-end).
pub const IOTLB_MISS: u8 = 1;
/// A new translation.
pub const IOTLB_UPDATE: u8 = 2;
/// A translation is void.
pub const IOTLB_INVALIDATE: u8 = 3;
/// Access without permission (back-end to front-end).
pub const IOTLB_ACCESS_FAIL: u8 = 4;
/// "IOTLB message", permissions: the device may read.
pub const IOTLB_READ: u8 = 1;
/// The device may write.
pub const IOTLB_WRITE: u8 = 2;

codes! {
    /// What a front-end asks. "Front-end message types".
    RequestCode;
    /// The virtio features that the back-end offers.
    GetFeatures = 1, "GET_FEATURES";
    /// The virtio features that the driver accepted.
    SetFeatures = 2, "SET_FEATURES";
    /// The front-end takes the session.
    SetOwner = 3, "SET_OWNER";
    /// Deprecated: all rings are to be disabled.
    ResetOwner = 4, "RESET_OWNER";
    /// The whole memory map.
    SetMemTable = 5, "SET_MEM_TABLE";
    /// The dirty log's memory.
    SetLogBase = 6, "SET_LOG_BASE";
    /// An eventfd to signal when the log was written.
    SetLogFd = 7, "SET_LOG_FD";
    /// A vring's size.
    SetVringNum = 8, "SET_VRING_NUM";
    /// A vring's addresses.
    SetVringAddr = 9, "SET_VRING_ADDR";
    /// Where a vring goes on.
    SetVringBase = 10, "SET_VRING_BASE";
    /// Stops a vring and asks where it stands.
    GetVringBase = 11, "GET_VRING_BASE";
    /// The eventfd for available buffers; starts the vring.
    SetVringKick = 12, "SET_VRING_KICK";
    /// The eventfd for used buffers.
    SetVringCall = 13, "SET_VRING_CALL";
    /// The eventfd for errors.
    SetVringErr = 14, "SET_VRING_ERR";
    /// The protocol features that the back-end offers.
    GetProtocolFeatures = 15, "GET_PROTOCOL_FEATURES";
    /// The protocol features in use.
    SetProtocolFeatures = 16, "SET_PROTOCOL_FEATURES";
    /// How many queues there can be.
    GetQueueNum = 17, "GET_QUEUE_NUM";
    /// A vring may pass data, or may not.
    SetVringEnable = 18, "SET_VRING_ENABLE";
    /// The guest moved: announce this MAC.
    SendRarp = 19, "SEND_RARP";
    /// The MTU the guest was told.
    NetSetMtu = 20, "NET_SET_MTU";
    /// The socket for requests of the back-end.
    SetBackendReqFd = 21, "SET_BACKEND_REQ_FD";
    /// An IOTLB update or invalidation.
    IotlbMsg = 22, "IOTLB_MSG";
    /// A vring's byte order (legacy guests).
    SetVringEndian = 23, "SET_VRING_ENDIAN";
    /// Reads configuration space.
    GetConfig = 24, "GET_CONFIG";
    /// Writes configuration space.
    SetConfig = 25, "SET_CONFIG";
    /// Crypto devices.
    CreateCryptoSession = 26, "CREATE_CRYPTO_SESSION";
    /// Crypto devices.
    CloseCryptoSession = 27, "CLOSE_CRYPTO_SESSION";
    /// Postcopy migration is coming.
    PostcopyAdvise = 28, "POSTCOPY_ADVISE";
    /// Postcopy migration begins.
    PostcopyListen = 29, "POSTCOPY_LISTEN";
    /// Postcopy migration is over.
    PostcopyEnd = 30, "POSTCOPY_END";
    /// Shared memory for in-flight state.
    GetInflightFd = 31, "GET_INFLIGHT_FD";
    /// The same, given back after a reconnect.
    SetInflightFd = 32, "SET_INFLIGHT_FD";
    /// GPU devices.
    GpuSetSocket = 33, "GPU_SET_SOCKET";
    /// Back to the initial state.
    ResetDevice = 34, "RESET_DEVICE";
    /// A kick as a message.
    VringKick = 35, "VRING_KICK";
    /// How many memory regions the back-end can hold.
    GetMaxMemSlots = 36, "GET_MAX_MEM_SLOTS";
    /// One more memory region.
    AddMemReg = 37, "ADD_MEM_REG";
    /// One memory region less.
    RemMemReg = 38, "REM_MEM_REG";
    /// The virtio device status.
    SetStatus = 39, "SET_STATUS";
    /// Asks for the virtio device status.
    GetStatus = 40, "GET_STATUS";
    /// A dma-buf by its UUID.
    GetSharedObject = 41, "GET_SHARED_OBJECT";
    /// A pipe for the device's internal state.
    SetDeviceStateFd = 42, "SET_DEVICE_STATE_FD";
    /// Did the transfer of state work?
    CheckDeviceState = 43, "CHECK_DEVICE_STATE";
}

codes! {
    /// What a back-end asks over the socket of `SET_BACKEND_REQ_FD`. "Back-end message types".
    BackendCode;
    /// An IOTLB miss or fault.
    IotlbMsg = 1, "BACKEND_IOTLB_MSG";
    /// Configuration space changed.
    ConfigChangeMsg = 2, "BACKEND_CONFIG_CHANGE_MSG";
    /// A page for the guest to kick directly.
    VringHostNotifierMsg = 3, "BACKEND_VRING_HOST_NOTIFIER_MSG";
    /// A call as a message.
    VringCall = 4, "BACKEND_VRING_CALL";
    /// An error as a message.
    VringErr = 5, "BACKEND_VRING_ERR";
    /// A dma-buf to share.
    SharedObjectAdd = 6, "BACKEND_SHARED_OBJECT_ADD";
    /// A dma-buf no longer shared.
    SharedObjectRemove = 7, "BACKEND_SHARED_OBJECT_REMOVE";
    /// A dma-buf by its UUID.
    SharedObjectLookup = 8, "BACKEND_SHARED_OBJECT_LOOKUP";
}

codes! {
    /// One protocol feature. Its number is the bit's position. "Protocol features".
    ProtocolFeature;
    /// Several queues (`VHOST_USER_PROTOCOL_F_MQ`).
    Mq = 0, "MQ";
    /// The dirty log comes as shared memory.
    LogShmfd = 1, "LOG_SHMFD";
    /// The back-end can announce the guest.
    Rarp = 2, "RARP";
    /// Requests can be acknowledged.
    ReplyAck = 3, "REPLY_ACK";
    /// The back-end can be told the MTU (`VHOST_USER_PROTOCOL_F_MTU`).
    NetMtu = 4, "NET_MTU";
    /// The back-end has requests of its own.
    BackendReq = 5, "BACKEND_REQ";
    /// Vrings of the other byte order.
    CrossEndian = 6, "CROSS_ENDIAN";
    /// Crypto sessions.
    CryptoSession = 7, "CRYPTO_SESSION";
    /// Postcopy migration.
    Pagefault = 8, "PAGEFAULT";
    /// Configuration space is the back-end's.
    Config = 9, "CONFIG";
    /// The back-end's requests may carry fds.
    BackendSendFd = 10, "BACKEND_SEND_FD";
    /// Doorbell pages.
    HostNotifier = 11, "HOST_NOTIFIER";
    /// In-flight state in shared memory.
    InflightShmfd = 12, "INFLIGHT_SHMFD";
    /// `RESET_DEVICE` is understood.
    ResetDevice = 13, "RESET_DEVICE";
    /// Kicks and calls as messages.
    InbandNotifications = 14, "INBAND_NOTIFICATIONS";
    /// Memory regions come and go one by one.
    ConfigureMemSlots = 15, "CONFIGURE_MEM_SLOTS";
    /// The device status is told.
    Status = 16, "STATUS";
    /// Xen's memory regions.
    XenMmap = 17, "XEN_MMAP";
    /// Shared dma-bufs.
    SharedObject = 18, "SHARED_OBJECT";
    /// Internal state can be moved.
    DeviceState = 19, "DEVICE_STATE";
}

feature_set! {
    /// A set of protocol features, known by name or not.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    ProtocolFeatures of ProtocolFeature
}

/// "Header".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Header {
    /// A `RequestCode` or `BackendCode`, as a number.
    pub request: u32,
    /// Version, `FLAG_REPLY`, `FLAG_NEED_REPLY`.
    pub flags: u32,
    /// Payload bytes that follow.
    pub size: u32,
}

/// The header's length, bytes.
pub const HEADER_LEN: usize = 12;
const _: () = assert!(size_of::<Header>() == HEADER_LEN);

/// "A vring state description".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct VringState {
    /// The vring's index.
    pub index: u32,
    /// What the request says: size, base, enable.
    pub num: u32,
}
const _: () = assert!(size_of::<VringState>() == 8);

/// "A vring address description". Addresses are user addresses; with `ACCESS_PLATFORM` negotiated they are IOVAs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct VringAddr {
    /// The vring's index.
    pub index: u32,
    /// `VRING_ADDR_F_LOG`.
    pub flags: u32,
    /// Descriptor table, or packed ring.
    pub descriptor: u64,
    /// Used ring, or device event suppression structure.
    pub used: u64,
    /// Available ring, or driver event suppression structure.
    pub available: u64,
    /// Guest-physical address of the used ring, for the log.
    pub log: u64,
}
const _: () = assert!(size_of::<VringAddr>() == 40);

/// "Log description".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct LogArea {
    /// Bytes of the log.
    pub mmap_size: u64,
    /// Where in its file it begins.
    pub mmap_offset: u64,
}
const _: () = assert!(size_of::<LogArea>() == 16);

/// "Memory region description".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct MemoryRegion {
    /// Guest-physical address.
    pub guest_address: u64,
    /// Bytes.
    pub size: u64,
    /// The front-end's own address.
    pub user_address: u64,
    /// Where the region starts in its file.
    pub mmap_offset: u64,
}
/// A region's length in a payload, bytes.
pub const MEMORY_REGION_LEN: usize = 32;
const _: () = assert!(size_of::<MemoryRegion>() == MEMORY_REGION_LEN);

/// "Log description".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Log {
    /// Bytes.
    pub size: u64,
    /// Where the log starts in its file.
    pub offset: u64,
}
const _: () = assert!(size_of::<Log>() == 16);

/// "IOTLB message"; the wire has six bytes of padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Iotlb {
    /// I/O virtual address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// The front-end's own address of the same bytes.
    pub user_address: u64,
    /// `IOTLB_READ`, `IOTLB_WRITE`.
    pub permissions: u8,
    /// `IOTLB_MISS` …
    pub kind: u8,
}
const _: () = assert!(size_of::<Iotlb>() == 32);

/// "Inflight description"; front-ends send 20 bytes or, padded, 24.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Inflight {
    /// Bytes of the shared area.
    pub mmap_size: u64,
    /// Where it starts in its file.
    pub mmap_offset: u64,
    /// Vrings.
    pub num_queues: u16,
    /// Their size.
    pub queue_size: u16,
}
const _: () = assert!(size_of::<Inflight>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_belong_together() {
        for (at, code) in RequestCode::ALL.iter().enumerate() {
            assert_eq!(RequestCode::from_number(at as u32 + 1), Some(*code));
        }
        assert_eq!(RequestCode::from_number(0), None);
        assert_eq!(RequestCode::from_number(44), None);
        assert_eq!(BackendCode::from_number(1), Some(BackendCode::IotlbMsg));
        assert_eq!(ProtocolFeature::DeviceState.mask(), 1 << 19);
    }

    #[test]
    fn an_unnamed_protocol_feature_is_printed_by_number() {
        assert_eq!(ProtocolFeatures(1 << 3 | 1 << 40).to_string(), "REPLY_ACK bit 40");
    }
}
