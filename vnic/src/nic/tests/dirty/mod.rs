//! The log of dirty pages: guest memory before and after, page by page, against what the device says that it wrote.
//!
//! Operation, one round: the driver half adds its chains while the device is stopped; all memory is read; the device runs until all
//! is done, and stops; all memory is read again. In between nobody else has written: each page that is different must be marked.
//! What is marked must be a receive buffer, or a part of a ring that is the device's to write.

mod links;
mod moved;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::*;
use crate::memory::{Access, DirtyLog, LOG_PAGE, SharedArea};
use crate::vhost_user::Log;

/// Entries of a ring: so that its parts lie in several pages.
const ENTRIES: u16 = 512;
/// Receive buffers: each `STRIDE` behind the one before, so that many lie across a page's end.
const STRIDE: u64 = 0x900;
const BUFFER: u32 = 2000;

/// A log of the test's RAM, and the front-end's view of it.
pub(crate) struct Pages {
    pub(super) log: Arc<DirtyLog>,
    seen: SharedArea,
}

impl Pages {
    pub(crate) fn new() -> Self {
        let len = RAM / LOG_PAGE / 8;
        let file = SharedArea::file(len).unwrap();
        let seen = SharedArea::open(file.try_clone().unwrap(), 0, len).unwrap();
        Pages { log: Arc::new(DirtyLog::open(file, 0, len).unwrap()), seen }
    }

    pub(crate) fn log(&self) -> Option<Log> {
        Some(Log { pages: Arc::clone(&self.log), told: None })
    }

    /// The pages that are marked, which are not from then on.
    pub(crate) fn take(&self) -> BTreeSet<u64> {
        let bytes = (0..self.seen.len()).map(|at| (at, self.seen.byte(at).unwrap().swap(0, Ordering::AcqRel)));
        bytes
            .flat_map(|(at, byte)| (0..8).filter(move |bit| byte & 1 << bit != 0).map(move |bit| 8 * at as u64 + bit))
            .collect()
    }
}

pub(super) fn pages_of(addr: u64, len: u64) -> impl Iterator<Item = u64> {
    addr / LOG_PAGE..(addr + len).div_ceil(LOG_PAGE)
}

/// The pages of a ring that are the device's to write.
pub(crate) fn ring_pages(queue: &Queue, features: spec::Features) -> BTreeSet<u64> {
    let parts = queue.layout.parts(features).into_iter().filter(|(_, _, access)| *access == Access::Write);
    parts.flat_map(|(addr, len, _)| pages_of(addr, len)).collect()
}

/// Which pages are different.
pub(crate) fn changed(before: &[u8], after: &[u8]) -> BTreeSet<u64> {
    let pages = before.chunks(LOG_PAGE as usize).zip(after.chunks(LOG_PAGE as usize));
    (0..).zip(pages).filter(|(_, (before, after))| before != after).map(|(page, _)| page).collect()
}

/// A device whose writes are logged, and whose rings do not run between rounds.
pub(super) struct Logged {
    pub(super) rig: Rig,
    features: spec::Features,
    pages: Pages,
    bases: [VringBase; 2],
    /// Receive buffers so far, and frames sent.
    posted: u64,
    sent: u64,
    seed: u8,
}

/// What a round came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Round {
    /// Chains that came back: receiveq, transmitq.
    pub(super) back: [usize; 2],
    pub(super) changed: usize,
}

/// A device with memory and features, whose queues are not started.
pub(super) fn rig(served: Served, features: spec::Features) -> Rig {
    let ram = GuestRam::new(RAM).unwrap();
    let (rx, tx) = (Queue::sized(&ram, 0x1000, features, ENTRIES), Queue::sized(&ram, 0x2_0000, features, ENTRIES));
    let (device, shared, workers, notices) = served;
    let mut rig = Rig { ram, device, shared, workers, notices, tx, rx };
    rig.device.set_features(features).unwrap();
    rig.device.set_memory(Arc::clone(rig.ram.memory())).unwrap();
    rig
}

impl Logged {
    pub(super) fn new(served: Served, features: spec::Features) -> Self {
        let mut rig = rig(served, features);
        let pages = Pages::new();
        rig.device.set_log(pages.log()).unwrap();
        Logged { rig, features, pages, bases: [start_of(features); 2], posted: 0, sent: 0, seed: 0 }
    }

