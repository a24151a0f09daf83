//! What those who look on are shown: rings, events, counters.

use super::*;

#[test]
fn a_ring_of_either_format_is_seen_as_it_stands() {
    for features in [FEATURES, FEATURES.with(Feature::RingPacked)] {
        let mut rig = Rig::with(&LinkKind::Sink, features);
        for _ in 0..3 {
            rig.send(100);
            rig.tx.used();
        }
        assert!(rig.workers.hold(TX, true));
        rig.send(200);
        let seen = crate::serve::status::rings(&rig.shared, Some(TX));
        let [ring] = seen.as_slice() else { panic!("one ring: {seen:?}") };
        assert_eq!(ring.faults, Vec::<String>::new());
        let [chain] = ring.chains.as_slice() else { panic!("one chain: {ring:?}") };
        let buffers: Vec<_> = chain.buffers.iter().map(|buffer| (buffer.addr, buffer.len)).collect();
        assert_eq!(buffers, [(HEADER, NET_HEADER_LEN as u32), (PAYLOAD, 200)]);
    }
}

#[test]
fn a_traced_chain_shows_its_descriptors() {
    let mut rig = Rig::new(&LinkKind::Sink);
    let queue = Arc::clone(&rig.shared.queues[1]);
    queue.events.make_room();
    let mut reader = queue.events.reader();
    rig.shared.tracers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    rig.send(1000);
    rig.tx.used();
    let Some(Read::Event(event)) = reader.read() else { panic!("no event") };
    let buffers: Vec<_> = event.buffers().iter().map(|buffer| (buffer.addr, buffer.len, buffer.writable)).collect();
    assert_eq!(buffers, [(HEADER, 12, false), (PAYLOAD, 1000, false)]);
    assert_eq!(event.frame_len, 1000);
}

#[test]
fn a_trace_takes_memory_for_the_queues_that_are_set_up_and_for_those_that_come() {
    let mut rig = Rig::new(&LinkKind::Sink);
    let ready = |rig: &Rig| rig.shared.queues.iter().map(|queue| queue.events.is_ready()).collect::<Vec<_>>();
    assert!(!ready(&rig).contains(&true), "nobody traces");
    let base = rig.device.stop_queue(TX).unwrap();
    rig.shared.make_room_for_events();
    assert_eq!(ready(&rig)[..2], [true, false]);
    rig.shared.tracers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    rig.device.start_queue(TX, rig.tx.setup_at(base)).unwrap();
    assert_eq!(ready(&rig)[..2], [true, true]);
}

#[test]
fn a_follower_that_is_too_slow_is_told_what_it_missed_and_it_is_counted() {
    const FRAMES: u64 = 12_000;
    let mut rig = Rig::new(&LinkKind::Sink);
    let (stream, client) = UnixStream::pair().unwrap();
    let shared = Arc::clone(&rig.shared);
    let (asked, clients) = channel();
    asked.send(crate::serve::trace::Client { stream, _admitted: None }.into()).unwrap();
    drop(asked);
    let follower = std::thread::spawn(move || {
        crate::serve::trace::serve(&[shared], &clients, &|shared| crate::backend::guest::Served::boxed(shared))
    });
    rig.wait_for("tracing", |rig| rig.shared.traced());
    // Nobody reads meanwhile: what the socket does not hold is lost in the end.
    for _ in 0..FRAMES {
        rig.send(60);
        rig.tx.used();
    }
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut chains, mut lost) = (0, 0);
    let mut lines = std::io::BufReader::new(&client).lines();
    assert_eq!(lines.next().unwrap().unwrap(), r#"{"reply":"done"}"#);
    while chains + lost < FRAMES {
        match serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() {
            TraceEvent::Chain(_) => chains += 1,
            TraceEvent::Lost { queue, events } => {
                assert_eq!(queue, "transmitq0");
                lost += events;
            }
        }
    }
    assert_eq!(chains + lost, FRAMES);
    assert!(lost > 0 && chains > 0, "{chains} seen, {lost} lost");
    assert_eq!(rig.shared.queues[1].counts()["trace_lost"], lost);
    let metrics = crate::serve::metrics::text(&[&rig.shared], &[]);
    assert!(metrics.contains(&format!("vnic_queue_trace_lost_total{{queue=\"transmitq0\"}} {lost}\n")), "{metrics}");
    client.shutdown(std::net::Shutdown::Both).unwrap();
    follower.join().unwrap();
}

