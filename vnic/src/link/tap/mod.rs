//! A tap device of the host: frames go straight from guest memory into the host's network stack and back.
//!
//! Operation (Linux `Documentation/networking/tuntap.rst`, `drivers/net/tun.c`):
//! 1. `TUNSETIFF` with `IFF_VNET_HDR`: every frame carries a virtio-net header, so that partial checksums and large
//!    segments go through as they are. `TUNSETVNETHDRSZ`: it is as long as the one negotiated with the driver.
//! 2. `TUNSETOFFLOAD`: what the *driver* can receive (`guest_csum`, `guest_tso*`, `guest_uso*`) is what the kernel may hand
//!    us. Kernels before 6.2 know no USO; then it is not offered.
//! 3. Transmit is one `writev` of header and guest memory, receive one `readv` into the driver's buffers: nothing is
//!    copied on this side. Only where the driver's buffers cannot take the longest frame is the next one read into
//!    memory of the port, to see how long it is.
//!
//! Limits: one queue; a frame in more than 1023 pieces is refused; a larger MTU set while the device runs is seen at its
//! next start.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::counters::counters;
use super::{LinkCounters, LinkError, Port, Received, Transmitted};
use crate::net::features::with_requirements_met;
use crate::net::vectored::Scratch;
use crate::net::{Frame, ReceiveSpace, header};
use crate::spec::net::{NET_HEADER_LEN, NetHeader};
use crate::spec::{Feature, Features};

/// The file every tap is opened through.
const CLONE_DEVICE: &str = "/dev/net/tun";

/// The longest frame a tap gives: 64 KiB and an Ethernet header. VIRTIO 1.3, 5.1.6.3.1.
const MAX_RECEIVE: usize = 65_550;

/// `TUN_F_USO4` and `TUN_F_USO6` of `linux/if_tun.h`: both or none.
const TUN_F_USO: libc::c_uint = 0x20 | 0x40;

/// What a kernel without USO cannot do.
const USO: Features = Features::of(&[Feature::GuestUso4, Feature::GuestUso6, Feature::HostUso]);

/// Room beyond the MTU: Ethernet header and a VLAN tag.
const ETHERNET_ROOM: usize = 18;

counters!(Count {
    Frames = "transmitted_frames",
    Bytes = "transmitted_bytes",
    Full = "transmit_full",
    Received = "received_frames",
    ReceivedBytes = "received_bytes",
    TooManyPieces = "dropped_too_many_pieces",
    Refused = "dropped_refused_by_kernel",
    Down = "dropped_tap_down",
    NoRoom = "dropped_no_room",
    Failed = "failed_calls",
});

/// Why a tap could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel has no tun driver.
    #[error("cannot use tap {name}: there is no {CLONE_DEVICE} (load the kernel's module: `sudo modprobe tun`)")]
    NoDriver {
        /// The tap's name.
        name: String,
    },
    /// This user may not use the tun driver at all.
    #[error("cannot use tap {name}: this user may not open {CLONE_DEVICE} (allow it: `sudo chmod 666 {CLONE_DEVICE}`)")]
    DriverNotPermitted {
        /// The tap's name.
        name: String,
    },
    /// There is no such tap, and this user may not make one.
    #[error(
        "there is no tap {name}: make one with `sudo ip tuntap add {name} mode tap user $USER && sudo ip link set \
         {name} up`"
    )]
    Missing {
        /// The tap's name.
        name: String,
    },
    /// It belongs to someone else.
    #[error(
        "this user may not use tap {name}: make it anew with `sudo ip tuntap del {name} mode tap && sudo ip tuntap add \
         {name} mode tap user $USER && sudo ip link set {name} up`"
    )]
    NotPermitted {
        /// The tap's name.
        name: String,
    },
    /// Someone else is attached to it.
    #[error("tap {name} is in use by another program: end that one, or choose another tap")]
    Busy {
        /// The tap's name.
        name: String,
    },
    /// The device of that name is no tap, or one with several queues.
    #[error("{name} is a network device, but not a tap with one queue: choose another name")]
    WrongKind {
        /// The tap's name.
        name: String,
    },
    /// Anything else.
    #[error("cannot use tap {name}: {action}: {source}")]
    Io {
        /// The tap's name.
        name: String,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The ioctls of `linux/if_tun.h`, and what they take.
mod ioctls {
    nix::ioctl_write_ptr_bad!(tunsetiff, nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()), libc::ifreq);
    nix::ioctl_write_int_bad!(tunsetoffload, nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>()));
    nix::ioctl_write_ptr!(tunsetvnethdrsz, b'T', 216, libc::c_int);
    nix::ioctl_read_bad!(siocgifmtu, libc::SIOCGIFMTU, libc::ifreq);
    nix::ioctl_read_bad!(siocgifflags, libc::SIOCGIFFLAGS, libc::ifreq);
}

