//! A guest that sends files to the far end in its own device, which lives through all of it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use guest_fixture::{
    Agent, Attached, Deadline, Device, Folder, Machine, Qmp, prepared, spec, textbook_methods, until, without_sg,
};
use serde_json::json;
use vnic_experiment::wire::TransferSpec;

use crate::clock::step_guest;
use crate::figures::Flat;
use crate::looks;
use crate::run::{Action, Run};
use crate::stopped::Stopped;

const TRANSMITQ: &str = "transmitq0";
const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15));
/// Places for memory that is plugged in, and how much that is each time: a block of Linux's, which takes no less.
const SLOTS: u64 = 8;
const PLUGGED: u64 = 128 << 20;
const MOVES: Deadline = Deadline::secs("the transfer to be under way", 120);
const STANDS: Deadline = Deadline::secs("nothing to come from a guest that stands still", 60);
const UNPLUGS: Deadline = Deadline::secs("the guest to give memory back, or to refuse", 20);
/// How long the device stands still: more than TCP waits before it sends again.
const STOPPED: Duration = Duration::from_secs(2);
const ENDS: Deadline = Deadline::secs("vnic attach to end", 20);

/// The actor.
struct Resident {
    run: Arc<Run>,
    rng: Rng,
    folder: Folder,
    device: Device,
    machine: Machine,
    agent: Agent,
    plugged: u64,
}

const ACTIONS: [Action<Resident>; 9] = [
    ("transfers", 8, Resident::transfers),
    ("transfers held and let go", 4, Resident::held),
    ("looks at a guest", 4, Resident::looks),
    ("attach", 3, Resident::attach),
    ("memory plugged into a guest", 3, Resident::hot_plug),
    ("SIGSTOP of QEMU in a transfer", 3, Resident::qemu_stops),
    ("SIGSTOP of the back-end in a transfer", 3, Resident::device_stops),
    ("steps of the guest's clock", 2, Resident::clock),
    ("kills of QEMU in a transfer", 1, Resident::killed),
];

/// Plays until the run is over. What came of the device.
pub(crate) fn play(run: &Arc<Run>) -> String {
    let folder = Folder::new();
    let mut device = Device::start(folder.path(), &["--life"]);
    let mut flat = Flat::new(device.child().id());
    let (machine, agent) = boot(&folder);
    let mut resident =
        Resident { run: run.clone(), rng: run.rng("resident"), folder, device, machine, agent, plugged: 0 };
    let mut rng = resident.rng.fork();
    run.play(&mut rng, &mut resident, &ACTIONS, |_, first_round_ends, share| flat.look(first_round_ends, share));
    let figures = flat.end(resident.plugged);
    let Resident { device, machine, agent, .. } = resident;
    machine.power_off(agent);
    assert!(device.stop().success());
    figures
}

