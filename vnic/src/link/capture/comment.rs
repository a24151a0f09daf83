//! A frame's descriptors in words, as ring snapshots write them, so that people can read them in Wireshark, and its plugin
//! (`contrib/wireshark/vnic.lua`) makes fields of them: of all that a capture has beside a frame's bytes, Wireshark's plugins see
//! only this.
//!
//! ```text
//! comment  = chains header [", " verdict]
//! chains   = queue chain *(";" [" " queue] chain)
//! chain    = " head " N ":" [" indirect(" N "):"] " " buffer *(" -> " (buffer / more)) [", written " N]
//! buffer   = ("R" / "W") " 0x" HEX "+" LEN [" (" label ")"]
//! more     = "… " N " more, " LEN " bytes"      alike: the same way, and of the same thing as the buffer before
//! header   = [", csum " START "+" OFFSET] [", gso " SIZE " " TYPE] [", hdr " LEN] [", flags 0x" HEX]
//! ```
//! Parentheses in a label come in pairs: of others, `\x28` and `\x29` stand in their place.

use std::fmt::Write as _;

use super::packet::{Buffer, Chain};
use super::{Record, Whose};
use crate::provenance::SourceKind;
use crate::spec::net::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, HDR_F_NEEDS_CSUM, NetHeader};

/// A pcapng option holds 65535 bytes.
pub(super) const MAX_LEN: usize = 60_000;
/// So many buffers alike are not worth to be counted instead of listed.
const FEW: usize = 3;

/// `transmitq0 head 12: R 0x1f000+78 -> R 0x20000+4096 (/srv/big.bin page 2), csum 34+16, gso 1448 tcpv4, hdr 66`.
pub(super) fn of(record: &Record, whose: &[Option<Whose>], verdict: Option<&str>) -> String {
    let mut out = record.queue.clone();
    for (at, (chain, buffers, whose)) in record.packet.with(whose).enumerate() {
        if at > 0 {
            out.push(';');
        }
        if out.len() > MAX_LEN {
            out.push_str(" …");
            break;
        }
        // What comes straight back is on record once, with the chains that it came in.
        if at == 1 && !record.looped.is_empty() {
            let _ = write!(out, " {}", record.looped);
        }
        self::chain(&mut out, chain, buffers, whose);
    }
    if let Some(header) = &record.packet.header {
        self::header(&mut out, header);
    }
    out.extend(verdict.iter().flat_map(|verdict| [", ", verdict]));
    out
}

fn chain(out: &mut String, chain: &Chain, buffers: &[Buffer], whose: &[Option<Whose>]) {
    // Writing to a String cannot fail, here and below.
    let _ = write!(out, " head {}:", chain.head);
    if chain.indirect {
        let _ = write!(out, " indirect({}):", chain.descriptors);
    }
    let mut at = 0;
    while let Some(buffer) = buffers.get(at).filter(|_| out.len() < MAX_LEN) {
        let known = whose.get(at).and_then(Option::as_ref);
        let arrow = if at > 0 { " ->" } else { "" };
        let way = if buffer.writable { 'W' } else { 'R' };
        let _ = write!(out, "{arrow} {way} {:#x}+{}", buffer.addr, buffer.len);
        if let Some(whose) = known
            && out.len() + whose.words.len() < MAX_LEN
        {
            let _ = write!(out, " ({})", balanced(&whose.words));
        }
        at += 1;
        let rest = buffers.iter().enumerate().skip(at);
        let alike = |(at, other): &(usize, &Buffer)| {
            let other_known = whose.get(*at).and_then(Option::as_ref);
            other.writable == buffer.writable && thing(other_known) == thing(known)
        };
        let (more, bytes) = rest
            .take_while(alike)
            .fold((0, 0_u64), |(count, bytes), (_, other)| (count + 1, bytes + u64::from(other.len)));
        if more > FEW {
            let _ = write!(out, " -> … {more} more, {bytes} bytes");
            at += more;
        }
    }
    let unseen = usize::from(chain.descriptors).saturating_sub(at);
    if unseen > 0 {
        let _ = write!(out, " -> … {unseen} more");
    }
    if let Some(written) = chain.written {
        let _ = write!(out, ", written {written}");
    }
}

/// What a label is of, without the page.
fn thing(whose: Option<&Whose>) -> Option<(&str, SourceKind)> {
    whose.map(|whose| (whose.words.rsplit_once(" page ").map_or(whose.words.as_str(), |(thing, _)| thing), whose.kind))
}

fn header(out: &mut String, header: &NetHeader) {
    let NetHeader { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, .. } = *header;
    if flags & HDR_F_NEEDS_CSUM != 0 {
        let _ = write!(out, ", csum {csum_start}+{csum_offset}");
    }
    if gso_type != GSO_NONE {
        let _ = write!(out, ", gso {gso_size} {}", gso_name(gso_type));
    }
    if hdr_len != 0 {
        let _ = write!(out, ", hdr {hdr_len}");
    }
    if flags & !HDR_F_NEEDS_CSUM != 0 {
        let _ = write!(out, ", flags {:#x}", flags);
    }
}

fn gso_name(gso_type: u8) -> String {
    let name = match gso_type & !GSO_ECN {
        GSO_TCPV4 => "tcpv4",
        GSO_UDP => "udp",
        GSO_TCPV6 => "tcpv6",
        GSO_UDP_L4 => "udp-l4",
        other => return format!("{other:#x}"),
    };
    if gso_type & GSO_ECN == 0 { name.to_owned() } else { format!("{name}+ecn") }
}

/// The label, with as many parentheses closed as opened, in their order: what the guest calls a file must not look like more of the
/// comment.
fn balanced(label: &str) -> String {
    let depths = label.chars().scan(0_i32, |depth, c| {
        *depth += i32::from(c == '(') - i32::from(c == ')');
        Some(*depth)
    });
    let (last, least) = depths.fold((0, 0), |(_, least), depth| (depth, depth.min(least)));
    match (last, least) {
        (0, 0) => label.to_owned(),
        _ => label.replace('(', "\\x28").replace(')', "\\x29"),
    }
}
