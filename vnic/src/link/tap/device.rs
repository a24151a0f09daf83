//! The host's end of a tap: attaching to it, and what it is told.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// The file every tap is opened through.
pub(super) const CLONE_DEVICE: &str = "/dev/net/tun";

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
    /// It has one queue, and several are wanted.
    #[error(
        "tap {name} has one queue, and this device {pairs} queue pairs: make it anew with `sudo ip tuntap del {name} mode \
         tap && sudo ip tuntap add {name} mode tap multi_queue user $USER && sudo ip link set {name} up`"
    )]
    OneQueue {
        /// The tap's name.
        name: String,
        /// Queue pairs of the device.
        pairs: usize,
    },
    /// The device of that name is no tap.
    #[error("{name} is a network device, but not a tap: choose another name")]
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
    nix::ioctl_write_ptr_bad!(tunsetqueue, nix::request_code_write!(b'T', 217, size_of::<libc::c_int>()), libc::ifreq);
    nix::ioctl_read_bad!(siocgifmtu, libc::SIOCGIFMTU, libc::ifreq);
    nix::ioctl_read_bad!(siocgifflags, libc::SIOCGIFFLAGS, libc::ifreq);
}

/// How many queues a tap was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    One,
    Several,
}

/// Attaches to `count` queues of the tap of this name, for a device of `pairs` queue pairs; a privileged user's is made
/// if there is none. A device of one pair takes a tap of either kind.
pub(super) fn attach(name: &str, pairs: usize, count: usize) -> Result<Vec<File>, TapError> {
    let existed = nix::net::if_::if_nametoindex(name).is_ok();
    let wanted = if pairs > 1 { Kind::Several } else { Kind::One };
    let queue = || match attach_one(name, wanted, existed) {
        Err(TapError::WrongKind { .. }) if wanted == Kind::One => attach_one(name, Kind::Several, existed),
        Err(TapError::WrongKind { .. }) => Err(match attach_one(name, Kind::One, existed) {
            Ok(_) | Err(TapError::Busy { .. }) => TapError::OneQueue { name: name.to_owned(), pairs },
            Err(error) => error,
        }),
        other => other,
    };
    (0..count).map(|_| queue()).collect()
}

fn attach_one(name: &str, kind: Kind, existed: bool) -> Result<File, TapError> {
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
    let mut request = request(name);
    let queues = if kind == Kind::Several { libc::IFF_MULTI_QUEUE } else { 0 };
    // The flags fit: IFF_VNET_HDR is 0x4000.
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues) as libc::c_short;
    // SAFETY: the descriptor is open, the request a whole `ifreq` that outlives the call.
    unsafe { ioctls::tunsetiff(file.as_raw_fd(), &raw const request) }.map_err(|errno| match errno {
        Errno::EPERM if existed => TapError::NotPermitted { name: named() },
        Errno::EPERM => TapError::Missing { name: named() },
        Errno::EBUSY => TapError::Busy { name: named() },
        Errno::EINVAL if existed => TapError::WrongKind { name: named() },
        _ => failed("TUNSETIFF", errno.into()),
    })?;
    Ok(file)
}

/// Sets the length of the virtio-net header that every frame begins with.
pub(super) fn set_header_len(fd: BorrowedFd<'_>, len: usize) -> Result<(), (&'static str, io::Error)> {
    let int = len as libc::c_int;
    // SAFETY: the descriptor is open; the length, an int, outlives the call.
    let set = unsafe { ioctls::tunsetvnethdrsz(fd.as_raw_fd(), &raw const int) };
    set.map(drop).map_err(|errno| ("TUNSETVNETHDRSZ", errno.into()))
}

/// Says what the kernel may hand over (`TUN_F_*`).
pub(super) fn set_offloads(fd: BorrowedFd<'_>, flags: libc::c_uint) -> Result<(), (&'static str, io::Error)> {
    // SAFETY: the descriptor is open; the argument is no pointer.
    let set = unsafe { ioctls::tunsetoffload(fd.as_raw_fd(), flags as libc::c_int) };
    set.map(drop).map_err(|errno| ("TUNSETOFFLOAD", errno.into()))
}

/// Has the kernel send frames to this queue of several, or not.
pub(super) fn set_queue(fd: BorrowedFd<'_>, on: bool) -> nix::Result<()> {
    let mut request = request("");
    let flag = if on { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    request.ifr_ifru.ifru_flags = flag as libc::c_short;
    // SAFETY: the descriptor is open, the request a whole `ifreq` that outlives the call.
    unsafe { ioctls::tunsetqueue(fd.as_raw_fd(), &raw const request) }.map(drop)
}

pub(super) fn mtu(name: &str) -> Option<usize> {
    let mut request = request(name);
    let socket = any_socket()?;
    // SAFETY: the descriptor is open, the request a whole `ifreq` that outlives the call.
    unsafe { ioctls::siocgifmtu(socket.as_raw_fd(), &raw mut request) }.ok()?;
    // SAFETY: the kernel has filled in the field that belongs to the request; any bytes are an int.
    usize::try_from(unsafe { request.ifr_ifru.ifru_mtu }).ok()
}

pub(super) fn is_up(name: &str) -> bool {
    let mut request = request(name);
    let Some(socket) = any_socket() else { return true };
    // SAFETY: the descriptor is open, the request a whole `ifreq` that outlives the call.
    if unsafe { ioctls::siocgifflags(socket.as_raw_fd(), &raw mut request) }.is_err() {
        return true;
    }
    // SAFETY: the kernel has filled in the field that belongs to the request; any bytes are a short.
    libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }) & libc::IFF_UP != 0
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

/// A socket to ask about network devices with.
fn any_socket() -> Option<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()
}
