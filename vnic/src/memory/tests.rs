//! Memory tables, translation, and a file that shrinks under its mapping.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::testing::{GuestRam, USER_BASE};
use super::*;

const PAGE: u64 = 4096;

fn memfd(len: u64) -> OwnedFd {
    let fd = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&fd, len as i64).unwrap();
    fd
}

fn spec(gpa: u64, size: u64) -> RegionSpec {
    RegionSpec { gpa: Gpa(gpa), size, user_addr: UserAddr(USER_BASE.wrapping_add(gpa)), mmap_offset: 0 }
}

/// The table of these regions, each over a file of its own of `size` bytes.
fn table(regions: &[(u64, u64)]) -> Result<Memory, MemoryError> {
    Memory::map(regions.iter().map(|&(gpa, size)| (spec(gpa, size), memfd(size.min(1 << 30)))).collect())
}

/// Two regions that touch, one behind a hole.
fn ram() -> GuestRam {
    GuestRam::with_regions(&[(Gpa(0), 4 * PAGE), (Gpa(4 * PAGE), 4 * PAGE), (Gpa(16 * PAGE), PAGE)]).unwrap()
}

#[test]
fn a_range_is_found_where_it_lies() {
    let ram = ram();
    ram.write(0x2345, b"hello").unwrap();
    let slice = ram.memory().slice(0x2345, 5, Access::Read).unwrap();
    let mut out = [0; 5];
    assert_eq!(slice.copy_to(&mut out), 5);
    assert_eq!((&out, slice.addr()), (b"hello", 0x2345));
}

#[test]
fn a_range_whose_start_is_mapped_and_whose_end_is_not_is_rejected() {
    // CVE-2018-1059: DPDK checked the first byte only.
    let ram = ram();
    for (addr, len) in [(8 * PAGE - 1, 2), (8 * PAGE - 1, 9 * PAGE), (17 * PAGE - 8, 9), (4 * PAGE - 1, 12 * PAGE + 2)]
    {
        assert_eq!(
            ram.memory().slice(addr, len, Access::Read).unwrap_err(),
            MemoryError::Unmapped { addr, len },
            "{addr:#x}+{len}"
        );
        assert!(ram.memory().pieces(addr, len, Access::Write).is_err());
    }
}

#[test]
fn a_range_that_wraps_is_rejected() {
    let high = 0_u64.wrapping_sub(2 * PAGE);
    let memory = table(&[(0, PAGE), (high, PAGE)]).unwrap();
    for (addr, len) in [(u64::MAX, 1), (high, u64::MAX), (1, u64::MAX)] {
        assert!(
            matches!(
                memory.slice(addr, len, Access::Read),
                Err(MemoryError::Wraps { .. } | MemoryError::Unmapped { .. })
            ),
            "{addr:#x}+{len}"
        );
    }
    assert!(memory.slice(high, PAGE, Access::Read).is_ok());
}

#[test]
fn a_range_across_regions_is_split_for_buffers_and_refused_for_rings() {
    let ram = ram();
    let (addr, len) = (4 * PAGE - 10, 30);
    assert_eq!(ram.memory().slice(addr, len, Access::Read).unwrap_err(), MemoryError::Split { addr, len });
    let pieces: Vec<(u64, usize)> =
        ram.memory().pieces(addr, len, Access::Read).unwrap().map(|piece| (piece.addr(), piece.len())).collect();
    assert_eq!(pieces, [(addr, 10), (4 * PAGE, 20)]);
    let bytes: Vec<u8> = (0..30).collect();
    ram.write(addr, &bytes).unwrap();
    assert_eq!(ram.read(addr, 30).unwrap(), bytes);
}

#[test]
fn no_bytes_are_nowhere() {
    // CVE-2020-10725: a length of 0 with a bad address. Nothing is touched, so nothing is wrong.
    let ram = ram();
    for addr in [0, 9 * PAGE, u64::MAX] {
        assert_eq!(ram.memory().slice(addr, 0, Access::Read).unwrap().len(), 0);
    }
}

