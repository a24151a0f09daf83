//! Messages, pieces of messages and files through a relay; a session's view; packed rings without a driver's books.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use proptest::prelude::*;

use super::kind::{DeviceKind, queue_name, told};
use super::mirror::Mirror;
use super::relay::{Relay, Step};
use super::view::{About, Eyes, Peers};
use crate::memory::testing::{GuestRam, USER_BASE};
use crate::spec::vhost_user::{
    FLAG_REPLY, HEADER_LEN, Header, IOTLB_INVALIDATE, IOTLB_READ, IOTLB_UPDATE, Iotlb, ProtocolFeature,
    ProtocolFeatures, VERSION, VringAddr, VringState,
};
use crate::spec::{Feature, Features};
use crate::vhost_user::SessionError;
use crate::vhost_user::message::{Reply, Request, VringFile};
use crate::vhost_user::socket::{Message, send_some};

fn raw(request: u32, payload: &[u8]) -> Vec<u8> {
    let head = [request, VERSION, payload.len() as u32].map(u32::to_le_bytes).concat();
    [head, payload.to_vec()].concat()
}

/// A relay between two sockets, and their far ends.
struct Bench {
    relay: Relay,
    from: UnixStream,
    to: UnixStream,
    sender: UnixStream,
    receiver: UnixStream,
}

impl Bench {
    fn new() -> Bench {
        let (sender, from) = UnixStream::pair().unwrap();
        let (to, receiver) = UnixStream::pair().unwrap();
        receiver.set_nonblocking(true).unwrap();
        Bench { relay: Relay::new(), from, to, sender, receiver }
    }

    fn step(&mut self) -> Result<Step, SessionError> {
        self.relay.step(self.from.as_fd(), self.to.as_fd())
    }

    fn received(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        // It is not blocking: what is there is read before it says that there is no more.
        let _ = self.receiver.read_to_end(&mut all);
        all
    }
}

proptest! {
    /// In whatever pieces they come.
    #[test]
    fn messages_arrive_as_they_were_sent(
        messages in prop::collection::vec((0_u32..100, prop::collection::vec(any::<u8>(), 0..6000)), 1..8),
        cuts in prop::collection::vec(1_usize..5000, 1..20),
    ) {
        let mut bench = Bench::new();
        let all: Vec<u8> = messages.iter().flat_map(|(request, payload)| raw(*request, payload)).collect();
        let (mut rest, mut there, mut passed) = (all.as_slice(), Vec::new(), Vec::new());
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*cut));
            bench.sender.write_all(now).unwrap();
            rest = later;
            loop {
                match bench.step().unwrap() {
                    Step::Passed(message) => passed.push((message.header.request, message.header.size, Some(message.payload))),
                    Step::PassedLong(header) => passed.push((header.request, header.size, None)),
                    Step::Blocked => {}
                    Step::Waiting => break,
                    other => panic!("{other:?}"),
                }
                there.extend(bench.received());
            }
            there.extend(bench.received());
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(there == all, "{} bytes of {}", there.len(), all.len());
        let expected: Vec<_> = messages
            .into_iter()
            .map(|(request, payload)| {
                let fits = HEADER_LEN + payload.len() <= 4096;
                (request, payload.len() as u32, fits.then_some(payload))
            })
            .collect();
        prop_assert_eq!(passed, expected);
    }
}

#[test]
fn what_the_other_side_does_not_read_holds_up_its_sender_and_is_not_lost() {
    let mut bench = Bench::new();
    let message = raw(77, &[7; 1000]);
    bench.sender.set_nonblocking(true).unwrap();
    let mut sent = 0;
    loop {
        match bench.sender.write(&message) {
            Ok(bytes) if bytes == message.len() => sent += 1,
            // Full: a part of a message would do as well, but this one is easier to count.
            Ok(bytes) => {
                bench.sender.set_nonblocking(false).unwrap();
                while !matches!(bench.step().unwrap(), Step::Blocked | Step::Waiting) {}
                let rest = message[bytes..].to_vec();
                let mut sender = bench.sender.try_clone().unwrap();
                let writes = std::thread::spawn(move || sender.write_all(&rest).unwrap());
                while !writes.is_finished() {
                    let _ = bench.received().len();
                    let _ = bench.step().unwrap();
                }
                return;
            }
            Err(_) => match bench.step().unwrap() {
                Step::Blocked => break,
                Step::Passed(_) => {}
                other => panic!("{other:?}"),
            },
        }
    }
    assert!(bench.relay.is_blocked());
    let mut there = Vec::new();
    while there.len() < sent * message.len() {
        there.extend(bench.received());
        assert!(matches!(bench.step().unwrap(), Step::Passed(_) | Step::Blocked | Step::Waiting));
    }
    assert!(there.chunks(message.len()).all(|one| one == message), "{} bytes", there.len());
}

