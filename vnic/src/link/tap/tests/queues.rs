//! Which tap is attached to, and with which of its queues.

use super::*;

#[test]
fn a_pair_of_several_has_a_queue_of_its_own_and_only_those_in_use_are_given_frames() {
    in_namespace(|| {
        let share = |worker| Share { pairs: 3, worker, workers: 2 };
        let mut first = open("vnic0", share(0));
        let mut second = open("vnic0", share(1));
        assert_eq!((first.queues.len(), second.queues.len()), (2, 1));
        first = with_address(first);
        for tap in [&mut first, &mut second] {
            tap.negotiated(OFFERED).unwrap();
        }
        ip("neigh add 10.0.2.15 lladdr 52:54:00:12:34:56 dev vnic0");
        // Frames by pair, of as many flows.
        let arrived = |first: &mut Tap, second: &mut Tap| {
            let sockets: Vec<UdpSocket> = (0..90).map(|_| UdpSocket::bind(("10.0.2.2", 0)).unwrap()).collect();
            for socket in &sockets {
                socket.send_to(b"hello", ("10.0.2.15", 7)).unwrap();
            }
            let mut frames = [0; 3];
            let mut taken = |tap: &mut Tap, pair: usize| {
                let Some(place) = tap.queue(pair).map(|_| tap.share.place(pair)) else { return };
                tap.poll(Instant::now());
                while tap.queues[place].measure(tap.shape, &tap.counters)
                    && tap.pending(pair) != Some(tap.shape.largest)
                {
                    if tap.queues[place].drained {
                        break;
                    }
                    tap.queues[place].forget();
                    frames[pair] += 1;
                }
            };
            for pair in 0..3 {
                taken(first, pair);
                taken(second, pair);
            }
            frames
        };
        let [all, 0, 0] = arrived(&mut first, &mut second) else { panic!("frames for a pair that is not in use") };
        assert!(all >= 90, "{all}");
        second.set_receiving(1, true);
        first.set_receiving(2, true);
        second.set_receiving(1, true);
        let spread = arrived(&mut first, &mut second);
        assert!(spread.iter().all(|frames| *frames > 0), "{spread:?}");
        second.set_receiving(1, false);
        let [some, 0, more] = arrived(&mut first, &mut second) else { panic!("frames for a pair that was given up") };
        assert!(some > 0 && more > 0);
        let mut nic = Nic::new(OFFERED, 0, 0);
        keep(&mut nic, &mut first, 2, 1);
        keep(&mut nic, &mut second, 1, 1);
        // To send, a pair needs no receiveq in use.
        for (tap, pair) in [(&mut first, 2), (&mut second, 1)] {
            tap.flush();
            let done = tap.completed().unwrap();
            assert_eq!((done.pair, done.read), (pair, Some(60)));
        }
    });
}

#[test]
fn a_tap_made_beforehand_serves_one_pair_and_several_if_it_was_made_for_that() {
    in_namespace(|| {
        let several = Share { pairs: 2, worker: 0, workers: 1 };
        ip("tuntap add vnic1 mode tap");
        ip("tuntap add vnic2 mode tap multi_queue");
        for (name, share) in [("vnic1", ONE), ("vnic2", ONE), ("vnic2", several)] {
            assert_eq!(open(name, share).queues.len(), share.pairs, "{name}");
        }
        let error = Tap::open("vnic1", several).unwrap_err();
        assert!(matches!(error, TapError::OneQueue { pairs: 2, .. }), "{error}");
        assert!(error.to_string().contains("multi_queue"), "{error}");
        let _used = open("vnic1", ONE);
        assert!(matches!(Tap::open("vnic1", several), Err(TapError::OneQueue { .. })));
        assert!(matches!(Tap::open("lo", several), Err(TapError::WrongKind { .. })));
    });
}

#[test]
fn what_is_wrong_with_a_tap_is_said_in_one_sentence() {
    in_namespace(|| {
        let tap = tap();
        let busy = Tap::open("vnic0", ONE).unwrap_err();
        assert!(matches!(busy, TapError::Busy { .. }), "{busy}");
        drop(tap);
        let wrong = Tap::open("lo", ONE).unwrap_err();
        assert!(matches!(wrong, TapError::WrongKind { .. }), "{wrong}");
        ip("tuntap add vnic1 mode tap user 12345");
        // From here on without the right to make devices, or to use others'.
        let nobody = nix::unistd::Uid::from_raw(65_534);
        // For this thread alone, as `nix` would do it for all.
        // SAFETY: a system call without pointers.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, nobody.as_raw(), nobody.as_raw(), nobody.as_raw()) }, 0);
        let missing = Tap::open("vnic7", ONE).unwrap_err();
        let foreign = Tap::open("vnic1", ONE).unwrap_err();
        // The clone device itself may be root's alone.
        if std::fs::OpenOptions::new().read(true).write(true).open(CLONE_DEVICE).is_ok() {
            assert!(matches!(missing, TapError::Missing { .. }), "{missing}");
            assert!(missing.to_string().contains("ip tuntap add vnic7 mode tap user"), "{missing}");
            assert!(matches!(foreign, TapError::NotPermitted { .. }), "{foreign}");
        } else {
            assert!(matches!(missing, TapError::DriverNotPermitted { .. }), "{missing}");
            assert!(matches!(foreign, TapError::DriverNotPermitted { .. }), "{foreign}");
        }
        for error in [busy, wrong, missing, foreign] {
            assert!(!error.to_string().contains('\n'));
        }
    });
}
