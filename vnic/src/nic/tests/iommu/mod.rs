//! Behind the guest's IOMMU: a front-end of ours answers, or does not.

mod logged;
mod scattered;
mod voided;

use std::io::Read as _;
use std::os::unix::net::UnixStream;

use super::*;
use crate::memory::{Access, Gpa, IotlbEntry, Iova};
use crate::observe::protocol::Status;
use crate::spec::vhost_user::{IOTLB_ACCESS_FAIL, IOTLB_MISS, IOTLB_WRITE};
use crate::vhost_user::BackendChannel;

const PAGE: u64 = 4096;
/// Where the IOMMU has what is at guest-physical 0: everything is this much further on, unless a test says otherwise.
const SHIFT: u64 = 0x7_0000_0000;

const fn iova(gpa: u64) -> u64 {
    gpa + SHIFT
}

fn behind(features: spec::Features) -> spec::Features {
    features.with(Feature::AccessPlatform)
}

struct Behind {
    rig: Rig,
    front_end: UnixStream,
}

/// What the device said over the channel.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    kind: u8,
    iova: u64,
    access: Access,
}

impl Behind {
    /// A device whose rings are at IOVAs of which it knows nothing.
    fn new(link: &LinkKind, features: spec::Features) -> Self {
        Behind::on(serve(vec![link::open(link, 1).unwrap()], 1), features)
    }

    /// The same on a device that is there.
    fn on((device, shared, workers, notices): Served, features: spec::Features) -> Self {
        let features = behind(features);
        let ram = GuestRam::new(RAM).unwrap();
        let (rx, tx) = (Queue::new(&ram, 0x1000, features), Queue::new(&ram, 0x8000, features));
        let mut rig = Rig { ram, device, shared, workers, notices, tx, rx };
        let (front_end, back_end) = UnixStream::pair().unwrap();
        front_end.set_read_timeout(Some(PATIENCE)).unwrap();
        rig.device.set_backend_channel(Some(BackendChannel::new(back_end.into()))).unwrap();
        rig.device.set_features(features).unwrap();
        rig.device.set_memory(Arc::clone(rig.ram.memory())).unwrap();
        let mut behind = Behind { rig, front_end };
        behind.start(TX, start_of(features));
        behind.start(RX, start_of(features));
        behind
    }

    /// One whose rings are translated.
    fn ready(link: &LinkKind, features: spec::Features) -> Self {
        let mut behind = Behind::new(link, features);
        behind.give_rings();
        behind
    }

    fn start(&mut self, index: u16, base: VringBase) {
        let queue = if index == TX { &self.rig.tx } else { &self.rig.rx };
        let mut setup = queue.setup_at(base);
        let RingAddresses { descriptors, driver, device } = setup.addresses;
        let [descriptors, driver, device] = [descriptors, driver, device].map(iova);
        setup.addresses = RingAddresses { descriptors, driver, device };
        self.rig.device.start_queue(index, setup).unwrap();
    }

    /// Answers what the device asks, each page to its own place, until both rings are within reach.
    fn give_rings(&mut self) {
        for _ in 0..2 {
            let pages = [self.said().iova, self.said().iova];
            assert_eq!(pages[0] / PAGE, pages[1] / PAGE, "one page to read and to write");
            self.give_page(pages[0], pages[0] - SHIFT, "rw");
        }
        self.rig
            .wait_for("the rings", |rig| rig.shared.queues.iter().all(|queue| queue.state() == QueueState::Running));
    }

    /// The next thing the device said.
    fn said(&mut self) -> Said {
        let mut bytes = [0; 12 + 32];
        self.front_end.read_exact(&mut bytes).expect("the device asks");
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let access = if bytes[12 + 24] == IOTLB_WRITE { Access::Write } else { Access::Read };
        Said { kind: bytes[12 + 25], iova: word(12), access }
    }

    /// The next misses, by page.
    fn misses(&mut self, count: usize) -> Vec<(u64, Access)> {
        let mut misses: Vec<_> = (0..count)
            .map(|_| {
                let Said { kind, iova, access } = self.said();
                assert_eq!(kind, IOTLB_MISS);
                (iova - iova % PAGE, access)
            })
            .collect();
        misses.sort_unstable();
        misses
    }

