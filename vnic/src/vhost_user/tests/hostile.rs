//! Front-ends that break the rules: one test for each hole that other back-ends had.

use super::Ask::{Acked, Plain};
use super::*;
use crate::spec::vhost_user::RequestCode;

fn raw(request: RequestCode, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [request as u32, VERSION | FLAG_NEED_REPLY, payload.len() as u32] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// A hostile message against a session whose ring 0 runs; afterwards no file of it may be open.
#[track_caller]
fn check(request: RequestCode, payload: &[u8], files: usize, expected: &str) {
    let mut bench = Bench::running();
    let before = bench.open_files();
    bench.send_raw(&raw(request, payload), files);
    assert_eq!(bench.outcome(request as u32), expected);
    assert!(bench.open_files() <= before, "files of a refused message are open");
}

/// CVE-2020-10723: an index beyond 16 bits whose lower half is a vring that exists.
#[test]
fn a_vring_index_beyond_16_bits_is_not_cut_off() {
    let mut bench = Bench::running();
    for (request, name) in [
        (num(0x1_0000, 256), "SET_VRING_NUM"),
        (base(0x1_0000, 0), "SET_VRING_BASE"),
        (addr(0x1_0000, 0x1000), "SET_VRING_ADDR"),
        (enable(0x1_0000, 1), "SET_VRING_ENABLE"),
    ] {
        let expected = format!("refused: {name}: vring 65536, there are 4; = 0x1");
        assert_eq!(bench.ask(&Acked(request)), expected);
    }
    let expected = "stop 0; reset; memory 0; ended: GET_VRING_BASE: vring 65536, there are 4";
    assert_eq!(bench.ask(&Plain(get_base(0x1_0000))), expected);
}

/// CVE-2020-10723, in the requests that have only eight bits for it.
#[test]
fn a_kick_payload_with_bits_above_the_index_is_refused() {
    let payload = 0x1_0000_0000_u64.to_le_bytes();
    let expected = "refused: SET_VRING_KICK: vring index 0x100000000 is not allowed; = 0x1";
    check(RequestCode::SetVringKick, &payload, 1, expected);
    let expected = "refused: SET_VRING_CALL: vring 4, there are 4; = 0x1";
    check(RequestCode::SetVringCall, &4_u64.to_le_bytes(), 1, expected);
}

/// CVE-2019-14818, CVE-2020-10726: the same message again, with files the request does not have.
#[test]
fn surplus_files_are_closed_every_time() {
    let mut bench = Bench::running();
    for files in 1..=8 {
        for request in [RequestCode::SetOwner, RequestCode::SetVringNum] {
            let payload: &[u8] = if request == RequestCode::SetOwner { &[] } else { &[0; 8] };
            bench.send_raw(&raw(request, payload), files);
            let expected = format!("refused: {request}: {files} file descriptors instead of 0; = 0x1");
            assert_eq!(bench.outcome(request as u32), expected);
        }
    }
    assert_eq!(bench.open_files(), 1, "only the kick file of ring 0 is in use");
}

#[test]
fn more_files_than_a_message_may_have_end_the_session_and_are_closed() {
    let mut bench = Bench::running();
    bench.send_raw(&raw(RequestCode::SetVringCall, &[0; 8]), 9);
    let expected = "stop 0; reset; memory 0; ended: a message carries more file descriptors than can be taken (8 at most, fewer where this process may open no more)";
    assert_eq!(bench.outcome(13), expected);
    assert_eq!(bench.open_files(), 0);
}

/// Files may come with any byte of a message: they add up.
#[test]
fn files_in_several_pieces_of_one_message_are_counted_together() {
    let mut bench = Bench::running();
    let message = raw(RequestCode::SetVringCall, &[0; 8]);
    bench.send_raw(&message[..5], 8);
    assert_eq!(bench.outcome(13), "nothing");
    bench.send_raw(&message[5..], 1);
    let expected = "stop 0; reset; memory 0; ended: a message carries more file descriptors than can be taken (8 at most, fewer where this process may open no more)";
    assert_eq!(bench.outcome(13), expected);
    assert_eq!(bench.open_files(), 0);
}

/// Every file for a vring replaces the one before; none piles up.
#[test]
fn endless_call_files_leave_one_open() {
    let mut bench = Bench::running();
    for _ in 0..200 {
        assert_eq!(bench.ask(&Plain(call(0))), "call 0 file");
        assert_eq!(bench.ask(&Plain(kick(0))), "kick 0 file");
        assert_eq!(bench.ask(&Plain(err(1))), "");
    }
    assert_eq!(bench.open_files(), 3);
}

/// CVE-2022-0669, CVE-2021-3839: in-flight tracking, asked for without end, with files, with absurd numbers of queues.
#[test]
fn endless_get_inflight_fd_is_refused_and_leaks_nothing() {
    for _ in 0..50 {
        let mut payload = [0xff; 24];
        payload[20..].fill(0);
        let expected = "stop 0; reset; memory 0; ended: GET_INFLIGHT_FD needs the protocol feature INFLIGHT_SHMFD, which is not negotiated";
        check(RequestCode::GetInflightFd, &payload, 8, expected);
    }
    let mut bench = Bench::running();
    for _ in 0..50 {
        bench.send_raw(&raw(RequestCode::SetInflightFd, &[0xff; 20]), 1);
        let expected =
            "refused: SET_INFLIGHT_FD needs the protocol feature INFLIGHT_SHMFD, which is not negotiated; = 0x1";
        assert_eq!(bench.outcome(32), expected);
    }
    assert_eq!(bench.open_files(), 1);
}

/// CVE-2020-10722: size + offset beyond 64 bits in `SET_LOG_BASE`.
#[test]
fn a_dirty_log_is_refused_before_its_size_is_looked_at() {
    let expected =
        "stop 0; reset; memory 0; ended: SET_LOG_BASE needs the protocol feature LOG_SHMFD, which is not negotiated";
    check(RequestCode::SetLogBase, &[0xff; 16], 1, expected);
}

#[test]
fn a_protocol_feature_must_be_negotiated_before_its_requests() {
    let mut bench = Bench::new();
    let expected = "reset; memory 0; ended: GET_QUEUE_NUM needs the protocol feature MQ, which is not negotiated";
    assert_eq!(bench.ask(&Plain(Request::GetQueueNum)), expected);
}

/// CVE-2018-1059: a ring whose start is in guest memory and whose end is not.
#[test]
fn a_ring_that_ends_outside_of_memory_does_not_start() {
    let mut bench = Bench::running();
    bench.run(&[
        (Plain(num(1, 256)), ""),
        (Plain(kick(1)), ""),
        (
            Acked(addr(1, RAM - 0x2008)),
            "refused: SET_VRING_ADDR: device area of vring 1: user address 0x7f00000ffff8+2052 is in no memory region; = 0x1",
        ),
        (
            Acked(addr(1, 0u64.wrapping_sub(USER_BASE).wrapping_sub(0x800))),
            "refused: SET_VRING_ADDR: descriptor area of vring 1: user address 0xfffffffffffff800+4096 is in no memory region; = 0x1",
        ),
        // Nothing of it stays.
        (Plain(addr(1, 0x8000)), "start 1 size 256 at 0x8000 0x9000 0xa000 base 0 disabled kick - -"),
    ]);
}

/// Two regions that touch for the guest and not for the front-end.
#[test]
fn a_ring_across_two_regions_does_not_start() {
    let mut bench = Bench::running();
    bench.run(&[(Plain(get_base(0)), "stop 0; = 0x6400000000")]);
    bench.ram = two_regions();
    let table = bench.table();
    bench.run(&[
        (Acked(table), "memory 2; = 0x0"),
        (Plain(addr(0, 0x9_e800)), ""),
        (
            Acked(kick(0)),
            "refused: SET_VRING_KICK: device area of vring 0: user address 0x7f00000a0800+2052 is in no memory region; = 0x1",
        ),
    ]);
}

/// CVE-2026-5747: other addresses, size or base for a ring that runs.
#[test]
fn a_running_ring_does_not_change_under_the_device() {
    let mut bench = Bench::running();
    bench.run(&[
        (Acked(addr(0, 0x8000)), "refused: SET_VRING_ADDR: vring 0 is running; = 0x1"),
        (Acked(num(0, 512)), "refused: SET_VRING_NUM: vring 0 is running; = 0x1"),
        (Acked(base(0, 3)), "refused: SET_VRING_BASE: vring 0 is running; = 0x1"),
        (Plain(get_base(0)), "stop 0; = 0x6400000000"),
        (Plain(addr(0, 0x8000)), ""),
        (Plain(kick(0)), "start 0 size 256 at 0x8000 0x9000 0xa000 base 100 disabled kick - -"),
    ]);
}

#[test]
fn features_do_not_change_under_a_running_ring() {
    let mut bench = Bench::running();
    let expected = "refused: SET_FEATURES: changed while vring 0 runs: csum; = 0x1";
    assert_eq!(bench.ask(&Acked(Request::SetFeatures(Features(0x1_4000_0001)))), expected);
}

/// A ring that was never set up: kicked, enabled, stopped.
#[test]
fn a_ring_that_was_never_set_up_does_not_start() {
    let mut bench = Bench::running();
    bench.run(&[(Plain(kick(2)), ""), (Plain(enable(2, 1)), ""), (Plain(get_base(2)), "= 0x2")]);
    let mut bench = Bench::negotiated();
    let expected = "refused: SET_VRING_KICK: vring 0 cannot start before SET_FEATURES; = 0x1";
    assert_eq!(bench.ask(&Acked(kick(0))), expected);
    assert_eq!(bench.open_files(), 0);
}

#[test]
fn sizes_no_ring_has_are_refused() {
    let mut bench = Bench::running();
    for size in [0, 1025, 65536, 65537, u32::MAX] {
        let expected = format!("refused: SET_VRING_NUM: size {size:#x} is not allowed; = 0x1");
        assert_eq!(bench.ask(&Acked(num(1, size))), expected);
    }
    bench.run(&[
        (Plain(num(1, 100)), ""),
        (Plain(addr(1, 0x8000)), ""),
        (Acked(kick(1)), "refused: SET_VRING_KICK: size 0x64 is not allowed; = 0x1"),
        (Plain(num(1, 128)), ""),
        (Plain(base(1, 0x1_0000)), ""),
        (Acked(kick(1)), "refused: SET_VRING_KICK: base 0x10000 is not allowed; = 0x1"),
    ]);
}

#[test]
fn values_out_of_range_are_refused() {
    let mut bench = Bench::running();
    bench.run(&[
        (Acked(enable(0, 2)), "refused: SET_VRING_ENABLE: state 0x2 is not allowed; = 0x1"),
        (Acked(Request::SetStatus(256)), "refused: SET_STATUS: status 0x100 is not allowed; = 0x1"),
        (Acked(Request::NetSetMtu(67)), "refused: NET_SET_MTU: MTU 0x43 is not allowed; = 0x1"),
        (Acked(Request::NetSetMtu(65536)), "refused: NET_SET_MTU: MTU 0x10000 is not allowed; = 0x1"),
        (Acked(Request::SetFeatures(Features(1 << 50))), "refused: SET_FEATURES: not offered: bit 50; = 0x1"),
        (
            Acked(Request::SetProtocolFeatures(ProtocolFeatures(1 << 9 | 1 << 3))),
            "refused: SET_PROTOCOL_FEATURES: not offered: CONFIG; = 0x1",
        ),
    ]);
}

/// What was refused without the front-end asking to hear of it would pass for done: the session ends instead.
#[test]
fn a_fault_nobody_asked_to_hear_of_ends_the_session() {
    let mut bench = Bench::running();
    let expected = "stop 0; reset; memory 0; ended: SET_VRING_ENABLE: state 0x2 is not allowed";
    assert_eq!(bench.ask(&Plain(enable(0, 2))), expected);
    assert_eq!(bench.open_files(), 0);
}

/// Memory: overlapping, empty, wrapping regions, too many, a file shorter than its region (SIGBUS in other back-ends).
#[test]
fn memory_that_cannot_be_mapped_leaves_the_old_memory_in_use() {
    let mut bench = Bench::running();
    let good = bench.ram.specs()[0];
    let with = |change: &dyn Fn(&mut crate::memory::RegionSpec)| {
        let mut region = good;
        change(&mut region);
        region
    };
    let refused = |what: &str| format!("refused: {what}; = 0x1");
    let short = with(&|region| region.size += 0x1000);
    let expected = refused("SET_MEM_TABLE: memory region at 0x0 needs 1052672 bytes of its file, which has 1048576");
    assert_eq!(bench.ask(&Acked(Request::SetMemTable(vec![short]))), expected);
    let expected = refused("SET_MEM_TABLE: memory region at 0x0+1048576 overlaps another");
    assert_eq!(bench.ask(&Acked(Request::SetMemTable(vec![good, good]))), expected);
    let expected = refused("ADD_MEM_REG: memory region at 0x0+1048576 overlaps another");
    let elsewhere = with(&|region| region.user_addr.0 += 0x1000);
    assert_eq!(bench.ask(&Acked(Request::AddMemReg(elsewhere))), expected);
    let empty = with(&|region| region.size = 0);
    assert_eq!(
        bench.ask(&Acked(Request::SetMemTable(vec![empty]))),
        refused("SET_MEM_TABLE: memory region at 0x0 is empty")
    );
    let wraps = with(&|region| region.mmap_offset = u64::MAX);
    let expected = refused("SET_MEM_TABLE: 0xffffffffffffffff+1048576 wraps around the address space");
    assert_eq!(bench.ask(&Acked(Request::SetMemTable(vec![wraps]))), expected);
    let gone = with(&|region| region.size = 0x1000);
    assert_eq!(bench.ask(&Acked(Request::RemMemReg(gone))), refused("REM_MEM_REG: no memory region at 0x0+4096"));
    // The ring never stopped.
    assert_eq!(bench.ask(&Plain(enable(0, 1))), "enabled 0 true");
}

#[test]
fn a_memory_table_that_lies_about_its_length_is_refused() {
    for count in [2_u64, 8, 9, 0xffff_ffff] {
        let payload = [count.to_le_bytes().as_slice(), &[0; 32]].concat();
        let expected = match count {
            9.. => format!("refused: SET_MEM_TABLE: number of regions {count:#x} is not allowed; = 0x1"),
            _ => format!("refused: SET_MEM_TABLE: 40 bytes of payload instead of {}; = 0x1", 8 + 32 * count),
        };
        check(RequestCode::SetMemTable, &payload, 1, &expected);
    }
    check(RequestCode::SetMemTable, &[], 0, "refused: SET_MEM_TABLE: 0 bytes of payload instead of 8; = 0x1");
}

#[test]
fn more_regions_than_there_are_slots_are_refused() {
    let mut bench = Bench::running();
    let page = |at: u64| crate::memory::RegionSpec {
        gpa: Gpa(RAM + at * 0x1000),
        size: 0x1000,
        user_addr: crate::memory::UserAddr(at * 0x1000),
        mmap_offset: at * 0x1000,
    };
    for at in 0..3 {
        let expected = format!("memory {}; = 0x0", at + 2);
        assert_eq!(bench.ask(&Acked(Request::AddMemReg(page(at)))), expected);
    }
    let expected = "refused: ADD_MEM_REG: 5 memory regions, at most 4; = 0x1";
    assert_eq!(bench.ask(&Acked(Request::AddMemReg(page(3)))), expected);
}

/// Old front-ends send a file with `REM_MEM_REG`; it is closed unused.
#[test]
fn a_file_with_rem_mem_reg_is_closed() {
    let mut bench = Bench::running();
    let request = Request::RemMemReg(bench.ram.specs()[0]);
    bench.send_raw(&request.to_bytes(0), 1);
    assert_eq!(bench.outcome(38), "stop 0; memory 0");
    assert_eq!(bench.open_files(), 1, "only the kick file of the paused ring is in use");
}

/// A memory file truncated while it is mapped (DPDK dies of SIGBUS): the session ends, the next can be served.
#[test]
fn memory_that_shrinks_while_mapped_ends_the_session() {
    let mut bench = Bench::running();
    nix::unistd::ftruncate(bench.ram.fd(), 0).expect("ftruncate");
    let mut byte = [0xaa];
    let memory = bench.device.memory.clone().expect("memory");
    memory.read(0x1000, &mut byte).expect("the address is still mapped");
    assert_eq!(byte, [0], "zeroes stand in for what is gone");
    let expected = "stop 0; reset; memory 0; ended: a memory region's file shrank while it was mapped";
    assert_eq!(bench.ask(&Plain(Request::GetStatus)), expected);
}

#[test]
fn what_the_device_refuses_leaves_the_session_as_it_was() {
    let mut bench = Bench::running();
    bench.run(&[(Plain(num(1, 256)), ""), (Plain(addr(1, 0x8000)), "")]);
    bench.device.refuse = "start 1";
    let setup = "start 1 size 256 at 0x8000 0x9000 0xa000 base 0 disabled kick - -";
    let refused = "refused: SET_VRING_KICK: refused by the test; = 0x1";
    assert_eq!(bench.ask(&Acked(kick(1))), format!("{setup}; {refused}"));
    assert_eq!(bench.open_files(), 1);
    bench.device.refuse = "memory";
    let mut moved = bench.ram.specs()[0];
    moved.gpa = Gpa(RAM);
    assert_eq!(
        bench.ask(&Acked(Request::SetMemTable(vec![moved]))),
        "stop 0; memory 1; start 0 size 256 at 0x1000 0x2000 0x3000 base 100 disabled kick - -; \
         refused: SET_MEM_TABLE: refused by the test; = 0x1"
    );
    bench.device.refuse = "start 0";
    let expected = "ended: vring 0 cannot go on in the new memory: SET_MEM_TABLE: refused by the test";
    assert!(bench.ask(&Acked(Request::SetMemTable(vec![moved]))).ends_with(expected));
}

#[test]
fn features_ok_does_not_stick_without_features() {
    let mut bench = Bench::negotiated();
    bench.run(&[
        (Acked(Request::SetFeatures(Features(1 << 50))), "refused: SET_FEATURES: not offered: bit 50; = 0x1"),
        (Plain(Request::SetStatus(11)), "status 3"),
        (Plain(Request::GetStatus), "= 0x3"),
    ]);
}

#[test]
fn an_unknown_request_is_refused_by_number() {
    let mut bench = Bench::running();
    for number in [0_u32, 44, 0x1_0001, u32::MAX] {
        let mut bytes = raw(RequestCode::SetOwner, &[]);
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        bench.send_raw(&bytes, 3);
        assert_eq!(bench.outcome(number), format!("refused: request {number} is unknown; = 0x1"));
    }
    assert_eq!(bench.open_files(), 1);
}

#[test]
fn requests_of_other_devices_are_refused_by_name() {
    check(RequestCode::GpuSetSocket, &[], 1, "refused: GPU_SET_SOCKET is not supported; = 0x1");
    let expected =
        "stop 0; reset; memory 0; ended: GET_CONFIG needs the protocol feature CONFIG, which is not negotiated";
    check(RequestCode::GetConfig, &[0; 268], 0, expected);
}

/// The front-end asks and never reads the answers: the back-end must not wait for it.
#[test]
fn a_front_end_that_does_not_read_its_replies_is_dropped() {
    let mut bench = Bench::running();
    let message = Request::GetFeatures.to_bytes(0);
    let error = (0..100_000).find_map(|_| {
        send_on(bench.socket.as_fd(), &message, &[]).expect("send");
        bench.handle().err()
    });
    assert!(matches!(error, Some(SessionError::ReplyBlocked)), "{error:?}");
    assert_eq!(bench.device.calls, ["stop 0", "reset", "memory 0"]);
}

#[test]
fn a_connection_that_ends_within_a_message_is_an_error() {
    let mut bench = Bench::running();
    bench.send_raw(&raw(RequestCode::SetVringCall, &[0; 8])[..15], 1);
    assert_eq!(bench.outcome(13), "nothing");
    let expected = "stop 0; reset; memory 0; ended: the connection ended 5 bytes before the end of a message";
    assert_eq!(bench.hang_up(), expected);
    assert_eq!(bench.open_files(), 0);
}
