//! Whole sessions in the order in which real front-ends send them.

use super::Ask::{Acked, Plain};
use super::*;

const OWN: &str = "";

/// Recorded from QEMU 7.2.22, two queue pairs, a guest that uses one. Note `SET_VRING_ENABLE` before `SET_FEATURES`, the
/// start of pair 0 while pair 1 is unheard of, and `SET_STATUS` 0 before `GET_VRING_BASE`.
#[test]
fn qemu_7_2_with_memory_slots_and_status() {
    let mut bench = Bench::new();
    bench.ram = two_regions();
    let regions = bench.ram.specs().to_vec();
    let features = Request::SetFeatures(Features(0x1_4000_0000));
    let protocol = Request::SetProtocolFeatures(PROTOCOL);
    bench.run(&[
        (Plain(Request::GetFeatures), "= 0x764400001"),
        (Plain(Request::GetProtocolFeatures), "= 0x1a03d"),
        (Plain(protocol.clone()), OWN),
        (Plain(Request::GetQueueNum), "= 0x2"),
        (Plain(Request::GetMaxMemSlots), "= 0x4"),
        (Plain(Request::SetOwner), OWN),
        (Plain(Request::GetFeatures), "= 0x764400001"),
        (Plain(call(0)), OWN),
        (Plain(err(0)), OWN),
        (Plain(call(1)), OWN),
        (Plain(err(1)), OWN),
        (Plain(Request::GetFeatures), "= 0x764400001"),
        (Plain(Request::GetProtocolFeatures), "= 0x1a03d"),
        (Plain(protocol), OWN),
        (Plain(Request::GetMaxMemSlots), "= 0x4"),
        (Plain(Request::GetFeatures), "= 0x764400001"),
        (Plain(call(2)), OWN),
        (Plain(err(2)), OWN),
        (Plain(call(3)), OWN),
        (Plain(err(3)), OWN),
        (Plain(enable(0, 1)), OWN),
        (Plain(enable(1, 1)), OWN),
        (Plain(enable(2, 0)), OWN),
        (Plain(enable(3, 0)), OWN),
        (Plain(enable(0, 1)), OWN),
        (Plain(enable(1, 1)), OWN),
        (Plain(features.clone()), "features 0x140000000"),
        (Plain(Request::GetStatus), "= 0x0"),
        (Plain(Request::SetStatus(8)), "status 8"),
        (Acked(Request::AddMemReg(regions[0])), "memory 1; = 0x0"),
        (Acked(Request::AddMemReg(regions[1])), "memory 2; = 0x0"),
        (Plain(num(0, 256)), OWN),
        (Plain(base(0, 0)), OWN),
        (Plain(addr(0, 0xc_0000)), OWN),
        (Plain(kick(0)), "start 0 size 256 at 0xc0000 0xc1000 0xc2000 base 0 enabled kick call err"),
        (Plain(call(0)), "call 0 file"),
        (Plain(num(1, 256)), OWN),
        (Plain(base(1, 0)), OWN),
        (Plain(addr(1, 0xc_3000)), OWN),
        (Plain(kick(1)), "start 1 size 256 at 0xc3000 0xc4000 0xc5000 base 0 enabled kick call err"),
        (Plain(call(1)), "call 1 file"),
        (Plain(Request::GetStatus), "= 0x8"),
        (Plain(Request::SetStatus(0xf)), "status 15"),
        // The guest resets the device.
        (Plain(Request::SetStatus(0)), "stop 0; stop 1; reset; status 0"),
        (Plain(get_base(0)), "= 0x6400000000"),
        (Plain(get_base(1)), "= 0x6500000001"),
        (Plain(enable(0, 1)), OWN),
        (Plain(enable(1, 1)), OWN),
        // The next driver: QEMU sends neither the memory nor the err files again.
        (Plain(features), "features 0x140000000"),
        (Plain(num(0, 128)), OWN),
        (Plain(base(0, 0)), OWN),
        (Plain(addr(0, 0xc_8000)), OWN),
        (Plain(kick(0)), "start 0 size 128 at 0xc8000 0xc9000 0xca000 base 0 enabled kick call err"),
    ]);
    assert_eq!(bench.hang_up(), "stop 0; reset; memory 0; closed");
    assert_eq!(bench.open_files(), 0, "files outlive their session");
}

