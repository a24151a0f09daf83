//! What a transfer goes over: TCP to the receiver, or one of the others that a row can ask for ([`Over`]); and the receiver's receipt.
//!
//! Receivers in the guest itself ([`Over::stays_here`]) are programs of their own (`bin/receiver.rs`): what they copy is not the
//! sender's. A file in datagrams goes as [`vnic::datagram`] has it, and the first answer says that the receiver is there.

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{SockaddrStorage, setsockopt, sockopt};
use vnic::datagram::{HEADER_LEN, Header, Kind};
use vnic_experiment::wire::{Flow, Over, Receipt};

use crate::transfer::Unsupported;

/// How long the receiver may take to accept the connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// How long nothing may move on the connection: a device that was restarted has TCP wait for its retransmission.
const STALL_DEADLINE: Duration = Duration::from_secs(180);
/// How long an answer to a datagram may take before it is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// `IPPROTO_TCP` and `IPPROTO_UDP`.
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Where packets are that never meet a NIC.
const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A connection to a receiver.
#[derive(Debug)]
pub struct Connection {
    /// A socket of whatever family: reading, writing and shutting down are the same.
    pub socket: TcpStream,
    /// As the device may see it.
    pub flow: Flow,
    /// The number of the transfer, where it goes in datagrams.
    pub transfer: u64,
    over: Over,
    /// Held for as long as the connection is.
    _receiver: Option<Receiver>,
}

impl Connection {
    /// Connects. A chunk that the connection must take whole, though not a byte of it may be sent by then, needs room in the socket.
    ///
    /// # Errors
    /// [`Unsupported`] where this kernel does not have it; nobody is there.
    pub fn open(over: Over, to: SocketAddr, datagrams: bool, chunk: Option<u64>) -> Result<Connection> {
        let transfer = crate::file::fresh_id();
        if datagrams {
            ensure!(over == Over::Tcp, "datagrams go over UDP");
            let socket = udp(to)?;
            with_room(&socket, chunk)?;
            let flow = Flow { protocol: UDP, local: socket.local_addr()?, remote: to };
            let connection = Connection { socket, flow, transfer, over, _receiver: None };
            // So that the neighbour is known: what waits for its address may be dropped.
            connection.ask(0).context("say hello to the receiver")?;
            return Ok(connection);
        }
        let receiver = over.stays_here().then(|| Receiver::start(over)).transpose()?;
        let socket = match (over, &receiver) {
            (Over::Unix, Some(receiver)) => {
                let stream =
                    UnixStream::connect(&receiver.at).with_context(|| format!("connect to {}", receiver.at))?;
                TcpStream::from(OwnedFd::from(stream))
            }
            (Over::MptcpHere, Some(receiver)) => mptcp(receiver.at.parse().context("the receiver's address")?)?,
            (Over::Mptcp, _) => mptcp(to)?,
            _ => return Ok(Connection { transfer, ..Connection::over_tcp(to, chunk)? }),
        };
        with_room(&socket, chunk)?;
        let (local, remote) = (socket.local_addr().unwrap_or(HERE), socket.peer_addr().unwrap_or(HERE));
        Ok(Connection { socket, flow: Flow { protocol: TCP, local, remote }, transfer, over, _receiver: receiver })
    }

    fn over_tcp(to: SocketAddr, chunk: Option<u64>) -> Result<Connection> {
        let socket = connect(to, chunk)?;
        let flow = Flow { protocol: TCP, local: socket.local_addr()?, remote: socket.peer_addr()? };
        Ok(Connection { socket, flow, transfer: 0, over: Over::Tcp, _receiver: None })
    }

    /// Everything is sent, `bytes` by the sender's own count: what did the receiver get?
    ///
    /// # Errors
    /// It does not say.
    pub fn receipt(&self, bytes: u64) -> Result<Receipt> {
        if self.flow.protocol == UDP {
            return self.ask(bytes);
        }
        if self.over == Over::MptcpHere {
            ensure!(
                fell_back(&self.socket) != Some(true),
                "the connection is plain TCP, though both ends know Multipath TCP"
            );
        }
        self.socket.shutdown(Shutdown::Write).context("shut down the write side")?;
        read_receipt(&self.socket)
    }

    /// Asks what arrived of the datagrams, until there is an answer.
    fn ask(&self, bytes: u64) -> Result<Receipt> {
        let transfer = self.transfer;
        let question = Header { kind: Kind::End, transfer, offset: bytes }.to_bytes();
        let socket = UdpSocket::from(OwnedFd::from(self.socket.try_clone()?));
        socket.set_read_timeout(Some(ASK_AGAIN))?;
        let mut answer = [0; HEADER_LEN + 128];
        let start = Instant::now();
        while start.elapsed() < STALL_DEADLINE {
            socket.send(&question).context("ask for the receipt")?;
            // What does not answer is asked again; so is who answers something else.
            let Ok(read) = socket.recv(&mut answer) else { continue };
            if let Some((Header { kind: Kind::Receipt, transfer: theirs, offset }, line)) =
                Header::read(&answer[..read])
                && theirs == transfer
                && (bytes > 0) == (offset > 0)
            {
                let line = String::from_utf8_lossy(line);
                return parse_receipt(&line).with_context(|| not_a_receipt(&line));
            }
        }
        bail!("no answer from the receiver within {} s", STALL_DEADLINE.as_secs())
    }
}

