//! What a frame needs before smoltcp may see it: whole checksums looked at, lengths that TSO left out put in.

use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv6Packet, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet,
    TcpPacket, UdpPacket,
};

use crate::spec::net::{GSO_NONE, HDR_F_NEEDS_CSUM, NetHeader};

/// Makes a frame ready for smoltcp, which looks at no checksum itself. `false`: a checksum is wrong.
///
/// Of a frame with a partial checksum (`NEEDS_CSUM`) only the IPv4 header's is looked at: nothing was on a wire that
/// could have changed it. IPv6 states the payload's length as 0 where it is too long for its field.
pub(super) fn prepare(frame: &mut [u8], header: NetHeader) -> bool {
    let Ok(mut ethernet) = EthernetFrame::new_checked(frame) else { return true };
    let whole = header.flags & HDR_F_NEEDS_CSUM == 0;
    match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let mut payload = ethernet.payload_mut();
            let Ok(ip) = Ipv4Packet::new_checked(&mut payload) else { return true };
            ip.verify_checksum() && (!whole || ipv4_is_right(&Ipv4Packet::new_unchecked(&**ip.into_inner())))
        }
        EthernetProtocol::Ipv6 => {
            let payload = ethernet.payload_mut();
            let body = payload.len().saturating_sub(40);
            if header.gso_type != GSO_NONE && body > 0 {
                let mut ip = Ipv6Packet::new_unchecked(&mut *payload);
                if ip.payload_len() == 0 {
                    ip.set_payload_len(body.try_into().unwrap_or(u16::MAX));
                }
            }
            let Ok(ip) = Ipv6Packet::new_checked(&*payload) else { return true };
            !whole || ipv6_is_right(&ip)
        }
        _ => true,
    }
}

fn ipv4_is_right(ip: &Ipv4Packet<&[u8]>) -> bool {
    if ip.more_frags() || ip.frag_offset() != 0 {
        return true;
    }
    let (from, to) = (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()));
    transport_is_right(ip.next_header(), ip.payload(), &from, &to)
}

fn ipv6_is_right(ip: &Ipv6Packet<&[u8]>) -> bool {
    let (from, to) = (IpAddress::Ipv6(ip.src_addr()), IpAddress::Ipv6(ip.dst_addr()));
    if ip.next_header() == IpProtocol::Icmpv6 {
        return Icmpv6Packet::new_checked(ip.payload())
            .map_or(true, |icmp| icmp.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
    }
    transport_is_right(ip.next_header(), ip.payload(), &from, &to)
}

/// What is too short to have a checksum is smoltcp's to refuse.
fn transport_is_right(protocol: IpProtocol, payload: &[u8], from: &IpAddress, to: &IpAddress) -> bool {
    match protocol {
        IpProtocol::Tcp => TcpPacket::new_checked(payload).map_or(true, |tcp| tcp.verify_checksum(from, to)),
        IpProtocol::Udp => UdpPacket::new_checked(payload).map_or(true, |udp| udp.verify_checksum(from, to)),
        IpProtocol::Icmp => Icmpv4Packet::new_checked(payload).map_or(true, |icmp| icmp.verify_checksum()),
        _ => true,
    }
}