#[test]
fn the_end_between_messages_is_one_and_within_a_message_an_error() {
    let mut bench = Bench::new();
    bench.sender.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(matches!(bench.step(), Ok(Step::Closed)));
    for (sent, missing) in [(5, HEADER_LEN - 5), (HEADER_LEN + 2, 6)] {
        let mut bench = Bench::new();
        bench.sender.write_all(&raw(1, &[0; 8])[..sent]).unwrap();
        bench.sender.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(matches!(bench.step(), Err(SessionError::CutShort { missing: found }) if found == missing));
    }
    let mut bench = Bench::new();
    drop(bench.receiver);
    bench.sender.write_all(&raw(1, &[])).unwrap();
    assert!(matches!(bench.relay.step(bench.from.as_fd(), bench.to.as_fd()), Ok(Step::Refused)));
}

#[test]
fn more_files_than_a_message_may_have_are_an_error_however_they_come() {
    let mut bench = Bench::new();
    let file = bench.receiver.try_clone().unwrap();
    let message = raw(77, &[0; 20]);
    // Six with the first bytes, six in the middle.
    send_some(bench.sender.as_fd(), &message[..4], &[file.as_fd(); 6]).unwrap();
    send_some(bench.sender.as_fd(), &message[4..], &[file.as_fd(); 6]).unwrap();
    assert!(matches!(bench.step(), Err(SessionError::TooManyFds { max: 8 })));
}

/// A view of a session that somebody else has.
struct Watched {
    eyes: Arc<Eyes>,
    mirror: Mirror,
    ram: GuestRam,
}

impl Watched {
    fn new(features: Features) -> Watched {
        let about = About { socket: String::new(), back_end: String::new(), device: None };
        let eyes = Arc::new(Eyes::new(about));
        eyes.forget(Peers::Both);
        let mut watched = Watched { mirror: Mirror::new(eyes.clone()), eyes, ram: GuestRam::new(1 << 20).unwrap() };
        watched.answered(&Request::GetFeatures, u64::MAX);
        watched.asked(&Request::SetProtocolFeatures(ProtocolFeatures(u64::MAX)), &[]);
        watched.asked(&Request::SetFeatures(features.with(Feature::ProtocolFeatures)), &[]);
        let specs = watched.ram.specs().to_vec();
        let fd = watched.ram.fd().try_clone_to_owned().unwrap();
        watched.asked(&Request::SetMemTable(specs), &[fd.as_fd()]);
        watched
    }

    fn asked(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) {
        let payload = request.payload();
        let header = Header { request: request.code() as u32, flags: VERSION, size: payload.len() as u32 };
        let fds: Vec<OwnedFd> = fds.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
        self.mirror.asked(Message { header, payload, fds });
    }

    fn answered(&mut self, request: &Request, number: u64) {
        let bytes = Reply::number(number).to_bytes(request.code() as u32);
        let header = Header { request: request.code() as u32, flags: VERSION | FLAG_REPLY, size: 8 };
        self.mirror.answered(&Message { header, payload: bytes[HEADER_LEN..].to_vec(), fds: Vec::new() });
    }

    fn start(&mut self, index: u32, at: u64, user: u64) {
        self.asked(&Request::SetVringNum(VringState { index, num: 16 }), &[]);
        let [descriptor, available, used] = [at, at + 0x1000, at + 0x2000].map(|part| user + part);
        self.asked(&Request::SetVringAddr(VringAddr { index, flags: 0, descriptor, used, available, log: 0 }), &[]);
        self.asked(&Request::SetVringKick(VringFile { index, present: false }), &[]);
    }

    fn not_understood(&self) -> u64 {
        self.eyes.view().counts.not_understood
    }
}

