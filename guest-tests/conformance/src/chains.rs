//! Descriptors: how they lie, what may be written, in which order. VIRTIO 1.3, 2.7 and 2.8.

use anyhow::{Context, Result, ensure};
use vnic::ring::Placement;
use vnic::spec::Feature;
use vnic::spec::net::NET_HEADER_LEN;

use crate::packet::Packet;
use crate::session::{Driver, SENT, SIZE, TABLE, Target, sent};
use crate::{BOTH, Check, Format, PACKED, Requirement, SPLIT};

pub(crate) const ALL: &[Requirement] = &[
    Requirement {
        number: "2.7.4.1",
        text: "makes no assumptions about the arrangement of descriptors",
        needs: &[],
        check: Check::Played(BOTH, any_arrangement),
    },
    Requirement {
        number: "2.7.5.1-1",
        text: "writes to no device-readable buffer",
        needs: &[],
        check: Check::Played(BOTH, readable_stays),
    },
    Requirement {
        number: "2.7.5.1-2",
        text: "writes to no entry of the descriptor table",
        needs: &[],
        check: Check::Played(SPLIT, table_stays),
    },
    Requirement {
        number: "2.7.5.3.2-1",
        text: "ignores the write flag of a descriptor that refers to an indirect table",
        needs: &[Feature::IndirectDesc],
        check: Check::Played(SPLIT, indirect_and_write),
    },
    Requirement {
        number: "2.7.5.3.2-2",
        text: "takes zero or more chained descriptors and then an indirect one",
        needs: &[Feature::IndirectDesc],
        check: Check::Played(SPLIT, chained_then_indirect),
    },
    Requirement {
        number: "2.7.8.2",
        text: "has written `len` bytes from the first writable one on when the used index moves",
        needs: &[],
        check: Check::Played(BOTH, used_length),
    },
    Requirement {
        number: "2.8.10.1",
        text: "starts descriptors in the order in which they are in the ring",
        needs: &[],
        check: Check::Played(PACKED, in_the_rings_order),
    },
    Requirement {
        number: "2.8.11.1-1",
        text: "uses no descriptor whose AVAIL bit it has not seen change",
        needs: &[],
        check: Check::Played(PACKED, not_available),
    },
    Requirement {
        number: "2.8.11.1-2",
        text: "changes no descriptor after its USED bit",
        needs: &[],
        check: Check::Played(PACKED, used_stays),
    },
    Requirement {
        number: "2.8.13.1",
        text: "uses the descriptors of a list in the order in which they are chained",
        needs: &[],
        check: Check::Played(PACKED, any_arrangement),
    },
    Requirement {
        number: "6.2-2",
        text: "with IN_ORDER: uses buffers in the order in which they were available",
        needs: &[Feature::InOrder],
        check: Check::Played(BOTH, in_order),
    },
];

const HEADER: u32 = NET_HEADER_LEN as u32;

fn any_arrangement(target: &Target, format: Format) -> Result<()> {
    let indirect = target.offered.has(Feature::IndirectDesc);
    let features: &[Feature] = if indirect { &[Feature::IndirectDesc] } else { &[] };
    let mut driver = target.start(format, features)?;
    let bytes = vec![1; 11 + NET_HEADER_LEN];
    let cuts: [&[u32]; 6] = [&[], &[HEADER], &[5, 7], &[HEADER - 1], &[HEADER, 1, 63], &bytes];
    for (number, cut) in (0..).zip(cuts) {
        for placement in [Placement::Direct, Placement::Indirect(TABLE)] {
            if placement != Placement::Direct && !indirect {
                continue;
            }
            let packet = Packet::plain(100, number);
            let buffers = driver.cut(&packet, cut)?;
            driver.post(1, 4096)?;
            driver.transmit.add(&buffers, placement)?;
            driver.publish()?;
            let received = driver.collect().with_context(|| format!("{placement:?}, cut {cut:?}"))?;
            ensure!(received.frame == packet.frame, "{placement:?}, cut {cut:?}: another frame came back");
        }
    }
    Ok(())
}

fn readable_stays(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    driver.post(1, 4096)?;
    let packet = Packet::tcp(1000);
    driver.send(&packet)?;
    driver.collect()?;
    let after = driver.ram.read(SENT, packet.bytes().len())?;
    ensure!(after == packet.bytes(), "what was sent is no longer as it was");
    Ok(())
}

fn table_stays(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    driver.post(1, 4096)?;
    let buffers = driver.cut(&Packet::plain(100, 1), &[HEADER, 10, 20])?;
    driver.transmit.add(&buffers, Placement::Direct)?;
    let tables = |driver: &Driver| -> Result<Vec<Vec<u8>>> {
        driver.layouts.iter().map(|layout| Ok(driver.ram.read(layout.desc, 16 * usize::from(layout.size))?)).collect()
    };
    let before = tables(&driver)?;
    driver.publish()?;
    driver.collect()?;
    ensure!(tables(&driver)? == before, "a descriptor is no longer as it was");
    Ok(())
}

