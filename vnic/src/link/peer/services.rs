//! What the peer does on its TCP ports.
//!
//! Operation: one socket listens on each port. When a connection takes it, it moves to the connections and another one
//! listens, until there are [`MAX_CONNECTIONS`], listeners counted in; then fewer ports listen, the digest port until the
//! last, and smoltcp refuses further connections with RST.
//!
//! Limits: no connection outlives a guest that says nothing for [`TIMEOUT`].

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::Duration;

/// Discards what it gets, and closes when the other side does (RFC 863).
pub const DISCARD_PORT: u16 = 9;
/// Sends back what it gets, and closes when the other side does (RFC 862).
pub const ECHO_PORT: u16 = 7;
/// Takes a stream; at its end answers `bytes N sha256 HEX\n` and closes.
pub const DIGEST_PORT: u16 = 9000;

/// Connections at a time, over all ports.
pub const MAX_CONNECTIONS: usize = 12;

/// Receive buffer, hence window: eight frames of 64 KiB, so that the driver has no reason to make smaller ones. Memory
/// is touched only as far as data arrives faster than it is used.
const RECEIVE_BUFFER: usize = 512 << 10;
/// Send buffer where there is something to echo.
const ECHO_BUFFER: usize = 64 << 10;
/// Send buffer for a line.
const LINE_BUFFER: usize = 1 << 10;

/// A silent connection is asked whether it still lives.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A connection without an answer for so long is gone.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What is done with the bytes of a connection.
#[derive(Debug, Clone)]
enum Service {
    Discard,
    Echo,
    Digest { hash: Sha256, bytes: u64 },
}

impl Service {
    fn new(port: u16) -> Self {
        match port {
            ECHO_PORT => Service::Echo,
            DIGEST_PORT => Service::Digest { hash: Sha256::new(), bytes: 0 },
            _ => Service::Discard,
        }
    }
}

#[derive(Debug)]
struct Connection {
    handle: SocketHandle,
    service: Service,
    /// The other side's FIN has been seen and answered.
    closing: bool,
}

/// What happened since the last look, for the counters.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Happened {
    pub(super) opened: u64,
    pub(super) closed: u64,
    pub(super) bytes: u64,
}

/// The listeners and connections.
#[derive(Debug)]
pub(super) struct Services {
    listeners: [(u16, Option<SocketHandle>); 3],
    connections: Vec<Connection>,
    /// Between a connection's receive and its send buffer.
    scratch: Box<[u8]>,
}

impl Services {
    pub(super) fn new(sockets: &mut SocketSet<'static>) -> Self {
        let mut services = Services {
            listeners: [(DIGEST_PORT, None), (DISCARD_PORT, None), (ECHO_PORT, None)],
            connections: Vec::with_capacity(MAX_CONNECTIONS),
            scratch: vec![0; 16 << 10].into_boxed_slice(),
        };
        services.accept(sockets);
        services
    }

    /// Connections at the moment.
    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Takes connections from listeners and puts new listeners in their place. Returns how many were opened.
    pub(super) fn accept(&mut self, sockets: &mut SocketSet<'static>) -> u64 {
        let mut opened = 0;
        for (port, listener) in &mut self.listeners {
            if let Some(handle) = *listener
                && sockets.get::<Socket<'_>>(handle).state() != State::Listen
            {
                *listener = None;
                self.connections.push(Connection { handle, service: Service::new(*port), closing: false });
                opened += 1;
            }
        }
        // Every listener may become a connection: have as many as there is room for.
        let mut room = MAX_CONNECTIONS.saturating_sub(self.connections.len());
        for (port, listener) in &mut self.listeners {
            if room == 0 {
                // One that has no room any more stops listening.
                if let Some(handle) = listener.take() {
                    sockets.remove(handle);
                }
                continue;
            }
            room -= 1;
            if listener.is_none() {
                *listener = Some(sockets.add(listening(*port)));
            }
        }
        opened
    }

    /// Does what is to be done with everything that arrived, and forgets connections that have ended.
    pub(super) fn work(&mut self, sockets: &mut SocketSet<'static>) -> Happened {
        let mut happened = Happened { opened: self.accept(sockets), ..Happened::default() };
        let scratch = &mut *self.scratch;
        self.connections.retain_mut(|connection| {
            let socket = sockets.get_mut::<Socket<'_>>(connection.handle);
            happened.bytes += connection.work(socket, scratch);
            // A handshake that was broken off makes smoltcp's socket listen again. In TIME-WAIT all has been said:
            // no frame is ever lost on this cable.
            let over = matches!(socket.state(), State::Closed | State::Listen | State::TimeWait);
            if over {
                sockets.remove(connection.handle);
                happened.closed += 1;
            }
            !over
        });
        happened.opened += self.accept(sockets);
        happened
    }
}

impl Connection {
    /// Returns the bytes it took.
    fn work(&mut self, socket: &mut Socket<'_>, scratch: &mut [u8]) -> u64 {
        let mut taken = 0;
        while socket.can_recv() {
            let got = match &mut self.service {
                Service::Discard => socket.recv(|data| (data.len(), data.len())),
                Service::Digest { hash, bytes } => socket.recv(|data| {
                    hash.update(&*data);
                    *bytes += data.len() as u64;
                    (data.len(), data.len())
                }),
                Service::Echo => {
                    let room = socket.send_capacity() - socket.send_queue();
                    let (scratch, _) = scratch.split_at_mut(room.min(scratch.len()));
                    let got = socket.recv_slice(scratch);
                    if let Ok(got) = got {
                        let sent = socket.send_slice(scratch.get(..got).unwrap_or_default());
                        // After the other side's RST it takes nothing; then the rest is of no use either.
                        debug_assert!(sent.is_err() || sent == Ok(got), "room was looked at");
                    }
                    got
                }
            };
            match got {
                Ok(got) if got > 0 => taken += got as u64,
                _ => break,
            }
        }
        if !self.closing && socket.state() == State::CloseWait && !socket.can_recv() {
            if let Service::Digest { hash, bytes } = &self.service {
                let line = receipt(*bytes, hash.clone());
                // The send buffer is empty and larger than the line.
                let sent = socket.send_slice(line.as_bytes());
                debug_assert_eq!(sent, Ok(line.len()));
            }
            socket.close();
            self.closing = true;
        }
        taken
    }
}

/// `bytes N sha256 HEX\n`.
pub(super) fn receipt(bytes: u64, hash: Sha256) -> String {
    let mut line = format!("bytes {bytes} sha256 ");
    for byte in hash.finalize() {
        // Writing to a String cannot fail.
        let _ = write!(line, "{byte:02x}");
    }
    line.push('\n');
    line
}

fn listening(port: u16) -> Socket<'static> {
    let (receive, send) = match port {
        ECHO_PORT => (ECHO_BUFFER, ECHO_BUFFER),
        _ => (RECEIVE_BUFFER, LINE_BUFFER),
    };
    let mut socket = Socket::new(SocketBuffer::new(vec![0; receive]), SocketBuffer::new(vec![0; send]));
    // The worker polls after each burst: one acknowledgement then, and no timer.
    socket.set_ack_delay(None);
    socket.set_nagle_enabled(false);
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket.set_timeout(Some(TIMEOUT));
    socket.set_congestion_control(CongestionControl::Cubic);
    let listens = socket.listen(port);
    debug_assert!(listens.is_ok(), "a new socket listens on a port that is not 0");
    socket
}
