//! A guest moves from one QEMU to another while it sends, and back, again and again. (`scripts/migrate.sh`)
//!
//! Operation: a bridge in a network namespace of the test's own, with a tap for each of two `vnic serve`; each has a QEMU, of which one
//! runs the guest and the other waits for it. The guest sends one [`Stream`]. After every move at least two blocks more must have come: one that was under way, and one that
//! was begun after it; and on the bridge the guest must have been announced, by itself or by its device.

use guest_fixture::{
    Announcement, Deadline, Device, Folder, Machine, Moved, Namespace, Qmp, Wire, available, is_root, note, prepared,
    skip, until,
};

use crate::stream::Stream;

/// The launcher's.
const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
const ANNOUNCED: Deadline = Deadline::secs("the guest to be announced where it is now", 60);
const WAITS: Deadline = Deadline::secs("QEMU to wait for the guest", 60);

/// One of the two places.
struct Side {
    folder: Folder,
    device: Device,
    /// What the tap hears from the guest and its device.
    wire: Wire,
    /// What the guest's command line is made of.
    options: Vec<&'static str>,
}

impl Side {
    /// The device withholds GUEST_ANNOUNCE unless the guest is to be announced by itself.
    fn new(namespace: &Namespace, tap: &str, announced: Announcement, options: &[&'static str]) -> Side {
        let folder = Folder::new();
        let link = format!("tap:{tap}");
        let mut device = vec!["--link", &link];
        if announced == Announcement::Device {
            device.extend(["--withhold", "guest_announce"]);
        }
        let device = namespace.enter(|| Device::start(folder.path(), &device));
        let wire = Wire::listen(namespace, tap).expect("whoever made a tap may listen at it");
        Side { folder, device, wire, options: [options, &["--memory", "256M"]].concat() }
    }

    /// A QEMU with a guest, or one that waits for it.
    fn qemu(&self, waits: bool) -> Machine {
        let mut words = prepared(self.folder.path(), &self.options).command();
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        words.extend(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", path("qmp.sock"))]);
        if waits {
            words.extend(["-incoming".to_owned(), format!("unix:{}", path("incoming.sock"))]);
        }
        Machine::run(self.folder.path(), &words)
    }

    fn qmp(&self) -> Qmp {
        Qmp::connect(&self.folder.path().join("qmp.sock"))
    }
}

/// A namespace with a bridge in it, and two taps on that.
fn bridged() -> Option<Namespace> {
    if !is_root() {
        skip("taps, a bridge and a network namespace need root");
        return None;
    }
    let namespace = Namespace::new().and_then(|namespace| {
        namespace.add_bridge("vnicbr0", &["vnictesta", "vnictestb"])?;
        Ok(namespace)
    });
    namespace.map_err(|error| skip(&format!("{error:#}"))).ok()
}

/// So many moves of a guest with these options, which announces itself.
fn moves(count: u64, options: &[&'static str]) {
    announced_moves(count, Announcement::Guest, options);
}

fn announced_moves(count: u64, by: Announcement, options: &[&'static str]) {
    let Some(namespace) = bridged() else { return };
    let stream = Stream::listen(&namespace);
    let sides = ["vnictesta", "vnictestb"].map(|tap| Side::new(&namespace, tap, by, options));
    let mut here = sides[0].qemu(false);
    let mut agent = here.agent();
    stream.start(&mut agent);
    let mut all: Vec<Moved> = Vec::new();
    for number in 0..count {
        let (from, to) = (&sides[number as usize % 2], &sides[(number as usize + 1) % 2]);
        let mut there = to.qemu(true);
        // Whoever the guest speaks to must be there when it comes.
        let port = there.record_port();
        let incoming = to.folder.path().join("incoming.sock");
        until(WAITS, || incoming.exists().then_some(()));
        let before = stream.blocks();
        drop(to.wire.announced(MAC));
        let moved = from.qmp().migrate(&incoming);
        here.child().kill();
        let _ = std::fs::remove_file(&incoming);
        agent.moves_to(port);
        here = there;
        let at = stream.blocks();
        stream.until(at + 2);
        until(ANNOUNCED, || to.wire.announced(MAC).iter().any(|(who, _)| *who == by).then_some(()));
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
