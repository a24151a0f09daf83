//! A front-end that breaks every rule, files included, against a whole session: socket, messages, device, a worker.
//!
//! Operation: the bytes become messages (as they should be, nearly so, or any bytes at all), each with files of any kind:
//! memory too short, pipes without another end, what cannot be waited on. Between them the guest writes into its rings, kicks,
//! and cuts its memory short. The link is a loopback, so that both queues of a pair have something to do.
//!
//! The worker's passes come between two messages, on the same thread: so two runs of the same bytes are the same. Now and then (and the first
//! time, so that a finding alone is the same again) the bytes are played once more with a worker that has a thread of its own.
//!
//! What must hold: no panic, in the worker neither; the session comes to an end and tells the device; no file is left open;
//! and the next front-end, a good one, is served (looked at every so often: it takes a while).

mod files;
mod step;

use std::cell::RefCell;
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::ftruncate;
use vnic::backend::{About, Backend, Notice, Notices, Plan, PollMode, Shared, Workers};
use vnic::link::{self, LinkKind};
use vnic::memory::testing::GuestRam;
use vnic::net::features::OFFERED;
use vnic::nic::{self, Nic, queue_name};
use vnic::ring::{Buffer, DriverRing, Placement, RingLayout, SplitDriver};
use vnic::spec::Feature;
use vnic::spec::vhost_user::{FLAG_NEED_REPLY, VERSION};
use vnic::vhost_user::message::Request;
use vnic::vhost_user::{Device, Handled, Session};

use files::{Files, Kind};
use step::{Ask, Step, ring};

const RAM: u64 = 0x4_0000;
const PAIRS: u16 = 2;
/// Looks whether the next front-end is served, and what a thread does: once in so many runs.
const PROBE: u32 = 64;
/// Of a process's files those that are looked for: one that is left open has the lowest number that is free.
const FILES: RawFd = 128;
/// How long a good front-end waits for its frame.
const PATIENCE: Duration = Duration::from_secs(20);

/// What lives as long as the process: as in `serve`, sessions come and go.
pub(crate) struct Rig {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    notices: Receiver<Notice>,
    files: Rc<Files>,
    ram: Rc<GuestRam>,
}

struct Rigs {
    alone: Rig,
    threaded: Rig,
    runs: u32,
}

thread_local! {
    static RIGS: RefCell<Option<Rigs>> = const { RefCell::new(None) };
}

impl Rig {
    pub(crate) fn new(poll: PollMode) -> Self {
        // As in every program that Rust starts; this one libFuzzer starts. The files that the device writes to are anything.
        // SAFETY: nobody else here has a say about this signal.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }.expect("a signal can be ignored");
        let port = link::open(&LinkKind::Loopback, PAIRS.into()).expect("a link");
        let offered = OFFERED.with(Feature::ProtocolFeatures);
        let names = (0..2 * PAIRS).map(queue_name);
        let shared = Shared::new(About { offered, ..About::default() }, names, vec![port.counters()]);
        let shared = Arc::new(shared);
        let (sender, notices) = channel();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd"));
        let notice = Notices { channel: sender, wake };
        let plan = Plan { shared: &shared, notices: &notice, poll, cpus: &[] };
        let workers = nic::start(vec![port], nic::Beside::default(), &plan);
        let workers = Arc::new(workers.expect("a worker"));
        Rig { shared, workers, notices, files: Rc::new(Files::new()), ram: ram() }
    }

    /// What a control socket answers from.
    pub(crate) fn parts(&self) -> (Arc<Shared>, Arc<Workers>) {
        (self.shared.clone(), self.workers.clone())
    }

    /// A session.
    fn play(&mut self, data: &[u8]) {
        let files = open_files();
        let mut front_end = FrontEnd::on(self, self.ram.clone());
        let _ = front_end.play(&mut Unstructured::new(data));
        drop(front_end);
        assert_eq!(open_files(), files, "files are left open");
        for notice in self.notices.try_iter() {
            assert!(matches!(notice, Notice::MemoryLost), "{notice:?}");
        }
        if self.ram.memory().lost() {
            self.ram = ram();
        } else {
            self.ram.clear().expect("a memory file");
        }
    }
}

fn ram() -> Rc<GuestRam> {
    Rc::new(GuestRam::new(RAM).expect("guest memory"))
}

/// Plays `data`.
pub fn run(data: &[u8]) {
    let mut rigs = RIGS.take().unwrap_or_else(|| Rigs {
        alone: Rig::new(PollMode::Asked),
        threaded: Rig::new(PollMode::Adaptive),
        runs: 0,
    });
    rigs.alone.play(data);
    if rigs.runs.is_multiple_of(PROBE) {
        probe(&rigs.alone);
        rigs.threaded.play(data);
        probe(&rigs.threaded);
    }
    rigs.runs = rigs.runs.wrapping_add(1);
    RIGS.set(Some(rigs));
}

