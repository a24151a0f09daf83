//! The log of dirty pages, as front-ends turn it on and off.

use std::sync::atomic::Ordering::Relaxed;

use super::Ask::{Acked, Plain};
use super::*;
use crate::memory::MemoryError;
use crate::spec::vhost_user::{LogArea, VRING_ADDR_F_LOG};

/// Bytes of a log of all memory.
const WHOLE: u64 = RAM / 4096 / 8;
const FEATURES: u64 = 0x1_4000_0000;
const LOG_ALL: u64 = 1 << 26;

fn set_log(mmap_size: u64) -> Request {
    Request::SetLogBase(LogArea { mmap_size, mmap_offset: 0 })
}

fn features(more: u64) -> Request {
    Request::SetFeatures(Features(FEATURES | more))
}

/// Addresses of ring 0 as it runs, logged.
fn logged_at(log: u64) -> Request {
    let Request::SetVringAddr(ring) = addr(0, 0x1000) else { unreachable!() };
    Request::SetVringAddr(VringAddr { flags: VRING_ADDR_F_LOG, log, ..ring })
}

fn logging() -> Bench {
    let mut bench = Bench::running();
    bench.device.logs = true;
    let protocol = PROTOCOL.with(ProtocolFeature::LogShmfd);
    bench.run(&[(Plain(Request::SetProtocolFeatures(protocol)), "")]);
    bench
}

/// How many pages are marked in the log that was sent last.
fn marked(bench: &Bench) -> u32 {
    let log = bench.log.as_ref().unwrap();
    (0..log.len()).map(|at| log.byte(at).unwrap().load(Relaxed).count_ones()).sum()
}

/// As QEMU does it at a migration's beginning and end.
#[test]
fn the_log_is_turned_on_and_off_while_rings_run_and_nothing_is_negotiated() {
    let mut bench = logging();
    bench.run(&[
        (Plain(set_log(WHOLE)), "= 0x0"),
        (Acked(features(LOG_ALL)), "log on; = 0x0"),
        (Plain(logged_at(0x3000)), "ring 0 logged at 0x3000"),
        // Memory was plugged: a longer log takes the place of the one before.
        (Plain(set_log(2 * WHOLE)), "log on; = 0x0"),
        (Plain(features(0)), ""),
        (Plain(addr(0, 0x1000)), "log off"),
        (Plain(set_log(WHOLE)), "= 0x0"),
        (Plain(features(LOG_ALL)), "log on"),
        (Plain(features(LOG_ALL)), ""),
    ]);
    assert_eq!(marked(&bench), 0);
    assert_eq!(bench.hang_up(), "stop 0; reset; log off; memory 0; closed");
}

#[test]
fn a_ring_can_be_logged_alone() {
    let mut bench = logging();
    bench.run(&[
        (Plain(set_log(WHOLE)), "= 0x0"),
        (Plain(logged_at(0x3000)), "ring 0 logged at 0x3000; log on"),
        (Plain(Request::SetLogFd), "log on, told"),
        (Plain(addr(0, 0x1000)), "log off"),
    ]);
    assert_eq!(bench.hang_up(), "stop 0; reset; memory 0; closed");
}

#[test]
fn a_log_that_is_too_short_is_an_error_by_name_as_soon_as_it_is_on() {
    let short = "the log of dirty pages has 31 bytes, and the guest's memory needs 32";
    let mut bench = logging();
    bench.run(&[
        (Plain(set_log(WHOLE - 1)), "= 0x0"),
        (Acked(features(LOG_ALL)), &format!("refused: SET_FEATURES: {short}; = 0x1")),
        (Plain(set_log(WHOLE)), "= 0x0"),
        (Acked(features(LOG_ALL)), "log on; = 0x0"),
        (
            Acked(logged_at(RAM - 4)),
            &format!("refused: SET_VRING_ADDR: {}; = 0x1", MemoryError::LogTooSmall { have: 32, needed: 33 }),
        ),
    ]);
    let ended = format!("stop 0; reset; log off; memory 0; ended: SET_LOG_BASE: {short}");
    assert_eq!(bench.ask(&Plain(set_log(WHOLE - 1))), ended);
}

