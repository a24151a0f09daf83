//! A frame in one line of words.

use std::fmt;

use super::{Packet, TCP_FIN, TCP_RST, TCP_SYN, Transport, parse};

/// A frame in words: `10.0.2.15:34512 > 10.0.2.2:9000 tcp seq 1 len 65160 gso 1448`.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    packet: Packet,
    frame_len: u32,
    gso_size: u16,
}

impl Summary {
    /// Of a frame of `frame_len` bytes that begins with `head`; `gso_size` is the virtio-net header's, 0 for none.
    #[must_use]
    pub fn new(head: &[u8], frame_len: u32, gso_size: u16) -> Self {
        Summary { packet: parse(head, frame_len), frame_len, gso_size }
    }
}

struct Mac([u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.packet)?;
        if matches!(self.packet, Packet::Ethernet { .. } | Packet::Cut { .. }) {
            write!(f, " len {}", self.frame_len)?;
        }
        if self.gso_size > 0 {
            write!(f, " gso {}", self.gso_size)?;
        }
        Ok(())
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Packet::Transport(transport) => transport.fmt(f),
            Packet::Icmp { source, destination, kind, code, id_seq, target, len } => {
                let version = if source.is_ipv6() { "icmp6" } else { "icmp" };
                write!(f, "{source} > {destination} {version} ")?;
                let (id, seq) = id_seq;
                match (source.is_ipv6(), kind, target) {
                    (false, 8, _) | (true, 128, _) => write!(f, "echo request id {id} seq {seq}")?,
                    (false, 0, _) | (true, 129, _) => write!(f, "echo reply id {id} seq {seq}")?,
                    (false, 3, _) | (true, 1, _) => write!(f, "destination unreachable code {code}")?,
                    (true, 133, _) => f.write_str("router solicitation")?,
                    (true, 134, _) => f.write_str("router advertisement")?,
                    (true, 135, Some(target)) => write!(f, "neighbor solicitation {target}")?,
                    (true, 136, Some(target)) => write!(f, "neighbor advertisement {target}")?,
                    _ => write!(f, "type {kind} code {code}")?,
                }
                write!(f, " len {len}")
            }
            Packet::Arp { operation: 1, sender, target } => write!(f, "arp who has {} tell {}", target.1, sender.1),
            Packet::Arp { operation: 2, sender, .. } => write!(f, "arp {} is at {}", sender.1, Mac(sender.0)),
            Packet::Arp { operation, sender, target } => {
                write!(f, "arp operation {operation} {} {}", sender.1, target.1)
            }
            Packet::Fragment { source, destination, protocol, offset, len } => {
                write!(f, "{source} > {destination} fragment of protocol {protocol} offset {offset} len {len}")
            }
            Packet::Ip { source, destination, protocol, len } => {
                write!(f, "{source} > {destination} protocol {protocol} len {len}")
            }
            Packet::Ethernet { source, destination, ethertype } => {
                write!(f, "{} > {} ethertype {ethertype:#06x}", Mac(*source), Mac(*destination))
            }
            Packet::Cut { header } => write!(f, "{header} header cut short"),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Transport { source, destination, payload_len, tcp, .. } = self;
        write!(f, "{source} > {destination} ")?;
        match tcp {
            Some(tcp) => {
                f.write_str("tcp")?;
                for (flag, name) in [(TCP_SYN, " syn"), (TCP_FIN, " fin"), (TCP_RST, " rst")] {
                    if tcp.flags & flag != 0 {
                        f.write_str(name)?;
                    }
                }
                write!(f, " seq {} len {payload_len}", tcp.seq)
            }
            None => write!(f, "udp len {payload_len}"),
        }
    }
}
