//! The area for what is in flight: asked for, kept by the front-end, given back.

use super::Ask::{Acked, Plain};
use super::*;
use crate::spec::vhost_user::Inflight;
use crate::vhost_user::message::InflightArea;
use crate::vhost_user::socket::receive_into;

fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.device.records = true;
    let protocol = PROTOCOL.with(ProtocolFeature::InflightShmfd);
    bench.run(&[(Plain(Request::SetProtocolFeatures(protocol)), "")]);
    bench
}

fn area(mmap_size: u64, num_queues: u16, queue_size: u16, padded: bool) -> InflightArea {
    InflightArea { told: Inflight { mmap_size, mmap_offset: 0, num_queues, queue_size }, padded }
}

/// Asks for an area; the payload of the reply, and how many files came with it.
fn get(bench: &mut Bench, asked: InflightArea) -> (Vec<u8>, usize) {
    bench.send(&Plain(Request::GetInflightFd(asked)));
    assert!(matches!(bench.handle(), Ok(Handled::Done(_))));
    let mut reply = [0; 64];
    let mut files = Vec::new();
    let Ok(count) = receive_into(bench.socket.as_fd(), &mut reply, &mut files) else { panic!("there is a reply") };
    assert_eq!(reply[..8], [31, 0, 0, 0, (VERSION | FLAG_REPLY) as u8, 0, 0, 0]);
    (reply[HEADER_LEN..count].to_vec(), files.len())
}

#[test]
fn an_area_is_made_and_its_description_is_as_long_as_the_question() {
    let mut bench = bench();
    let expected = [&4096_u64.to_le_bytes()[..], &[0; 8], &[4, 0, 0, 1]].concat();
    assert_eq!(get(&mut bench, area(0, 4, 256, false)), (expected.clone(), 1));
    assert_eq!(get(&mut bench, area(0, 4, 256, true)), ([expected, vec![0; 4]].concat(), 1));
    assert_eq!(bench.device.calls, ["area for 4 queues of 256"; 2]);
}

/// CVE-2022-0669 and others: absurd numbers of queues and sizes.
#[test]
fn for_queues_that_the_device_does_not_have_there_is_no_area() {
    let mut bench = bench();
    for (queues, size) in [(0, 256), (5, 256), (u16::MAX, u16::MAX), (4, 0), (4, 1025)] {
        assert_eq!(get(&mut bench, area(0, queues, size, true)), (vec![0; 24], 0), "{queues} {size}");
    }
    assert_eq!(bench.device.calls, [""; 0]);
}

#[test]
fn an_area_is_given_back_before_rings_start_and_let_go_with_the_session() {
    let mut bench = bench();
    bench.run(&[
        (Plain(Request::SetInflightFd(area(4096, 4, 256, false))), "area of 4096 at 0 for 4 queues of 256"),
        (Acked(Request::SetInflightFd(area(64, 1, 2, true))), "area of 64 at 0 for 1 queues of 2; = 0x0"),
        (
            Acked(Request::SetInflightFd(area(4096, 5, 256, true))),
            "refused: SET_INFLIGHT_FD: queues and size 0x50100 is not allowed; = 0x1",
        ),
    ]);
    bench.device.refuse = "area";
    let refused = "area of 4096 at 0 for 4 queues of 256; refused: SET_INFLIGHT_FD: refused by the test; = 0x1";
    bench.run(&[(Acked(Request::SetInflightFd(area(4096, 4, 256, true))), refused)]);
    assert_eq!(bench.open_files(), 0);
    assert_eq!(bench.hang_up(), "reset; no area; memory 0; closed");
}

#[test]
fn a_description_of_another_length_or_without_its_file_is_refused() {
    for (length, files, expected) in [
        (19, 1, "refused: SET_INFLIGHT_FD: 19 bytes of payload instead of 24; = 0x1"),
        (28, 1, "refused: SET_INFLIGHT_FD: 28 bytes of payload instead of 24; = 0x1"),
        (24, 0, "refused: SET_INFLIGHT_FD: 0 file descriptors instead of 1; = 0x1"),
        (20, 2, "refused: SET_INFLIGHT_FD: 2 file descriptors instead of 1; = 0x1"),
    ] {
        let mut bench = bench();
        let mut bytes = Vec::new();
        for field in [32, VERSION | FLAG_NEED_REPLY, length] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.resize(HEADER_LEN + length as usize, 1);
        bench.send_raw(&bytes, files);
        assert_eq!(bench.outcome(32), expected);
    }
}