    /// The device has nothing more to ask, now that it has done all that it was told.
    fn is_silent(&mut self) -> bool {
        // A command later it has.
        self.rig.workers.translated();
        assert!(self.rig.workers.hold(RX, false));
        self.front_end.set_nonblocking(true).unwrap();
        let silent = self.front_end.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        self.front_end.set_nonblocking(false).unwrap();
        silent
    }

    fn give(&mut self, iova: u64, size: u64, gpa: u64, rights: &str) {
        let (read, write) = (rights.contains('r'), rights.contains('w'));
        let entry = IotlbEntry { iova: Iova(iova), size, gpa: Gpa(gpa), read, write };
        self.rig.device.iotlb_update(entry).unwrap();
    }

    fn give_page(&mut self, iova: u64, gpa: u64, rights: &str) {
        self.give(iova - iova % PAGE, PAGE, gpa - gpa % PAGE, rights);
    }

    /// The page at `gpa`, where all is shifted.
    fn give_shifted(&mut self, gpa: u64, rights: &str) {
        self.give_page(iova(gpa), gpa, rights);
    }

    fn invalidate(&mut self, first: u64, last: u64) {
        self.rig.device.iotlb_invalidate(Iova(first), Iova(last)).unwrap();
    }

    fn send(&mut self, payload: u64, len: u32) {
        self.rig.tx.add(&[Buffer::readable(iova(HEADER), NET_HEADER_LEN as u32), Buffer::readable(payload, len)]);
    }

    fn features(&self) -> spec::Features {
        self.rig.shared.view().negotiated
    }

    fn state(&self, index: u16) -> QueueState {
        self.rig.shared.queues[usize::from(index)].state()
    }

    fn status(&self) -> Status {
        crate::serve::status::device(&self.rig.shared)
    }

    /// Sends `len` bytes at `payload`, and returns them as they came back round on the receiveq. All is translated.
    fn round(&mut self, payload: u64, len: u32) -> Vec<u8> {
        self.rig.rx.add(&[Buffer::writable(iova(RECEIVE), PAGE as u32)]);
        self.send(payload, len);
        self.rig.tx.used();
        let written = self.rig.rx.used().written as usize;
        self.rig.ram.read(RECEIVE + NET_HEADER_LEN as u64, written - NET_HEADER_LEN).unwrap()
    }
}

#[test]
fn all_that_a_chain_misses_is_asked_for_at_once_and_once() {
    for features in formats() {
        let mut behind = Behind::new(&LinkKind::Sink, features);
        let waits = |rig: &Rig| rig.shared.queues.iter().all(|queue| queue.state() == QueueState::Waiting);
        behind.rig.wait_for("both wait", waits);
        behind.give_rings();
        // A header, and a payload over three pages.
        behind.send(iova(PAYLOAD) + 100, 2 * PAGE as u32);
        let read = |gpa| (iova(gpa), Access::Read);
        let pages = [HEADER, PAYLOAD, PAYLOAD + PAGE, PAYLOAD + 2 * PAGE];
        assert_eq!(behind.misses(4), pages.map(read));
        for page in [HEADER, PAYLOAD + PAGE, PAYLOAD] {
            behind.give_shifted(page, "rw");
            assert!(behind.is_silent());
            assert_eq!(behind.state(TX), QueueState::Waiting);
        }
        behind.give_shifted(PAYLOAD + 2 * PAGE, "rw");
        behind.rig.tx.used();
        assert_eq!(behind.rig.counter(TX, "bytes"), 2 * PAGE);
        // Warm.
        for _ in 0..200 {
            behind.send(iova(PAYLOAD) + 100, 2 * PAGE as u32);
            behind.rig.tx.used();
        }
        assert!(behind.is_silent());
        let iotlb = behind.status().iotlb.unwrap();
        assert_eq!((iotlb.entries, iotlb.misses, iotlb.updates), (6, 8, 6), "{iotlb:?}");
        // A header and a payload each time: the pages of a payload are neighbours, and looked up as one.
        assert!(iotlb.hits >= 200 * 2, "{iotlb:?}");
        assert_eq!(behind.rig.counter(TX, "errors") + behind.rig.counter(RX, "errors"), 0);
    }
}