    /// Bytes that no round before had in the same place.
    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        self.seed = self.seed.wrapping_add(89);
        (0..len).map(|at| (at as u8).wrapping_mul(7).wrapping_add(self.seed)).collect()
    }

    /// Makes so many receive buffers available. Returns where they are.
    pub(super) fn post(&mut self, count: u64) -> Vec<u64> {
        let at: Vec<u64> = (self.posted..self.posted + count).map(|n| RECEIVE + STRIDE * (n % 300)).collect();
        self.posted += count;
        for addr in &at {
            // In two pieces, as a frame may lie.
            let pieces = [Buffer::writable(*addr, 700), Buffer::writable(addr + 700, BUFFER - 700)];
            let pieces = if addr % 0x200 == 0 { &pieces[..] } else { &[Buffer::writable(*addr, BUFFER)] };
            self.rig.rx.driver.add(pieces, Placement::Direct).unwrap();
        }
        self.rig.rx.driver.publish();
        at
    }

    /// Makes a frame available to be sent.
    pub(super) fn send(&mut self, frame: &[u8]) {
        let at = PAYLOAD + 0x800 * (self.sent % 256);
        self.sent += 1;
        self.rig.ram.write(at, frame).unwrap();
        let len = u32::try_from(frame.len()).unwrap();
        let chain = [Buffer::readable(HEADER, NET_HEADER_LEN as u32), Buffer::readable(at, len)];
        self.rig.tx.driver.add(&chain, Placement::Direct).unwrap();
        self.rig.tx.driver.publish();
    }

    /// Gives up the receive buffers that were not used: the receiveq begins anew.
    pub(super) fn drop_buffers(&mut self) {
        self.rig.rx = Queue::sized(&self.rig.ram, 0x1000, self.features, ENTRIES);
        let layout = self.rig.rx.layout;
        for (addr, len, _) in layout.parts(self.features) {
            self.rig.ram.write(addr, &vec![0; len as usize]).unwrap();
        }
        self.bases[0] = start_of(self.features);
    }

    /// Runs the device until so many chains went through its queues; `feed` is what comes from the link.
    pub(super) fn round(&mut self, buffers: &[u64], wanted: [u64; 2], feed: impl FnOnce()) -> Round {
        let rig = &mut self.rig;
        let before = rig.ram.read(0, RAM as usize).unwrap();
        let until = [RX, TX].map(|queue| rig.counter(queue, "chains") + wanted[usize::from(queue)]);
        rig.device.start_queue(RX, rig.rx.setup_at(self.bases[0])).unwrap();
        rig.device.start_queue(TX, rig.tx.setup_at(self.bases[1])).unwrap();
        feed();
        rig.wait_for("the chains", |rig| [RX, TX].map(|queue| rig.counter(queue, "chains")) >= until);
        self.bases = [rig.device.stop_queue(RX).unwrap(), rig.device.stop_queue(TX).unwrap()];
        let after = rig.ram.read(0, RAM as usize).unwrap();

        let (changed, marked) = (changed(&before, &after), self.pages.take());
        let unmarked: Vec<_> = changed.difference(&marked).collect();
        assert!(unmarked.is_empty(), "written and not marked: pages {unmarked:x?} {:?}", self.features);
        let mut may: BTreeSet<u64> = buffers.iter().flat_map(|at| pages_of(*at, BUFFER.into())).collect();
        may.extend(ring_pages(&rig.rx, self.features));
        may.extend(ring_pages(&rig.tx, self.features));
        let astray: Vec<_> = marked.difference(&may).collect();
        assert!(astray.is_empty(), "marked, and not the device's to write: pages {astray:x?} {:?}", self.features);
        assert_eq!(self.pages.log.outside(), 0);

        let back = |queue: &mut Queue| std::iter::from_fn(|| queue.driver.pop_used().unwrap()).count();
        Round { back: [back(&mut rig.rx), back(&mut rig.tx)], changed: changed.len() }
    }
}

