//! What one side stores and the other loads, under every order of events that the memory model allows: both halves as they
//! are, on threads of loom's, with ring memory that is loom's ([`watched::modelled`]).
//!
//! Operation: whatever an acquire, a release or a full fence is there for is a test here: an index seen is all seen that
//! stands behind it, and whoever goes to sleep is woken. In a few steps each: loom tries them all.
//!
//! Limits: full fences are loom's, which orders all of them by one clock: a little stronger than the language says, and as
//! strong as the processors this is written for. Buffers are not modelled.

use std::process::Command;
use std::sync::Arc;

use super::pointers::watched;
use super::*;
use crate::memory::Memory;
use crate::memory::testing::GuestRam;
use crate::spec::{Feature, Features};

const SPLIT: Features = Features::NONE;
const PACKED: Features = Features::of(&[Feature::RingPacked]);

/// Both halves of a ring of two that went once round already, so that neither index nor event stands at its start.
struct Pair {
    driver: Box<dyn DriverRing>,
    device: Device,
    segments: Segments,
}

impl Pair {
    fn new(memory: &Arc<Memory>, features: Features) -> Self {
        let packed = features.has(Feature::RingPacked);
        let mut pair = if packed {
            let (layout, _) = RingLayout::packed_at(0x1000, 2).unwrap();
            let driver = Box::new(PackedDriver::new(layout, memory.clone(), features).unwrap());
            Pair::over(driver, layout, memory, features, 0x8000)
        } else {
            let (layout, _) = RingLayout::split_at(0x1000, 2).unwrap();
            let driver = Box::new(SplitDriver::new(layout, memory.clone(), features).unwrap());
            Pair::over(driver, layout, memory, features, 0)
        };
        pair.driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct).unwrap();
        pair.driver.publish();
        let chain = pair.device.pop(&mut pair.segments).unwrap().unwrap();
        pair.device.push_used(&chain, 0).unwrap();
        pair.device.publish().unwrap();
        pair.driver.pop_used().unwrap().unwrap();
        pair
    }

    fn over(
        driver: Box<dyn DriverRing>,
        layout: RingLayout,
        memory: &Arc<Memory>,
        features: Features,
        base: u32,
    ) -> Self {
        let device = Device::new(layout, memory.clone(), features, base).unwrap();
        Pair { driver, device, segments: Segments::new(memory.clone(), 8) }
    }
}

/// Runs `f` with a new pair each time, in every order of events.
fn explore(features: Features, f: impl Fn(Pair) + Send + Sync + 'static) {
    let ram = GuestRam::new(1 << 20).unwrap();
    watched::modelled(move || f(Pair::new(ram.memory(), features)));
}

