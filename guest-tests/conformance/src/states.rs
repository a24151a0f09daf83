//! Features, starting, stopping, starting anew. VIRTIO 1.3, 2.1, 2.2, 2.4, 2.6.1, 6.2; stopping is what GET_VRING_BASE does.

use anyhow::{Context, Result, ensure};
use vnic::net::features::with_requirements_met;
use vnic::spec::{Feature, Features};

use crate::packet::Packet;
use crate::session::{SIZE, Target};
use crate::{BOTH, Check, Format, Requirement, SPLIT};

pub(crate) const ALL: &[Requirement] = &[
    Requirement {
        number: "2.1.2",
        text: "takes no buffers and notifies of none before it may (here: before the ring is started)",
        needs: &[],
        check: Check::Played(BOTH, not_before_started),
    },
    Requirement {
        number: "2.2.2-1",
        text: "offers no feature that needs another which is not offered",
        needs: &[],
        check: Check::Played(SPLIT, offers_what_is_needed),
    },
    Requirement {
        number: "2.2.2-2",
        text: "takes any valid subset of what it offers",
        needs: &[],
        check: Check::Played(SPLIT, any_subset),
    },
    Requirement {
        number: "2.4.1",
        text: "touches no queue and notifies of none after a reset until it is set up anew",
        needs: &[],
        check: Check::Played(BOTH, left_alone_when_stopped),
    },
    Requirement {
        number: "2.6.1.1-1",
        text: "executes no request of a queue that was reset, nor notifies of one",
        needs: &[],
        check: Check::Played(BOTH, reset_forgets),
    },
    Requirement {
        number: "2.6.1.1-2",
        text: "begins with the default state after a queue's reset",
        needs: &[],
        check: Check::Played(BOTH, reset_begins_anew),
    },
    Requirement {
        number: "2.6.1.2",
        text: "observes what the driver changed meanwhile, like the queue's size",
        needs: &[],
        check: Check::Played(BOTH, another_size),
    },
    Requirement {
        number: "6.2-1",
        text: "offers VIRTIO_F_VERSION_1",
        needs: &[],
        check: Check::Played(SPLIT, offers_version_1),
    },
];

const TRANSMITQ: usize = 1;

fn not_before_started(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    let base = driver.link.stop_ring(TRANSMITQ, driver.features)?;
    driver.forget_calls()?;
    driver.post(1, 4096)?;
    let packet = Packet::plain(100, 1);
    driver.send(&packet)?;
    driver.is_quiet()?;
    driver.is_not_called()?;
    let [_, transmit] = driver.layouts;
    driver.link.start_ring(TRANSMITQ, transmit, base)?;
    driver.link.kick(TRANSMITQ)?;
    let received = driver.collect().context("after it was started")?;
    ensure!(received.frame == packet.frame, "another frame came back");
    Ok(())
}

fn offers_what_is_needed(target: &Target, _: Format) -> Result<()> {
    let lonely = target.offered.minus(with_requirements_met(target.offered));
    ensure!(lonely == Features::NONE, "{} need what is not offered", lonely.names().join(", "));
    Ok(())
}

fn offers_version_1(target: &Target, _: Format) -> Result<()> {
    ensure!(target.offered.has(Feature::Version1), "it is not offered");
    Ok(())
}

/// What a session can be had with here: no second memory, no second pair.
const NOT_HERE: [Feature; 3] = [Feature::AccessPlatform, Feature::Mq, Feature::ProtocolFeatures];

fn any_subset(target: &Target, _: Format) -> Result<()> {
    // Of those that the specification has for this device and this driver knows.
    let known = Feature::ALL.iter().copied().filter(|feature| target.offered.has(*feature));
    let ours: Vec<Feature> =
        known.filter(|feature| !NOT_HERE.contains(feature) && is_of_the_ring_or_a_frame(*feature)).collect();
    let all = Features::of(&ours);
    let without_one = ours.iter().map(|feature| all.without(*feature));
    let only_one = ours.iter().map(|feature| Features::of(&[*feature]));
    for subset in without_one.chain(only_one).chain([all, Features::NONE]) {
        let subset = with_requirements_met(subset.with(Feature::Version1));
        let played = target.start_with(subset, SIZE).and_then(|mut driver| driver.echo(&Packet::plain(100, 1)));
        played.with_context(|| format!("with {}", subset.names().join(", ")))?;
    }
    Ok(())
}

fn is_of_the_ring_or_a_frame(feature: Feature) -> bool {
    Features::of(&[
        Feature::Csum,
        Feature::GuestCsum,
        Feature::GuestTso4,
        Feature::GuestTso6,
        Feature::GuestEcn,
        Feature::GuestUso4,
        Feature::GuestUso6,
        Feature::HostTso4,
        Feature::HostTso6,
        Feature::HostEcn,
        Feature::HostUso,
        Feature::MrgRxbuf,
        Feature::IndirectDesc,
        Feature::EventIdx,
        Feature::RingPacked,
        Feature::InOrder,
    ])
    .has(feature)
}

fn left_alone_when_stopped(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    driver.echo(&Packet::plain(100, 1))?;
    let bases = driver.stop()?;
    driver.forget_calls()?;
    let [receive, transmit] = driver.layouts;
    let rings = |driver: &crate::session::Driver| -> Result<Vec<u8>> {
        Ok(driver.ram.read(receive.desc, (transmit.desc - receive.desc) as usize)?)
    };
    driver.post(1, 4096)?;
    let packet = Packet::plain(100, 2);
    driver.send(&packet)?;
    let before = rings(&driver)?;
    driver.is_quiet()?;
    driver.is_not_called()?;
    ensure!(rings(&driver)? == before, "the receiveq's ring is another");
    driver.go_on(bases)?;
    if bases.is_none() {
        // What was there before the reset is forgotten.
        return driver.echo(&packet).map(drop);
    }
    let received = driver.collect().context("after it was started again")?;
    ensure!(received.frame == packet.frame, "another frame came back");
    Ok(())
}

fn reset_forgets(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    driver.post(2, 4096)?;
    driver.link.stop_ring(TRANSMITQ, driver.features)?;
    driver.forget_calls()?;
    driver.send(&Packet::plain(100, 1))?;
    driver.is_quiet()?;
    driver.is_not_called()?;
    // A call when a ring starts says nothing of what was before.
    driver.set_up(1, SIZE)?;
    driver.is_quiet()?;
    driver.send(&Packet::plain(100, 2))?;
    let received = driver.collect()?;
    ensure!(received.frame == Packet::plain(100, 2).frame, "a frame from before the reset came back");
    Ok(())
}

fn reset_begins_anew(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    for number in 0..6 {
        for _ in 0..=number {
            driver.echo(&Packet::plain(100, number))?;
        }
        driver.restart(usize::from(number) % 2, SIZE)?;
    }
    driver.echo(&Packet::plain(100, 9)).map(drop)
}

fn another_size(target: &Target, format: Format) -> Result<()> {
    let mut driver = target.start(format, &[])?;
    for size in [64, 256, 16, 8] {
        for index in [0, 1] {
            driver.restart(index, size)?;
        }
        // Over the end of the ring.
        for number in 0..2 * size {
            driver.echo(&Packet::plain(100, number as u8)).with_context(|| format!("with rings of {size}"))?;
        }
    }
    Ok(())
}