#[test]
fn a_queue_that_has_no_log_marks_nothing_and_one_whose_log_is_taken_away_no_more() {
    for features in formats() {
        let mut logged = Logged::new(serve(vec![link::open(&LinkKind::Loopback, 1).unwrap()], 1), features);
        logged.rig.device.set_log(None).unwrap();
        let rig = &mut logged.rig;
        rig.device.start_queue(RX, rig.rx.setup_at(logged.bases[0])).unwrap();
        rig.device.start_queue(TX, rig.tx.setup_at(logged.bases[1])).unwrap();
        let ring = |pages: &BTreeSet<u64>, rig: &Rig| ring_pages(&rig.rx, features).is_subset(pages);
        for on in [false, true, false, true, false] {
            rig.device.set_log(if on { logged.pages.log() } else { None }).unwrap();
            assert_eq!(ring(&logged.pages.take(), rig), on, "what may have been written before");
            rig.rx.add(&[Buffer::writable(RECEIVE, BUFFER)]);
            rig.send(500);
            rig.rx.used();
            rig.tx.used();
            rig.device.set_enabled(RX, true).unwrap();
            assert_eq!(logged.pages.take().contains(&(RECEIVE / LOG_PAGE)), on, "{features:?}");
        }
    }
}

/// Turning the log on or off is no negotiation: the link hears nothing of it, and the frames that it has go on.
#[test]
fn the_log_is_turned_on_and_off_under_a_stream_of_frames_and_all_of_them_come_in_order() {
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Loopback, features);
        let pages = Pages::new();
        for round in 0..200_u64 {
            for n in 0..8 {
                rig.rx.add(&[Buffer::writable(RECEIVE + n * STRIDE, BUFFER)]);
            }
            for n in 0..8 {
                rig.ram.write(PAYLOAD + n * 0x100, &[round as u8, n as u8]).unwrap();
                rig.tx.add(&[Buffer::readable(HEADER, 12), Buffer::readable(PAYLOAD + n * 0x100, 60)]);
            }
            rig.device.set_log(pages.log().filter(|_| round % 2 == 0)).unwrap();
            for n in 0..8_u64 {
                assert_eq!(rig.rx.used().written, 72);
                rig.tx.used();
                let frame = rig.ram.read(RECEIVE + n * STRIDE + 12, 2).unwrap();
                assert_eq!(frame, [round as u8, n as u8], "{features:?}");
            }
        }
        assert_eq!(rig.counter(TX, "drops") + rig.counter(RX, "drops"), 0);
    }
}

#[test]
fn a_log_whose_file_shrinks_ends_the_session() {
    let mut rig = Rig::new(&LinkKind::Loopback);
    let len = RAM / LOG_PAGE / 8;
    let file = SharedArea::file(len).unwrap();
    let log = Arc::new(DirtyLog::open(file.try_clone().unwrap(), 0, len).unwrap());
    rig.device.set_log(Some(Log { pages: Arc::clone(&log), told: None })).unwrap();
    nix::unistd::ftruncate(&file, 0).unwrap();
    rig.rx.add(&[Buffer::writable(RECEIVE, BUFFER)]);
    rig.send(500);
    let notice = rig.notices.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(notice, Notice::MemoryLost) && log.lost());
}

#[test]
fn whoever_wants_to_know_is_told_that_something_was_logged() {
    let mut rig = Rig::new(&LinkKind::Sink);
    let (pages, told) = (Pages::new(), event());
    rig.device.set_log(Some(Log { pages: Arc::clone(&pages.log), told: Some(Arc::clone(&told)) })).unwrap();
    rig.send(100);
    rig.tx.used();
    assert!(readable(&told));
}

/// `log_guest_addr` of `SET_VRING_ADDR`.
#[test]
fn a_used_ring_is_logged_where_the_front_end_says_as_well() {
    const ELSEWHERE: u64 = 0x3f_0000;
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Sink, features);
        let pages = Pages::new();
        rig.device.set_ring_log(TX, Some(ELSEWHERE)).unwrap();
        rig.device.set_log(pages.log()).unwrap();
        assert!(pages.take().contains(&(ELSEWHERE / LOG_PAGE)));
        rig.send(100);
        rig.tx.used();
        rig.device.set_enabled(TX, true).unwrap();
        let marked = pages.take();
        let packed = features.has(Feature::RingPacked);
        assert!(packed || marked.contains(&(ELSEWHERE / LOG_PAGE)), "{marked:x?} {features:?}");
        assert!(ring_pages(&rig.tx, features).is_subset(&marked), "{marked:x?} {features:?}");
    }
}
