//! The peer pings the guest: asked for from any thread, counted in the link's counters.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::eventfd::{EfdFlags, EventFd};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp::{Endpoint, PacketBuffer, PacketMetadata, Socket};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, Ipv6Address};

/// Echo requests that wait for the peer's thread, at most.
const MAX_WAITING: usize = 64;

/// Identifier of our echo requests.
pub(super) const IDENT: u16 = 0x766e;

/// What an echo request carries.
const PAYLOAD: &[u8; 56] = b"vnic asks: are you there? vnic asks: are you there? vnic";

/// Asks the peer to ping, from any thread; the link's counters `pings_sent` and `pings_answered` tell what came of it.
#[derive(Debug, Clone)]
pub struct Pinger {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<VecDeque<IpAddr>>,
    /// Is there something in `waiting`? So that the peer's thread need not take the lock to see.
    any: AtomicBool,
    wake: EventFd,
}

impl Pinger {
    pub(super) fn new() -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Pinger { shared: Arc::new(Shared { waiting: Mutex::default(), any: AtomicBool::new(false), wake }) })
    }

    /// Has the peer send one echo request to `to`, soon.
    ///
    /// # Errors
    /// Too many wait already.
    pub fn ping(&self, to: IpAddr) -> io::Result<()> {
        let mut waiting = self.shared.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if waiting.len() >= MAX_WAITING {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "too many pings wait to be sent"));
        }
        waiting.push_back(to);
        drop(waiting);
        // The flag first: the worker waits for edges, and one that finds nothing is not followed by another.
        self.shared.any.store(true, Ordering::Release);
        self.shared.wake.write(1)?;
        Ok(())
    }

    /// Readable when something waits.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }

    /// The next address to ping.
    pub(super) fn next(&self) -> Option<IpAddr> {
        if !self.shared.any.load(Ordering::Acquire) {
            return None;
        }
        // Whoever holds the lock writes to the eventfd once it has let go, so `poll` comes again.
        let mut waiting = self.shared.waiting.try_lock().ok()?;
        let next = waiting.pop_front();
        if next.is_none() {
            self.shared.any.store(false, Ordering::Relaxed);
            // Empty already is fine.
            let _ = self.shared.wake.read();
        }
        next
    }
}

/// The socket that sends echo requests and gets the replies.
pub(super) fn socket() -> Socket<'static> {
    let buffer = || PacketBuffer::new(vec![PacketMetadata::EMPTY; MAX_WAITING], vec![0; MAX_WAITING * 128]);
    let mut socket = Socket::new(buffer(), buffer());
    let bound = socket.bind(Endpoint::Ident(IDENT));
    debug_assert!(bound.is_ok(), "a new socket binds");
    socket
}

/// Queues an echo request. Returns whether there was room.
pub(super) fn send(socket: &mut Socket<'_>, to: IpAddr, seq_no: u16) -> bool {
    let checksum = ChecksumCapabilities::ignored();
    // smoltcp writes the packet anew when it sends it, with checksum and, for ICMPv6, source address.
    match to {
        IpAddr::V4(to) => {
            let repr = Icmpv4Repr::EchoRequest { ident: IDENT, seq_no, data: PAYLOAD };
            let Ok(room) = socket.send(repr.buffer_len(), IpAddress::Ipv4(to)) else { return false };
            repr.emit(&mut Icmpv4Packet::new_unchecked(room), &checksum);
        }
        IpAddr::V6(to) => {
            let repr = Icmpv6Repr::EchoRequest { ident: IDENT, seq_no, data: PAYLOAD };
            let Ok(room) = socket.send(repr.buffer_len(), IpAddress::Ipv6(to)) else { return false };
            let any = Ipv6Address::UNSPECIFIED;
            repr.emit(&any, &to, &mut Icmpv6Packet::new_unchecked(room), &checksum);
        }
    }
    true
}

/// Takes the echo replies that came. Returns how many.
pub(super) fn replies(socket: &mut Socket<'_>) -> u64 {
    let mut count = 0;
    while let Ok((packet, from)) = socket.recv() {
        // The socket gets what carries its identifier: replies, and errors about its requests.
        let kind = packet.first().copied();
        count += u64::from(match from {
            IpAddress::Ipv4(_) => kind == Some(0),
            IpAddress::Ipv6(_) => kind == Some(129),
        });
    }
    count
}