/// The port of a tap.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    header_len: usize,
    /// Does the kernel segment datagrams?
    uso: bool,
    /// Room that the next frame may need.
    largest: usize,
    /// The last read found nothing, and `poll` has not been called since.
    drained: bool,
    /// A frame that was read before the driver had room, virtio-net header first, and its length with that.
    held: Option<usize>,
    /// Where it is; allocated when it is first needed.
    held_bytes: Vec<u8>,
    scratch: Scratch,
    counters: Arc<LinkCounters>,
}

impl Tap {
    /// Attaches to the tap of this name; a privileged user's is made if there is none.
    ///
    /// # Errors
    /// In one sentence, with what to do.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let named = || name.to_owned();
        let failed = |action, source| TapError::Io { name: named(), action, source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(CLONE_DEVICE)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDriver { name: named() },
                Some(libc::EACCES | libc::EPERM) => TapError::DriverNotPermitted { name: named() },
                _ => failed("open /dev/net/tun", error),
            })?;
        let existed = exists(name);
        let mut request = request(name);
        // The flags fit: IFF_VNET_HDR is 0x4000.
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: the descriptor is open, the request a whole `ifreq` that outlives the call.
        unsafe { ioctls::tunsetiff(file.as_raw_fd(), &raw const request) }.map_err(|errno| match errno {
            Errno::EPERM if existed => TapError::NotPermitted { name: named() },
            Errno::EPERM => TapError::Missing { name: named() },
            Errno::EBUSY => TapError::Busy { name: named() },
            Errno::EINVAL if existed => TapError::WrongKind { name: named() },
            _ => failed("TUNSETIFF", errno.into()),
        })?;
        let mut tap = Tap {
            file,
            name: named(),
            header_len: 0,
            uso: false,
            largest: MAX_RECEIVE,
            drained: false,
            held: None,
            held_bytes: Vec::new(),
            scratch: Scratch::default(),
            counters: Count::fresh(),
        };
        // Not even a kernel that knows it has it without checksums.
        tap.uso = tap.set_offloads(libc::TUN_F_CSUM | TUN_F_USO).is_ok();
        tap.offload(Features::NONE).map_err(|(action, source)| failed(action, source))?;
        if !tap.is_up() {
            tracing::warn!("tap {name} is down: frames are dropped until `ip link set {name} up`");
        }
        Ok(tap)
    }

    /// Sets header length and offloads by what the driver can receive.
    fn offload(&mut self, features: Features) -> Result<(), (&'static str, io::Error)> {
        let header_len = header::header_len(features);
        let fd = self.file.as_raw_fd();
        let int = header_len as libc::c_int;
        // SAFETY: the descriptor is open; the length, an int, outlives the call.
        unsafe { ioctls::tunsetvnethdrsz(fd, &raw const int) }.map_err(|errno| ("TUNSETVNETHDRSZ", errno.into()))?;
        let offloads = [
            (Feature::GuestCsum, libc::TUN_F_CSUM),
            (Feature::GuestTso4, libc::TUN_F_TSO4),
            (Feature::GuestTso6, libc::TUN_F_TSO6),
            (Feature::GuestEcn, libc::TUN_F_TSO_ECN),
        ];
        let features = with_requirements_met(features);
        let flags = offloads.iter().filter(|(feature, _)| features.has(*feature)).fold(0, |sum, (_, flag)| sum | flag);
        let uso = self.uso && features.has(Feature::GuestUso4) && features.has(Feature::GuestUso6);
        let flags = if uso { flags | TUN_F_USO } else { flags };
        self.set_offloads(flags).map_err(|errno| ("TUNSETOFFLOAD", errno.into()))?;
        let segmented = uso || features.has(Feature::GuestTso4) || features.has(Feature::GuestTso6);
        self.largest = if segmented { MAX_RECEIVE } else { self.mtu().unwrap_or(1500) + ETHERNET_ROOM };
        self.header_len = header_len;
        // It has the old header, and offloads the driver may not take.
        self.held = None;
        Ok(())
    }

    fn set_offloads(&self, flags: libc::c_uint) -> nix::Result<libc::c_int> {
        // SAFETY: the descriptor is open; the argument is no pointer.
        unsafe { ioctls::tunsetoffload(self.file.as_raw_fd(), flags as libc::c_int) }
    }

    /// The held frame, `len` bytes with its header, into the driver's buffers.
    fn receive_held(&mut self, len: usize, space: &mut ReceiveSpace<'_>) -> Result<Received, LinkError> {
        let mut header = [0; NET_HEADER_LEN];
        let (theirs, frame) = self.held_bytes.split_at(self.header_len.min(self.held_bytes.len()));
        for (to, from) in header.iter_mut().zip(theirs) {
            *to = *from;
        }
        let frame = frame.get(..len.saturating_sub(self.header_len)).unwrap_or_default();
        // A tap gives frames of 64 KiB at most.
        let bytes = frame.len() as u32;
        if space.write(NetHeader::from_bytes(header), &[frame]).is_err() {
            Count::NoRoom.add(&self.counters, 1);
            return Err(LinkError::Refused { bytes, reason: "longer than the driver's buffers" });
        }
        Count::Received.add(&self.counters, 1);
        Count::ReceivedBytes.add(&self.counters, u64::from(bytes));
        Ok(Received::Frame { bytes })
    }

    fn mtu(&self) -> Option<usize> {
        let mut request = request(&self.name);
        let socket = any_socket()?;
        // SAFETY: the descriptor is open, the request a whole `ifreq` that outlives the call.
        unsafe { ioctls::siocgifmtu(socket.as_raw_fd(), &raw mut request) }.ok()?;
        // SAFETY: the kernel has filled in the field that belongs to the request; any bytes are an int.
        usize::try_from(unsafe { request.ifr_ifru.ifru_mtu }).ok()
    }

    fn is_up(&self) -> bool {
        let mut request = request(&self.name);
        let Some(socket) = any_socket() else { return true };
        // SAFETY: the descriptor is open, the request a whole `ifreq` that outlives the call.
        if unsafe { ioctls::siocgifflags(socket.as_raw_fd(), &raw mut request) }.is_err() {
            return true;
        }
        // SAFETY: the kernel has filled in the field that belongs to the request; any bytes are a short.
        libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }) & libc::IFF_UP != 0
    }
}