/// A guest with places for memory.
fn boot(folder: &Folder) -> (Machine, Agent) {
    let mut words = prepared(folder.path(), &["--memory", "256M"]).command();
    if let Some(memory) = words.iter().position(|word| word == "-m").and_then(|at| words.get_mut(at + 1)) {
        memory.push_str(&format!(",slots={SLOTS},maxmem=2G"));
    }
    let monitor = folder.path().join("qmp.sock");
    words.extend(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", monitor.display())]);
    let mut machine = Machine::run(folder.path(), &words);
    let agent = machine.agent();
    (machine, agent)
}

impl Resident {
    fn any(&mut self, most: u64) -> TransferSpec {
        let methods: Vec<&str> = textbook_methods().collect();
        let spec = spec(methods[self.rng.usize(..methods.len())], self.rng.u64(1..=most) << 20);
        if self.rng.u8(..4) == 0 { without_sg(spec) } else { spec }
    }

    fn transfers(&mut self) {
        for _ in 0..3 {
            let spec = self.any(16);
            self.agent.transfer(&spec);
            self.run.did("MiB of transfers", spec.bytes >> 20);
        }
    }

    /// Something happens while a transfer is under way; then it ends well.
    fn meanwhile(&mut self, happens: impl FnOnce(&mut Self)) {
        let spec = self.any(32);
        let began = self.agent.begin(&spec);
        let before = self.device.counter(TRANSMITQ, "bytes");
        self.agent.go();
        until(MOVES, || (self.device.counter(TRANSMITQ, "bytes") > before).then_some(()));
        happens(self);
        let ended = self.agent.end();
        assert_eq!((ended.receipt.sha256, ended.receipt.bytes), (began.sha256, spec.bytes), "{spec:?}");
        self.run.did("MiB of transfers", spec.bytes >> 20);
    }

    fn held(&mut self) {
        let spec = self.any(32);
        let began = self.agent.begin(&spec);
        self.device.hold(TRANSMITQ);
        self.agent.go();
        self.device.wait_until_stuck(TRANSMITQ);
        looks::one(&self.run, &mut self.rng, self.device.control(), TRANSMITQ);
        self.device.release(TRANSMITQ);
        let ended = self.agent.end();
        assert_eq!((ended.receipt.sha256, ended.receipt.bytes), (began.sha256, spec.bytes), "{spec:?}");
    }

    fn looks(&mut self) {
        let control = self.device.control().to_owned();
        let run = self.run.clone();
        looks::trace(&run, &control, true, 32, || self.transfers());
        self.device.ping(GUEST);
        for _ in 0..3 {
            self.meanwhile(|resident| looks::one(&resident.run, &mut resident.rng, &control, TRANSMITQ));
        }
    }

    /// From outside, while the device has it.
    fn attach(&mut self) {
        let mut attached = Attached::to(self.machine.child().id(), self.folder.path());
        let status = attached.status();
        let queues = status["queues"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert!(
            queues.iter().any(|queue| queue["queue"].as_str().is_some_and(|name| name.contains(TRANSMITQ))),
            "{status}"
        );
        let pages: Vec<u64> = (0..64).map(|_| self.rng.u64(..256 << 20) & !0xfff).collect();
        assert_eq!(attached.labels(&pages).len(), pages.len());
        let control = attached.control.clone();
        let run = self.run.clone();
        looks::trace(&run, &control, true, 8, || self.transfers());
        assert!(attached.child.terminate(ENDS).success());
    }

    /// Memory comes, is used, and goes where the guest lets it.
    fn hot_plug(&mut self) {
        let mut qmp = Qmp::connect(&self.folder.path().join("qmp.sock"));
        if self.plugged == SLOTS {
            return self.killed();
        }
        let (id, memory) = (format!("dimm{}", self.plugged), format!("memory{}", self.plugged));
        self.plugged += 1;
        let before = self.device.status()["regions"].as_array().map_or(0, Vec::len);
        qmp.ask(
            "object-add",
            &json!({"qom-type": "memory-backend-memfd", "id": memory, "size": PLUGGED, "share": true}),
        );
        qmp.ask("device_add", &json!({"driver": "pc-dimm", "id": id, "memdev": memory}));
        until(MOVES, || (self.device.status()["regions"].as_array().map_or(0, Vec::len) > before).then_some(()));
        self.run.did("MiB plugged into a guest", PLUGGED >> 20);
        let online = "for block in /sys/devices/system/memory/memory*/state; do echo online_movable 2>/dev/null >$block; done; true";
        self.agent.run(&["sh", "-c", online]);
        self.transfers();
        qmp.ask("device_del", &json!({"id": id}));
        // A guest that has something there keeps it.
        let start = Instant::now();
        while start.elapsed() < UNPLUGS.limit {
            let devices = qmp.ask("query-memory-devices", &json!({}));
            if !devices.to_string().contains(&format!("\"{id}\"")) {
                qmp.ask("object-del", &json!({"id": memory}));
                self.plugged -= 1;
                self.run.did("MiB unplugged from a guest", PLUGGED >> 20);
                break;
            }
        }
        self.transfers();
    }

    fn qemu_stops(&mut self) {
        self.meanwhile(|resident| {
            let stopped = Stopped::new(resident.machine.child().id());
            let count = || resident.device.counter(TRANSMITQ, "bytes");
            let mut last = count();
            until(STANDS, || {
                let now = count();
                (std::mem::replace(&mut last, now) == now).then_some(())
            });
            // Nobody can be asked to translate or answer meanwhile.
            looks::one(&resident.run, &mut resident.rng, resident.device.control(), TRANSMITQ);
            drop(stopped);
        });
    }

    fn device_stops(&mut self) {
        self.meanwhile(|resident| {
            let stopped = Stopped::new(resident.device.child().id());
            // Time goes by for the guest, whose TCP sends again, and again.
            std::thread::sleep(STOPPED);
            drop(stopped);
        });
    }

    fn clock(&mut self) {
        self.meanwhile(|_| ());
        step_guest(&mut self.agent, &mut self.rng);
        self.transfers();
    }

    /// The next guest is served by the same device.
    fn killed(&mut self) {
        let spec = self.any(32);
        self.agent.begin(&spec);
        self.agent.go();
        self.machine.child().kill();
        self.device.wait_for_no_front_end();
        (self.machine, self.agent) = boot(&self.folder);
        self.plugged = 0;
        self.transfers();
    }
}