#[test]
fn memory_does_not_grow_beyond_a_log_that_is_on() {
    let mut bench = logging();
    let more = GuestRam::with_regions(&[(Gpa(RAM), 0x1000)]).unwrap().specs()[0];
    bench.run(&[
        (Plain(set_log(WHOLE)), "= 0x0"),
        (Acked(features(LOG_ALL)), "log on; = 0x0"),
        (
            Acked(Request::AddMemReg(more)),
            "refused: ADD_MEM_REG: the log of dirty pages has 32 bytes, and the guest's memory needs 33; = 0x1",
        ),
        (Plain(features(0)), "log off"),
        (Acked(Request::AddMemReg(more)), "memory 2; = 0x0"),
    ]);
}

/// A session that begins while the guest is on its way: rings run before the log is there.
#[test]
fn what_ran_without_a_log_while_there_should_have_been_one_is_marked_as_a_whole() {
    for enabled in [false, true] {
        let mut bench = logging();
        bench.run(&[(Plain(get_base(0)), "stop 0; = 0x6400000000"), (Plain(features(LOG_ALL)), "")]);
        let start = "start 0 size 256 at 0x1000 0x2000 0x3000 base 100 disabled kick - -";
        bench.run(&[(Plain(kick(0)), start)]);
        if enabled {
            bench.run(&[(Plain(enable(0, 1)), "enabled 0 true")]);
        }
        bench.run(&[(Plain(set_log(WHOLE)), "log on; = 0x0")]);
        assert_eq!(marked(&bench), if enabled { 256 } else { 0 });
    }
}

/// CVE-2020-10722 and others: size and offset beyond 64 bits, a file that is shorter, none, several.
#[test]
fn a_log_that_cannot_be_ends_the_session_and_names_why() {
    let cases: [(u64, u64, usize, &str); 6] = [
        (
            u64::MAX,
            u64::MAX,
            1,
            "SET_LOG_BASE: the log of dirty pages cannot be used: 0xffffffffffffffff+18446744073709551615 wraps around the address space",
        ),
        (0, 0, 1, "SET_LOG_BASE: the log of dirty pages cannot be used: it has no bytes"),
        (33, 0, 1, "SET_LOG_BASE: the log of dirty pages cannot be used: its file has 32 bytes, and 33 are announced"),
        (32, 8, 1, "SET_LOG_BASE: the log of dirty pages cannot be used: its file has 32 bytes, and 40 are announced"),
        (32, 0, 0, "SET_LOG_BASE: 0 file descriptors instead of 1"),
        (32, 0, 2, "SET_LOG_BASE: 2 file descriptors instead of 1"),
    ];
    for (mmap_size, mmap_offset, files, expected) in cases {
        let mut bench = logging();
        let file = SharedArea::file(32).unwrap();
        let bytes = Request::SetLogBase(LogArea { mmap_size, mmap_offset }).to_bytes(0);
        send_on(bench.socket.as_fd(), &bytes, &vec![file.as_fd(); files]).unwrap();
        let request = crate::spec::vhost_user::RequestCode::SetLogBase as u32;
        assert_eq!(bench.outcome(request), format!("stop 0; reset; memory 0; ended: {expected}"));
    }
}

#[test]
fn a_device_that_cannot_log_leaves_the_log_off() {
    let mut bench = logging();
    bench.device.refuse = "log on";
    bench.run(&[
        (Plain(set_log(WHOLE)), "= 0x0"),
        (Acked(features(LOG_ALL)), "log on; refused: SET_FEATURES: refused by the test; = 0x1"),
    ]);
    bench.device.refuse = "";
    bench.run(&[(Acked(features(LOG_ALL)), "log on; = 0x0")]);
}
