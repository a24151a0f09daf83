//! Several queue pairs on one worker or more.

use super::*;

/// Rings of `PAIRS` pairs, and what is received on them.
const RINGS: u64 = 0x1_0000;
const PAIRS: u16 = 4;

struct Pairs {
    ram: GuestRam,
    device: Backend,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    /// By vhost-user index.
    queues: Vec<Queue>,
    _notices: Receiver<Notice>,
}

impl Pairs {
    fn new(link: &LinkKind, workers: usize, features: spec::Features) -> Self {
        let ports = (0..workers).map(|_| link::open(link, usize::from(PAIRS)).unwrap()).collect();
        let (mut device, shared, workers, notices) = serve(ports, PAIRS);
        let ram = GuestRam::new(RAM).unwrap();
        device.set_features(features).unwrap();
        device.set_memory(Arc::clone(ram.memory())).unwrap();
        let queues: Vec<Queue> =
            (0..2 * u64::from(PAIRS)).map(|index| Queue::new(&ram, RINGS + index * 0x2000, features)).collect();
        for (index, queue) in (0..).zip(&queues) {
            device.start_queue(index, queue.setup_at(start_of(features))).unwrap();
        }
        Pairs { ram, device, shared, workers, queues, _notices: notices }
    }

    fn rx(&mut self, pair: u16) -> &mut Queue {
        &mut self.queues[usize::from(2 * pair)]
    }

    fn tx(&mut self, pair: u16) -> &mut Queue {
        &mut self.queues[usize::from(2 * pair + 1)]
    }

    fn send(&mut self, pair: u16, frame: &[u8]) {
        let at = PAYLOAD + u64::from(pair) * 0x1_0000;
        self.ram.write(at, frame).unwrap();
        self.tx(pair).add(&[
            Buffer::readable(HEADER, NET_HEADER_LEN as u32),
            Buffer::readable(at, u32::try_from(frame.len()).unwrap()),
        ]);
    }

    fn post(&mut self, pair: u16) {
        self.rx(pair).add(&[Buffer::writable(RECEIVE + u64::from(pair) * 0x1000, 2000)]);
    }

    /// What came into the buffer that was posted.
    fn received(&mut self, pair: u16) -> Vec<u8> {
        let used = self.rx(pair).used();
        let frame = self.ram.read(RECEIVE + u64::from(pair) * 0x1000, used.written as usize).unwrap();
        frame[NET_HEADER_LEN..].to_vec()
    }

    fn counter(&self, index: u16, name: &str) -> u64 {
        self.shared.queues[usize::from(index)].counters.snapshot()[name]
    }
}

/// A frame that says its pair and number.
fn frame(pair: u16, number: u8) -> Vec<u8> {
    [&[0; 12][..], &[0x88, 0xb5, pair as u8, number], &[pair as u8; 300]].concat()
}

#[test]
fn frames_of_every_pair_come_back_on_their_own_on_one_worker_and_on_several() {
    for features in formats() {
        for workers in [1, 2, 3] {
            let mut rig = Pairs::new(&LinkKind::Loopback, workers, features);
            for number in 0..100 {
                for pair in 0..PAIRS {
                    rig.send(pair, &frame(pair, number));
                    rig.post(pair);
                }
                for pair in (0..PAIRS).rev() {
                    assert_eq!(rig.received(pair), frame(pair, number));
                    rig.tx(pair).used();
                }
            }
            for index in 0..2 * PAIRS {
                assert_eq!((rig.counter(index, "chains"), rig.counter(index, "errors")), (100, 0));
            }
        }
    }
}

#[test]
fn a_pair_that_is_not_in_use_receives_nothing_and_the_others_go_on() {
    let mut rig = Pairs::new(&LinkKind::Loopback, 1, FEATURES);
    for index in [2, 3] {
        rig.device.set_enabled(index, false).unwrap();
    }
    rig.send(1, &frame(1, 7));
    rig.post(1);
    for pair in [0, 2, 3] {
        rig.send(pair, &frame(pair, 1));
        rig.post(pair);
        assert_eq!(rig.received(pair), frame(pair, 1));
    }
    rig.tx(1).used();
    assert_eq!((rig.counter(2, "chains"), rig.counter(3, "drop_disabled")), (0, 1));
    for index in [2, 3] {
        rig.device.set_enabled(index, true).unwrap();
    }
    rig.send(1, &frame(1, 0));
    assert_eq!(rig.received(1), frame(1, 0));
}

#[test]
fn a_pair_whose_link_is_full_does_not_silence_the_kicks_of_another() {
    let mut rig = Pairs::new(&LinkKind::Loopback, 1, FEATURES);
    for _ in 0..SIZE / 2 {
        let long = [Buffer::readable(HEADER, NET_HEADER_LEN as u32), Buffer::readable(PAYLOAD, 60_000)];
        rig.tx(0).add(&long);
    }
    wait_for("push back", || rig.counter(1, "link_full") > 0 && rig.counter(0, "no_buffers") > 0);
    // Each time the worker is asleep before the next kick, or will be soon: a kick that was not asked for is not sent.
    for number in 0..20 {
        rig.send(1, &frame(1, number));
        rig.post(1);
        assert_eq!(rig.received(1), frame(1, number));
        rig.tx(1).used();
    }
}

#[test]
fn one_ring_is_reset_to_another_size_and_place_while_the_others_run() {
    for features in formats() {
        let mut rig = Pairs::new(&LinkKind::Loopback, 2, features);
        let others = |rig: &mut Pairs, number| {
            for pair in [0, 2, 3] {
                rig.send(pair, &frame(pair, number));
                rig.post(pair);
                assert_eq!(rig.received(pair), frame(pair, number));
                rig.tx(pair).used();
            }
        };
        for (round, size) in (0..).zip([16, 128, 64]) {
            for index in [2, 3] {
                others(&mut rig, round);
                // What the driver has in the ring is its own again: buffers that were posted for nothing.
                rig.post(1);
                rig.device.stop_queue(index).unwrap();
                others(&mut rig, round);
                let at = RINGS + 0x2_0000 + u64::from(index) * 0x2000;
                let queue = Queue::sized(&rig.ram, at, features, size);
                rig.device.start_queue(index, queue.setup_at(start_of(features))).unwrap();
                rig.queues[usize::from(index)] = queue;
                assert_eq!(rig.shared.view().rings[&index].size, size);
            }
            for number in 0..u8::try_from(size).unwrap() {
                rig.send(1, &frame(1, number));
                rig.post(1);
                assert_eq!(rig.received(1), frame(1, number), "{features:?}, size {size}");
                rig.tx(1).used();
            }
        }
        assert!((0..2 * PAIRS).all(|index| rig.counter(index, "errors") == 0));
    }
}

#[test]
fn each_worker_has_an_observer_of_its_own() {
    for workers in [1, 2, 4] {
        let mut rig = Pairs::new(&LinkKind::SinkCopy, workers, FEATURES);
        assert!(crate::nic::observe(&rig.workers, || Some(Box::new(observed::Notes::default()))).is_empty());
        for pair in 0..4 {
            rig.tx(pair).add(&[Buffer::readable(HEADER, 12 + 60)]);
            rig.tx(pair).used();
        }
        let seen: Vec<usize> =
            observed::notes(crate::nic::observe(&rig.workers, || None)).iter().map(|notes| notes.0.len()).collect();
        assert_eq!(seen, vec![4 / workers; workers], "{workers} workers");
    }
}
