//! A guest moves from one QEMU to another while it sends, and back, again and again. (`scripts/migrate.sh`)
//!
//! Operation: a bridge in a network namespace of the test's own, with a tap for each of two `vnic serve`; each has a QEMU, of which one
//! runs the guest and the other waits for it. The guest sends one [`Stream`]. After every move at least two blocks more must have come: one that was under way, and one that
//! was begun after it; and on the bridge the guest must have been announced, by itself or by its device.

use guest_fixture::{
    Announcement, Deadline, Moved, Namespace, Side, Stream, Wire, available, is_root, note, skip, until,
};

/// The launcher's.
const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
const ANNOUNCED: Deadline = Deadline::secs("the guest to be announced where it is now", 60);

/// A namespace with a bridge in it, and two taps on that.
fn bridged() -> Option<Namespace> {
    if !is_root() {
        skip("taps, a bridge and a network namespace need root");
        return None;
    }
    Side::namespace().map_err(|error| skip(&format!("{error:#}"))).ok()
}

/// So many moves of a guest with these options, which announces itself.
fn moves(count: u64, options: &[&'static str]) {
    announced_moves(count, Announcement::Guest, options);
}

fn announced_moves(count: u64, by: Announcement, options: &[&'static str]) {
    let Some(namespace) = bridged() else { return };
    let stream = Stream::listen(&namespace);
    // The device announces the guest where that is not to do so by itself.
    let withheld: &[&str] = if by == Announcement::Device { &["--withhold", "guest_announce"] } else { &[] };
    let sides = Side::both(&namespace, withheld, options);
    let wires = Side::TAPS.map(|tap| Wire::listen(&namespace, tap).expect("whoever made a tap may listen at it"));
    let mut here = sides[0].qemu(false);
    let mut agent = here.agent();
    stream.start(&mut agent);
    let mut all: Vec<Moved> = Vec::new();
    for number in 0..count {
        let (from, to) = (&sides[number as usize % 2], &sides[(number as usize + 1) % 2]);
        let before = stream.blocks();
        let wire = &wires[(number as usize + 1) % 2];
        drop(wire.announced(MAC));
        let moved;
        (here, moved) = from.moves(here, to, &mut agent);
        let at = stream.blocks();
        stream.until(at + 2);
        until(ANNOUNCED, || wire.announced(MAC).iter().any(|(who, _)| *who == by).then_some(()));
        note(&format!(
            "move {}: {} ms of which the guest stood still for {}, {} rounds; {} MiB before, {} now",
            number + 1,
            moved.total_ms,
            moved.downtime_ms,
            moved.rounds,
            before,
            stream.blocks(),
        ));
        all.push(moved);
    }
    let bytes = stream.end(&mut agent);
    for side in &sides {
        let (drops, errors) = side.device.drops_and_errors("transmitq0");
        assert_eq!((drops, errors), (0, 0), "drops, errors");
    }
    let mut stood: Vec<u64> = all.iter().map(|moved| moved.downtime_ms).collect();
    stood.sort_unstable();
    note(&format!(
        "{count} migrations of one stream of {} MiB: 0 bytes lost, 0 twice; announced after each ({by:?}); stood still for {} ms in the median, {} at most",
        bytes >> 20,
        stood[stood.len() / 2],
        stood[stood.len() - 1],
    ));
    here.power_off(agent);
    for side in sides {
        assert!(side.device.stop().success());
    }
}

#[test]
#[ignore = "minutes: scripts/migrate.sh"]
fn a_guest_moves_twenty_times_while_it_sends_and_no_byte_is_lost_or_comes_twice() {
    moves(20, &[]);
}

#[test]
#[ignore = "minutes: scripts/migrate.sh"]
fn a_guest_moves_twenty_times_between_newer_qemus() {
    if let Err(why) = available(&["--newer-qemu"]) {
        return skip(&why);
    }
    moves(20, &["--newer-qemu"]);
}

#[test]
#[ignore = "minutes: scripts/migrate.sh"]
fn a_guest_behind_its_iommu_moves() {
    if let Err(why) = available(&["--newer-qemu", "--iommu"]) {
        return skip(&why);
    }
    moves(4, &["--newer-qemu", "--iommu"]);
}

#[test]
#[ignore = "minutes: scripts/migrate.sh"]
fn a_guest_with_packed_rings_moves() {
    if let Err(why) = available(&["--newer-qemu"]) {
        return skip(&why);
    }
    moves(4, &["--newer-qemu", "--nic-options", "packed=on"]);
}

/// QEMU asks the device to (SEND_RARP) where the guest has not taken GUEST_ANNOUNCE.
#[test]
#[ignore = "minutes: scripts/migrate.sh"]
fn a_guest_that_does_not_announce_itself_is_announced_by_its_device() {
    announced_moves(2, Announcement::Device, &[]);
}
