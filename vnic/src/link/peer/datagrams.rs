//! What the peer does on its UDP ports.
//!
//! | port | |
//! |---|---|
//! | UDP 7 | echoes (RFC 862) |
//! | UDP 9000 | takes a file in datagrams, answers with count and digest ([`datagram`]) |
//!
//! Operation: [`Datagrams::work`] is called after each frame that smoltcp took, so that a socket never holds more than one
//! datagram: no part of a file is dropped for want of room.
//!
//! Limits: [`MAX_TRANSFERS`] files at a time; the one that was quiet for the longest is forgotten for another. No echo is
//! longer than a frame to the driver, and of those that the driver leaves lying, the next are dropped.

use std::collections::VecDeque;

use sha2::{Digest as _, Sha256};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::udp::{PacketBuffer, PacketMetadata, Socket, UdpMetadata};
use smoltcp::wire::IpEndpoint;

use super::services::{ECHO_PORT, receipt};
use crate::datagram::{self, Header, Kind};

/// Files taken at a time.
pub(super) const MAX_TRANSFERS: usize = 8;

/// The largest datagram, bytes.
const LARGEST: usize = 65_535;
/// Echoes on their way at most.
const ECHOES: usize = 64;
/// The longest: an IPv4 packet of 1500 bytes.
const MAX_ECHO: usize = 1500 - 28;

/// A file on its way.
#[derive(Debug)]
struct Transfer {
    from: IpEndpoint,
    number: u64,
    bytes: u64,
    hash: Sha256,
}

/// What happened since the last look, for the counters.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Happened {
    /// Bytes of files.
    pub(super) bytes: u64,
    /// Receipts given.
    pub(super) receipts: u64,
    /// Datagrams echoed.
    pub(super) echoes: u64,
    /// Datagrams that were nothing for us: no header, or not the bytes that come next; echoes without room.
    pub(super) dropped: u64,
}

/// Both ports.
#[derive(Debug)]
pub(super) struct Datagrams {
    files: SocketHandle,
    echo: SocketHandle,
    /// The one heard from last stands last.
    transfers: VecDeque<Transfer>,
    scratch: Box<[u8]>,
}

impl Datagrams {
    pub(super) fn new(sockets: &mut SocketSet<'static>) -> Self {
        let buffer = |packets, bytes| PacketBuffer::new(vec![PacketMetadata::EMPTY; packets], vec![0; bytes]);
        let mut open = |port: u16, answers| {
            let mut socket = Socket::new(buffer(2, LARGEST), answers);
            let bound = socket.bind(port);
            debug_assert!(bound.is_ok(), "a new socket binds to a port that is not 0");
            sockets.add(socket)
        };
        Datagrams {
            files: open(datagram::PORT, buffer(4, 1024)),
            echo: open(ECHO_PORT, buffer(ECHOES, ECHOES * MAX_ECHO)),
            transfers: VecDeque::with_capacity(MAX_TRANSFERS),
            scratch: vec![0; MAX_ECHO].into_boxed_slice(),
        }
    }

    /// Does what is to be done with what arrived.
    pub(super) fn work(&mut self, sockets: &mut SocketSet<'static>) -> Happened {
        let mut happened = Happened::default();
        let socket = sockets.get_mut::<Socket<'_>>(self.files);
        while socket.can_recv() {
            let Ok((bytes, about)) = socket.recv() else { break };
            let Some((header, payload)) = Header::read(bytes) else {
                happened.dropped += 1;
                continue;
            };
            let answer = match header.kind {
                Kind::Data => {
                    let taken = take(&mut self.transfers, about.endpoint, header, payload);
                    happened.bytes += if taken { payload.len() as u64 } else { 0 };
                    happened.dropped += u64::from(!taken);
                    continue;
                }
                Kind::End => end(&mut self.transfers, about.endpoint, header),
                Kind::Receipt => None,
            };
            match answer {
                Some(answer) => happened.receipts += u64::from(send(socket, &answer, about)),
                None => happened.dropped += 1,
            }
        }
        let socket = sockets.get_mut::<Socket<'_>>(self.echo);
        while socket.can_recv() {
            let Ok((bytes, about)) = socket.recv() else { break };
            let Some(scratch) = self.scratch.get_mut(..bytes.len()) else {
                happened.dropped += 1;
                continue;
            };
            scratch.copy_from_slice(bytes);
            if send(socket, scratch, about) { happened.echoes += 1 } else { happened.dropped += 1 }
        }
        happened
    }
}

/// Answers where it came from. What has no room is asked for again.
fn send(socket: &mut Socket<'_>, bytes: &[u8], about: UdpMetadata) -> bool {
    socket.send_slice(bytes, about.endpoint).is_ok()
}

/// Takes the bytes, if they are the next of their file.
fn take(transfers: &mut VecDeque<Transfer>, from: IpEndpoint, header: Header, payload: &[u8]) -> bool {
    let Some(transfer) = find(transfers, from, header).filter(|transfer| transfer.bytes == header.offset) else {
        return false;
    };
    transfer.hash.update(payload);
    transfer.bytes += payload.len() as u64;
    true
}

/// The answer to "that was all".
fn end(transfers: &mut VecDeque<Transfer>, from: IpEndpoint, header: Header) -> Option<Vec<u8>> {
    let transfer = find(transfers, from, header)?;
    let answer = Header { kind: Kind::Receipt, transfer: transfer.number, offset: transfer.bytes };
    Some([&answer.to_bytes()[..], receipt(transfer.bytes, transfer.hash.clone()).as_bytes()].concat())
}

/// The datagram's transfer, which stands last from now on. A datagram at the start of a file begins one.
fn find(transfers: &mut VecDeque<Transfer>, from: IpEndpoint, header: Header) -> Option<&mut Transfer> {
    let number = header.transfer;
    let is_it = |transfer: &Transfer| transfer.from == from && transfer.number == number;
    if !transfers.back().is_some_and(is_it) {
        let transfer = match transfers.iter().position(is_it) {
            Some(at) => transfers.remove(at)?,
            None if header.offset == 0 => Transfer { from, number, bytes: 0, hash: Sha256::new() },
            None => return None,
        };
        if transfers.len() >= MAX_TRANSFERS {
            transfers.pop_front();
        }
        transfers.push_back(transfer);
    }
    transfers.back_mut()
}

#[cfg(test)]
mod tests;