#[test]
fn rings_come_and_go_with_what_the_front_end_says() {
    let mut watched = Watched::new(Features::of(&[Feature::Version1]));
    watched.start(3, 0x4000, USER_BASE);
    let vring = || watched.eyes.view().said.vrings.get(&3).cloned().unwrap();
    assert_eq!(
        (vring().layout.desc, vring().layout.avail, vring().runs, vring().enabled),
        (0x4000, 0x5000, true, false)
    );
    watched.asked(&Request::SetVringEnable(VringState { index: 3, num: 1 }), &[]);
    watched.asked(&Request::GetVringBase(VringState { index: 3, num: 0 }), &[]);
    let vring = watched.eyes.view().said.vrings.get(&3).cloned().unwrap();
    assert!(!vring.runs && vring.enabled);
    assert_eq!(watched.not_understood(), 0, "{:?}", watched.eyes.view().last_error);
    // A ring outside of memory is none, and what was there before stays.
    watched.start(4, 0x4000, 0);
    assert!(!watched.eyes.view().said.vrings.contains_key(&4));
    assert_eq!(watched.not_understood(), 1);
    let error = watched.eyes.view().last_error.clone().unwrap();
    assert!(error.starts_with("passed on, but not followed: ") && error.contains("SET_VRING_KICK"), "{error}");
    watched.mirror.end();
    assert!(watched.eyes.view().said.memory.is_none());
}

#[test]
fn behind_an_iommu_the_translations_that_pass_are_the_views() {
    let mut watched = Watched::new(Features::of(&[Feature::Version1, Feature::AccessPlatform]));
    watched.start(1, 0xf_0000_4000, 0);
    let told = |kind, iova, user| Iotlb { iova, size: 0x8000, user_address: user, permissions: IOTLB_READ, kind };
    watched.asked(&Request::IotlbMsg(told(IOTLB_UPDATE, 0xf_0000_0000, USER_BASE + 0x1_0000)), &[]);
    watched.ram.write(0x1_5002, &7_u16.to_le_bytes()).unwrap();
    let avail_idx = || {
        let mut bytes = [0; 2];
        watched.eyes.memory().unwrap().read(0xf_0000_5002, &mut bytes).map(|()| u16::from_le_bytes(bytes))
    };
    assert_eq!(avail_idx().unwrap(), 7);
    watched.asked(&Request::IotlbMsg(told(IOTLB_INVALIDATE, 0xf_0000_0000, 0)), &[]);
    let mut bytes = [0; 2];
    assert!(watched.eyes.memory().unwrap().read(0xf_0000_5002, &mut bytes).is_err());
    assert_eq!(watched.not_understood(), 0, "{:?}", watched.eyes.view().last_error);
}

#[test]
fn once_memory_is_copied_behind_the_guest_it_is_not_looked_at() {
    let mut watched = Watched::new(Features::of(&[Feature::Version1]));
    watched.start(0, 0x4000, USER_BASE);
    let header = Header { request: 28, flags: VERSION, size: 0 };
    watched.mirror.asked(Message { header, payload: Vec::new(), fds: Vec::new() });
    assert!(watched.eyes.memory().is_none());
    let (specs, fd) = (watched.ram.specs().to_vec(), watched.ram.fd().try_clone_to_owned().unwrap());
    watched.asked(&Request::SetMemTable(specs), &[fd.as_fd()]);
    assert!(watched.eyes.memory().is_none());
    assert!(watched.eyes.view().last_error.as_ref().unwrap().contains("post-copy"));
}

#[test]
fn the_kind_is_told_by_what_only_one_kind_has() {
    let protocol = |features: &[ProtocolFeature]| ProtocolFeatures::of(features);
    let (none, config) = (protocol(&[]), protocol(&[ProtocolFeature::Config]));
    assert_eq!(told(Features::of(&[Feature::MrgRxbuf]), none, false), Some(DeviceKind::NET));
    assert_eq!(told(Features::NONE, protocol(&[ProtocolFeature::NetMtu]), true), Some(DeviceKind::NET));
    let flush = Features(1 << 9);
    assert_eq!([told(flush, config, true), told(flush, config, false)], [Some(DeviceKind::BLK), None]);
    assert_eq!(told(Features(1 << 32), config, true), None);
    let fs: DeviceKind = "fs".parse().unwrap();
    let names = |kind| [0, 1, 2].map(|index| queue_name(kind, index));
    assert_eq!(names(Some(fs)), ["hiprioq", "requestq0", "requestq1"]);
    assert_eq!(names(Some(DeviceKind::NET)), ["receiveq0", "transmitq0", "receiveq1"]);
    assert_eq!(names(None), ["queue0", "queue1", "queue2"]);
    assert!("toaster".parse::<DeviceKind>().unwrap_err().to_string().contains("net, blk"));
}
