//! A front-end and a device of our own around a real session on a real socket pair.

mod config;
mod hostile;
mod in_flight;
mod iommu;
mod listen;
mod log;
mod messages;
mod property;
mod scripts;

use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::message::{Request, VringFile};
use super::socket::send_on;
use super::{BackendChannel, Device, DeviceError, Handled, Log, QueueSetup, Session, SessionError, VringBase};
use crate::memory::testing::{GuestRam, USER_BASE};
use crate::memory::{Gpa, IotlbEntry, Iova, Memory, SharedArea};
use crate::spec::vhost_user::{
    FLAG_NEED_REPLY, FLAG_REPLY, HEADER_LEN, Inflight, ProtocolFeature, ProtocolFeatures, VERSION, VringAddr,
    VringState,
};
use crate::spec::{Feature, Features};

const OFFERED: Features = Features::of(&[
    Feature::Csum,
    Feature::Mq,
    Feature::LogAll,
    Feature::EventIdx,
    Feature::ProtocolFeatures,
    Feature::Version1,
    Feature::AccessPlatform,
    Feature::RingPacked,
]);
const PROTOCOL: ProtocolFeatures = ProtocolFeatures::of(&[
    ProtocolFeature::Mq,
    ProtocolFeature::Rarp,
    ProtocolFeature::ReplyAck,
    ProtocolFeature::NetMtu,
    ProtocolFeature::BackendReq,
    ProtocolFeature::ResetDevice,
    ProtocolFeature::ConfigureMemSlots,
    ProtocolFeature::Status,
]);
const RAM: u64 = 1 << 20;

/// A device that writes down what it is told, and checks what the session promises.
#[derive(Debug, Default)]
struct Recorder {
    calls: Vec<String>,
    running: Vec<u16>,
    /// The method that is to fail.
    refuse: &'static str,
    memory: Option<Arc<Memory>>,
    /// A configuration space of its own.
    config: Option<Vec<u8>>,
    channel: Option<BackendChannel>,
    /// Does it record what is in flight?
    records: bool,
    /// Does it log what it writes?
    logs: bool,
}

impl Recorder {
    fn note(&mut self, call: String) -> Result<(), DeviceError> {
        let refused = !self.refuse.is_empty() && call.starts_with(self.refuse);
        self.calls.push(call);
        if refused { Err("refused by the test".into()) } else { Ok(()) }
    }
}

