//! A driver of ours without a guest, and a front-end that breaks the rules, before one `vnic serve --link loopback`.
//!
//! Each action ends with a session in which frames come back as they were: whatever was done, the next front-end is served.

mod disk_full;
mod limits;
mod memory;

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use conformance::{Driver, Format, Packet, Target};
use fastrand::Rng;
use guest_fixture::{Deadline, Device, Folder, until};
use vnic::spec::Feature;

use crate::figures::Flat;
use crate::looks;
use crate::run::{Action, Run};
use crate::stopped::Stopped;

const REST: Deadline = Deadline::secs("the device to be without a front-end", 30);
const TRANSMITQ: &str = "transmitq0";

/// The actor.
struct Hostile {
    run: Arc<Run>,
    rng: Rng,
    folder: Folder,
    device: Device,
    target: Target,
}

const ACTIONS: [Action<Hostile>; 13] = [
    ("frames", 4, Hostile::frames),
    ("queue resets", 3, Hostile::queue_resets),
    ("memory regions added and removed", 3, Hostile::hot_plug),
    ("memory files cut short", 3, Hostile::cut_short),
    ("no file descriptors left", 2, Hostile::no_files),
    ("no file descriptors left in a session", 2, Hostile::no_files_in_a_session),
    ("full disks", 1, Hostile::disk_full),
    ("SIGSTOP of the back-end", 2, Hostile::stopped),
    ("looks", 4, Hostile::looks),
    ("traces", 2, Hostile::traces),
    ("hold and release", 3, Hostile::held),
    ("sessions cut", 3, Hostile::cut),
    ("requirements of VIRTIO", 4, Hostile::requirement),
];

/// Plays until the run is over. What came of the device.
pub(crate) fn play(run: &Arc<Run>) -> String {
    let folder = Folder::new();
    let mut device = Device::start(folder.path(), &["--link", "loopback", "--life"]);
    let target = Target::new(&folder.path().join("vnic.sock")).expect("the device is there");
    let mut flat = Flat::new(device.child().id());
    let mut hostile = Hostile { run: run.clone(), rng: run.rng("hostile"), folder, device, target };
    let mut rng = hostile.rng.fork();
    run.play(&mut rng, &mut hostile, &ACTIONS, |hostile, first_round_ends, share| {
        hostile.echo(4);
        hostile.rests();
        flat.look(first_round_ends, share);
    });
    let figures = flat.end(0);
    assert!(hostile.device.stop().success());
    figures
}

impl Hostile {
    fn socket(&self) -> PathBuf {
        self.folder.path().join("vnic.sock")
    }

    fn pid(&mut self) -> u32 {
        self.device.child().id()
    }

    /// No front-end is connected.
    fn rests(&self) {
        until(REST, || (self.device.status()["connected"] == false).then_some(()));
    }

    /// A session with rings of either format and some of the features.
    fn session(&mut self) -> Driver {
        let format = if self.rng.bool() { Format::Split } else { Format::Packed };
        let some = [Feature::EventIdx, Feature::IndirectDesc, Feature::InOrder, Feature::MrgRxbuf];
        let features: Vec<Feature> =
            some.into_iter().filter(|feature| self.target.offered.has(*feature) && self.rng.bool()).collect();
        self.target.start(format, &features).unwrap_or_else(|error| panic!("{format:?}, {features:?}: {error:#}"))
    }

    /// A session with so many frames, each of which comes back as it was.
    fn echo(&mut self, frames: u64) {
        let mut driver = self.session();
        self.some(&mut driver, frames);
    }

    fn some(&mut self, driver: &mut Driver, frames: u64) {
        for _ in 0..frames {
            let packet = Packet::plain(self.rng.usize(60..1514), self.rng.u8(..));
            driver.echo(&packet).unwrap_or_else(|error| panic!("a frame that was to come back: {error:#}"));
        }
    }

    fn frames(&mut self) {
        self.echo(256);
        self.run.did("frames that came back", 256);
    }

    fn queue_resets(&mut self) {
        let mut driver = self.session();
        for _ in 0..8 {
            let (index, size) = (self.rng.usize(..2), 1 << self.rng.u32(3..9));
            driver.restart(index, size).unwrap_or_else(|error| panic!("a queue of {size} that was reset: {error:#}"));
            self.some(&mut driver, 4);
        }
        self.run.did("queues reset", 8);
    }

    /// Frames that are sent while it stands still come back afterwards.
    fn stopped(&mut self) {
        let mut driver = self.session();
        let packet = Packet::plain(600, self.rng.u8(..));
        let stopped = Stopped::new(self.pid());
        driver.post(1, 4096).and_then(|()| driver.send(&packet)).expect("memory takes a frame");
        driver.is_quiet().expect("nobody is there");
        drop(stopped);
        let received = driver.collect().expect("the frame comes back");
        assert_eq!(received.frame, packet.frame, "another frame came back");
    }

    fn looks(&mut self) {
        // Before somebody sets it up, there is no queue to watch.
        let mut driver = self.session();
        for _ in 0..4 {
            self.some(&mut driver, 4);
            looks::one(&self.run, &mut self.rng, self.device.control(), TRANSMITQ);
        }
    }

    fn traces(&mut self) {
        let mut driver = self.session();
        let control = self.device.control().to_owned();
        let run = self.run.clone();
        looks::trace(&run, &control, false, 16, || self.some(&mut driver, 16));
    }

    fn held(&mut self) {
        let mut driver = self.session();
        self.some(&mut driver, 2);
        self.device.hold(TRANSMITQ);
        let packet = Packet::plain(600, self.rng.u8(..));
        driver.post(1, 4096).and_then(|()| driver.send(&packet)).expect("memory takes a frame");
        driver.is_quiet().expect("the queue is held");
        if self.rng.bool() {
            self.device.release(TRANSMITQ);
            let received = driver.collect().expect("the frame comes back");
            assert_eq!(received.frame, packet.frame, "another frame came back");
        }
        // Else the front-end is gone while its queue is held: the next one's runs.
    }

    /// Gone without a word, in the middle of a message, with frames under way.
    fn cut(&mut self) {
        for _ in 0..4 {
            match self.rng.u8(..3) {
                0 => drop(UnixStream::connect(self.socket()).expect("the device listens")),
                1 => {
                    let mut stream = UnixStream::connect(self.socket()).expect("the device listens");
                    let bytes: Vec<u8> = (0..self.rng.usize(1..64)).map(|_| self.rng.u8(..)).collect();
                    // It may have ended the session at the first of them.
                    let _ = stream.write_all(&bytes);
                }
                _ => {
                    let mut driver = self.session();
                    for _ in 0..8 {
                        let sent = driver.post(1, 4096).and_then(|()| driver.send(&Packet::plain(600, 1)));
                        sent.expect("memory takes a frame");
                    }
                }
            }
            self.run.did("sessions that were cut", 1);
        }
    }

    /// One of those that `scripts/conformance.sh` plays.
    fn requirement(&mut self) {
        let all: Vec<&str> = conformance::requirements().map(|requirement| requirement.number).collect();
        let number = all[self.rng.usize(..all.len())];
        let rows = conformance::play(&self.socket(), number, |_| ()).expect("the device is there");
        for row in rows {
            assert!(!matches!(row.outcome, conformance::Outcome::Failed(_)), "{row:?}");
        }
    }
}