#[test]
fn impossible_tables_are_refused() {
    assert_eq!(table(&[(0x1000, 0)]).unwrap_err(), MemoryError::EmptyRegion { gpa: 0x1000 });
    assert_eq!(table(&[(0, 2 * PAGE), (PAGE, PAGE)]).unwrap_err(), MemoryError::Overlap { gpa: PAGE, size: PAGE });
    assert!(matches!(table(&[(u64::MAX - PAGE, 2 * PAGE)]).unwrap_err(), MemoryError::Wraps { .. }));
    let wraps = RegionSpec { mmap_offset: u64::MAX - 1, ..spec(0, PAGE) };
    assert!(matches!(Memory::map(vec![(wraps, memfd(PAGE))]).unwrap_err(), MemoryError::Wraps { .. }));
    let many: Vec<(u64, u64)> = (0..=MAX_REGIONS as u64).map(|n| (n * PAGE, PAGE)).collect();
    assert_eq!(check_only(&many), Err(MemoryError::TooManyRegions { count: MAX_REGIONS + 1, max: MAX_REGIONS }));
}

/// As [`table`], with one file for all regions.
fn check_only(regions: &[(u64, u64)]) -> Result<(), MemoryError> {
    let file = memfd(PAGE);
    Memory::map(regions.iter().map(|&(gpa, size)| (spec(gpa, size), file.try_clone().unwrap())).collect()).map(|_| ())
}

#[test]
fn a_file_shorter_than_its_region_is_refused_before_it_is_mapped() {
    let region = RegionSpec { mmap_offset: PAGE, ..spec(0, 2 * PAGE) };
    let short = MemoryError::ShortFile { gpa: 0, needed: 3 * PAGE, have: 3 * PAGE - 1 };
    assert_eq!(Memory::map(vec![(region, memfd(3 * PAGE - 1))]).unwrap_err(), short);
    assert!(Memory::map(vec![(region, memfd(3 * PAGE))]).is_ok());
}

#[test]
fn what_is_no_memory_file_is_refused() {
    let null = File::open("/dev/null").unwrap();
    assert!(Memory::map(vec![(spec(0, PAGE), null)]).is_err());
    let (read_end, _write_end) = nix::unistd::pipe().unwrap();
    assert!(Memory::map(vec![(spec(0, PAGE), read_end)]).is_err());
}

#[test]
fn a_region_may_start_anywhere_in_its_file() {
    let file = memfd(3 * PAGE);
    let region = RegionSpec { mmap_offset: 100, ..spec(0x10_0000, PAGE) };
    let whole = Memory::map(vec![(spec(0, 3 * PAGE), file.try_clone().unwrap())]).unwrap();
    let memory = Memory::map(vec![(region, file)]).unwrap();
    whole.write(100 + 7, b"x").unwrap();
    let mut out = [0];
    memory.read(0x10_0007, &mut out).unwrap();
    assert_eq!(&out, b"x");
}

#[test]
fn regions_come_and_go_and_the_others_stay_where_they_are() {
    let before = table(&[(0, PAGE), (2 * PAGE, PAGE)]).unwrap();
    let at = |memory: &Memory| memory.slice(2 * PAGE, 8, Access::Read).map(|slice| slice.as_ptr() as usize);
    let with = before.with_region(spec(PAGE, PAGE), memfd(PAGE)).unwrap();
    assert_eq!(at(&with), at(&before));
    assert_eq!(with.regions().iter().map(|r| r.gpa.0).collect::<Vec<_>>(), [0, PAGE, 2 * PAGE]);
    assert!(before.with_region(spec(PAGE / 2, PAGE), memfd(PAGE)).is_err(), "overlap");

    let without = with.without_region(Gpa(0), UserAddr(USER_BASE), PAGE).unwrap();
    assert_eq!(at(&without), at(&before));
    drop(before);
    drop(with);
    assert!(without.slice(0, 1, Access::Read).is_err());
    assert!(without.write(2 * PAGE, b"still there").is_ok());
    for (gpa, user, size) in [(0, USER_BASE, PAGE), (PAGE, USER_BASE, PAGE), (PAGE, USER_BASE + PAGE, 2 * PAGE)] {
        assert!(without.without_region(Gpa(gpa), UserAddr(user), size).is_err());
    }
}

