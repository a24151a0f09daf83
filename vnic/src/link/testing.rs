//! A guest made of smoltcp, behind real queues, on any port.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, EthernetFrame, Ipv4Packet, Ipv6Packet, TcpPacket};

use super::{Port, Transmitted};
use crate::net::features::OFFERED;
use crate::net::parse::{Packet, TCP_ACK, Transport, parse};
use crate::net::testing::Nic;
use crate::spec::net::{GSO_TCPV4, GSO_TCPV6, HDR_F_NEEDS_CSUM, NetHeader};

/// How the guest's frames are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offload {
    /// As they are.
    None,
    /// Segments in sequence as one frame with a partial checksum.
    Tso,
    /// The same, with the IP header's length left 0.
    TsoWithoutLength,
}

#[derive(Default)]
pub(crate) struct Queues {
    pub(crate) to_guest: VecDeque<Vec<u8>>,
    pub(crate) from_guest: VecDeque<Vec<u8>>,
    trusting: bool,
}

pub(crate) struct Given(Vec<u8>);
pub(crate) struct Taken<'q>(&'q mut VecDeque<Vec<u8>>);

impl RxToken for Given {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Taken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Queues {
    type RxToken<'a> = Given;
    type TxToken<'a> = Taken<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Given, Taken<'_>)> {
        Some((Given(self.to_guest.pop_front()?), Taken(&mut self.from_guest)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Taken<'_>> {
        Some(Taken(&mut self.from_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        if self.trusting {
            capabilities.checksum.tcp = Checksum::Tx;
            capabilities.checksum.udp = Checksum::Tx;
        }
        capabilities
    }
}

/// What passes when no frame moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Nothing: 20 ms are over at once. The guest looks at every checksum.
    Virtual,
    /// At most 20 ms, until the port is readable. The guest trusts TCP and UDP checksums: they may be partial.
    Real,
}

pub(crate) struct Lab<P: Port> {
    pub(crate) nic: Nic,
    pub(crate) port: P,
    pub(crate) queues: Queues,
    pub(crate) guest: Interface,
    pub(crate) sockets: SocketSet<'static>,
    offload: Offload,
    clock: Clock,
    pub(crate) start: Instant,
    pub(crate) elapsed: Duration,
    /// Frames of more than one segment that were handed over.
    pub(crate) merged: usize,
    /// The longest frame handed over.
    pub(crate) longest: usize,
    /// The longest frame received.
    pub(crate) longest_received: usize,
}

fn find_transport(frame: &[u8]) -> Option<Transport> {
    match parse(frame, frame.len() as u32) {
        Packet::Transport(transport) => Some(transport),
        _ => None,
    }
}

impl<P: Port> Lab<P> {
    pub(crate) fn new(mut port: P, offload: Offload, clock: Clock) -> Self {
        port.negotiated(OFFERED).unwrap();
        let mut queues = Queues { trusting: clock == Clock::Real, ..Queues::default() };
        let mut config = Config::new(EthernetAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]).into());
        config.random_seed = 7;
        let mut guest = Interface::new(config, &mut queues, smoltcp::time::Instant::ZERO);
        guest.update_ip_addrs(|addresses| {
            addresses.push("10.0.2.15/24".parse().unwrap()).unwrap();
            addresses.push("fec0::15/64".parse().unwrap()).unwrap();
            addresses.push("fe80::15/64".parse().unwrap()).unwrap();
        });
        Lab {
            nic: Nic::new(OFFERED, 200, 1526),
            port,
            queues,
            guest,
            sockets: SocketSet::new(Vec::new()),
            offload,
            clock,
            start: Instant::now(),
            elapsed: Duration::ZERO,
            merged: 0,
            longest: 0,
            longest_received: 0,
        }
    }

    pub(crate) fn connect(&mut self, to: IpAddr, port: u16, local: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.connect(self.guest.context(), (to, port), local).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// One turn of both sides. Returns whether a frame moved.
    pub(crate) fn turn(&mut self) -> bool {
        let now = smoltcp::time::Instant::from_micros(self.elapsed.as_micros() as i64);
        self.guest.poll(now, &mut self.queues, &mut self.sockets);
        let frames = self.take_frames();
        let mut moved = !frames.is_empty();
        self.port.poll(self.start + self.elapsed);
        for (header, frame) in frames {
            self.longest = self.longest.max(frame.len());
            while self.nic.transmit(&mut self.port, header, &frame).unwrap() == Transmitted::Full {
                assert!(self.receive_one(), "full, and nothing to receive");
            }
        }
        self.port.poll(self.start + self.elapsed);
        while self.receive_one() {
            moved = true;
        }
        if !moved {
            self.pass_time();
        }
        moved
    }

    fn pass_time(&mut self) {
        const STEP: u16 = 20;
        if self.clock == Clock::Virtual {
            self.elapsed += Duration::from_millis(STEP.into());
        } else {
            let before = Instant::now();
            let flags = nix::poll::PollFlags::POLLIN;
            let fds = self.port.readable_fds();
            let mut fds: Vec<_> = fds.into_iter().map(|fd| nix::poll::PollFd::new(fd, flags)).collect();
            nix::poll::poll(&mut fds, STEP).unwrap();
            // Less if the port became readable meanwhile: a clock that ran ahead would have the guest send again.
            self.elapsed += before.elapsed();
        }
    }

    pub(crate) fn receive_one(&mut self) -> bool {
        match self.nic.receive(&mut self.port) {
            Some(frame) => {
                let frame = frame.unwrap().1;
                self.longest_received = self.longest_received.max(frame.len());
                self.queues.to_guest.push_back(frame);
                true
            }
            None => false,
        }
    }

    /// Turns until `done`, or until a minute of the guest's time is over.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = self.elapsed + Duration::from_secs(60);
        while !done(self) {
            assert!(self.elapsed < deadline, "{what}: {:?}", self.port.counters().to_map());
            self.turn();
        }
    }

    /// The guest's frames, as its NIC driver would hand them over.
    fn take_frames(&mut self) -> Vec<(NetHeader, Vec<u8>)> {
        let mut out: Vec<(NetHeader, Vec<u8>)> = Vec::new();
        for frame in self.queues.from_guest.drain(..) {
            if self.offload != Offload::None
                && let Some((header, last)) = out.last_mut()
                && merge(header, last, &frame)
            {
                continue;
            }
            out.push((NetHeader::default(), frame));
        }
        for (header, frame) in &mut out {
            if header.gso_type != 0 {
                self.merged += 1;
                finish_lengths(frame, self.offload);
            }
        }
        out
    }
}

/// Appends `frame`'s payload to `last` if it is the next of the same flow.
fn merge(header: &mut NetHeader, last: &mut Vec<u8>, frame: &[u8]) -> bool {
    let (Some(a), Some(b)) = (find_transport(last), find_transport(frame)) else { return false };
    let (Some(tcp_a), Some(tcp_b)) = (a.tcp, b.tcp) else { return false };
    let plain = |flags: u8| flags & !8 == TCP_ACK;
    let next = tcp_a.seq.wrapping_add(a.payload_len);
    let ends = |packet: &crate::net::parse::Transport| (packet.protocol, packet.source, packet.destination);
    if ends(&a) != ends(&b) || a.header_len != b.header_len || next != tcp_b.seq {
        return false;
    }
    if !plain(tcp_a.flags) || !plain(tcp_b.flags) || b.payload_len == 0 || last.len() + frame.len() > 65_500 {
        return false;
    }
    if header.gso_type == 0 {
        let v6 = a.source.is_ipv6();
        *header = NetHeader {
            flags: HDR_F_NEEDS_CSUM,
            gso_type: if v6 { GSO_TCPV6 } else { GSO_TCPV4 },
            hdr_len: a.header_len as u16,
            gso_size: a.payload_len as u16,
            csum_start: if v6 { 54 } else { 34 },
            csum_offset: 16,
            num_buffers: 0,
        };
    }
    last.extend(&frame[b.header_len as usize..]);
    // Keep lengths right for the next merge.
    finish_lengths(last, Offload::Tso);
    true
}

/// Puts the frame's length into its IP header and spoils the checksum, which TSO leaves unfinished.
fn finish_lengths(frame: &mut [u8], offload: Offload) {
    let len = frame.len();
    let v6 = frame[12..14] == [0x86, 0xdd];
    let body = EthernetFrame::new_unchecked(frame).into_inner().split_at_mut(14).1;
    if v6 {
        let mut ip = Ipv6Packet::new_unchecked(&mut *body);
        ip.set_payload_len(if offload == Offload::TsoWithoutLength { 0 } else { (len - 54) as u16 });
        TcpPacket::new_unchecked(&mut body[40..]).set_checksum(0xbad);
    } else {
        let mut ip = Ipv4Packet::new_unchecked(&mut *body);
        ip.set_total_len((len - 14) as u16);
        ip.fill_checksum();
        TcpPacket::new_unchecked(&mut body[20..]).set_checksum(0xbad);
    }
}