/// Connects to a receiver by TCP.
pub(crate) fn connect(to: SocketAddr, chunk: Option<u64>) -> Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&to, CONNECT_DEADLINE)
        .with_context(|| format!("connect to the receiver at {to}"))?;
    with_room(&socket, chunk)?;
    Ok(socket)
}

fn with_room(socket: &TcpStream, chunk: Option<u64>) -> Result<()> {
    socket.set_read_timeout(Some(STALL_DEADLINE))?;
    socket.set_write_timeout(Some(STALL_DEADLINE))?;
    if let Some(chunk) = chunk {
        let room = usize::try_from(chunk).unwrap_or(usize::MAX).saturating_mul(2).clamp(1 << 18, 1 << 28);
        setsockopt(socket, sockopt::SndBufForce, &room).context("make room in the socket (SO_SNDBUFFORCE)")?;
    }
    Ok(())
}

fn udp(to: SocketAddr) -> Result<TcpStream> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).context("a socket of UDP")?;
    socket.connect(to).with_context(|| format!("connect to the receiver at {to}"))?;
    Ok(TcpStream::from(OwnedFd::from(socket)))
}

/// A socket of Multipath TCP.
///
/// # Errors
/// [`Unsupported`]: this kernel has none.
pub fn mptcp_socket(ipv6: bool) -> Result<OwnedFd> {
    let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: three numbers; what comes back is an error or a new descriptor.
    let descriptor = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_MPTCP) };
    if descriptor < 0 {
        bail!(Unsupported(format!("this kernel has no Multipath TCP: {}", io::Error::last_os_error())));
    }
    // SAFETY: it was just opened, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// By Multipath TCP; it is TCP that goes over the wire, where the receiver does not know it.
fn mptcp(to: SocketAddr) -> Result<TcpStream> {
    let socket = mptcp_socket(to.is_ipv6())?;
    nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to))
        .with_context(|| format!("connect to the receiver at {to}"))?;
    Ok(TcpStream::from(socket))
}

/// Is a connection of Multipath TCP plain TCP after all? None where the kernel does not say (before 5.16).
fn fell_back(socket: &TcpStream) -> Option<bool> {
    // linux/mptcp.h: `SOL_MPTCP`, `MPTCP_INFO`; six counts of a byte stand before `mptcpi_flags`.
    const LEVEL: libc::c_int = 284;
    const INFO: libc::c_int = 1;
    const FLAGS: usize = 8;
    const FALLBACK: u32 = 1;
    let mut info = [0_u8; 128];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, and both live here.
    let done = unsafe { libc::getsockopt(socket.as_raw_fd(), LEVEL, INFO, info.as_mut_ptr().cast(), &raw mut length) };
    let flags = info.get(FLAGS..)?.first_chunk::<4>().filter(|_| done == 0)?;
    Some(u32::from_ne_bytes(*flags) & FALLBACK != 0)
}

/// A receiver in the guest; it ends when it is dropped.
#[derive(Debug)]
struct Receiver {
    program: Child,
    /// Where it listens.
    at: String,
}

impl Receiver {
    fn start(over: Over) -> Result<Receiver> {
        let how = match over {
            Over::Unix => "unix",
            _ => {
                // The kernel's word, and not that of a program that ends.
                mptcp_socket(false)?;
                "mptcp"
            }
        };
        let program = Command::new("/bin/receiver").arg(how).stdout(Stdio::piped()).spawn();
        let mut program = program.context("start /bin/receiver")?;
        let mut at = String::new();
        let said = program.stdout.take().context("the receiver's words")?;
        BufReader::new(said).read_line(&mut at).context("the receiver's address")?;
        ensure!(!at.is_empty(), "/bin/receiver listens nowhere");
        Ok(Receiver { program, at: at.trim_end().to_owned() })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // It has ended by itself, where all went well.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

pub(crate) fn read_receipt(socket: &TcpStream) -> Result<Receipt> {
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).context("wait for the receiver's receipt")?;
    parse_receipt(&line).with_context(|| not_a_receipt(&line))
}

fn not_a_receipt(line: &str) -> String {
    format!("the receiver answered {line:?}, not `bytes N sha256 HEX`")
}

pub(crate) fn parse_receipt(line: &str) -> Option<Receipt> {
    let mut words = line.strip_suffix('\n')?.split(' ');
    let receipt = match (words.next()?, words.next()?, words.next()?, words.next()?) {
        ("bytes", bytes, "sha256", sha256) => Receipt { bytes: bytes.parse().ok()?, sha256: sha256.to_owned() },
        _ => return None,
    };
    let is_digest = receipt.sha256.len() == 64 && receipt.sha256.bytes().all(|c| c.is_ascii_hexdigit());
    (is_digest && words.next().is_none()).then_some(receipt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_bytes_and_digest_and_nothing_else() {
        let digest = "ab".repeat(32);
        let good = format!("bytes 12 sha256 {digest}\n");
        assert_eq!(parse_receipt(&good), Some(Receipt { bytes: 12, sha256: digest.clone() }));
        for bad in [
            String::new(),
            format!("bytes 12 sha256 {digest}"),
            format!("bytes x sha256 {digest}\n"),
            "bytes 12 sha256 abcd\n".to_owned(),
            format!("bytes 12 sha256 {digest} more\n"),
        ] {
            assert_eq!(parse_receipt(&bad), None, "{bad:?}");
        }
    }
}
