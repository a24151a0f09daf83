//! Behind a guest's IOMMU: the channel for requests, translations, rings at IOVAs.

use super::Ask::{Acked, Plain};
use super::*;
use crate::memory::Access;
use crate::spec::vhost_user::{
    IOTLB_ACCESS_FAIL, IOTLB_INVALIDATE, IOTLB_MISS, IOTLB_READ, IOTLB_UPDATE, IOTLB_WRITE, Iotlb,
};

const FEATURES: Features = Features(0x3_4000_0000);

fn update(iova: u64, size: u64, gpa: u64, permissions: u8) -> Request {
    let user_address = gpa.wrapping_add(USER_BASE);
    Request::IotlbMsg(Iotlb { iova, size, user_address, permissions, kind: IOTLB_UPDATE })
}

fn message(iova: u64, size: u64, kind: u8) -> Request {
    Request::IotlbMsg(Iotlb { iova, size, user_address: 0, permissions: 0, kind })
}

fn behind_an_iommu() -> Bench {
    let mut bench = Bench::negotiated();
    let table = bench.table();
    bench.run(&[(Plain(Request::SetFeatures(FEATURES)), "features 0x340000000"), (Acked(table), "memory 1; = 0x0")]);
    bench
}

#[test]
fn translations_come_and_go() {
    let mut bench = behind_an_iommu();
    bench.run(&[
        (Acked(update(0xffff_f000, 0x1000, 0x4000, IOTLB_READ)), "translate 0xfffff000+0x1000 to 0x4000 R; = 0x0"),
        (Acked(update(0, 0x2000, 0x8000, IOTLB_READ | IOTLB_WRITE)), "translate 0x0+0x2000 to 0x8000 R W; = 0x0"),
        (Acked(message(0xffff_f000, 0x1000, IOTLB_INVALIDATE)), "void 0xfffff000 to 0xffffffff; = 0x0"),
        (Acked(message(0, 0, IOTLB_INVALIDATE)), "void 0x0 to 0xffffffffffffffff; = 0x0"),
        // The last page there is.
        (
            Acked(message(u64::MAX - 0xfff, 0x1000, IOTLB_INVALIDATE)),
            "void 0xfffffffffffff000 to 0xffffffffffffffff; = 0x0",
        ),
    ]);
}

#[test]
fn translations_that_make_no_sense_are_refused() {
    let mut bench = behind_an_iommu();
    let refused = |what: &str| format!("refused: IOTLB_MSG: {what}; = 0x1");
    for (request, what) in [
        (update(0, 0, 0x4000, IOTLB_READ), "size 0x0 is not allowed"),
        (update(u64::MAX, 2, 0x4000, IOTLB_READ), "size 0x2 is not allowed"),
        (update(0, 0x1000, 0x4000, 0), "permissions 0x0 is not allowed"),
        (update(0, 0x1000, 0x4000, 4), "permissions 0x4 is not allowed"),
        (message(0, 0x1000, IOTLB_MISS), "type 0x1 is not allowed"),
        (message(0, 0x1000, 9), "type 0x9 is not allowed"),
        (update(0, 0x1001, RAM - 0x1000, IOTLB_READ), "user address 0x7f00000ff000+4097 is in no memory region"),
    ] {
        assert_eq!(bench.ask(&Acked(request)), refused(what));
    }
}

#[test]
fn without_access_platform_there_are_no_translations() {
    let mut bench = Bench::running();
    let expected = "refused: IOTLB_MSG is not supported; = 0x1";
    assert_eq!(bench.ask(&Acked(update(0, 0x1000, 0x4000, IOTLB_READ))), expected);
}

/// The addresses of a ring are IOVAs then, and only the device knows where they lead.
#[test]
fn a_ring_starts_at_iovas() {
    let mut bench = behind_an_iommu();
    let Request::SetVringAddr(mut at) = addr(0, 0) else { unreachable!() };
    (at.descriptor, at.available, at.used) = (0xffff_0000, 0xffff_1000, 0xffff_2000);
    bench.run(&[
        (Plain(num(0, 256)), ""),
        (Plain(Request::SetVringAddr(at)), ""),
        (Plain(kick(0)), "start 0 size 256 at 0xffff0000 0xffff1000 0xffff2000 base 0 disabled kick - -"),
        (Acked(addr(0, 0)), "refused: SET_VRING_ADDR: vring 0 is running; = 0x1"),
    ]);
}

#[test]
fn the_device_asks_over_the_channel_until_the_session_ends() {
    let mut bench = behind_an_iommu();
    let (mut front_end, back_end) = UnixStream::pair().expect("pair");
    let request = Request::SetBackendReqFd;
    send_on(bench.socket.as_fd(), &request.to_bytes(FLAG_NEED_REPLY), &[back_end.as_fd()]).expect("send");
    drop(back_end);
    assert_eq!(bench.outcome(request.code() as u32), "channel; = 0x0");
    let channel = bench.device.channel.as_ref().expect("channel");
    channel.iotlb_miss(Iova(0x1234_5000), Access::Write).expect("send");
    channel.iotlb_access_fail(Iova(0x6000), Access::Read).expect("send");
    for (iova, permissions, kind) in [(0x1234_5000, IOTLB_WRITE, IOTLB_MISS), (0x6000, IOTLB_READ, IOTLB_ACCESS_FAIL)] {
        let mut bytes = [0; HEADER_LEN + 32];
        front_end.read_exact(&mut bytes).expect("a message of the back-end");
        let asked = Request::IotlbMsg(Iotlb { iova, size: 0, user_address: 0, permissions, kind });
        // The same layout as the front-end's; another number.
        assert_eq!(bytes[..4], 1_u32.to_le_bytes());
        assert_eq!(bytes[4..], asked.to_bytes(0)[4..]);
    }
    assert_eq!(bench.hang_up(), "reset; memory 0; closed");
    assert_eq!(front_end.read(&mut [0]).expect("the end"), 0);
}

/// The protocol feature is withdrawn after the channel was set up: the channel must still end with the session.
#[test]
fn the_channel_ends_with_the_session_whatever_is_negotiated_then() {
    let mut bench = Bench::negotiated();
    bench.send_raw(&Request::SetBackendReqFd.to_bytes(0), 1);
    assert_eq!(bench.outcome(21), "channel");
    assert_eq!(bench.ask(&Plain(Request::SetProtocolFeatures(ProtocolFeatures::NONE))), "");
    assert_eq!(bench.open_files(), 1);
    assert_eq!(bench.hang_up(), "reset; memory 0; closed");
    assert_eq!(bench.open_files(), 0);
}

#[test]
fn a_channel_must_come_with_its_socket() {
    let mut bench = behind_an_iommu();
    let expected = "refused: SET_BACKEND_REQ_FD: 0 file descriptors instead of 1; = 0x1";
    assert_eq!(bench.ask(&Acked(Request::SetBackendReqFd)), expected);
}

#[test]
fn a_front_end_that_does_not_read_the_channel_does_not_stop_the_device() {
    let (front_end, back_end) = UnixStream::pair().expect("pair");
    let channel = BackendChannel::new(back_end.into());
    let error = (0..100_000).find_map(|_| channel.iotlb_miss(Iova(0), Access::Read).err());
    assert!(matches!(error, Some(SessionError::ReplyBlocked)), "{error:?}");
    drop(front_end);
    assert!(channel.iotlb_miss(Iova(0), Access::Read).is_err());
}
