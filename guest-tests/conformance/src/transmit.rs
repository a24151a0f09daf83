//! Headers that a driver writes. VIRTIO 1.3, 5.1.6.2.2.

use anyhow::{Context, Result, ensure};
use vnic::spec::Feature;
use vnic::spec::net::{HDR_F_NEEDS_CSUM, NetHeader};

use crate::packet::{Packet, tcp_payload};
use crate::session::Target;
use crate::{BOTH, Check, Format, Requirement};

/// What it takes for a super-frame to come back whole.
const SUPER_FRAMES: &[Feature] =
    &[Feature::Csum, Feature::HostTso4, Feature::GuestCsum, Feature::GuestTso4, Feature::MrgRxbuf];

pub(crate) const ALL: &[Requirement] = &[
    Requirement {
        number: "5.1.6.2.2-1",
        text: "ignores bits of `flags` that it does not know",
        needs: &[],
        check: Check::Played(BOTH, unknown_flags),
    },
    Requirement {
        number: "5.1.6.2.2-2",
        text: "uses no csum_start and csum_offset without NEEDS_CSUM",
        needs: &[],
        check: Check::Played(BOTH, no_checksum_asked_for),
    },
    Requirement {
        number: "5.1.6.2.2-3",
        text: "does not rely on hdr_len",
        needs: SUPER_FRAMES,
        check: Check::Played(BOTH, any_header_length),
    },
    Requirement {
        number: "5.1.6.2.2-4",
        text: "does not rely on a checksum's being right without NEEDS_CSUM",
        needs: &[],
        check: Check::Played(BOTH, wrong_checksum),
    },
];

fn unknown_flags(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    for bit in [1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7] {
        let plain = Packet::plain(100, bit);
        let packet = Packet { header: NetHeader { flags: bit, ..plain.header }, ..plain };
        driver.echo(&packet).with_context(|| format!("flags {bit:#04x}"))?;
    }
    Ok(())
}

fn no_checksum_asked_for(target: &Target, format: Format) -> Result<()> {
    let features: &[Feature] = if target.offered.has(Feature::Csum) { &[Feature::Csum] } else { &[] };
    let mut driver = target.start(format, features)?;
    for (csum_start, csum_offset) in [(14, 4), (0xffff, 0xffff), (99, 1)] {
        let plain = Packet::tcp(200);
        let packet = Packet { header: NetHeader { csum_start, csum_offset, ..plain.header }, ..plain };
        driver.echo(&packet).with_context(|| format!("csum_start {csum_start}, csum_offset {csum_offset}"))?;
    }
    Ok(())
}

fn any_header_length(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, SUPER_FRAMES)?;
    for hdr_len in [0, 1, 13, 54, 1000, 0xffff] {
        let mut packet = Packet::tcp_super(3500);
        packet.header.hdr_len = hdr_len;
        driver.post(1, 4096)?;
        driver.send(&packet)?;
        let received = driver.collect().with_context(|| format!("hdr_len {hdr_len}"))?;
        // Its checksum may be the device's to complete, or the driver's.
        let payload = packet.frame.get(54..).unwrap_or_default();
        ensure!(received.frame.ends_with(payload), "hdr_len {hdr_len}: another payload came back");
    }
    Ok(())
}

fn wrong_checksum(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    let mut packet = Packet::tcp(200);
    packet.frame.iter_mut().skip(50).take(2).for_each(|byte| *byte ^= 0xff);
    ensure!(tcp_payload(&packet.frame).is_none(), "the checksum is right after all");
    let received = driver.echo(&packet)?;
    ensure!(received.header.flags & HDR_F_NEEDS_CSUM == 0, "the driver is asked to complete it");
    Ok(())
}