#[test]
fn tables_and_buffers_go_through_the_iommu_alike() {
    for features in formats() {
        let mut behind = Behind::ready(&LinkKind::Sink, features);
        // The driver half writes its table at the address it gives to the device.
        let table = 0x4_0ff0;
        let chain = [Buffer::readable(iova(HEADER), 12), Buffer::readable(iova(PAYLOAD), 100)];
        behind.rig.tx.driver.add(&chain, Placement::Indirect(table)).unwrap();
        behind.rig.tx.kick_if_wanted();
        // It goes over a page's border.
        assert_eq!(behind.misses(1), [(0x4_0000, Access::Read)]);
        behind.give_page(table, table, "r");
        assert_eq!(behind.misses(1), [(0x4_1000, Access::Read)]);
        // To a page elsewhere: what the driver half wrote must be there, too.
        let second = behind.rig.ram.read(0x4_1000, 16).unwrap();
        behind.rig.ram.write(0x6_0000, &second).unwrap();
        behind.give_page(0x4_1000, 0x6_0000, "r");
        assert_eq!(behind.misses(2), [(iova(HEADER), Access::Read), (iova(PAYLOAD), Access::Read)]);
        behind.give_shifted(HEADER, "r");
        behind.give_shifted(PAYLOAD, "r");
        behind.rig.tx.used();
        assert_eq!((behind.rig.counter(TX, "bytes"), behind.rig.counter(TX, "errors")), (100, 0));
    }
}

#[test]
fn a_buffer_lies_wherever_its_pages_are() {
    for features in formats() {
        let mut behind = Behind::ready(&LinkKind::Loopback, features);
        let bytes: Vec<u8> = (0..3 * PAGE).map(|at| (at / 7) as u8).collect();
        for (page, at) in [(0, 0x2_5000), (1, 0x2_3000), (2, 0x2_4000)] {
            behind.rig.ram.write(at, &bytes[page * PAGE as usize..][..PAGE as usize]).unwrap();
        }
        behind.rig.rx.add(&[Buffer::writable(iova(RECEIVE), 4 * PAGE as u32)]);
        behind.send(iova(PAYLOAD) + 8, 2 * PAGE as u32);
        behind.misses(4);
        behind.give_shifted(HEADER, "r");
        for (page, at) in [(0, 0x2_5000), (1, 0x2_3000), (2, 0x2_4000)] {
            behind.give_page(iova(PAYLOAD) + page * PAGE, at, "r");
        }
        let write = |page| (iova(RECEIVE) + page * PAGE, Access::Write);
        assert_eq!(behind.misses(4), [0, 1, 2, 3].map(write));
        // Back to front.
        for page in 0..4 {
            behind.give_page(iova(RECEIVE) + page * PAGE, RECEIVE + (3 - page) * PAGE, "w");
        }
        behind.rig.tx.used();
        let written = behind.rig.rx.used().written as usize;
        let mut got: Vec<u8> = Vec::new();
        for page in 0..4 {
            got.extend(behind.rig.ram.read(RECEIVE + (3 - page) * PAGE, PAGE as usize).unwrap());
        }
        assert_eq!(got[NET_HEADER_LEN..written], bytes[8..][..2 * PAGE as usize]);
    }
}

#[test]
fn a_frame_waits_for_translations_of_the_buffers_it_goes_into() {
    let mut behind = Behind::ready(&LinkKind::Loopback, FEATURES);
    behind.send(iova(PAYLOAD), 3000);
    behind.misses(2);
    behind.give_shifted(HEADER, "r");
    behind.give_shifted(PAYLOAD, "r");
    behind.rig.rx.add(&[Buffer::writable(iova(RECEIVE), 2000)]);
    assert_eq!(behind.misses(1), [(iova(RECEIVE), Access::Write)]);
    behind.give_shifted(RECEIVE, "w");
    // The first buffer is not enough, and is given back when the second one's translation is missing.
    behind.rig.wait_for("too few", |rig| rig.counter(RX, "no_buffers") > 0);
    behind.rig.rx.add(&[Buffer::writable(iova(RECEIVE) + PAGE, 2000)]);
    assert_eq!(behind.misses(1), [(iova(RECEIVE) + PAGE, Access::Write)]);
    behind.give_shifted(RECEIVE + PAGE, "w");
    behind.rig.tx.used();
    assert_eq!((behind.rig.rx.used().written, behind.rig.rx.used().written), (2000, 1012));
}

