//! Frames as Linux sends them, cut frames, and any bytes at all.

use proptest::prelude::*;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl,
    TcpPacket, TcpRepr, TcpSeqNumber,
};

use super::*;

const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const PEER: [u8; 6] = [0x52, 0x55, 0x0a, 0, 2, 2];

fn ethernet(ethertype: u16, body: &[u8]) -> Vec<u8> {
    [&PEER[..], &GUEST[..], &ethertype.to_be_bytes(), body].concat()
}

fn ipv4_bytes(protocol: u8, fragment: u16, body: &[u8]) -> Vec<u8> {
    let total = 20 + body.len() as u16;
    let mut bytes = vec![0x45, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, protocol, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    bytes.extend(body);
    bytes
}

fn ipv6_bytes(next: u8, payload: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(payload.to_be_bytes());
    bytes.extend([next, 64]);
    bytes.extend("fd00::15".parse::<Ipv6Addr>().unwrap().octets());
    bytes.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
    bytes.extend(body);
    bytes
}

fn tcp_bytes(data_offset: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes =
        vec![0x86, 0xd0, 0x23, 0x28, 0, 0, 0, 1, 0, 0, 0, 9, data_offset << 4, flags, 0xff, 0xff, 0, 0, 0, 0];
    bytes.resize(usize::from(data_offset) * 4, 1);
    bytes.extend(payload);
    bytes
}

fn line(frame: &[u8], gso_size: u16) -> String {
    Summary::new(&frame[..frame.len().min(HEAD_LEN)], frame.len() as u32, gso_size).to_string()
}

fn transport_of(frame: &[u8]) -> Transport {
    match parse(&frame[..frame.len().min(HEAD_LEN)], frame.len() as u32) {
        Packet::Transport(transport) => transport,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_segment_to_be_segmented_is_told_from_its_head() {
    let frame = ethernet(IPV4, &ipv4_bytes(TCP, 0x4000, &tcp_bytes(8, TCP_ACK, &[7; 65_160])));
    assert_eq!(line(&frame, 1448), "10.0.2.15:34512 > 10.0.2.2:9000 tcp seq 1 len 65160 gso 1448");
    let transport = transport_of(&frame);
    assert_eq!((transport.header_len, transport.payload_len), (14 + 20 + 32, 65_160));
    let ends = (transport.source.to_string(), transport.destination.to_string());
    assert_eq!((transport.protocol, ends), (6, ("10.0.2.15:34512".to_owned(), "10.0.2.2:9000".to_owned())));
    assert_eq!(transport.tcp, Some(Tcp { seq: 1, ack: 9, flags: TCP_ACK, window: 65_535 }));
}

#[test]
fn a_total_length_of_0_means_the_whole_frame() {
    let mut frame = ethernet(IPV4, &ipv4_bytes(TCP, 0, &tcp_bytes(5, TCP_ACK, &[0; 1000])));
    frame[16..18].fill(0);
    assert_eq!(transport_of(&frame).payload_len, 1000);
    let frame = ethernet(IPV6, &ipv6_bytes(TCP, 0, &tcp_bytes(5, TCP_ACK, &[0; 1000])));
    assert_eq!(transport_of(&frame).payload_len, 1000);
}

#[test]
fn padding_of_a_short_frame_is_no_payload() {
    let mut frame = ethernet(IPV4, &ipv4_bytes(TCP, 0, &tcp_bytes(5, TCP_ACK | TCP_FIN, &[])));
    frame.resize(60, 0);
    assert_eq!(transport_of(&frame).payload_len, 0);
    assert_eq!(line(&frame, 0), "10.0.2.15:34512 > 10.0.2.2:9000 tcp fin seq 1 len 0");
}

#[test]
fn vlan_tags_and_ipv6_extension_headers_are_passed_over() {
    let hop_by_hop = [43, 0, 1, 4, 0, 0, 0, 0];
    let routing = [60, 0, 0, 0, 0, 0, 0, 0];
    let options = [TCP, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let body = [&hop_by_hop[..], &routing, &options, &tcp_bytes(5, TCP_SYN, b"xyz")].concat();
    let ip = ipv6_bytes(0, body.len() as u16, &body);
    let tagged = [&[0, 5][..], &VLAN.to_be_bytes(), &[0, 7], &IPV6.to_be_bytes(), &ip].concat();
    let frame = ethernet(QINQ, &tagged);
    assert_eq!(line(&frame, 0), "[fd00::15]:34512 > [fd00::2]:9000 tcp syn seq 1 len 3");
    assert_eq!(transport_of(&frame).header_len, 14 + 8 + 40 + 8 + 8 + 16 + 20);
}

#[test]
fn fragments_after_the_first_have_no_ports() {
    let frame = ethernet(IPV4, &ipv4_bytes(UDP, 185, &[0xff; 40]));
    assert_eq!(line(&frame, 0), "10.0.2.15 > 10.0.2.2 fragment of protocol 17 offset 1480 len 40");
    let body = [&[UDP, 0, 0x05, 0xc8, 0, 0, 0, 1][..], &[9; 12]].concat();
    let frame = ethernet(IPV6, &ipv6_bytes(44, body.len() as u16, &body));
    assert_eq!(line(&frame, 0), "fd00::15 > fd00::2 fragment of protocol 17 offset 1480 len 12");
}

#[test]
fn the_small_protocols_are_said_in_words() {
    let request = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &GUEST, &[10, 0, 2, 15], &[0; 6], &[10, 0, 2, 2]].concat();
    assert_eq!(line(&ethernet(ARP, &request), 0), "arp who has 10.0.2.2 tell 10.0.2.15");
    let reply = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &PEER, &[10, 0, 2, 2], &GUEST, &[10, 0, 2, 15]].concat();
    assert_eq!(line(&ethernet(ARP, &reply), 0), "arp 10.0.2.2 is at 52:55:0a:00:02:02");
    let ping = ethernet(IPV4, &ipv4_bytes(ICMP, 0, &[8, 0, 0, 0, 0, 3, 0, 4, 1, 2, 3, 4]));
    assert_eq!(line(&ping, 0), "10.0.2.15 > 10.0.2.2 icmp echo request id 3 seq 4 len 12");
    let target = "fe80::2".parse::<Ipv6Addr>().unwrap().octets();
    let body = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target].concat();
    let frame = ethernet(IPV6, &ipv6_bytes(ICMPV6, 24, &body));
    assert_eq!(line(&frame, 0), "fd00::15 > fd00::2 icmp6 neighbor solicitation fe80::2 len 24");
    let udp = ethernet(IPV4, &ipv4_bytes(UDP, 0, &[0, 1, 0, 2, 0, 11, 0, 0, 1, 2, 3]));
    assert_eq!(line(&udp, 0), "10.0.2.15:1 > 10.0.2.2:2 udp len 3");
    let igmp = ethernet(IPV4, &ipv4_bytes(2, 0, &[0; 8]));
    assert_eq!(line(&igmp, 0), "10.0.2.15 > 10.0.2.2 protocol 2 len 8");
    let lldp = ethernet(0x88cc, &[0; 46]);
    assert_eq!(line(&lldp, 0), "52:54:00:12:34:56 > 52:55:0a:00:02:02 ethertype 0x88cc len 60");
}

#[test]
fn every_cut_of_a_frame_is_told_as_cut() {
    let frame = ethernet(IPV4, &ipv4_bytes(TCP, 0, &tcp_bytes(8, TCP_ACK, &[1; 10])));
    for len in 0..14 + 20 + 16 {
        assert!(matches!(parse(&frame[..len], len as u32), Packet::Cut { .. }), "{len}");
    }
    assert_eq!(line(&frame[..20], 0), "ipv4 header cut short len 20");
    // A header that ends beyond the packet.
    let lie = ethernet(IPV4, &ipv4_bytes(TCP, 0, &tcp_bytes(15, TCP_ACK, &[])[..20]));
    assert_eq!(parse(&lie, lie.len() as u32), Packet::Cut { header: "tcp" });
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(head in proptest::collection::vec(any::<u8>(), 0..256), frame_len in any::<u32>()) {
        let packet = parse(&head, frame_len);
        if let Packet::Transport(transport) = packet {
            prop_assert!(transport.header_len + transport.payload_len <= frame_len);
        }
        prop_assert!(!Summary::new(&head, frame_len, 0).to_string().is_empty());
    }

    #[test]
    fn no_plausible_bytes_make_it_panic(
        ethertype in prop_oneof![Just(IPV4), Just(IPV6), Just(ARP), Just(VLAN)],
        first in prop_oneof![0x45_u8..=0x4f, Just(0x60)],
        next in prop_oneof![Just(TCP), Just(UDP), Just(0), Just(43), Just(44), Just(51), Just(60), Just(ICMPV6)],
        mut body in proptest::collection::vec(any::<u8>(), 40..240),
        extra in 0_u32..70_000,
    ) {
        body[0] = first;
        body[if first == 0x60 { 6 } else { 9 }] = next;
        let frame = ethernet(ethertype, &body);
        let frame_len = frame.len() as u32 + extra;
        if let Packet::Transport(transport) = parse(&frame[..frame.len().min(HEAD_LEN)], frame_len) {
            prop_assert!(transport.header_len + transport.payload_len <= frame_len);
        }
    }

    /// smoltcp is the oracle: what it emits reads back as what it was told.
    #[test]
    fn agrees_with_smoltcp(
        ports in any::<(u16, u16)>(), seq in any::<i32>(), window in any::<u16>(),
        payload in proptest::collection::vec(any::<u8>(), 0..2000), sack in any::<bool>(),
    ) {
        prop_assume!(ports.0 != 0 && ports.1 != 0);
        let (from, to) = (Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 2));
        let tcp = TcpRepr {
            src_port: ports.0, dst_port: ports.1, control: TcpControl::Psh, seq_number: TcpSeqNumber(seq),
            ack_number: Some(TcpSeqNumber(5)), window_len: window, window_scale: None, max_seg_size: None,
            sack_permitted: sack, sack_ranges: [None; 3], timestamp: None, payload: &payload,
        };
        let ip = Ipv4Repr {
            src_addr: from, dst_addr: to, next_header: IpProtocol::Tcp, payload_len: tcp.buffer_len(), hop_limit: 64,
        };
        let link = EthernetRepr {
            src_addr: EthernetAddress(GUEST), dst_addr: EthernetAddress(PEER), ethertype: EthernetProtocol::Ipv4,
        };
        let caps = smoltcp::phy::ChecksumCapabilities::default();
        let mut bytes = vec![0; link.buffer_len() + ip.buffer_len() + tcp.buffer_len()];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes);
        link.emit(&mut frame);
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, &caps);
        tcp.emit(&mut TcpPacket::new_unchecked(packet.payload_mut()), &from.into(), &to.into(), &caps);
        let transport = transport_of(&bytes);
        prop_assert_eq!(transport.source, SocketAddr::new(from.into(), ports.0));
        prop_assert_eq!(transport.destination, SocketAddr::new(to.into(), ports.1));
        prop_assert_eq!(transport.payload_len as usize, payload.len());
        prop_assert_eq!(&bytes[transport.header_len as usize..], &payload[..]);
        prop_assert_eq!(transport.tcp.unwrap().seq, seq as u32);
        prop_assert_eq!(transport.tcp.unwrap().window, window);
    }
}