/// QEMU 10 asks for an acknowledgement of `SET_VRING_ENABLE`, stops the rings before it resets the status, and sends
/// `RESET_DEVICE` when the guest resets. Both queue pairs are in use: `SET_FEATURES` comes again while the first one runs.
#[test]
fn qemu_10_with_two_queue_pairs() {
    let mut bench = Bench::new();
    let region = bench.ram.specs()[0];
    let features = Request::SetFeatures(Features(0x1_4040_0000));
    bench.run(&[
        (Plain(Request::GetFeatures), "= 0x764400001"),
        (Plain(Request::GetProtocolFeatures), "= 0x1a03d"),
        (Plain(Request::SetProtocolFeatures(PROTOCOL)), OWN),
        (Plain(Request::GetQueueNum), "= 0x2"),
        (Plain(Request::GetMaxMemSlots), "= 0x4"),
        (Plain(Request::SetOwner), OWN),
        (Plain(err(0)), OWN),
        (Plain(Request::NetSetMtu(1500)), "mtu 1500"),
        (Acked(enable(0, 1)), "= 0x0"),
        (Acked(enable(1, 1)), "= 0x0"),
        (Acked(enable(2, 1)), "= 0x0"),
        (Acked(enable(3, 1)), "= 0x0"),
        (Plain(features.clone()), "features 0x140400000"),
        (Plain(Request::GetStatus), "= 0x0"),
        (Plain(Request::SetStatus(8)), "status 8"),
        (Acked(Request::AddMemReg(region)), "memory 1; = 0x0"),
        (Plain(num(0, 256)), OWN),
        (Plain(base(0, 0)), OWN),
        (Plain(addr(0, 0x1000)), OWN),
        (Plain(kick(0)), "start 0 size 256 at 0x1000 0x2000 0x3000 base 0 enabled kick - err"),
        (Plain(call(0)), "call 0 file"),
        (Plain(features), OWN),
        (Plain(Request::GetStatus), "= 0x8"),
        (Plain(Request::SetStatus(8)), "status 8"),
        (Plain(num(2, 256)), OWN),
        (Plain(base(2, 0)), OWN),
        (Plain(addr(2, 0x8000)), OWN),
        (Plain(kick(2)), "start 2 size 256 at 0x8000 0x9000 0xa000 base 0 enabled kick - -"),
        (Plain(Request::SetStatus(0xf)), "status 15"),
        (Acked(enable(2, 0)), "enabled 2 false; = 0x0"),
        (Acked(enable(2, 1)), "enabled 2 true; = 0x0"),
        (Plain(Request::SendRarp([0x52, 0x54, 0, 0x12, 0x34, 0x56])), "rarp [52, 54, 00, 12, 34, 56]"),
        (Plain(get_base(0)), "stop 0; = 0x6400000000"),
        (Plain(get_base(2)), "stop 2; = 0x6600000002"),
        (Plain(Request::SetStatus(0)), "reset; status 0"),
        (Plain(Request::ResetDevice), "reset"),
        (Plain(Request::GetStatus), "= 0x0"),
    ]);
}

/// Recorded from DPDK 22.11.11's virtio-user: call files before features, user addresses that are guest-physical ones, enabled
/// after the start, disabled before the end.
#[test]
fn dpdk_virtio_user() {
    let mut bench = Bench::new();
    let table = bench.table();
    // Rings of 1024 are longer than a page.
    let at = |index, gpa: u64| {
        let user = gpa + USER_BASE;
        let (descriptor, available, used) = (user, user + 0x4000, user + 0x5000);
        Request::SetVringAddr(VringAddr { index, flags: 0, descriptor, used, available, log: 0 })
    };
    bench.run(&[
        (Plain(Request::SetOwner), OWN),
        (Plain(Request::GetFeatures), "= 0x764400001"),
        (Plain(Request::GetProtocolFeatures), "= 0x1a03d"),
        (Plain(Request::SetProtocolFeatures(ProtocolFeatures(0x10009))), OWN),
        (Plain(call(0)), OWN),
        (Plain(call(1)), OWN),
        (Plain(Request::SetFeatures(Features(0x1_6000_0000))), "features 0x160000000"),
        (Plain(Request::SetStatus(11)), "status 11"),
        (Plain(Request::GetStatus), "= 0xb"),
        (Plain(Request::GetStatus), "= 0xb"),
        (Acked(table), "memory 1; = 0x0"),
        (Plain(num(0, 1024)), OWN),
        (Plain(base(0, 0)), OWN),
        (Plain(at(0, 0x1_0000)), OWN),
        (Plain(kick(0)), "start 0 size 1024 at 0x10000 0x14000 0x15000 base 0 disabled kick call -"),
        (Plain(num(1, 1024)), OWN),
        (Plain(base(1, 0)), OWN),
        (Plain(at(1, 0x2_0000)), OWN),
        (Plain(kick(1)), "start 1 size 1024 at 0x20000 0x24000 0x25000 base 0 disabled kick call -"),
        (Plain(enable(0, 1)), "enabled 0 true"),
        (Plain(enable(1, 1)), "enabled 1 true"),
        (Plain(Request::SetStatus(15)), "status 15"),
        (Plain(enable(0, 0)), "enabled 0 false"),
        (Plain(enable(1, 0)), "enabled 1 false"),
        (Plain(get_base(0)), "stop 0; = 0x6400000000"),
        (Plain(get_base(1)), "stop 1; = 0x6500000001"),
    ]);
    assert_eq!(bench.hang_up(), "reset; memory 0; closed");
    assert_eq!(bench.open_files(), 0);
}

