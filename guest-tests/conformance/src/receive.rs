//! Headers and buffers that a device fills. VIRTIO 1.3, 5.1.6.3.2 and 5.1.6.4.1.

use anyhow::{Context, Result, ensure};
use vnic::spec::Feature;
use vnic::spec::net::{GSO_NONE, HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM, HDR_F_RSC_INFO, NET_HEADER_LEN};

use crate::packet::{Packet, tcp_payload};
use crate::session::{BLANK, Driver, Received, Target, sent};
use crate::{BOTH, Check, Format, Requirement};

pub(crate) const ALL: &[Requirement] = &[
    Requirement {
        number: "5.1.6.3.2-1",
        text: "sets num_buffers to how many buffers hold the frame (MRG_RXBUF), which are used together",
        needs: &[Feature::MrgRxbuf],
        check: Check::Played(BOTH, merged),
    },
    Requirement {
        number: "5.1.6.3.2-2",
        text: "uses a single buffer without MRG_RXBUF, and says so",
        needs: &[],
        check: Check::Played(BOTH, single),
    },
    Requirement {
        number: "5.1.6.4.1-1",
        text: "fills all buffers of a frame but the last",
        needs: &[Feature::MrgRxbuf],
        check: Check::Played(BOTH, merged),
    },
    Requirement {
        number: "5.1.6.4.1-2",
        text: "without GUEST_CSUM: sets flags to 0, and checksums what it hands over",
        needs: &[Feature::Csum],
        check: Check::Played(BOTH, checksummed),
    },
    Requirement {
        number: "5.1.6.4.1-3",
        text: "without GUEST_TSO4 and the like: hands over no super-frame",
        needs: &[Feature::Csum, Feature::HostTso4],
        check: Check::Played(BOTH, segmented),
    },
    Requirement {
        number: "5.1.6.4.1-4",
        text: "a super-frame has NEEDS_CSUM and a gso_size",
        needs: &[Feature::Csum, Feature::HostTso4, Feature::GuestCsum, Feature::GuestTso4, Feature::MrgRxbuf],
        check: Check::Played(BOTH, super_frame),
    },
    Requirement {
        number: "5.1.6.4.1-5",
        text: "sets csum_start and csum_offset so that completing it gives a right checksum",
        needs: &[Feature::Csum, Feature::GuestCsum],
        check: Check::Played(BOTH, to_be_completed),
    },
    Requirement {
        number: "5.1.6.4.1-6",
        text: "sets no RSC_INFO without RSC_EXT",
        needs: &[],
        check: Check::Played(BOTH, no_coalescing),
    },
    Requirement {
        number: "5.1.6.4.1-7",
        text: "DATA_VALID only where it has validated the checksum",
        needs: &[Feature::GuestCsum],
        check: Check::Played(BOTH, valid_is_validated),
    },
];

fn merged(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[Feature::MrgRxbuf])?;
    for (room, frame) in [(100, 600), (64, 1514), (2000, 600), (612, 600), (611, 600)] {
        let whole = NET_HEADER_LEN + frame;
        let expected = whole.div_ceil(room);
        driver.post(expected as u64, room as u32)?;
        driver.send(&Packet::plain(frame, 1))?;
        let received = driver.collect().with_context(|| format!("{frame} bytes in buffers of {room}"))?;
        ensure!(received.frame == Packet::plain(frame, 1).frame, "another frame came back");
        let said = usize::from(received.header.num_buffers);
        ensure!(said == expected, "{frame} bytes in buffers of {room}: num_buffers is {said}");
        let full = received.buffers.iter().rev().skip(1).all(|(_, written)| *written as usize == room);
        ensure!(full, "{frame} bytes in buffers of {room}: {:?} are written", received.buffers);
    }
    Ok(())
}

fn single(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    for frame in [60, 600, 1514] {
        let received = driver.echo(&Packet::plain(frame, 2))?;
        let said = received.header.num_buffers;
        ensure!(said == 1, "num_buffers is {said}");
    }
    // What does not fit is not spread over several.
    driver.post(8, 100)?;
    driver.send(&Packet::plain(600, 3))?;
    let end = std::time::Instant::now() + crate::session::QUIET;
    while std::time::Instant::now() < end {
        if let Some(used) = driver.receive.pop_used()? {
            ensure!(used.written as usize <= 100, "{} bytes are said to be in a buffer of 100", used.written);
        }
    }
    beside_untouched(&driver, 3, 8, 100)
}