#[test]
fn user_addresses_are_found_in_their_region_only() {
    let memory = ram().memory().clone();
    assert_eq!(memory.gpa_of(UserAddr(USER_BASE + 5 * PAGE), 16), Ok(Gpa(5 * PAGE)));
    for (addr, len) in [(USER_BASE + 4 * PAGE - 1, 2), (USER_BASE + 9 * PAGE, 1), (0, 1), (USER_BASE, u64::MAX)] {
        assert_eq!(memory.gpa_of(UserAddr(addr), len), Err(MemoryError::UserUnmapped { addr, len }));
    }
}

#[test]
fn copies_of_every_length_are_whole_and_touch_nothing_else() {
    let ram = ram();
    let pattern: Vec<u8> = (0..300_usize).map(|at| (at * 7) as u8 | 1).collect();
    for len in (0..140).chain([255, 256, 300]) {
        let pattern = &pattern[..len];
        let [from, to] = [0x1003, 0x2001].map(|at| ram.memory().slice(at, len as u64, Access::Write).unwrap());
        ram.write(0x2000, &[0; 400]).unwrap();
        assert_eq!(from.copy_from(pattern), len);
        assert_eq!(from.copy_to_slice(&to), len);
        let mut back = [0; 400];
        assert_eq!(to.copy_to(&mut back), len);
        assert!(back[..len] == *pattern && back[len..].iter().all(|byte| *byte == 0), "{len} bytes out");
        let around = ram.read(0x2000, 400).unwrap();
        assert!(
            around[0] == 0 && around[1..=len] == *pattern && around[len + 1..].iter().all(|byte| *byte == 0),
            "{len}"
        );
    }
}

#[test]
fn a_copy_between_overlapping_buffers_ends_and_stays_inside() {
    let ram = ram();
    for (from, to) in [(0x1000, 0x1001), (0x1009, 0x1000), (0x1000, 0x1000), (0x1000, 0x1040)] {
        ram.write(0x0f00, &[7; 0x400]).unwrap();
        for len in [17, 100, 200] {
            let slice = |at| ram.memory().slice(at, len, Access::Write).unwrap();
            assert_eq!(slice(from).copy_to_slice(&slice(to)), len as usize);
        }
        assert!(ram.read(0x0f00, 0x400).unwrap().iter().all(|byte| *byte == 7));
    }
}

#[test]
fn a_file_truncated_under_its_mapping_costs_the_session_and_not_the_process() {
    let ram = ram();
    let bystander = GuestRam::new(PAGE).unwrap();
    ram.write(0, b"kept").unwrap();
    ram.write(4 * PAGE, b"gone").unwrap();
    assert!(!ram.memory().lost());

    ftruncate(ram.fd(), PAGE as i64).unwrap();
    assert_eq!(ram.read(4 * PAGE, 4).unwrap(), [0; 4]);
    assert!(ram.memory().lost());
    assert_eq!(ram.read(0, 4).unwrap(), b"kept");
    // Writing, too, and over the border between what is left and what is gone.
    ram.write(PAGE - 2, b"over").unwrap();
    ram.write(16 * PAGE, b"gone").unwrap();
    assert!(!bystander.memory().lost());
}

#[test]
fn a_new_mapping_does_not_inherit_a_loss() {
    for _ in 0..3 {
        let ram = GuestRam::new(PAGE).unwrap();
        assert!(!ram.memory().lost());
        ftruncate(ram.fd(), 0).unwrap();
        ram.read(0, 1).unwrap();
        assert!(ram.memory().lost());
    }
}

