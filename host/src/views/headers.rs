//! The headers of a frame: the virtio-net header in words, then bytes as they are.

use vnic::observe::protocol::{Headers, NetHeaderStatus};
use vnic::spec::net::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM, HDR_F_RSC_INFO,
};

/// Bytes of a line.
const ACROSS: usize = 16;

/// What they say: the first line is the virtio-net header's, where there is one.
pub(crate) fn lines(headers: &Headers) -> Vec<String> {
    let mut lines: Vec<String> = headers.net.iter().map(|net| format!("virtio-net  {}", words(*net))).collect();
    let bytes = bytes(&headers.bytes);
    lines.extend(bytes.chunks(ACROSS).enumerate().map(|(at, bytes)| line(at * ACROSS, bytes)));
    let rest = u64::from(headers.frame_len).saturating_sub(bytes.len() as u64);
    if rest > 0 {
        lines.push(format!("{:04x}  {rest} more bytes, which a trace has no room for", bytes.len()));
    }
    lines
}

fn words(net: NetHeaderStatus) -> String {
    let NetHeaderStatus { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset } = net;
    let mut words = Vec::new();
    if flags & HDR_F_NEEDS_CSUM != 0 {
        words.push(format!("checksum to be completed: from {csum_start} on, to be put at +{csum_offset}"));
    }
    for (flag, name) in [(HDR_F_DATA_VALID, "checksum is right"), (HDR_F_RSC_INFO, "coalesced segments")] {
        if flags & flag != 0 {
            words.push(name.to_owned());
        }
    }
    let kind = match gso_type & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCPV4 => Some("TCP over IPv4".to_owned()),
        GSO_TCPV6 => Some("TCP over IPv6".to_owned()),
        GSO_UDP => Some("UDP in fragments".to_owned()),
        GSO_UDP_L4 => Some("UDP".to_owned()),
        other => Some(format!("gso_type {other:#x}")),
    };
    if let Some(kind) = kind {
        let ecn = if gso_type & GSO_ECN != 0 { " with ECN" } else { "" };
        words.push(format!("to be cut into segments of {gso_size} bytes, {kind}{ecn}"));
    }
    if hdr_len > 0 {
        words.push(format!("headers of {hdr_len} bytes"));
    }
    if words.is_empty() { "nothing is left to the device".to_owned() } else { words.join("; ") }
}

/// What digits stand for; what is none of them ends it.
pub(crate) fn bytes(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    pairs.map_while(byte).collect()
}

fn line(at: usize, bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let signs: String = bytes
        .iter()
        .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' })
        .collect();
    format!("{at:04x}  {:<width$}  {signs}", digits.join(" "), width = 3 * ACROSS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_in_words_and_bytes_beside_their_signs() {
        let net =
            NetHeaderStatus { flags: 1, gso_type: 0x81, hdr_len: 66, gso_size: 1448, csum_start: 34, csum_offset: 16 };
        let bytes: String = (0x40..0x52).map(|byte| format!("{byte:02x}")).collect();
        let headers = Headers { net: Some(net), frame_len: 100, bytes };
        assert_eq!(
            lines(&headers),
            [
                "virtio-net  checksum to be completed: from 34 on, to be put at +16; to be cut into segments of 1448 bytes, \
                 TCP over IPv4 with ECN; headers of 66 bytes",
                "0000  40 41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f  @ABCDEFGHIJKLMNO",
                "0010  50 51                                            PQ",
                "0012  82 more bytes, which a trace has no room for",
            ]
        );
    }

    #[test]
    fn a_plain_header_leaves_nothing_to_the_device_and_bad_digits_end_it() {
        let headers = Headers { net: Some(NetHeaderStatus::default()), frame_len: 1, bytes: "41zz".to_owned() };
        let lines = lines(&headers);
        assert_eq!(lines[0], "virtio-net  nothing is left to the device");
        assert!(lines[1].ends_with("  A") && lines.len() == 2, "{lines:?}");
    }
}