#[test]
fn a_write_into_what_may_only_be_read_is_an_error_by_name_and_told() {
    let mut behind = Behind::ready(&LinkKind::Loopback, FEATURES);
    behind.rig.rx.add(&[Buffer::writable(iova(RECEIVE), 2000)]);
    behind.send(iova(PAYLOAD), 100);
    behind.misses(2);
    behind.give_shifted(HEADER, "r");
    behind.give_shifted(PAYLOAD, "r");
    assert_eq!(behind.misses(1), [(iova(RECEIVE), Access::Write)]);
    behind.give_shifted(RECEIVE, "r");
    assert_eq!(behind.said(), Said { kind: IOTLB_ACCESS_FAIL, iova: iova(RECEIVE), access: Access::Write });
    assert!(readable(&behind.rig.rx.err), "the err file tells");
    assert_eq!((behind.rig.counter(RX, "error_forbidden"), behind.state(RX)), (1, QueueState::Stopped));
    assert_eq!(behind.rig.ram.read(RECEIVE, 8).unwrap(), [0; 8]);
    assert_eq!((behind.rig.counter(TX, "errors"), behind.state(TX)), (0, QueueState::Running));
}

#[test]
fn a_front_end_that_grants_more_than_was_asked_is_asked_for_the_rest() {
    let mut behind = Behind::ready(&LinkKind::Loopback, FEATURES);
    behind.send(iova(PAYLOAD), 100);
    behind.misses(2);
    behind.give_shifted(HEADER, "rw");
    behind.give_shifted(PAYLOAD, "rw");
    // The device reads there; the right to write was never checked by the guest's IOMMU.
    behind.rig.rx.add(&[Buffer::writable(iova(PAYLOAD), 2000)]);
    assert_eq!(behind.misses(1), [(iova(PAYLOAD), Access::Write)]);
    behind.rig.wait_for("waiting", |rig| rig.shared.queues[0].state() == QueueState::Waiting);
}

#[test]
fn a_translation_out_of_memory_stops_the_queue_by_name() {
    let mut behind = Behind::ready(&LinkKind::Sink, FEATURES);
    behind.send(iova(PAYLOAD), 100);
    behind.misses(2);
    behind.give_shifted(HEADER, "r");
    behind.give_page(iova(PAYLOAD), RAM, "r");
    assert!(readable(&behind.rig.tx.err), "the err file tells");
    let error = behind.rig.shared.queues[1].error().unwrap();
    assert!(
        error.contains("0x700200000 is translated to 0x400000+4096, which is not (wholly) guest memory"),
        "{error}"
    );
}

#[test]
fn a_queue_that_gets_no_answer_waits_and_the_other_goes_on() {
    let mut behind = Behind::ready(&LinkKind::Sink, FEATURES);
    behind.rig.rx.add(&[Buffer::writable(iova(RECEIVE), 2000)]);
    behind.send(iova(PAYLOAD), 100);
    behind.misses(2);
    behind.give_shifted(HEADER, "r");
    assert!(behind.is_silent());
    let status = behind.status();
    let [rx, tx] = status.queues.as_slice() else { panic!("{status:?}") };
    assert_eq!((tx.state.as_str(), rx.state.as_str(), rx.waits.as_deref()), ("waiting", "running", None));
    assert_eq!(tx.waits.as_deref(), Some("waits for a translation of 0x700200000, to read"));
    assert_eq!(tx.error, None);

    // The driver gives up: nothing is owed.
    let base = behind.rig.device.stop_queue(TX).unwrap();
    assert_eq!(base, VringBase::split(0));
    assert_eq!(behind.status().queues[1].waits, None);
    behind.rig.tx = Queue::new(&behind.rig.ram, 0x8000, behind.features());
    behind.start(TX, VringBase::split(0));
    behind.send(iova(PAYLOAD) + PAGE, 100);
    assert_eq!(behind.misses(1), [(iova(PAYLOAD) + PAGE, Access::Read)]);
    behind.give_shifted(PAYLOAD + PAGE, "r");
    behind.rig.tx.used();
    // What had no answer is asked for again by the next who needs it.
    behind.send(iova(PAYLOAD), 100);
    assert_eq!(behind.misses(1), [(iova(PAYLOAD), Access::Read)]);
}

