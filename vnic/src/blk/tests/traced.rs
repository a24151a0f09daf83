//! What a trace sees of a disk's requests, and what of them is in flight.

use super::*;
use crate::observe::tracer::Read;

#[test]
fn a_trace_has_each_request_with_its_answer_and_its_buffers() {
    for setup in setups() {
        let mut rig = Rig::new(setup);
        rig.shared.make_room_for_events();
        let queue = Arc::clone(&rig.shared.queues[0]);
        let mut reader = queue.events.reader();
        rig.shared.tracers.fetch_add(1, Ordering::Relaxed);
        rig.request(T_IN, 5, &[Buffer::writable(DATA, 1024)]);
        rig.request(T_OUT, SECTORS, &[Buffer::readable(DATA, 512)]);
        rig.request(T_FLUSH, 0, &[]);
        rig.queue.add(&[Buffer::readable(HEADER, 3)]);
        rig.queue.used();
        let mut said = Vec::new();
        // The last is recorded before it is returned.
        while said.len() < 4 {
            match reader.read() {
                Some(Read::Event(event)) => {
                    let buffers: Vec<_> = event.buffers().iter().map(|b| (b.gpa, b.len, b.writable)).collect();
                    said.push((summary(event.head(), event.frame_len), event.written, buffers));
                }
                other => panic!("{other:?} {setup:?}"),
            }
        }
        let (header, status) = ((HEADER, 16, false), (STATUS, 1, true));
        assert_eq!(said[0], ("read sector 5 len 1024".to_owned(), 1025, vec![header, (DATA, 1024, true), status]));
        let words: Vec<_> = said.iter().map(|(words, ..)| words.as_str()).collect();
        assert_eq!(words[1..], ["write sector 2048 len 512 ioerr", "flush", "no request"], "{setup:?}");
    }
}

#[test]
fn many_requests_at_once_come_back_each_with_its_own_data_though_a_queue_is_stopped_meanwhile() {
    for setup in setups() {
        let mut rig = Rig::new(setup);
        for at in 0..SECTORS {
            rig.scratch.file.write_all_at(&[at as u8; 512], at * SECTOR).unwrap();
        }
        for at in 0..21 {
            rig.ram.write(HEADER + 16 * at, &BlkHeader { kind: T_IN, sector: 3 * at }.to_bytes()).unwrap();
            let chain = [
                Buffer::readable(HEADER + 16 * at, 16),
                Buffer::writable(DATA + 512 * at, 512),
                Buffer::writable(STATUS + at, 1),
            ];
            rig.queue.driver.add(&chain, Placement::Direct).unwrap();
        }
        rig.queue.kick_if_wanted();
        rig.queue.used();
        // With what is under way returned, or never taken.
        let base = rig.device.stop_queue(0).unwrap();
        rig.device.start_queue(0, rig.queue.setup_at(base)).unwrap();
        (1..21).for_each(|_| assert_eq!(rig.queue.used().written, 513, "{setup:?}"));
        for at in 0..21 {
            assert!(rig.ram.read(DATA + 512 * at, 512).unwrap() == [3 * at as u8; 512], "{setup:?}");
        }
        assert_eq!([rig.count("chains"), rig.count("drops")], [21, 0]);
    }
}

#[test]
fn buffers_that_no_disk_takes_are_served_by_way_of_a_copy_that_is_counted() {
    for setup in setups() {
        let mut rig = Rig::new(setup);
        rig.scratch.file.write_all_at(&pattern(2048), 0).unwrap();
        let buffers = [Buffer::writable(DATA + 1, 1000), Buffer::writable(DATA + 0x2003, 1048)];
        assert_eq!(rig.request(T_IN, 0, &buffers), (S_OK, 2049));
        let got = [rig.ram.read(DATA + 1, 1000).unwrap(), rig.ram.read(DATA + 0x2003, 1048).unwrap()].concat();
        assert!(got == pattern(2048), "{setup:?}");
        rig.ram.write(DATA + 5, &pattern(512)).unwrap();
        assert_eq!(rig.request(T_OUT, 100, &[Buffer::readable(DATA + 5, 512)]), (S_OK, 1));
        let mut there = [0; 512];
        rig.scratch.file.read_exact_at(&mut there, 51200).unwrap();
        assert!(there == *pattern(512));
        let expected = if rig.direct { 2560 } else { 0 };
        assert_eq!(rig.count("device_copied_bytes"), expected, "{setup:?}");
    }
}