/// Which files are open, by one call: to look into `/proc` takes as long as a session.
fn open_files() -> Vec<bool> {
    // SAFETY: all that is done with them is to ask whether they are open.
    let file = |fd| PollFd::new(unsafe { BorrowedFd::borrow_raw(fd) }, PollFlags::empty());
    let mut files: Vec<PollFd<'_>> = (0..FILES).map(file).collect();
    poll(&mut files, PollTimeout::ZERO).expect("so many files can be asked for");
    files.iter().map(|file| !file.revents().is_some_and(|what| what.contains(PollFlags::POLLNVAL))).collect()
}

pub(crate) struct FrontEnd {
    socket: UnixStream,
    session: Session,
    device: Backend,
    workers: Arc<Workers>,
    files: Rc<Files>,
    ram: Rc<GuestRam>,
    kick: OwnedFd,
    /// Where each queue's driver stands.
    next: [u16; 2 * PAIRS as usize],
    ended: bool,
    /// All that was sent was whole messages, one at a time: of what is taken nothing is left.
    whole: bool,
}

impl FrontEnd {
    pub(crate) fn new(rig: &Rig) -> Self {
        FrontEnd::on(rig, ram())
    }

    fn on(rig: &Rig, ram: Rc<GuestRam>) -> Self {
        let nic = Nic { offered: rig.shared.about.offered, queue_pairs: PAIRS, queue_size: 256 };
        let device = Backend::new(nic, Arc::clone(&rig.shared), Arc::clone(&rig.workers));
        let (socket, other) = UnixStream::pair().expect("a socket pair");
        socket.set_nonblocking(true).expect("fcntl");
        let session = Session::new(other.into(), &device);
        let (workers, files) = (rig.workers.clone(), rig.files.clone());
        FrontEnd {
            socket,
            session,
            device,
            workers,
            files,
            ram,
            kick: event(),
            next: Default::default(),
            ended: false,
            whole: true,
        }
    }

    /// A good beginning, with a buffer in each queue, and the features that [`Ask::Begin`] says.
    pub(crate) fn set_up(&mut self, how: u8) {
        self.ask(Ask::Begin(how), true, &[Kind::Memory]);
        for index in 0..2 * PAIRS as u8 {
            for ask in [Ask::Num(index, 16), Ask::GoodAddr(index), Ask::Kick(index, true), Ask::Enable(index, 1)] {
                self.ask(ask, true, &[Kind::Event]);
            }
            self.chain(index, 0x400 * u16::from(index), 0x100, index % 2 == 0);
        }
    }

    /// Has the session not ended?
    pub(crate) fn is_served(&self) -> bool {
        !self.ended
    }