#[test]
fn sigbus_elsewhere_still_kills() {
    const CHILD: &str = "VNIC_TEST_SIGBUS_ELSEWHERE";
    if std::env::var_os(CHILD).is_some() {
        let _guarded = GuestRam::new(PAGE).unwrap();
        let empty = File::from(memfd(0));
        let region = vm_memory::MmapRegion::<()>::build(
            Some(vm_memory::FileOffset::new(empty, 0)),
            PAGE as usize,
            libc::PROT_READ,
            libc::MAP_SHARED,
        );
        // SAFETY: the page is mapped, though no file is behind it: that is the point.
        let byte = unsafe { std::ptr::read_volatile(region.unwrap().as_ptr()) };
        unreachable!("read {byte} from beyond a file's end");
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::tests::sigbus_elsewhere_still_kills"])
        .env(CHILD, "1")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGBUS));
}

#[test]
fn a_large_guest_costs_no_private_memory() {
    let pages_of = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let fields: Vec<u64> = statm.split(' ').map(|f| f.trim().parse().unwrap()).collect();
        fields[5]
    };
    let before = pages_of();
    let ram = GuestRam::new(1 << 40).unwrap();
    ram.write((1 << 40) - 1, b"x").unwrap();
    // `data` of statm counts private writable mappings; the terabyte is in none. Other tests run meanwhile.
    assert!(pages_of().saturating_sub(before) < 1 << 20);
}

#[test]
fn a_region_that_begins_within_a_page_is_refused_by_name() {
    for (gpa, size) in [(8, PAGE), (PAGE / 2, PAGE / 2), (PAGE + 1, PAGE - 1)] {
        assert_eq!(table(&[(gpa, size)]).unwrap_err(), MemoryError::WithinPage { gpa });
    }
}

/// As libblkio announces the memory of its rings.
#[test]
fn a_region_may_end_within_a_page_and_ends_there_to_the_byte() {
    for size in [1, PAGE - 1, PAGE + 8] {
        let memory = table(&[(PAGE, size)]).unwrap();
        let last = PAGE + size - 1;
        memory.write(last, b"x").unwrap();
        let mut byte = [0];
        memory.read(last, &mut byte).unwrap();
        assert_eq!(byte, *b"x");
        assert!(memory.read(last + 1, &mut byte).is_err() && memory.slice(last, 2, Access::Read).is_err());
    }
}

#[test]
fn regions_that_share_user_addresses_must_be_the_same_memory() {
    let at = |gpa, mmap_offset| RegionSpec { user_addr: UserAddr(USER_BASE), mmap_offset, ..spec(gpa, 2 * PAGE) };
    let (one, other) = (memfd(4 * PAGE), memfd(4 * PAGE));
    let map = |regions: &[(RegionSpec, &OwnedFd)]| {
        Memory::map(regions.iter().map(|(spec, file)| (*spec, file.try_clone().unwrap())).collect())
    };
    let overlap = MemoryError::UserOverlap { gpa: 8 * PAGE, size: 2 * PAGE };
    assert_eq!(map(&[(at(0, 0), &one), (at(8 * PAGE, 0), &other)]).unwrap_err(), overlap);
    assert_eq!(map(&[(at(0, 0), &one), (at(8 * PAGE, PAGE), &one)]).unwrap_err(), overlap);
    // The same bytes at two places of the guest: an alias, as some boards have it.
    let aliased = map(&[(at(0, 0), &one), (at(8 * PAGE, 0), &one)]).unwrap();
    aliased.write(8, b"x").unwrap();
    let mut out = [0];
    aliased.read(8 * PAGE + 8, &mut out).unwrap();
    assert_eq!(&out, b"x");
    let alone = map(&[(at(0, 0), &one)]).unwrap();
    assert_eq!(alone.with_region(at(8 * PAGE, 0), other).unwrap_err(), overlap);
}