/// A request about the device `name`, all else 0.
fn request(name: &str) -> libc::ifreq {
    let mut request =
        libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 } };
    // All but the last byte, which stays 0.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn exists(name: &str) -> bool {
    nix::net::if_::if_nametoindex(name).is_ok()
}

/// A socket to ask about network devices with.
fn any_socket() -> Option<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()
}

impl Port for Tap {
    fn transmit(&mut self, _pair: usize, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        let bytes = frame.len;
        let header = frame.header.to_bytes();
        let header = header.get(..self.header_len).unwrap_or(&header);
        let Err(error) = frame.write_to(self.file.as_fd(), header, &mut self.scratch) else {
            // A tap takes a frame whole or not at all.
            Count::Frames.add(&self.counters, 1);
            Count::Bytes.add(&self.counters, u64::from(bytes));
            return Ok(Transmitted::Taken { read: bytes, copied: 0 });
        };
        let (count, reason) = match error.raw_os_error() {
            Some(libc::EAGAIN) => {
                Count::Full.add(&self.counters, 1);
                return Ok(Transmitted::Full);
            }
            Some(libc::E2BIG) => (Count::TooManyPieces, "in more pieces than one system call takes"),
            Some(libc::EINVAL) => (Count::Refused, "the kernel does not accept its header"),
            Some(libc::EIO) => (Count::Down, "the tap is down"),
            _ => {
                Count::Failed.add(&self.counters, 1);
                return Err(LinkError::Io { action: "write to the tap", source: error });
            }
        };
        count.add(&self.counters, 1);
        Err(LinkError::Refused { bytes, reason })
    }

