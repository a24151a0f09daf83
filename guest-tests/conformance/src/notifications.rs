//! Kicks and calls, and who does without. VIRTIO 1.3, 2.7.7, 2.7.10, 2.8.9.

use anyhow::{Context, Result, ensure};
use vnic::spec::Feature;

use crate::packet::Packet;
use crate::session::{Driver, Target};
use crate::{BOTH, Check, Format, PACKED, Requirement, SPLIT};

pub(crate) const ALL: &[Requirement] = &[
    Requirement {
        number: "2.7.7.2-1",
        text: "without EVENT_IDX: ignores used_event; notifies if flags is 0",
        needs: &[],
        check: Check::Played(SPLIT, flags_zero),
    },
    Requirement {
        number: "2.7.7.2-2",
        text: "with EVENT_IDX: ignores the flag; notifies when the used index passes used_event",
        needs: &[Feature::EventIdx],
        check: Check::Played(SPLIT, used_event),
    },
    Requirement {
        number: "2.7.10.1-1",
        text: "without EVENT_IDX: sets the used ring's flags to 0 or 1",
        needs: &[],
        check: Check::Played(SPLIT, own_flags),
    },
    Requirement {
        number: "2.7.10.1-2",
        text: "with EVENT_IDX: sets the used ring's flags to 0",
        needs: &[Feature::EventIdx],
        check: Check::Played(SPLIT, own_flags_with_event_idx),
    },
    Requirement {
        number: "2.7.10.1-3",
        text: "takes notifications for which there is no reason",
        needs: &[],
        check: Check::Played(BOTH, spurious),
    },
    Requirement {
        number: "2.8.7-1",
        text: "notifies where the driver's event suppression says ENABLE",
        needs: &[],
        check: Check::Played(PACKED, enabled),
    },
    Requirement {
        number: "2.8.7-2",
        text: "with EVENT_IDX: notifies when the descriptor is used that the driver names",
        needs: &[Feature::EventIdx],
        check: Check::Played(PACKED, named_descriptor),
    },
];

/// What the driver says in the transmitq's available ring.
fn say(driver: &Driver, flags: u16, used_event: u16) -> Result<()> {
    let [_, layout] = driver.layouts;
    driver.ram.write(layout.avail, &flags.to_le_bytes())?;
    driver.ram.write(layout.avail + 4 + 2 * u64::from(layout.size), &used_event.to_le_bytes())?;
    Ok(())
}

/// Sends something, and is notified of it.
fn notified(driver: &mut Driver, number: u8) -> Result<()> {
    driver.forget_calls()?;
    driver.post(1, 4096)?;
    driver.send(&Packet::plain(100, number))?;
    driver.is_called()?;
    driver.collect().map(drop)
}

fn flags_zero(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    for (number, used_event) in [0, 1, 0x7fff, 0xffff].into_iter().enumerate() {
        say(&driver, 0, used_event)?;
        notified(&mut driver, number as u8).with_context(|| format!("used_event {used_event:#x}"))?;
    }
    Ok(())
}

fn used_event(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[Feature::EventIdx])?;
    for used in 0..4 {
        for flags in [0, 1] {
            // The index at which the next one is put.
            say(&driver, flags, 2 * used + flags)?;
            notified(&mut driver, used as u8).with_context(|| format!("flags {flags}"))?;
        }
    }
    Ok(())
}

fn own_flags(target: &Target, format: Format) -> Result<()> {
    flags_are(target.start(format, &[])?, &[0, 1])
}

fn own_flags_with_event_idx(target: &Target, format: Format) -> Result<()> {
    flags_are(target.start(format, &[Feature::EventIdx])?, &[0])
}

fn flags_are(mut driver: Driver, allowed: &[u16]) -> Result<()> {
    for number in 0..8 {
        driver.echo(&Packet::plain(100, number))?;
        for layout in driver.layouts {
            let flags = driver.half(layout.used)?;
            ensure!(allowed.contains(&flags), "the used ring's flags are {flags:#x}");
        }
    }
    Ok(())
}

fn spurious(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    for number in 0..8 {
        for _ in 0..100 {
            driver.link.kick(1)?;
            driver.link.kick(0)?;
        }
        ensure!(driver.receive.pop_used()?.is_none(), "a buffer was used that there is none of");
        driver.echo(&Packet::plain(100, number))?;
    }
    driver.is_quiet()
}

/// What the driver says in the transmitq's event suppression structure: where, and when.
fn suppress(driver: &Driver, position: u16, flags: u16) -> Result<()> {
    let [_, layout] = driver.layouts;
    driver.ram.write(layout.avail, &position.to_le_bytes())?;
    driver.ram.write(layout.avail + 2, &flags.to_le_bytes())?;
    Ok(())
}

fn enabled(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    for number in 0..8 {
        suppress(&driver, 0, 0)?;
        notified(&mut driver, number)?;
    }
    Ok(())
}

fn named_descriptor(target: &Target, format: Format) -> Result<()> {
    const DESC: u16 = 2;
    let mut driver = target.start(format, &[Feature::EventIdx])?;
    for number in 0..8 {
        // Each packet has two descriptors; in the first round the wrap counter is 1.
        suppress(&driver, (1 << 15) | (2 * number), DESC)?;
        notified(&mut driver, number as u8).with_context(|| format!("descriptor {}", 2 * number))?;
    }
    Ok(())
}