/// A front-end from before protocol features: rings start enabled, nothing is acknowledged.
#[test]
fn without_protocol_features_rings_start_enabled() {
    let mut bench = Bench::new();
    let table = bench.table();
    bench.run(&[
        (Plain(Request::SetOwner), OWN),
        (Plain(Request::GetFeatures), "= 0x764400001"),
        (Acked(Request::SetFeatures(Features(0x1_0000_0000))), "features 0x100000000"),
        (Plain(table), "memory 1"),
        (Plain(num(0, 256)), OWN),
        (Plain(addr(0, 0x1000)), OWN),
        (Plain(kick(0)), "start 0 size 256 at 0x1000 0x2000 0x3000 base 0 enabled kick - -"),
    ]);
}

#[test]
fn a_ring_starts_when_the_last_of_kick_size_and_addresses_is_there() {
    let mut bench = Bench::negotiated();
    let table = bench.table();
    let polled = Request::SetVringKick(VringFile { index: 3, present: false });
    bench.run(&[
        (Plain(Request::SetFeatures(Features(0x1_4000_0000))), "features 0x140000000"),
        (Plain(table), "memory 1"),
        (Plain(polled), OWN),
        (Plain(base(3, 17)), OWN),
        (Plain(addr(3, 0x1000)), OWN),
        (Plain(num(3, 64)), "start 3 size 64 at 0x1000 0x2000 0x3000 base 17 disabled - - -"),
        (Plain(kick(3)), "kick 3 file"),
        (Plain(err(3)), "err 3 file"),
    ]);
}

#[test]
fn a_packed_ring_has_any_size_and_a_base_of_32_bits() {
    let mut bench = Bench::negotiated();
    let table = bench.table();
    bench.run(&[
        (Plain(Request::SetFeatures(Features(0x5_4000_0000))), "features 0x540000000"),
        (Plain(table), "memory 1"),
        (Plain(num(0, 100)), OWN),
        (Plain(base(0, 0x8003_8005)), OWN),
        (Plain(addr(0, 0x1000)), OWN),
        (Plain(kick(0)), "start 0 size 100 at 0x1000 0x2000 0x3000 base 2147713029 disabled kick - -"),
    ]);
    let base = VringBase(0x8003_0005);
    assert_eq!((base.packed_avail().slot, base.packed_avail().wrap), (5, false));
    assert_eq!((base.packed_used().slot, base.packed_used().wrap), (3, true));
    assert_eq!(VringBase::packed(base.packed_avail(), base.packed_used()), base);
}

/// `RING_RESET` (VIRTIO 1.3, 2.6.1 Virtqueue Reset) as the protocol can have it: one vring is stopped and started again, elsewhere and
/// of another size, while the others run.
#[test]
fn a_vring_is_reset_to_another_size_and_place_while_another_runs() {
    let mut bench = Bench::running();
    bench.run(&[
        (Plain(num(1, 256)), OWN),
        (Plain(addr(1, 0x4000)), OWN),
        (Plain(call(1)), OWN),
        (Plain(kick(1)), "start 1 size 256 at 0x4000 0x5000 0x6000 base 0 disabled kick call -"),
        (Plain(enable(1, 1)), "enabled 1 true"),
        (Plain(get_base(1)), "stop 1; = 0x6500000001"),
        // Nothing starts it before its kick file comes, whatever is set meanwhile.
        (Plain(num(1, 64)), OWN),
        (Plain(base(1, 0)), OWN),
        (Plain(addr(1, 0x8000)), OWN),
        (Plain(enable(1, 1)), OWN),
        (Plain(kick(1)), "start 1 size 64 at 0x8000 0x9000 0xa000 base 0 enabled kick call -"),
        // The other one has been running all the time.
        (Acked(num(0, 64)), "refused: SET_VRING_NUM: vring 0 is running; = 0x1"),
    ]);
}

