//! A front-end that breaks every rule, files included, against a whole session: socket, messages, device, a worker.
//!
//! Operation: the bytes become messages (as they should be, nearly so, or any bytes at all), each with files of any kind:
//! memory too short, pipes without another end, what cannot be waited on. Between them the guest writes into its rings, kicks,
//! and cuts its memory short. The link is a loopback, so that both queues of a pair have something to do.
//!
//! What must hold: no panic, in the worker neither; the session comes to an end and tells the device; no file is left open;
//! and the next front-end, a good one, is served (looked at every so often: it takes a while).
//!
//! Limits: the worker is a thread, so two runs of the same bytes need not be the same.

use std::cell::RefCell;
use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::ftruncate;
use vnic::backend::{About, Backend, Notice, Notices, Plan, PollMode, Shared, Workers};
use vnic::link::{self, LinkKind};
use vnic::memory::testing::{GuestRam, USER_BASE};
use vnic::memory::{Gpa, RegionSpec, UserAddr};
use vnic::net::features::OFFERED;
use vnic::nic::{self, Nic, queue_name};
use vnic::ring::{Buffer, DriverRing, Placement, RingLayout, SplitDriver};
use vnic::spec::vhost_user::{FLAG_NEED_REPLY, VERSION, VringAddr, VringState};
use vnic::spec::{Feature, Features};
use vnic::vhost_user::message::{Request, VringFile};
use vnic::vhost_user::{Device, Handled, Session};

const RAM: u64 = 0x4_0000;
const PAIRS: u16 = 2;
/// Looks whether the next front-end is served: once in so many runs.
const PROBE: u32 = 64;
/// How long a good front-end waits for its frame.
const PATIENCE: Duration = Duration::from_secs(20);

/// A file that comes with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
enum Kind {
    Memory,
    /// A page of memory and no more.
    Short,
    Empty,
    Event,
    /// A pipe nobody writes to any more.
    Closed,
    /// The writing end of a pipe that is full.
    Full,
    /// The writing end of a pipe nobody reads.
    Broken,
    Null,
    Zero,
    Folder,
    Socket,
}

/// A request, nearly right.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Ask {
    Features(u64),
    /// The session's usual beginning, packed or not, in order or not.
    Begin(u8),
    Protocol(u64),
    Table {
        count: u8,
        size: u8,
        offset: u8,
    },
    AddRegion {
        at: u8,
        pages: u8,
        offset: u8,
    },
    RemoveRegion {
        at: u8,
        pages: u8,
    },
    Num(u8, u16),
    Addr {
        index: u8,
        desc: u16,
        avail: u16,
        used: u16,
    },
    GoodAddr(u8),
    Base(u8, u32),
    GetBase(u8),
    Kick(u8, bool),
    Call(u8, bool),
    Err(u8, bool),
    Enable(u8, u8),
    Status(u8),
    Owner,
    ResetOwner,
    ResetDevice,
    Get(u8),
    Mtu(u16),
    Channel,
}

#[derive(Debug, Clone, Arbitrary)]
enum Step {
    Ask {
        ask: Ask,
        acknowledge: bool,
        files: [Kind; 2],
    },
    /// As it should be, with other files.
    WithFiles {
        ask: Ask,
        files: Vec<Kind>,
    },
    Message {
        code: u8,
        flags: u8,
        size: Option<u16>,
        payload: Vec<u8>,
        files: Vec<Kind>,
    },
    Bytes(Vec<u8>, Vec<Kind>),
    /// A ring of its own: set up as it should be, in one go.
    Start {
        index: u8,
        packed: bool,
    },
    /// Bytes into guest memory: rings, tables, buffers.
    Write {
        at: u16,
        bytes: [u8; 16],
    },
    /// A chain of a buffer, readable or not.
    Chain {
        queue: u8,
        addr: u16,
        len: u16,
        writable: bool,
    },
    KickIt,
    /// The memory file gets this many pages.
    Cut(u8),
}

/// What lives as long as the process: as in `serve`, sessions come and go.
struct Rig {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    notices: Receiver<Notice>,
    runs: u32,
}

thread_local! {
    static RIG: RefCell<Option<Rig>> = const { RefCell::new(None) };
}

impl Rig {
    fn new() -> Self {
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
        let plan = Plan { shared: &shared, notices: &notice, poll: PollMode::Adaptive, cpus: &[] };
        let workers = nic::start(vec![port], None, &plan);
        Rig { shared, workers: Arc::new(workers.expect("a worker")), notices, runs: 0 }
    }
}

