//! A front-end of ours, and what it takes to put `vnic proxy` before a back-end.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use vnic::memory::Memory;
use vnic::memory::testing::{GuestRam, USER_BASE};
use vnic::ring::{Buffer, DriverRing, Placement, RingLayout, SplitDriver};
use vnic::spec::blk::{BlkHeader, HEADER_LEN as BLK_HEADER_LEN, S_OK, T_IN};
use vnic::spec::vhost_user::{HEADER_LEN, ProtocolFeature, ProtocolFeatures, VringAddr, VringState};
use vnic::spec::{Feature, Features};
use vnic::vhost_user::message::{ConfigAccess, Request, VringFile};
use vnic::vhost_user::socket::Connection;

use crate::util::{LIMIT, Scratch, wait_for};

const RAM: u64 = 1 << 20;
const RING: u64 = 0x1000;
const SIZE: u16 = 8;
const FEATURES: Features = Features::of(&[Feature::Version1, Feature::IndirectDesc, Feature::ProtocolFeatures]);

/// A `vnic` that serves something; killed with the test.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn start(scratch: &Scratch, args: &[&str], socket: &str) -> Process {
        let mut command = scratch.vnic();
        let child = command.args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut process = Process(child);
        wait_for("a socket that is served", || {
            if process.0.try_wait().unwrap().is_some() {
                panic!("{args:?} ended: {}", process.said());
            }
            // The control socket comes last.
            UnixStream::connect(scratch.path(&format!("{socket}.control"))).ok()
        });
        process
    }

    pub(crate) fn proxy(scratch: &Scratch) -> Process {
        Process::start(scratch, &["proxy", "--socket-path", "front.sock", "--back-end", "back.sock"], "front.sock")
    }

    pub(crate) fn disk(scratch: &Scratch) -> Process {
        let image = scratch.path("image");
        if !image.exists() {
            let sectors: Vec<u8> = (0..64_u8).flat_map(|sector| [sector; 512]).collect();
            fs::write(image, sectors).unwrap();
        }
        Process::start(scratch, &["serve", "--blk", "back.sock,file=image"], "back.sock")
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub(crate) fn said(&mut self) -> String {
        let mut said = String::new();
        let _ = self.0.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
        said
    }

    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap().count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A front-end with a ring at index `index`.
pub(crate) struct FrontEnd {
    pub(crate) connection: Connection,
    reader: UnixStream,
    pub(crate) ram: GuestRam,
    driver: SplitDriver,
    pub(crate) kick: EventFd,
    _call: EventFd,
    added: u64,
}

impl FrontEnd {
    pub(crate) fn connect(socket: &Path) -> (Connection, UnixStream) {
        let stream = wait_for("the proxy", || UnixStream::connect(socket).ok());
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        (Connection::new(OwnedFd::from(stream.try_clone().unwrap())), stream)
    }

    pub(crate) fn start(scratch: &Scratch, index: u32) -> FrontEnd {
        let (connection, reader) = FrontEnd::connect(&scratch.path("front.sock"));
        let ram = GuestRam::new(RAM).unwrap();
        let (layout, _) = RingLayout::split_at(RING, SIZE).unwrap();
        let memory: Arc<Memory> = ram.memory().clone();
        let driver = SplitDriver::new(layout, memory, FEATURES).unwrap();
        let eventfd = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap();
        let mut front_end = FrontEnd { connection, reader, ram, driver, kick: eventfd(), _call: eventfd(), added: 0 };
        front_end.say(&Request::SetOwner, &[]);
        let offered = Features(front_end.ask(&Request::GetFeatures));
        assert!(FEATURES.is_subset_of(offered), "{offered}");
        let offered = front_end.ask(&Request::GetProtocolFeatures);
        let wanted = ProtocolFeatures::of(&[ProtocolFeature::Mq, ProtocolFeature::Config]);
        let taken = ProtocolFeatures(offered & wanted.0);
        front_end.say(&Request::SetProtocolFeatures(taken), &[]);
        front_end.say(&Request::SetFeatures(FEATURES), &[]);
        let specs = front_end.ram.specs().to_vec();
        front_end.say(&Request::SetMemTable(specs), &[front_end.ram.fd()]);
        front_end.say(&Request::SetVringNum(VringState { index, num: SIZE.into() }), &[]);
        front_end.say(&Request::SetVringBase(VringState { index, num: 0 }), &[]);
        let [descriptor, available, used] = [layout.desc, layout.avail, layout.used].map(|gpa| USER_BASE + gpa);
        front_end.say(&Request::SetVringAddr(VringAddr { index, flags: 0, descriptor, used, available, log: 0 }), &[]);
        let file = VringFile { index, present: true };
        front_end.say(&Request::SetVringCall(file), &[front_end._call.as_fd()]);
        front_end.say(&Request::SetVringKick(file), &[front_end.kick.as_fd()]);
        front_end.say(&Request::SetVringEnable(VringState { index, num: 1 }), &[]);
        // Answered only when all before it has been taken in.
        front_end.ask(&Request::GetFeatures);
        front_end
    }

    pub(crate) fn say(&self, request: &Request, fds: &[BorrowedFd<'_>]) {
        self.connection.send(&request.to_bytes(0), fds).unwrap();
    }

    pub(crate) fn ask(&mut self, request: &Request) -> u64 {
        self.say(request, &[]);
        let mut reply = [0; HEADER_LEN + 8];
        self.reader.read_exact(&mut reply).unwrap();
        u64::from_le_bytes(reply[HEADER_LEN..].try_into().unwrap())
    }

    /// A disk's configuration, which makes it one for who looks on.
    pub(crate) fn read_config(&mut self) {
        let access = ConfigAccess { offset: 0, flags: 0, bytes: vec![0; 60] };
        self.say(&Request::GetConfig(access), &[]);
        let mut reply = [0; HEADER_LEN + 12 + 60];
        self.reader.read_exact(&mut reply).unwrap();
        assert_eq!(u64::from_le_bytes(reply[HEADER_LEN + 12..][..8].try_into().unwrap()), 64, "sectors");
    }

    /// Makes a chain available, and kicks.
    pub(crate) fn add(&mut self, buffers: &[Buffer]) {
        self.driver.add(buffers, Placement::Direct).unwrap();
        self.driver.publish();
        self.added += 1;
        self.kick.write(1).unwrap();
    }

    pub(crate) fn collect(&mut self) -> u32 {
        wait_for("a used chain", || self.driver.pop_used().unwrap()).written
    }

    /// Reads a sector, and says what stands in it.
    pub(crate) fn read_sector(&mut self, sector: u64) -> Vec<u8> {
        self.ram.write(0x8000, &BlkHeader { kind: T_IN, sector }.to_bytes()).unwrap();
        self.ram.write(0xa000, &[0x55]).unwrap();
        let header = Buffer::readable(0x8000, BLK_HEADER_LEN as u32);
        self.add(&[header, Buffer::writable(0x9000, 512), Buffer::writable(0xa000, 1)]);
        assert_eq!(self.collect(), 513);
        assert_eq!(self.ram.read(0xa000, 1).unwrap(), [S_OK]);
        self.ram.read(0x9000, 512).unwrap()
    }

    pub(crate) fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        matches!(self.reader.read(&mut byte), Ok(0)) || self.reader.write(&[0]).is_err()
    }
}