/// QEMU 7.2 has a vhost device for each queue pair, and each of them announces the memory.
#[test]
fn a_region_that_is_there_already_is_acknowledged_and_nothing_stops() {
    let mut bench = Bench::running();
    let region = bench.ram.specs()[0];
    let mut other = region;
    other.size -= 4096;
    let refused = "refused: ADD_MEM_REG: memory region at 0x0+1044480 overlaps another; = 0x1";
    bench.run(&[
        (Acked(Request::AddMemReg(region)), "= 0x0"),
        (Plain(Request::AddMemReg(region)), OWN),
        (Acked(Request::AddMemReg(other)), refused),
    ]);
    // The same addresses, and another file.
    bench.ram = GuestRam::new(RAM).unwrap();
    let outcome = bench.ask(&Acked(Request::AddMemReg(region)));
    assert!(outcome.contains("overlaps another; = 0x1"), "{outcome}");
}

#[test]
fn memory_that_comes_and_goes_under_a_running_ring_pauses_it() {
    let mut bench = Bench::running();
    let region = bench.ram.specs()[0];
    let table = bench.table();
    let mut moved = region;
    moved.gpa = Gpa(0x10_0000);
    bench.run(&[
        (Acked(table), "memory 1; = 0x0"),
        (Acked(Request::RemMemReg(region)), "stop 0; memory 0; = 0x0"),
        (
            Acked(Request::AddMemReg(region)),
            "memory 1; start 0 size 256 at 0x1000 0x2000 0x3000 base 100 disabled kick - -; = 0x0",
        ),
        (
            Acked(Request::SetMemTable(vec![moved])),
            "stop 0; memory 1; start 0 size 256 at 0x101000 0x102000 0x103000 base 100 disabled kick - -; = 0x0",
        ),
        (Acked(Request::RemMemReg(moved)), "stop 0; memory 0; = 0x0"),
        (Plain(get_base(0)), "= 0x6400000000"),
        (Acked(Request::AddMemReg(region)), "memory 1; = 0x0"),
    ]);
}

#[test]
fn the_dirty_log_flag_may_change_while_a_ring_runs() {
    let mut bench = Bench::running();
    let Request::SetVringAddr(mut logged) = addr(0, 0x1000) else { unreachable!() };
    logged.flags = 1;
    bench.run(&[
        (Plain(Request::SetVringAddr(logged)), OWN),
        // No change of features: see `log`.
        (Plain(Request::SetFeatures(Features(0x1_4400_0000))), ""),
    ]);
}

#[test]
fn a_message_in_pieces_is_put_together_and_nothing_waits_for_the_rest() {
    let mut bench = Bench::negotiated();
    let bytes = Request::SetFeatures(Features(0x1_4000_0000)).to_bytes(FLAG_NEED_REPLY);
    for (at, byte) in bytes.iter().enumerate() {
        assert_eq!(bench.outcome(2), "nothing", "before byte {at}");
        bench.write(&[*byte]);
    }
    assert_eq!(bench.outcome(2), "features 0x140000000; = 0x0");
}

#[test]
fn messages_sent_back_to_back_keep_their_own_files() {
    let mut bench = Bench::running();
    bench.send(&Plain(call(0)));
    bench.send(&Plain(Request::GetStatus));
    bench.send(&Plain(err(0)));
    assert_eq!(bench.outcome(13), "call 0 file");
    assert_eq!(bench.outcome(40), "= 0x0");
    assert_eq!(bench.outcome(14), "err 0 file");
}

/// "This request should be sent only when MQ is set in *queried* protocol features": `SET_PROTOCOL_FEATURES` may come later.
#[test]
fn the_number_of_queues_is_told_to_a_front_end_that_has_seen_mq_on_offer() {
    let mut bench = Bench::new();
    bench.run(&[
        (Plain(Request::GetProtocolFeatures), "= 0x1a03d"),
        (Plain(Request::GetQueueNum), "= 0x2"),
        (Plain(Request::SetProtocolFeatures(ProtocolFeatures::NONE)), OWN),
    ]);
    let expected = "reset; memory 0; ended: GET_QUEUE_NUM needs the protocol feature MQ, which is not negotiated";
    assert_eq!(bench.ask(&Plain(Request::GetQueueNum)), expected);
}
