//! Many requests at once, and what of them the kernel does only in part.

use std::os::unix::fs::FileExt;

use super::super::tests::{RAM, file_of, pattern, transfer};
use super::*;
use crate::memory::testing::GuestRam;

fn transfers(file: &File) -> Transfers {
    Transfers::new(file.try_clone().unwrap()).expect("io_uring, which this test is of")
}

/// Waits for all that is under way; by ticket.
fn results(transfers: &mut Transfers) -> std::collections::BTreeMap<u16, io::Result<()>> {
    transfers.submit();
    let mut results = std::collections::BTreeMap::new();
    while !transfers.is_idle() {
        transfers.wait();
        while let Some((ticket, result)) = transfers.next_done() {
            transfers.finish(ticket, 0);
            results.insert(ticket, result);
        }
    }
    results
}

const READ: Direction = Direction::FromFile;

#[test]
fn as_many_as_there_are_tickets_are_under_way_and_each_moves_its_own() {
    let (ram, bytes) = (GuestRam::new(RAM).unwrap(), pattern(64 << 10));
    let file = file_of(&bytes);
    let mut transfers = transfers(&file);
    for round in 0..3 {
        for at in 0..u64::from(MOST_UNDER_WAY) {
            let mut one = transfer(&ram, &[(0x1000 + at * 0x1000, 100), (0x1800 + at * 0x1000, 100)]);
            let operation = Operation::Move { direction: READ, offset: at * 200 };
            assert!(transfers.start(operation, &mut one).is_some());
            assert_eq!(one.left(), 0, "an empty one comes for it");
        }
        let mut too_many = transfer(&ram, &[(0, 7)]);
        assert!(!transfers.has_room() && transfers.start(Operation::Sync, &mut too_many).is_none());
        assert_eq!(too_many.left(), 7, "nothing was taken");
        let results = results(&mut transfers);
        assert!(results.len() == 256 && results.values().all(Result::is_ok), "{round}");
        for at in 0..256_usize {
            let parts = [0x1000, 0x1800].map(|part| ram.read(part + at as u64 * 0x1000, 100).unwrap()).concat();
            assert!(parts == bytes[at * 200..][..200], "{round} {at}");
            ram.write(0x1000 + at as u64 * 0x1000, &[0; 0x1000]).unwrap();
        }
    }
}

#[test]
fn more_pieces_than_a_request_takes_go_on_and_what_ends_too_soon_is_an_error() {
    let (ram, bytes) = (GuestRam::new(RAM).unwrap(), pattern(3 * 2500));
    let file = file_of(&bytes);
    let mut transfers = transfers(&file);
    let buffers: Vec<(u64, u64)> = (0..2500).map(|at| (0x1000 + at * 0x1000, 3)).collect();
    let long = transfers.start(Operation::Move { direction: READ, offset: 0 }, &mut transfer(&ram, &buffers)).unwrap();
    let late = Operation::Move { direction: READ, offset: 7400 };
    let late = transfers.start(late, &mut transfer(&ram, &[(0x800, 101)])).unwrap();
    let results = results(&mut transfers);
    assert!(results[&long].is_ok());
    assert_eq!(results[&late].as_ref().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert!(buffers.iter().zip(bytes.chunks(3)).all(|((addr, _), bytes)| ram.read(*addr, 3).unwrap() == bytes));
}

#[test]
fn writes_syncs_and_holes_are_requests_like_others() {
    let ram = GuestRam::new(RAM).unwrap();
    let file = file_of(&[9; 16384]);
    let mut transfers = transfers(&file);
    ram.write(0x1000, &pattern(512)).unwrap();
    let to_disk = Operation::Move { direction: Direction::ToDisk, offset: 512 };
    transfers.start(to_disk, &mut transfer(&ram, &[(0x1000, 512)])).unwrap();
    transfers.start(Operation::Sync, &mut Transfer::default()).unwrap();
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    transfers.start(Operation::Allocate { mode, offset: 4096, len: 4096 }, &mut Transfer::default()).unwrap();
    let bad = transfers.start(Operation::Allocate { mode, offset: 0, len: 0 }, &mut Transfer::default()).unwrap();
    let results = results(&mut transfers);
    assert_eq!(results[&bad].as_ref().unwrap_err().raw_os_error(), Some(libc::EINVAL));
    assert_eq!(results.values().filter(|result| result.is_ok()).count(), 3);
    let mut there = vec![0; 16384];
    file.read_exact_at(&mut there, 0).unwrap();
    let expected = [vec![9; 512], pattern(512), vec![9; 3072], vec![0; 4096], vec![9; 8192]].concat();
    assert!(there == expected);
}

#[test]
fn a_ring_that_is_dropped_with_requests_under_way_ends_them_first() {
    let ram = GuestRam::new(RAM).unwrap();
    let file = file_of(&pattern(4096));
    let mut transfers = transfers(&file);
    let operation = Operation::Move { direction: READ, offset: 0 };
    transfers.start(operation, &mut transfer(&ram, &[(0x1000, 4096)])).unwrap();
    transfers.submit();
    drop(transfers);
    assert!(ram.read(0x1000, 4096).unwrap() == pattern(4096));
}

#[test]
fn a_request_that_the_kernel_puts_off_without_end_is_an_error() {
    let mut slot = Slot { operation: Operation::Sync, transfer: Transfer::default(), put_off: 0 };
    for _ in 0..MOST_PUT_OFF {
        assert!(slot.take_result(-libc::EAGAIN).is_none());
    }
    let ended = slot.take_result(-libc::EAGAIN).expect("an end").unwrap_err();
    assert_eq!(ended.raw_os_error(), Some(libc::EAGAIN));
}