    fn play(&mut self, bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        while !bytes.is_empty() && !self.ended {
            self.step(bytes.arbitrary()?);
            self.workers.catch_up();
        }
        Ok(())
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Ask { ask, acknowledge, files } => self.ask(ask, acknowledge, &files),
            Step::WithFiles { ask, files } => {
                for request in ask.requests(&self.device) {
                    self.send(&request.to_bytes(0), &files);
                }
            }
            Step::Message { code, flags, size, payload, files } => {
                let size = size.map_or(payload.len() as u32, u32::from);
                let words = [u32::from(code), VERSION | u32::from(flags), size];
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).chain(payload).collect();
                self.whole = false;
                self.send(&bytes, &files);
            }
            Step::Bytes(bytes, files) => {
                self.whole = false;
                self.send(&bytes, &files);
            }
            Step::Start { index, packed } => {
                self.ask(Ask::Begin(u8::from(packed)), true, &[Kind::Memory; 2]);
                for ask in [Ask::Num(index, 16), Ask::GoodAddr(index), Ask::Base(index, 0x8000 * u32::from(packed))] {
                    self.ask(ask, true, &[Kind::Memory; 2]);
                }
                for ask in [Ask::Call(index, true), Ask::Kick(index, true), Ask::Enable(index, 1)] {
                    self.ask(ask, true, &[Kind::Event; 2]);
                }
            }
            Step::Write { at, bytes } => drop(self.ram.write(u64::from(at), &bytes)),
            Step::Chain { queue, addr, len, writable } => self.chain(queue, addr, len, writable),
            Step::KickIt => drop(nix::unistd::write(&self.kick, &1_u64.to_ne_bytes())),
            Step::Cut(pages) => drop(ftruncate(self.ram.fd(), 0x1000 * i64::from(pages % 72))),
        }
    }

    /// Makes a chain available in a split ring as `GoodAddr` says where it is.
    fn chain(&mut self, queue: u8, addr: u16, len: u16, writable: bool) {
        let queue = queue % (2 * PAIRS as u8);
        let Some(next) = self.next.get_mut(usize::from(queue)) else { return };
        let slot = u64::from(*next % 16);
        let at = ring(queue);
        let rest = u64::from(len) | u64::from(writable) << 33;
        let desc = [(0x8000 + u64::from(addr)).to_le_bytes(), rest.to_le_bytes()].concat();
        *next = next.wrapping_add(1);
        let idx = *next;
        for (addr, bytes) in [
            (at + 16 * slot, &desc[..]),
            (at + 0x1000 + 4 + 2 * slot, &slot.to_le_bytes()[..2]),
            (at + 0x1000 + 2, &idx.to_le_bytes()),
        ] {
            let _ = self.ram.write(addr, bytes);
        }
        let _ = nix::unistd::write(&self.kick, &1_u64.to_ne_bytes());
    }

    fn ask(&mut self, ask: Ask, acknowledge: bool, files: &[Kind]) {
        for request in ask.requests(&self.device) {
            let needed = match &request {
                Request::SetMemTable(regions) => regions.len(),
                Request::AddMemReg(_) | Request::SetBackendReqFd | Request::SetLogBase(_) | Request::SetLogFd => 1,
                Request::SetVringKick(file) | Request::SetVringCall(file) | Request::SetVringErr(file) => {
                    usize::from(file.present)
                }
                _ => 0,
            };
            let files: Vec<Kind> = files.iter().copied().cycle().take(needed).collect();
            self.send(&request.to_bytes(if acknowledge { FLAG_NEED_REPLY } else { 0 }), &files);
        }
    }

    /// Sends bytes with files, has the session take all of it, and reads what it answers.
    fn send(&mut self, bytes: &[u8], kinds: &[Kind]) {
        let one = |kind: &Kind| Some(self.files.one(*kind, &self.ram, &self.kick)?.as_raw_fd());
        let raw: Vec<RawFd> = kinds.iter().take(12).filter_map(one).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if bytes.is_empty()
            || sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None).is_err()
        {
            return;
        }
        loop {
            match self.session.handle(&mut self.device) {
                Ok(Handled::Nothing) => return,
                Ok(Handled::Done(_) | Handled::Refused(_)) => {}
                Ok(Handled::Closed) | Err(_) => {
                    self.ended = true;
                    return;
                }
            }
            let _ = self.socket.read(&mut [0; 4096]);
            if self.whole {
                return;
            }
        }
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        self.session.end(&mut self.device);
    }
}

fn event() -> OwnedFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd").into()
}

/// A good front-end gets its frame back, whatever the ones before it did.
pub(crate) fn probe(rig: &Rig) {
    const SENT: u64 = 0x8000;
    const ROOM: u64 = 0xa000;
    let mut good = FrontEnd::new(rig);
    good.ask(Ask::Begin(0), true, &[Kind::Memory]);
    let memory = || Arc::clone(good.ram.memory());
    let features = good.device.offered().without(Feature::RingPacked).without(Feature::InOrder);
    let features = features.without(Feature::EventIdx);
    let mut drivers = [0_u8, 1].map(|index| {
        let at = ring(index);
        let layout = RingLayout { size: 16, desc: at, avail: at + 0x1000, used: at + 0x1800 };
        SplitDriver::new(layout, memory(), features).expect("the ring is guest memory")
    });
    let [receive, transmit] = &mut drivers;
    for _ in 0..8 {
        receive.add(&[Buffer::writable(ROOM, 0x800)], Placement::Direct).expect("there is room");
    }
    receive.publish();
    transmit.add(&[Buffer::readable(SENT, 12 + 100)], Placement::Direct).expect("there is room");
    transmit.publish();
    for index in [0, 1] {
        for ask in [Ask::Num(index, 16), Ask::GoodAddr(index), Ask::Kick(index, true), Ask::Enable(index, 1)] {
            good.ask(ask, true, &[Kind::Event]);
        }
    }
    assert!(!good.ended, "a good session ended");
    let _ = nix::unistd::write(good.kick.as_fd(), &1_u64.to_ne_bytes());
    let deadline = Instant::now() + PATIENCE;
    let [receive, transmit] = &mut drivers;
    let (mut sent, mut received) = (false, false);
    while !(sent && received) {
        good.workers.catch_up();
        sent |= transmit.pop_used().expect("a good device").is_some();
        received |= receive.pop_used().expect("a good device").is_some();
        assert!(Instant::now() < deadline, "a good front-end is not served: sent {sent}, received {received}");
        std::thread::yield_now();
    }
}
