//! Frames that the port keeps until the kernel is done with them.

use super::*;

#[test]
fn a_burst_goes_out_with_one_call_and_each_frame_is_done_with_once() {
    in_namespace(|| {
        let mut tap = tap();
        tap.negotiated(OFFERED).unwrap();
        if tap.writes.is_none() {
            return skip("this host allows no io_uring");
        }
        let mut nic = Nic::new(OFFERED, 0, 0);
        for burst in 1..=20 {
            keep(&mut nic, &mut tap, 0, 100);
            tap.flush();
            tap.flush();
            let mut tickets: Vec<u16> = std::iter::from_fn(|| tap.completed()).map(|done| done.ticket).collect();
            tickets.sort_unstable();
            tickets.dedup();
            assert_eq!(tickets.len(), 100, "a tap takes its frames at once");
            assert_eq!(
                (tap.counters.get("transmit_calls"), tap.counters.get("transmitted_frames")),
                (burst, burst * 100)
            );
        }
        // As many as it keeps, and no more.
        keep(&mut nic, &mut tap, 0, usize::from(Tap::KEEPS));
        let full = nic.with_frame(&[0; 72], &[], |frame| tap.transmit(0, &frame.unwrap()).unwrap());
        assert_eq!(full, Transmitted::Full);
        tap.quiesce(0);
        assert_eq!(std::iter::from_fn(|| tap.completed()).count(), usize::from(Tap::KEEPS));
        // What it has when it is dropped goes out.
        keep(&mut nic, &mut tap, 0, 3);
        drop(tap);
    });
}

/// A tap of two pairs whose queues are sockets that nobody reads yet, and what is written to them.
fn over_sockets() -> (Tap, [std::os::unix::net::UnixDatagram; 2]) {
    let pair = || {
        let (near, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        // The least the kernel allows: a few frames.
        nix::sys::socket::setsockopt(&near, nix::sys::socket::sockopt::SndBuf, &1).unwrap();
        far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (TapQueue::new(std::fs::File::from(std::os::fd::OwnedFd::from(near))), far)
    };
    let (queues, far): (Vec<_>, Vec<_>) = [pair(), pair()].into_iter().unzip();
    let tap = Tap {
        name: "none".to_owned(),
        share: Share { pairs: 2, worker: 0, workers: 1 },
        writes: Writes::new().ok(),
        queues,
        shape: Shape { header_len: 12, largest: 1518 },
        uso: false,
        scratch: Scratch::default(),
        counters: Count::fresh(),
    };
    (tap, far.try_into().unwrap())
}

#[test]
fn frames_that_wait_for_room_are_not_lost_when_their_queue_is_stopped_nor_are_other_pairs_held_up() {
    const FRAMES: usize = 100;
    let (mut tap, far) = over_sockets();
    if tap.writes.is_none() {
        return skip("this host allows no io_uring");
    }
    let mut nic = Nic::new(OFFERED, 0, 0);
    let bytes: Vec<u8> = [&[0; 12][..], &pattern(60)].concat();
    for pair in [0, 1] {
        for _ in 0..FRAMES {
            let kept = nic.with_frame(&bytes, &[], |frame| tap.transmit(pair, &frame.unwrap()).unwrap());
            assert!(matches!(kept, Transmitted::Kept { .. }));
        }
    }
    tap.flush();
    let at_once: Vec<Completion> = std::iter::from_fn(|| tap.completed()).collect();
    assert!(at_once.len() < FRAMES && at_once.iter().all(|done| done.copied == 0), "{} at once", at_once.len());
    let written = |pair| at_once.iter().filter(|done| done.pair == pair).count();
    tap.quiesce(0);
    let stopped: Vec<Completion> = std::iter::from_fn(|| tap.completed()).collect();
    assert!(stopped.iter().all(|done| (done.pair, done.read, done.copied) == (0, Some(60), 60)));
    assert_eq!(stopped.len(), FRAMES - written(0));
    // The driver has its buffers back, and does with them what it likes.
    nic.with_frame(&[0xff; 72], &[], |_| ());
    let mut late = Vec::new();
    let mut got = [0; 100];
    for (pair, far) in far.iter().enumerate() {
        for frame in 0..FRAMES {
            let len = far.recv(&mut got).unwrap_or_else(|error| panic!("frame {frame} of pair {pair}: {error}"));
            // What was not copied is read late, all but its header.
            let changed = [&bytes[..12], &[0xff; 60]].concat();
            let expected = if pair == 0 || frame < written(pair) { &bytes } else { &changed };
            assert!(got[..len] == *expected, "frame {frame} of pair {pair}");
            tap.poll(Instant::now());
            late.extend(std::iter::from_fn(|| tap.completed()));
        }
    }
    assert!(late.iter().all(|done| (done.pair, done.read, done.copied) == (1, Some(60), 0)));
    assert_eq!(late.len(), FRAMES - written(1));
    assert_eq!(tap.counters.get("transmitted_frames"), 2 * FRAMES as u64);
    // A reset, and a driver with another header: what waits then is given up.
    keep(&mut nic, &mut tap, 0, FRAMES);
    tap.flush();
    let went = std::iter::from_fn(|| tap.completed()).count();
    assert!(tap.negotiated(Features::NONE).is_err(), "a socket is no tap");
    let lost = std::iter::from_fn(|| tap.completed()).filter(|done| done.read.is_none()).count();
    assert_eq!((went + lost, tap.counters.get("dropped_at_end")), (FRAMES, lost as u64));
}