#[test]
fn every_counter_is_in_the_status_and_in_the_metrics() {
    let mut rig = Rig::new(&LinkKind::SinkCopy);
    rig.send(100);
    rig.tx.used();
    rig.tx.add(&[Buffer::readable(RAM, 12)]);
    rig.wait_for("error", |rig| rig.counter(TX, "errors") == 1);
    let status = crate::serve::status::device(&rig.shared);
    let metrics = crate::serve::metrics::text(&[&rig.shared], &[]);
    assert!(status.queues.iter().take(2).all(|queue| queue.event_suppression.is_some()), "{status:?}");
    let of_tx = &status.queues[usize::from(TX)].counters;
    for name in QueueCounters::NAMES.iter().copied().chain(["trace_lost", "error_unmapped"]) {
        let line = format!("vnic_queue_{name}_total{{queue=\"transmitq0\"}} {}\n", of_tx[name]);
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    // The link's own are published at its next poll.
    let link = "vnic_link_transmitted_bytes_total 100\n";
    rig.wait_for("the link's counters", |rig| crate::serve::metrics::text(&[&rig.shared], &[]).contains(link));
}

#[test]
fn every_counter_of_a_queue_rises_somewhere() {
    let counted = |queue: u16, rig: &Rig| rig.shared.queues[usize::from(queue)].counters.snapshot();
    let mut seen = std::collections::BTreeSet::new();
    let mut note = |counters: std::collections::BTreeMap<String, u64>| {
        seen.extend(counters.into_iter().filter(|(_, count)| *count > 0).map(|(name, _)| name));
    };
    let mut rig = Rig::new(&LinkKind::SinkCopy);
    rig.send(100);
    rig.tx.used();
    rig.tx.driver.disable_notifications();
    rig.send(100);
    rig.wait_for("suppressed call", |rig| rig.counter(TX, "chains") == 2);
    rig.wait_for("suppressed call", |rig| rig.counter(TX, "calls_suppressed") > 0);
    rig.tx.add(&[Buffer::readable(HEADER, 12)]);
    rig.wait_for("drop", |rig| rig.counter(TX, "drops") == 1);
    rig.tx.add(&[Buffer::readable(RAM, 12)]);
    rig.wait_for("error", |rig| rig.counter(TX, "errors") == 1);
    note(counted(TX, &rig));
    let mut rig = Rig::new(&LinkKind::Loopback);
    for _ in 0..SIZE / 2 {
        rig.send(60_000);
    }
    rig.wait_for("full", |rig| rig.counter(TX, "link_full") > 0 && rig.counter(RX, "no_buffers") > 0);
    note(counted(TX, &rig));
    note(counted(RX, &rig));
    let mut rig = Rig::new(&LinkKind::Sink);
    bounds::send_odd_chains(&mut rig);
    note(counted(TX, &rig));
    note(recorded::counts_of_a_queue_in_doubt());
    note(crate::blk::tests::resumed::counts_of_a_resumed_queue());
    for name in QueueCounters::NAMES {
        assert!(seen.contains(*name), "{name} never rises");
    }
}

#[test]
fn an_event_says_since_when_its_chain_lay_in_the_ring() {
    for features in [FEATURES, FEATURES.with(Feature::RingPacked)] {
        let mut rig = Rig::with(&LinkKind::Sink, features);
        let queue = Arc::clone(&rig.shared.queues[1]);
        queue.events.make_room();
        let mut reader = queue.events.reader();
        rig.shared.tracers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let now = |rig: &Rig| rig.shared.started.elapsed().as_nanos() as u64;
        let mut since = 0;
        for len in [100, 200, 300] {
            rig.send(len);
            rig.tx.used();
            let Some(Read::Event(event)) = reader.read() else { panic!("no event") };
            assert!(since <= event.available_ns, "{features:?}: {event:?}");
            assert!(event.available_ns <= event.at_ns && event.at_ns <= now(&rig), "{features:?}: {event:?}");
            since = event.at_ns;
        }
    }
}