    fn pending(&mut self, pair: usize) -> Option<usize> {
        if pair != 0 {
            return None;
        }
        match self.held {
            Some(len) => Some(len.saturating_sub(self.header_len)),
            None => (!self.drained).then_some(self.largest),
        }
    }

    fn settle(&mut self, pair: usize) -> bool {
        if pair != 0 || self.drained || self.held.is_some() {
            return false;
        }
        self.held_bytes.resize(NET_HEADER_LEN + MAX_RECEIVE, 0);
        match self.file.read(&mut self.held_bytes) {
            Ok(len) if len > self.header_len => self.held = Some(len),
            Ok(_) => Count::Failed.add(&self.counters, 1),
            Err(error) => {
                self.drained = true;
                if error.kind() != io::ErrorKind::WouldBlock {
                    Count::Failed.add(&self.counters, 1);
                }
            }
        }
        true
    }

    fn receive(&mut self, _pair: usize, space: &mut ReceiveSpace<'_>) -> Result<Received, LinkError> {
        if let Some(len) = self.held.take() {
            return self.receive_held(len, space);
        }
        let read = match space.read_from(self.file.as_fd(), &mut self.scratch) {
            Ok(read) => read,
            Err(error) => {
                // `poll` tries again.
                self.drained = true;
                if error.kind() == io::ErrorKind::WouldBlock {
                    return Ok(Received::Nothing);
                }
                Count::Failed.add(&self.counters, 1);
                return Err(LinkError::Io { action: "read from the tap", source: error });
            }
        };
        // A tap gives frames of 64 KiB at most.
        let bytes = read as u32;
        if read == space.room() && read < self.largest {
            // It may have been longer: the kernel cuts off what does not fit, and does not say so.
            space.discard();
            Count::NoRoom.add(&self.counters, 1);
            return Err(LinkError::Refused { bytes, reason: "longer than the driver's buffers" });
        }
        Count::Received.add(&self.counters, 1);
        Count::ReceivedBytes.add(&self.counters, u64::from(bytes));
        Ok(Received::Frame { bytes })
    }

    fn poll(&mut self, _now: Instant) {
        self.drained = false;
    }

    fn deadline(&mut self, _now: Instant) -> Option<Duration> {
        None
    }

    fn readable_fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.file.as_fd()]
    }

    fn writable_fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.file.as_fd()]
    }

    fn lacks(&self) -> Features {
        if self.uso { Features::NONE } else { USO }
    }

    fn negotiated(&mut self, features: Features) -> Result<(), LinkError> {
        self.offload(features).map_err(|(action, source)| LinkError::Io { action, source })
    }

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::clone(&self.counters)
    }
}

#[cfg(test)]
mod tests;