/// Loom's threads bring a handler for SIGBUS with them, and that signal is for the tests of memory that shrinks.
fn in_a_process_of_its_own(name: &str, test: impl FnOnce()) {
    const CHILD: &str = "VNIC_TEST_HANDOVER";
    if std::env::var_os(CHILD).is_some() {
        return test();
    }
    let (_, name) = name.split_once("::").unwrap();
    let program = std::env::current_exe().unwrap();
    let child = Command::new(program).args(["--exact", "--nocapture", name]).env(CHILD, "1").output().unwrap();
    let said = [child.stdout, child.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(child.status.success() && said[0].contains("1 passed"), "{}", said.concat());
}

/// Each test once for either format, with and without EVENT_IDX and IN_ORDER.
macro_rules! in_every_order_of_events {
    ($(fn $name:ident($features:ident: Features) $body:block)*) => {
        $(fn $name($features: Features) $body)*
        in_every_order_of_events! { @format split SPLIT $($name)* }
        in_every_order_of_events! { @format packed PACKED $($name)* }
    };
    (@format $format:ident $features:ident $($name:ident)*) => {
        mod $format {
            use super::*;
            $(
                #[test]
                fn $name() {
                    in_a_process_of_its_own(concat!(module_path!(), "::", stringify!($name)), || {
                        super::$name($features);
                        super::$name($features.with(Feature::InOrder));
                        super::$name($features.with(Feature::EventIdx));
                    });
                }
            )*
        }
    };
}

in_every_order_of_events! {
    fn a_device_that_is_not_kicked_does_not_sleep(features: Features) {
        explore(features, |pair| {
            let Pair { mut driver, mut device, .. } = pair;
            let other = loom::thread::spawn(move || {
                device.disable_notifications();
                !device.enable_notifications().unwrap()
            });
            driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct).unwrap();
            let kicked = driver.publish();
            let asleep = other.join().unwrap();
            assert!(kicked || !asleep, "the device sleeps, and nobody kicks it");
        });
    }

    fn a_driver_that_is_not_called_does_not_sleep(features: Features) {
        explore(features, |pair| {
            let Pair { mut driver, mut device, mut segments } = pair;
            driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct).unwrap();
            driver.publish();
            let chain = device.pop(&mut segments).unwrap().unwrap();
            let other = loom::thread::spawn(move || {
                driver.disable_notifications();
                !driver.enable_notifications()
            });
            device.push_used(&chain, 0).unwrap();
            let called = device.publish().unwrap();
            let asleep = other.join().unwrap();
            assert!(called || !asleep, "the driver sleeps, and nobody calls it");
        });
    }

    fn a_chain_that_is_seen_is_seen_whole(features: Features) {
        explore(features, |pair| {
            let Pair { mut driver, mut device, mut segments } = pair;
            let other = loom::thread::spawn(move || {
                let seen = device.pop(&mut segments).unwrap();
                seen.map(|chain| segments.view(chain).segments().iter().map(|s| (s.addr, s.len)).collect::<Vec<_>>())
            });
            driver.add(&[Buffer::readable(0x9000, 7), Buffer::writable(0xa000, 8)], Placement::Direct).unwrap();
            driver.publish();
            let seen = other.join().unwrap();
            assert!(seen.is_none_or(|seen| seen == [(0x9000, 7), (0xa000, 8)]));
        });
    }

    fn chains_of_a_burst_are_seen_one_by_one_or_not_at_all(features: Features) {
        explore(features, |pair| {
            let Pair { mut driver, mut device, mut segments } = pair;
            let other = loom::thread::spawn(move || {
                let mut look = Look(Vec::new());
                device.drain(&mut segments, u16::MAX, &mut look).unwrap();
                look.0
            });
            driver.add(&[Buffer::readable(0x9000, 7)], Placement::Direct).unwrap();
            driver.add(&[Buffer::readable(0xa000, 8)], Placement::Direct).unwrap();
            driver.publish();
            let seen = other.join().unwrap();
            assert!([&[][..], &[(0x9000, 7), (0xa000, 8)]].contains(&seen.as_slice()), "{seen:x?}");
        });
    }

    fn a_chain_that_comes_back_comes_back_whole(features: Features) {
        explore(features, |pair| {
            let Pair { mut driver, mut device, mut segments } = pair;
            let heads = [(0x9000, 7), (0xa000, 8)].map(|(addr, len)| {
                driver.add(&[Buffer::writable(addr, len)], Placement::Direct).unwrap()
            });
            driver.publish();
            let chains = [(); 2].map(|()| device.pop(&mut segments).unwrap().unwrap());
            let other = loom::thread::spawn(move || {
                // The order in which they are done with; with IN_ORDER they come back in the other.
                device.push_used(&chains[1], 8).unwrap();
                device.push_used(&chains[0], 7).unwrap();
                device.publish().unwrap();
            });
            let mut back: Vec<Used> = std::iter::from_fn(|| driver.pop_used().unwrap()).collect();
            other.join().unwrap();
            back.extend(std::iter::from_fn(|| driver.pop_used().unwrap()));
            back.sort_by_key(|used| used.written);
            assert_eq!(back, [Used { head: heads[0], written: 7 }, Used { head: heads[1], written: 8 }]);
        });
    }

    fn what_a_burst_returns_comes_back_whole(features: Features) {
        explore(features, |pair| {
            let Pair { mut driver, mut device, mut segments } = pair;
            let heads = [0x9000, 0xa000].map(|addr| driver.add(&[Buffer::readable(addr, 7)], Placement::Direct).unwrap());
            driver.publish();
            let other = loom::thread::spawn(move || {
                device.drain(&mut segments, u16::MAX, &mut Look(Vec::new())).unwrap();
                device.publish().unwrap();
            });
            let mut back: Vec<Used> = std::iter::from_fn(|| driver.pop_used().unwrap()).collect();
            other.join().unwrap();
            back.extend(std::iter::from_fn(|| driver.pop_used().unwrap()));
            assert_eq!(back, heads.map(|head| Used { head, written: 0 }));
        });
    }
}

/// Notes each chain's first buffer, and returns it.
struct Look(Vec<(u64, u32)>);

impl Visitor for Look {
    const READS: bool = false;

    fn takes_batches(&self) -> bool {
        true
    }

    fn visit_batch(&mut self, batch: SingleBufferBatch<'_>) -> usize {
        batch.views().map(|view| self.visit(view)).count()
    }

    fn visit(&mut self, chain: ChainView<'_>) -> Disposition {
        self.0.extend(chain.segments().first().map(|segment| (segment.addr, segment.len)));
        Disposition::Return
    }
}