/// A descriptor's flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn indirect_and_write(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[Feature::IndirectDesc])?;
    let packet = Packet::plain(100, 2);
    driver.post(1, 4096)?;
    let buffers = driver.cut(&packet, &[HEADER])?;
    let head = driver.transmit.add(&buffers, Placement::Indirect(TABLE))?;
    let [_, layout] = driver.layouts;
    driver.ram.write(layout.desc + 16 * u64::from(head) + 12, &(INDIRECT | WRITE).to_le_bytes())?;
    driver.publish()?;
    let received = driver.collect()?;
    ensure!(received.frame == packet.frame, "another frame came back");
    Ok(())
}

fn chained_then_indirect(target: &Target, format: Format) -> Result<()> {
    for chained in 0..3_usize {
        let mut driver = target.start(format, &[Feature::IndirectDesc])?;
        let packet = Packet::plain(100, 3);
        driver.post(1, 4096)?;
        let buffers = driver.cut(&packet, &[4, 8])?;
        // A chain whose last descriptor then becomes one that refers to a table of the rest.
        let (direct, rest) = buffers.split_at(chained);
        let stand_in = rest.first().copied().context("a buffer")?;
        let head = driver.transmit.add(&[direct, &[stand_in]].concat(), Placement::Direct)?;
        let [_, layout] = driver.layouts;
        let mut last = head;
        for _ in 0..chained {
            last = driver.half(layout.desc + 16 * u64::from(last) + 14)?;
        }
        for (at, buffer) in (0..).zip(rest) {
            let flags = if usize::from(at) + 1 < rest.len() { NEXT } else { 0 };
            let entry = descriptor(buffer.addr, buffer.len, flags, at + 1);
            driver.ram.write(TABLE + 16 * u64::from(at), &entry)?;
        }
        let entry = descriptor(TABLE, 16 * rest.len() as u32, INDIRECT, 0);
        driver.ram.write(layout.desc + 16 * u64::from(last), &entry)?;
        driver.publish()?;
        let received = driver.collect().with_context(|| format!("{chained} descriptors before the indirect one"))?;
        ensure!(received.frame == packet.frame, "{chained} descriptors before: another frame came back");
    }
    Ok(())
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let words = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
    words.try_into().unwrap_or_default()
}

fn used_length(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    for len in [60, 1000, 1514] {
        let received = driver.echo(&Packet::plain(len, 4))?;
        let [(at, written)] = received.buffers[..] else { anyhow::bail!("{} buffers", received.buffers.len()) };
        ensure!(written as usize == NET_HEADER_LEN + len, "{written} bytes are said to be written of a frame of {len}");
        let frame = driver.ram.read(at + u64::from(HEADER), len)?;
        ensure!(frame == received.frame, "the frame is not where the buffer begins");
    }
    Ok(())
}

/// Sends many at once; they come back in this order. The heads of the chains as they were used.
fn many(driver: &mut Driver) -> Result<(Vec<u16>, Vec<u16>)> {
    const FRAMES: u8 = 32;
    driver.post(FRAMES.into(), 4096)?;
    let mut added = Vec::new();
    for number in 0..FRAMES {
        let bytes = Packet::plain(100, number).bytes();
        let at = SENT + 0x1000 * u64::from(number);
        driver.ram.write(at, &bytes)?;
        let buffer = vnic::ring::Buffer::readable(at, bytes.len() as u32);
        added.push(driver.transmit.add(&[buffer], Placement::Direct)?);
    }
    driver.publish()?;
    let mut used = Vec::new();
    for number in 0..FRAMES {
        let received = driver.received()?;
        ensure!(received.frame == Packet::plain(100, number).frame, "frame {number} of {FRAMES} is another");
        used.push(sent(driver.transmit.as_mut())?.head);
    }
    Ok((added, used))
}

fn in_the_rings_order(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    // Once and over the end of the ring.
    for _ in 0..2 * SIZE / 32 {
        many(&mut driver)?;
    }
    Ok(())
}

fn in_order(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[Feature::InOrder])?;
    for _ in 0..2 * SIZE / 32 {
        let (added, used) = many(&mut driver)?;
        ensure!(added == used, "made available as {added:?}, used as {used:?}");
    }
    Ok(())
}

fn not_available(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    driver.post(1, 4096)?;
    let [_, layout] = driver.layouts;
    // In the first round a descriptor is available with AVAIL set and USED not: these are the other three.
    for flags in [0_u16, 1 << 15, (1 << 7) | (1 << 15)] {
        let entry = descriptor(SENT, 100, 0, flags);
        driver.ram.write(layout.desc, &entry)?;
        driver.link.kick(1)?;
        driver.is_quiet().with_context(|| format!("flags {flags:#06x}"))?;
        ensure!(driver.ram.read(layout.desc, 16)? == entry, "flags {flags:#06x}: the descriptor is another");
    }
    driver.send(&Packet::plain(100, 5))?;
    driver.collect().map(drop)
}

fn used_stays(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    let [_, layout] = driver.layouts;
    driver.echo(&Packet::plain(100, 6))?;
    let first = driver.ram.read(layout.desc, 16)?;
    for number in 0..8 {
        driver.echo(&Packet::plain(100, number))?;
        ensure!(driver.ram.read(layout.desc, 16)? == first, "the first descriptor changed {} chains later", number + 1);
    }
    Ok(())
}