/// No byte behind the ends of these receive buffers was written.
fn beside_untouched(driver: &Driver, first: u64, count: u64, len: u64) -> Result<()> {
    for number in first..first + count {
        let behind = driver.ram.read(crate::session::ROOM + 0x1_0000 * number + len, 64)?;
        ensure!(behind.iter().all(|byte| *byte == BLANK), "bytes behind the end of a buffer were written");
    }
    Ok(())
}

fn checksummed(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[Feature::Csum])?;
    let packet = Packet::tcp_partial(500);
    driver.post(1, 4096)?;
    driver.send(&packet)?;
    let received = driver.collect()?;
    ensure!(received.header.flags == 0, "flags are {:#x}", received.header.flags);
    ensure!(received.frame == Packet::tcp(500).frame, "the checksum is not the frame's");
    Ok(())
}

/// Sends a super-frame and a frame behind it: what comes back, up to that frame. A device may drop the first one, and does not keep us
/// waiting then.
fn up_to_the_next(driver: &mut Driver, super_frame: &Packet) -> Result<Vec<Received>> {
    driver.post(16, 4096)?;
    driver.send(super_frame)?;
    // Its memory is the next packet's, too.
    sent(driver.transmit.as_mut())?;
    let last = Packet::tcp(100);
    driver.send(&last)?;
    let mut frames = Vec::new();
    loop {
        let received = driver.received()?;
        let is_last = received.frame == last.frame;
        frames.push(received);
        if is_last {
            return Ok(frames);
        }
    }
}

fn segmented(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[Feature::Csum, Feature::HostTso4])?;
    for Received { header, frame, .. } in up_to_the_next(&mut driver, &Packet::tcp_super(3500))? {
        ensure!(header.gso_type == GSO_NONE, "gso_type is {}", header.gso_type);
        ensure!(header.flags == 0, "flags are {:#x}", header.flags);
        ensure!(tcp_payload(&frame).is_some(), "a segment's checksum is wrong");
    }
    Ok(())
}

fn super_frame(target: &Target, format: Format) -> Result<()> {
    let features = [Feature::Csum, Feature::HostTso4, Feature::GuestCsum, Feature::GuestTso4, Feature::MrgRxbuf];
    let mut driver = target.start(format, &features)?;
    for Received { header, .. } in up_to_the_next(&mut driver, &Packet::tcp_super(20_000))? {
        if header.gso_type != GSO_NONE {
            ensure!(header.flags & HDR_F_NEEDS_CSUM != 0 && header.gso_size > 0, "{header:?}");
        }
    }
    Ok(())
}

fn to_be_completed(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[Feature::Csum, Feature::GuestCsum])?;
    driver.post(1, 4096)?;
    driver.send(&Packet::tcp_partial(500))?;
    let mut received = driver.collect()?;
    let header = received.header;
    if header.flags & HDR_F_NEEDS_CSUM != 0 {
        let done = vnic::net::checksum::complete(&mut received.frame, header.csum_start, header.csum_offset);
        ensure!(done, "the checksum would be outside the frame: {header:?}");
    }
    ensure!(received.frame == Packet::tcp(500).frame, "the checksum is not the frame's: {header:?}");
    Ok(())
}

fn no_coalescing(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    let received = driver.echo(&Packet::tcp(1000))?;
    ensure!(received.header.flags & HDR_F_RSC_INFO == 0, "flags are {:#x}", received.header.flags);
    Ok(())
}

fn valid_is_validated(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[Feature::GuestCsum])?;
    let mut packet = Packet::tcp(200);
    packet.frame.iter_mut().skip(50).take(2).for_each(|byte| *byte ^= 0xff);
    let received = driver.echo(&packet)?;
    ensure!(received.header.flags & HDR_F_DATA_VALID == 0, "a wrong checksum is said to be valid");
    Ok(())
}
