//! Moves between files and a guest's memory, in one piece and in many.

use std::os::unix::fs::FileExt;

use super::*;
use crate::memory::Access;
use crate::memory::testing::GuestRam;

pub(super) const RAM: u64 = 16 << 20;

/// A file without a name, with these bytes in it.
pub(super) fn file_of(bytes: &[u8]) -> File {
    let file = nix::sys::memfd::memfd_create("disk", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    let file = File::from(file);
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// Bytes that can be foretold.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// A transfer over these buffers.
pub(super) fn transfer(ram: &GuestRam, buffers: &[(u64, u64)]) -> Transfer {
    let memory = ram.memory();
    let pieces = buffers.iter().map(|(addr, len)| memory.slice(*addr, *len, Access::Write).unwrap());
    let mut transfer = Transfer::default();
    // SAFETY: the pieces are the memory's.
    unsafe { transfer.set(memory, pieces, None) };
    transfer
}

#[test]
fn a_file_comes_into_scattered_buffers_and_goes_out_of_them() {
    let (ram, bytes) = (GuestRam::new(RAM).unwrap(), pattern(10_000));
    let file = file_of(&bytes);
    let buffers = [(0x1000, 1), (0x9000, 0), (0x2003, 4096), (0x8000, 2903)];
    transfer(&ram, &buffers).run(&file, Direction::FromFile, 3000).unwrap();
    let got: Vec<u8> = buffers.iter().flat_map(|(addr, len)| ram.read(*addr, *len as usize).unwrap()).collect();
    assert!(got == bytes[3000..]);
    for direction in [Direction::ToFile, Direction::ToDisk] {
        let other = file_of(&[0; 10_000]);
        transfer(&ram, &buffers).run(&other, direction, 3000).unwrap();
        let mut there = vec![0; 10_000];
        other.read_exact_at(&mut there, 0).unwrap();
        assert!(there[..3000] == [0; 3000] && there[3000..] == bytes[3000..]);
    }
}

#[test]
fn more_pieces_than_a_system_call_takes_are_moved_in_several() {
    let (ram, bytes) = (GuestRam::new(RAM).unwrap(), pattern(3 * 2500));
    let buffers: Vec<(u64, u64)> = (0..2500).map(|at| (0x1000 + at * 0x1000, 3)).collect();
    transfer(&ram, &buffers).run(&file_of(&bytes), Direction::FromFile, 0).unwrap();
    assert!(buffers.iter().zip(bytes.chunks(3)).all(|((addr, _), bytes)| ram.read(*addr, 3).unwrap() == bytes));
}

#[test]
fn a_file_that_ends_too_soon_is_an_error_and_so_is_one_that_may_not_be_written() {
    let ram = GuestRam::new(RAM).unwrap();
    let file = file_of(&pattern(1000));
    let error = transfer(&ram, &[(0x1000, 700), (0x3000, 301)]).run(&file, Direction::FromFile, 0).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let read_only = File::open("/proc/self/exe").unwrap();
    let error = transfer(&ram, &[(0x1000, 700)]).run(&read_only, Direction::ToFile, 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
}

#[test]
fn the_driver_is_told_in_the_byte_that_was_named_and_the_memory_let_go() {
    let ram = GuestRam::new(RAM).unwrap();
    let (memory, mut told) = (ram.memory(), Transfer::default());
    let status = memory.slice(0x5000, 1, Access::Write).unwrap();
    let count = Arc::strong_count(memory);
    // SAFETY: the byte is the memory's.
    unsafe { told.set(memory, std::iter::empty(), Some(status)) };
    assert_eq!(Arc::strong_count(memory), count + 1);
    told.finish(7);
    assert_eq!((ram.read(0x5000, 2).unwrap().as_slice(), Arc::strong_count(memory)), (&[7, 0][..], count));
}

#[test]
fn buffers_are_aligned_where_address_and_length_are() {
    let ram = GuestRam::new(RAM).unwrap();
    let aligned = |buffers: &[(u64, u64)]| transfer(&ram, buffers).is_aligned(512);
    assert!(aligned(&[(0x1000, 512), (0x3200, 1024)]));
    assert!(!aligned(&[(0x1000, 512), (0x3201, 1024)]) && !aligned(&[(0x1000, 511)]));
}