/// Plays `data`.
pub fn run(data: &[u8]) {
    let mut rig = RIG.take().unwrap_or_else(Rig::new);
    let files = open_files();
    let mut bytes = Unstructured::new(data);
    let mut front_end = FrontEnd::new(&rig);
    let _ = front_end.play(&mut bytes);
    drop(front_end);
    assert_eq!(open_files(), files, "files are left open");
    for notice in rig.notices.try_iter() {
        assert!(matches!(notice, Notice::MemoryLost), "{notice:?}");
    }
    rig.runs = rig.runs.wrapping_add(1);
    if rig.runs.is_multiple_of(PROBE) {
        probe(&rig);
    }
    RIG.set(Some(rig));
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

struct FrontEnd {
    socket: UnixStream,
    session: Session,
    device: Backend,
    ram: GuestRam,
    kick: OwnedFd,
    /// Where each queue's driver stands.
    next: [u16; 2 * PAIRS as usize],
    ended: bool,
}

impl FrontEnd {
    fn new(rig: &Rig) -> Self {
        let nic = Nic { offered: rig.shared.about.offered, queue_pairs: PAIRS, queue_size: 256 };
        let device = Backend::new(nic, Arc::clone(&rig.shared), Arc::clone(&rig.workers));
        let (socket, other) = UnixStream::pair().expect("a socket pair");
        socket.set_nonblocking(true).expect("fcntl");
        let session = Session::new(other.into(), &device);
        let ram = GuestRam::new(RAM).expect("guest memory");
        FrontEnd { socket, session, device, ram, kick: event(), next: Default::default(), ended: false }
    }

    fn play(&mut self, bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        while !bytes.is_empty() && !self.ended {
            self.step(bytes.arbitrary()?);
        }
        Ok(())
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Ask { ask, acknowledge, files } => self.ask(ask, acknowledge, &files),
            Step::WithFiles { ask, files } => {
                for request in self.requests(ask) {
                    self.send(&request.to_bytes(0), &files);
                }
            }
            Step::Message { code, flags, size, payload, files } => {
                let size = size.map_or(payload.len() as u32, u32::from);
                let words = [u32::from(code), VERSION | u32::from(flags), size];
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).chain(payload).collect();
                self.send(&bytes, &files);
            }
            Step::Bytes(bytes, files) => self.send(&bytes, &files),
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
        for request in self.requests(ask) {
            let needed = match &request {
                Request::SetMemTable(regions) => regions.len(),
                Request::AddMemReg(_) | Request::SetBackendReqFd => 1,
                Request::SetVringKick(file) | Request::SetVringCall(file) | Request::SetVringErr(file) => {
                    usize::from(file.present)
                }
                _ => 0,
            };
            let files: Vec<Kind> = files.iter().copied().cycle().take(needed).collect();
            self.send(&request.to_bytes(if acknowledge { FLAG_NEED_REPLY } else { 0 }), &files);
        }
    }

    fn requests(&self, ask: Ask) -> Vec<Request> {
        let state = |index: u8, num: u32| VringState { index: index.into(), num };
        let file = |index: u8, present| VringFile { index: index.into(), present };
        let region = |at: u64, size: u64, offset: u64| RegionSpec {
            gpa: Gpa(at),
            size,
            user_addr: UserAddr(USER_BASE + at),
            mmap_offset: offset,
        };
        let page = |pages: u8| 0x1000 * u64::from(pages);
        vec![match ask {
            Ask::Features(bits) => Request::SetFeatures(Features(bits)),
            Ask::Begin(how) => {
                let without = [Feature::RingPacked, Feature::InOrder, Feature::AccessPlatform, Feature::EventIdx];
                let features = without.iter().enumerate().fold(self.device.offered(), |set, (at, feature)| {
                    if how >> at & 1 == 1 { set } else { set.without(*feature) }
                });
                return vec![
                    Request::SetProtocolFeatures(self.device.protocol_features()),
                    Request::SetFeatures(features),
                    Request::SetMemTable(vec![region(0, RAM, 0)]),
                ];
            }
            Ask::Protocol(bits) => Request::SetProtocolFeatures(vnic::spec::vhost_user::ProtocolFeatures(bits)),
            Ask::Table { count, size, offset } => {
                let count = u64::from(count % 10);
                let size = page(size % 65);
                Request::SetMemTable((0..count).map(|at| region(at * size, size, page(offset % 4))).collect())
            }
            Ask::AddRegion { at, pages, offset } => Request::AddMemReg(region(page(at), page(pages), page(offset))),
            Ask::RemoveRegion { at, pages } => Request::RemMemReg(region(page(at), page(pages), 0)),
            Ask::Num(index, size) => Request::SetVringNum(state(index % 6, size.into())),
            Ask::Addr { index, desc, avail, used } => Request::SetVringAddr(VringAddr {
                index: u32::from(index % 6),
                flags: 0,
                descriptor: USER_BASE + 8 * u64::from(desc),
                available: USER_BASE + 8 * u64::from(avail),
                used: USER_BASE + 8 * u64::from(used),
                log: 0,
            }),
            Ask::GoodAddr(index) => {
                let at = USER_BASE + ring(index % 4);
                Request::SetVringAddr(VringAddr {
                    index: u32::from(index % 4),
                    flags: 0,
                    descriptor: at,
                    available: at + 0x1000,
                    used: at + 0x1800,
                    log: 0,
                })
            }
            Ask::Base(index, base) => Request::SetVringBase(state(index % 6, base)),
            Ask::GetBase(index) => Request::GetVringBase(state(index % 6, 0)),
            Ask::Kick(index, present) => Request::SetVringKick(file(index % 6, present)),
            Ask::Call(index, present) => Request::SetVringCall(file(index % 6, present)),
            Ask::Err(index, present) => Request::SetVringErr(file(index % 6, present)),
            Ask::Enable(index, on) => Request::SetVringEnable(state(index % 6, u32::from(on % 3))),
            Ask::Status(status) => Request::SetStatus(status.into()),
            Ask::Owner => Request::SetOwner,
            Ask::ResetOwner => Request::ResetOwner,
            Ask::ResetDevice => Request::ResetDevice,
            Ask::Get(which) => match which % 5 {
                0 => Request::GetFeatures,
                1 => Request::GetProtocolFeatures,
                2 => Request::GetQueueNum,
                3 => Request::GetMaxMemSlots,
                _ => Request::GetStatus,
            },
            Ask::Mtu(mtu) => Request::NetSetMtu(mtu.into()),
            Ask::Channel => Request::SetBackendReqFd,
        }]
    }

    /// Sends bytes with files, has the session take all of it, and reads what it answers.
    fn send(&mut self, bytes: &[u8], kinds: &[Kind]) {
        let files: Vec<OwnedFd> = kinds.iter().take(12).filter_map(|kind| self.file(*kind)).collect();
        let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if bytes.is_empty()
            || sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None).is_err()
        {
            return;
        }
        drop(files);
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
        }
    }

    fn file(&self, kind: Kind) -> Option<OwnedFd> {
        let memory = |len: i64| {
            let file = memfd_create(c"short", MFdFlags::MFD_CLOEXEC).ok()?;
            ftruncate(&file, len).ok()?;
            Some(file)
        };
        let pipe = || std::io::pipe().ok();
        Some(match kind {
            Kind::Memory => self.ram.fd().try_clone_to_owned().ok()?,
            Kind::Short => memory(0x1000)?,
            Kind::Empty => memory(0)?,
            Kind::Event => self.kick.try_clone().ok()?,
            Kind::Closed => OwnedFd::from(pipe()?.0),
            Kind::Broken => OwnedFd::from(pipe()?.1),
            Kind::Full => {
                let (_eye, end) = pipe()?;
                let end = OwnedFd::from(end);
                let flags = nix::fcntl::OFlag::O_NONBLOCK;
                nix::fcntl::fcntl(&end, nix::fcntl::FcntlArg::F_SETFL(flags)).ok()?;
                while nix::unistd::write(&end, &[0; 4096]).is_ok() {}
                end
            }
            Kind::Null => File::options().read(true).write(true).open("/dev/null").ok()?.into(),
            Kind::Zero => File::options().read(true).write(true).open("/dev/zero").ok()?.into(),
            Kind::Folder => File::open("/").ok()?.into(),
            Kind::Socket => UnixStream::pair().ok()?.0.into(),
        })
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        self.session.end(&mut self.device);
    }
}

/// Where `GoodAddr` has a queue's ring: descriptors, and two pages for the rest.
fn ring(index: u8) -> u64 {
    0x1_0000 + 0x2000 * u64::from(index)
}

fn event() -> OwnedFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd").into()
}

/// A good front-end gets its frame back, whatever the ones before it did.
fn probe(rig: &Rig) {
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
        sent |= transmit.pop_used().expect("a good device").is_some();
        received |= receive.pop_used().expect("a good device").is_some();
        assert!(Instant::now() < deadline, "a good front-end is not served: sent {sent}, received {received}");
        std::thread::yield_now();
    }
}
