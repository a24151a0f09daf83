//! A guest with one endless stream that moves between two QEMUs, whose devices are killed; each byte of the stream is compared.

use std::path::PathBuf;
use std::sync::Arc;

use fastrand::Rng;
use guest_fixture::{Agent, Deadline, Machine, Namespace, Side, Stream, note, until};

use crate::clock::{elsewhen, is_elsewhen, step_guest};
use crate::figures::Figures;
use crate::looks;
use crate::run::{Action, Run};
use crate::stopped::Stopped;

const TRANSMITQ: &str = "transmitq0";
const CONNECTS: Deadline = Deadline::secs("QEMU to connect to the device again", 60);
const STANDS: Deadline = Deadline::secs("the stream to stand still", 60);
/// Most that a device may have at its end, however it was looked at: private memory, threads, files. Each begins anew, so what one
/// looked at less has is no measure for another.
const MOST: Figures = Figures { private_kib: 48 << 10, threads: 32, files: 64 };

/// The actor.
struct Mover {
    run: Arc<Run>,
    rng: Rng,
    namespace: Namespace,
    stream: Arc<Stream>,
    sides: [Side; 2],
    /// Which of them has the guest.
    at: usize,
    machine: Option<Machine>,
    agent: Agent,
    /// Of devices at their ends.
    ends: Vec<Figures>,
}

const ACTIONS: [Action<Mover>; 8] = [
    ("kills of the back-end", 6, Mover::killed),
    ("back-ends with another clock", 2, Mover::another_clock),
    ("migrations", 2, Mover::moves),
    ("SIGSTOP of QEMU under a stream", 2, Mover::qemu_stops),
    ("SIGSTOP of the back-end under a stream", 2, Mover::device_stops),
    ("streams held and let go", 3, Mover::held),
    ("looks at a stream", 4, Mover::looks),
    ("steps of the guest's clock", 2, Mover::clock),
];

/// Plays until the run is over. What came of the devices.
pub(crate) fn play(run: &Arc<Run>) -> String {
    let namespace = Side::namespace().expect("a bridge in a network namespace");
    let stream = Stream::listen(&namespace);
    let sides = Side::both(&namespace, &[], &[]);
    let mut machine = sides[0].qemu(false);
    let mut agent = machine.agent();
    stream.start(&mut agent);
    let rng = run.rng("mover");
    let mut mover = Mover {
        run: run.clone(),
        rng,
        namespace,
        stream,
        sides,
        at: 0,
        machine: Some(machine),
        agent,
        ends: Vec::new(),
    };
    let mut rng = mover.rng.fork();
    run.play(&mut rng, &mut mover, &ACTIONS, |mover, _, _| {
        let at = mover.stream.blocks();
        mover.stream.until(at + 1);
    });
    mover.end()
}

impl Mover {
    fn device(&mut self) -> u32 {
        self.sides[self.at].device.child().id()
    }

    /// The device is killed, and another one takes up where it was.
    fn next_device(&mut self, program: PathBuf) {
        let pid = self.device();
        self.ends.push(Figures::of(pid));
        let side = &mut self.sides[self.at];
        side.device.child().kill();
        side.serve_again(&self.namespace, &program);
        let device = &side.device;
        until(CONNECTS, || (device.status()["connected"] == true).then_some(()));
    }

    fn killed(&mut self) {
        self.next_device(guest_fixture::vnic().to_owned());
    }

    fn another_clock(&mut self) {
        let program = elsewhen(self.sides[self.at].folder.path(), &mut self.rng);
        self.next_device(program);
        assert!(is_elsewhen(self.device()), "the device is not in a time namespace of its own");
    }

    fn moves(&mut self) {
        let to = 1 - self.at;
        let here = self.machine.take().expect("a guest");
        let (there, moved) = self.sides[self.at].moves(here, &self.sides[to], &mut self.agent);
        self.machine = Some(there);
        self.at = to;
        note(&format!("moved in {} ms, stood still for {}", moved.total_ms, moved.downtime_ms));
    }

    fn qemu(&mut self) -> u32 {
        self.machine.as_mut().expect("a guest").child().id()
    }

    fn qemu_stops(&mut self) {
        let stopped = Stopped::new(self.qemu());
        self.stands_still();
        let side = &self.sides[self.at];
        looks::one(&self.run, &mut self.rng, side.device.control(), TRANSMITQ);
        drop(stopped);
    }

    fn device_stops(&mut self) {
        let stopped = Stopped::new(self.device());
        self.stands_still();
        drop(stopped);
    }

    /// Waits until nothing more comes: the same number of blocks as at two looks before, seconds apart.
    fn stands_still(&self) {
        let mut seen = (self.stream.blocks(), std::time::Instant::now());
        until(STANDS, || {
            let now = self.stream.blocks();
            if now != seen.0 {
                seen = (now, std::time::Instant::now());
            }
            (seen.1.elapsed().as_secs() >= 2).then_some(())
        });
    }

    fn held(&mut self) {
        let side = &self.sides[self.at];
        side.device.hold(TRANSMITQ);
        side.device.wait_until_stuck(TRANSMITQ);
        looks::one(&self.run, &mut self.rng, side.device.control(), TRANSMITQ);
        side.device.release(TRANSMITQ);
    }

    fn looks(&mut self) {
        let control = self.sides[self.at].device.control().to_owned();
        looks::trace(&self.run, &control, true, 64, || ());
        for _ in 0..4 {
            looks::one(&self.run, &mut self.rng, &control, TRANSMITQ);
        }
    }

    fn clock(&mut self) {
        step_guest(&mut self.agent, &mut self.rng);
    }

    fn end(mut self) -> String {
        let bytes = self.stream.end(&mut self.agent);
        let pid = self.device();
        self.ends.push(Figures::of(pid));
        self.machine.take().expect("a guest").power_off(self.agent);
        for side in self.sides {
            assert!(side.device.stop().success());
        }
        let all = || self.ends.iter();
        let range = |of: fn(&Figures) -> u64| {
            (all().map(of).min().unwrap_or_default(), all().map(of).max().unwrap_or_default())
        };
        let [private, threads, files] =
            [range(|end| end.private_kib), range(|end| end.threads), range(|end| end.files)];
        let most = Figures { private_kib: private.1, threads: threads.1, files: files.1 };
        let fits = most.private_kib <= MOST.private_kib && most.threads <= MOST.threads && most.files <= MOST.files;
        assert!(fits, "a device had {most}, where {MOST} are the most");
        format!(
            "one stream of {} MiB, 0 bytes lost, 0 twice; {} devices, at their ends {} to {} KiB private, {} to {} threads, {} to {} files",
            bytes >> 20,
            self.ends.len(),
            private.0,
            private.1,
            threads.0,
            threads.1,
            files.0,
            files.1,
        )
    }
}