/// While a queue is held, nothing is taken from it; what its chains miss is asked for all the same when someone wants to
/// look into them.
#[test]
fn what_a_held_queue_was_given_can_be_looked_into() {
    for features in formats() {
        let mut behind = Behind::ready(&LinkKind::Sink, features);
        assert!(behind.rig.workers.hold(TX, true));
        behind.send(iova(PAYLOAD), 100);
        behind.send(iova(PAYLOAD) + PAGE, 100);
        assert!(behind.is_silent());
        assert!(!behind.rig.workers.look_over(TX));
        assert_eq!(behind.misses(2), [(iova(HEADER), Access::Read), (iova(PAYLOAD), Access::Read)]);
        assert!(!behind.rig.workers.look_over(TX) && behind.is_silent());
        behind.give_shifted(HEADER, "r");
        behind.give_shifted(PAYLOAD, "r");
        assert!(!behind.rig.workers.look_over(TX));
        assert_eq!(behind.misses(1), [(iova(PAYLOAD) + PAGE, Access::Read)]);
        behind.give_shifted(PAYLOAD + PAGE, "r");
        assert!(behind.rig.workers.look_over(TX));
        assert_eq!((behind.state(TX), behind.rig.counter(TX, "chains")), (QueueState::Held, 0));
        assert!(behind.rig.workers.hold(TX, false));
        behind.rig.tx.used();
        behind.rig.tx.used();
    }
}

#[test]
fn the_rings_and_the_trace_show_where_an_iova_leads() {
    for features in [FEATURES, FEATURES.with(Feature::RingPacked)] {
        let mut behind = Behind::ready(&LinkKind::Sink, features);
        let queue = Arc::clone(&behind.rig.shared.queues[1]);
        queue.events.make_room();
        let mut reader = queue.events.reader();
        behind.rig.shared.tracers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        behind.send(iova(PAYLOAD) + 8, 100);
        behind.misses(2);
        behind.give_page(iova(HEADER), 0x5000, "r");
        behind.give_page(iova(PAYLOAD), 0x6000, "r");
        behind.rig.tx.used();
        let Some(Read::Event(event)) = reader.read() else { panic!("no event") };
        let buffers: Vec<_> = event.buffers().iter().map(|buffer| (buffer.addr, buffer.gpa)).collect();
        assert_eq!(buffers, [(iova(HEADER), 0x5000), (iova(PAYLOAD) + 8, 0x6008)]);

        assert!(behind.rig.workers.hold(TX, true));
        behind.send(iova(PAYLOAD) + 8, 100);
        behind.send(iova(PAYLOAD) + PAGE, 100);
        let seen = crate::serve::status::rings(&behind.rig.shared, Some(TX));
        let chains: Vec<String> = seen[0].chains.iter().map(|chain| chain.to_string()).collect();
        assert_eq!(seen[0].faults, Vec::<String>::new());
        assert!(chains[0].ends_with("R 0x700100000+12 at 0x5000 -> R 0x700200008+100 at 0x6008"), "{chains:?}");
        assert!(chains[1].ends_with("R 0x700100000+12 at 0x5000 -> R 0x700201000+100"), "{chains:?}");
        assert_eq!(seen[0].to_string().parse::<crate::ring::RingSnapshot>().unwrap(), seen[0]);
        assert!(behind.is_silent(), "looking asks nothing");
    }
}