fn yes(file: &Option<Arc<OwnedFd>>, name: &'static str) -> &'static str {
    if file.is_some() { name } else { "-" }
}

impl Device for Recorder {
    fn offered(&self) -> Features {
        OFFERED
    }

    fn protocol_features(&self) -> ProtocolFeatures {
        let with_config = if self.config.is_some() { PROTOCOL.with(ProtocolFeature::Config) } else { PROTOCOL };
        let with_config = if self.records { with_config.with(ProtocolFeature::InflightShmfd) } else { with_config };
        if self.logs { with_config.with(ProtocolFeature::LogShmfd) } else { with_config }
    }

    fn config(&self) -> Vec<u8> {
        self.config.clone().unwrap_or_default()
    }

    fn set_config(&mut self, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.note(format!("config at {offset} {bytes:02x?}"))
    }

    fn vrings(&self) -> u16 {
        4
    }

    fn queue_num(&self) -> u64 {
        2
    }

    fn max_mem_slots(&self) -> u64 {
        4
    }

    fn max_queue_size(&self) -> u16 {
        1024
    }

    fn set_features(&mut self, features: Features) -> Result<(), DeviceError> {
        self.note(format!("features {:#x}", features.0))
    }

    fn set_memory(&mut self, memory: Arc<Memory>) -> Result<(), DeviceError> {
        self.note(format!("memory {}", memory.regions().len()))?;
        self.memory = Some(memory);
        Ok(())
    }

    fn start_queue(&mut self, index: u16, setup: QueueSetup) -> Result<(), DeviceError> {
        assert!(!self.running.contains(&index) && index < self.vrings(), "start of {index}");
        let at = setup.addresses;
        self.note(format!(
            "start {index} size {} at {} {} {} base {} {} {} {} {}",
            setup.size,
            Gpa(at.descriptors),
            Gpa(at.driver),
            Gpa(at.device),
            setup.base.0,
            if setup.enabled { "enabled" } else { "disabled" },
            yes(&setup.kick, "kick"),
            yes(&setup.call, "call"),
            yes(&setup.err, "err"),
        ))?;
        self.running.push(index);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<VringBase, DeviceError> {
        assert!(self.running.contains(&index), "stop of {index}");
        self.running.retain(|running| *running != index);
        self.calls.push(format!("stop {index}"));
        Ok(VringBase::split(100 + index))
    }

    fn set_enabled(&mut self, index: u16, enabled: bool) -> Result<(), DeviceError> {
        assert!(self.running.contains(&index));
        self.note(format!("enabled {index} {enabled}"))
    }

    fn set_kick(&mut self, index: u16, kick: Option<Arc<OwnedFd>>) -> Result<(), DeviceError> {
        assert!(self.running.contains(&index));
        self.note(format!("kick {index} {}", yes(&kick, "file")))
    }

    fn set_call(&mut self, index: u16, call: Option<Arc<OwnedFd>>) {
        assert!(self.running.contains(&index));
        self.calls.push(format!("call {index} {}", yes(&call, "file")));
    }

    fn set_err(&mut self, index: u16, err: Option<Arc<OwnedFd>>) {
        assert!(self.running.contains(&index));
        self.calls.push(format!("err {index} {}", yes(&err, "file")));
    }

    fn reset(&mut self) {
        assert!(self.running.is_empty(), "reset while queues run");
        self.calls.push("reset".to_owned());
    }

    fn set_status(&mut self, status: u8) {
        self.calls.push(format!("status {status}"));
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DeviceError> {
        self.note(format!("mtu {mtu}"))
    }

    fn send_rarp(&mut self, mac: [u8; 6]) -> Result<(), DeviceError> {
        self.note(format!("rarp {mac:02x?}"))
    }

    fn set_backend_channel(&mut self, channel: Option<BackendChannel>) -> Result<(), DeviceError> {
        self.channel = channel;
        if self.channel.is_some() { self.note("channel".to_owned()) } else { Ok(()) }
    }

    fn in_flight_area(&mut self, queues: u16, size: u16) -> Result<(OwnedFd, u64), DeviceError> {
        self.note(format!("area for {queues} queues of {size}"))?;
        Ok((SharedArea::file(4096)?, 4096))
    }

    fn set_in_flight_area(&mut self, area: Option<(OwnedFd, Inflight)>) -> Result<(), DeviceError> {
        let Some((_, Inflight { mmap_size, mmap_offset, num_queues, queue_size })) = area else {
            return self.note("no area".to_owned());
        };
        self.note(format!("area of {mmap_size} at {mmap_offset} for {num_queues} queues of {queue_size}"))
    }

    fn set_log(&mut self, log: Option<Log>) -> Result<(), DeviceError> {
        self.note(match log {
            None => "log off".to_owned(),
            Some(Log { told: None, .. }) => "log on".to_owned(),
            Some(_) => "log on, told".to_owned(),
        })
    }

    fn set_ring_log(&mut self, index: u16, at: Option<u64>) -> Result<(), DeviceError> {
        at.filter(|_| self.logs).map_or(Ok(()), |at| self.note(format!("ring {index} logged at {at:#x}")))
    }

    fn iotlb_update(&mut self, entry: IotlbEntry) -> Result<(), DeviceError> {
        let IotlbEntry { iova, size, gpa, read, write } = entry;
        self.note(format!(
            "translate {iova}+{size:#x} to {gpa}{}{}",
            if read { " R" } else { "" },
            if write { " W" } else { "" }
        ))
    }

    fn iotlb_invalidate(&mut self, first: Iova, last: Iova) -> Result<(), DeviceError> {
        self.note(format!("void {first} to {last}"))
    }
}

/// How a request is sent.
#[derive(Debug, Clone)]
enum Ask {
    /// As it is.
    Plain(Request),
    /// With `NEED_REPLY`.
    Acked(Request),
}

/// Both ends of a session. Each file sent is the write end of a pipe whose read end tells when the last copy is closed:
/// unlike counting `/proc/self/fd`, that does not see what other tests open.
struct Bench {
    socket: UnixStream,
    session: Session,
    device: Recorder,
    ram: GuestRam,
    eyes: Vec<PipeReader>,
    /// The log that was sent last.
    log: Option<SharedArea>,
}

impl Bench {
    fn new() -> Self {
        let (socket, other) = UnixStream::pair().expect("socket pair");
        let device = Recorder::default();
        let session = Session::new(other.into(), &device);
        let ram = GuestRam::new(RAM).expect("guest RAM");
        Bench { socket, session, device, ram, eyes: Vec::new(), log: None }
    }

    /// A session in which all protocol features are in use.
    fn negotiated() -> Self {
        let mut bench = Bench::new();
        bench.run(&[(Ask::Plain(Request::SetProtocolFeatures(PROTOCOL)), "")]);
        bench
    }

    /// A session with memory and features, whose ring 0 runs.
    fn running() -> Self {
        let mut bench = Bench::negotiated();
        let table = bench.table();
        bench.run(&[
            (Ask::Plain(Request::SetFeatures(Features(0x1_4000_0000))), "features 0x140000000"),
            (Ask::Plain(table), "memory 1"),
            (Ask::Plain(num(0, 256)), ""),
            (Ask::Plain(addr(0, 0x1000)), ""),
            (Ask::Plain(kick(0)), "start 0 size 256 at 0x1000 0x2000 0x3000 base 0 disabled kick - -"),
        ]);
        bench
    }

    fn table(&self) -> Request {
        Request::SetMemTable(self.ram.specs().to_vec())
    }

    fn watched_file(&mut self) -> OwnedFd {
        let (eye, file) = std::io::pipe().expect("pipe");
        self.eyes.push(eye);
        file.into()
    }

    /// How many of the files sent so far are still open somewhere.
    fn open_files(&self) -> usize {
        let open = |eye: &&PipeReader| {
            let mut polled = [PollFd::new(eye.as_fd(), PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::ZERO).expect("poll");
            !polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
        };
        self.eyes.iter().filter(open).count()
    }

    fn send_raw(&mut self, bytes: &[u8], files: usize) {
        let files: Vec<OwnedFd> = (0..files).map(|_| self.watched_file()).collect();
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        send_on(self.socket.as_fd(), bytes, &borrowed).expect("send");
    }

    /// Sends with the files that belong to the request.
    fn send(&mut self, ask: &Ask) {
        let (request, flags) = match ask {
            Ask::Plain(request) => (request, 0),
            Ask::Acked(request) => (request, FLAG_NEED_REPLY),
        };
        let bytes = request.to_bytes(flags);
        match request {
            Request::SetMemTable(regions) => {
                send_on(self.socket.as_fd(), &bytes, &vec![self.ram.fd(); regions.len()]).expect("send");
            }
            Request::SetInflightFd(_) | Request::SetLogFd => self.send_raw(&bytes, 1),
            Request::SetLogBase(area) => {
                let file = SharedArea::file(area.mmap_size).expect("a log");
                send_on(self.socket.as_fd(), &bytes, &[file.as_fd()]).expect("send");
                self.log = Some(SharedArea::open(file, 0, area.mmap_size).expect("a log"));
            }
            Request::AddMemReg(_) => send_on(self.socket.as_fd(), &bytes, &[self.ram.fd()]).expect("send"),
            Request::SetVringKick(file) | Request::SetVringCall(file) | Request::SetVringErr(file) => {
                self.send_raw(&bytes, usize::from(file.present));
            }
            _ => self.send_raw(&bytes, 0),
        }
    }

    fn handle(&mut self) -> Result<Handled, SessionError> {
        self.session.handle(&mut self.device)
    }

    /// The reply's payload, if there is a reply.
    fn reply(&mut self, request: u32) -> Option<u64> {
        let mut bytes = [0; HEADER_LEN + 8];
        self.socket.set_nonblocking(true).expect("fcntl");
        let read = self.socket.read(&mut bytes);
        self.socket.set_nonblocking(false).expect("fcntl");
        match read {
            Ok(20) => {
                let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
                assert_eq!((word(0), word(4), word(8)), (request, VERSION | FLAG_REPLY, 8), "a reply's header");
                Some(u64::from_le_bytes(bytes[12..].try_into().expect("8 bytes")))
            }
            Ok(0) => None,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            other => panic!("a reply of {other:?}"),
        }
    }

    /// One request, and what came of it: the device's calls, the refusal, the reply, in this order, `;` between them.
    fn ask(&mut self, ask: &Ask) -> String {
        self.send(ask);
        self.outcome(match ask {
            Ask::Plain(request) | Ask::Acked(request) => request.code() as u32,
        })
    }

    fn outcome(&mut self, request: u32) -> String {
        let handled = self.handle();
        let mut outcome = std::mem::take(&mut self.device.calls);
        match handled {
            Ok(Handled::Done(code)) => assert_eq!(code as u32, request),
            Ok(Handled::Nothing) => outcome.push("nothing".to_owned()),
            Ok(Handled::Closed) => outcome.push("closed".to_owned()),
            Ok(Handled::Refused(error)) => outcome.push(format!("refused: {error}")),
            Err(error) => outcome.push(format!("ended: {error}")),
        }
        outcome.extend(self.reply(request).map(|number| format!("= {number:#x}")));
        outcome.join("; ")
    }

    fn run(&mut self, script: &[(Ask, &str)]) {
        for (at, (ask, expected)) in script.iter().enumerate() {
            assert_eq!(&self.ask(ask), expected, "step {at}: {ask:?}");
        }
    }

    /// The front-end leaves.
    fn hang_up(&mut self) -> String {
        self.socket.shutdown(std::net::Shutdown::Both).expect("shutdown");
        self.outcome(0)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("write");
    }
}

fn state(index: u32, num: u32) -> VringState {
    VringState { index, num }
}

fn num(index: u32, size: u32) -> Request {
    Request::SetVringNum(state(index, size))
}

fn base(index: u32, base: u32) -> Request {
    Request::SetVringBase(state(index, base))
}

fn get_base(index: u32) -> Request {
    Request::GetVringBase(state(index, 0))
}

fn enable(index: u32, enable: u32) -> Request {
    Request::SetVringEnable(state(index, enable))
}

fn file(index: u32) -> VringFile {
    VringFile { index, present: true }
}

fn kick(index: u32) -> Request {
    Request::SetVringKick(file(index))
}

fn call(index: u32) -> Request {
    Request::SetVringCall(file(index))
}

fn err(index: u32) -> Request {
    Request::SetVringErr(file(index))
}

/// A ring's three areas, a page each, from this guest-physical address on.
fn addr(index: u32, at: u64) -> Request {
    let user = |gpa: u64| gpa.wrapping_add(USER_BASE);
    Request::SetVringAddr(VringAddr {
        index,
        flags: 0,
        descriptor: user(at),
        available: user(at + 0x1000),
        used: user(at + 0x2000),
        log: at + 0x2000,
    })
}

/// Guest RAM in two regions with a hole between them, as a PC has it.
fn two_regions() -> GuestRam {
    GuestRam::with_regions(&[(Gpa(0), 0xa_0000), (Gpa(0xc_0000), 0x4_0000)]).expect("guest RAM")
}
