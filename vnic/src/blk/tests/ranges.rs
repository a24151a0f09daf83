//! Sectors given up, and sectors of zeroes.

use super::*;
use crate::spec::blk::{BlkRange, RANGE_UNMAP, S_UNSUPP, T_DISCARD, T_WRITE_ZEROES};

const RANGE: u64 = DATA;

fn ask(rig: &mut Rig, kind: u32, range: BlkRange) -> u8 {
    rig.ram.write(RANGE, &range.to_bytes()).unwrap();
    rig.request(kind, 0, &[Buffer::readable(RANGE, 16)]).0
}

/// The first bytes of the image.
fn there(rig: &Rig, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rig.scratch.file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn what_is_given_up_or_filled_with_zeroes_reads_as_zeroes_and_its_neighbours_as_before() {
    for setup in setups() {
        for (kind, flags) in [(T_DISCARD, 0), (T_WRITE_ZEROES, 0), (T_WRITE_ZEROES, RANGE_UNMAP)] {
            let mut rig = Rig::new(setup);
            rig.scratch.file.write_all_at(&[7; 64 << 10], 0).unwrap();
            assert_eq!(ask(&mut rig, kind, BlkRange { sector: 8, sectors: 64, flags }), S_OK, "{setup:?} {kind}");
            let expected = [vec![7; 4096], vec![0; 32 << 10], vec![7; 28 << 10]].concat();
            assert!(there(&rig, 64 << 10) == expected, "{setup:?} {kind} {flags}");
            assert_eq!(rig.scratch.file.metadata().unwrap().len(), SECTORS * SECTOR);
        }
    }
}

#[test]
fn a_range_that_is_none_is_counted_by_its_name_and_nothing_is_changed() {
    let range = |sector, sectors, flags| BlkRange { sector, sectors, flags };
    for setup in setups() {
        for (name, status, kind, range) in [
            ("unknown_flags", S_UNSUPP, T_DISCARD, range(0, 8, RANGE_UNMAP)),
            ("unknown_flags", S_UNSUPP, T_WRITE_ZEROES, range(0, 8, 2)),
            ("unknown_flags", S_UNSUPP, T_WRITE_ZEROES, range(0, 8, RANGE_UNMAP | 1 << 31)),
            ("long_range", S_IOERR, T_DISCARD, range(0, request::MAX_RANGE_SECTORS + 1, 0)),
            ("beyond_capacity", S_IOERR, T_DISCARD, range(SECTORS - 1, 2, 0)),
            ("beyond_capacity", S_IOERR, T_WRITE_ZEROES, range(u64::MAX, 1, 0)),
            ("bad_ranges", S_IOERR, T_DISCARD, range(0, 0, 0)),
        ] {
            let mut rig = Rig::new(setup);
            rig.scratch.file.write_all_at(&[7; 8192], 0).unwrap();
            assert_eq!(ask(&mut rig, kind, range), status, "{name} {range:?}");
            assert_eq!([rig.count(&format!("drop_{name}")), rig.count("drops")], [1, 1], "{name} {range:?} {setup:?}");
            assert!(there(&rig, 8192) == [7; 8192]);
        }
        let mut rig = Rig::new(setup);
        assert_eq!(rig.request(T_DISCARD, 0, &[Buffer::readable(RANGE, 32)]).0, S_IOERR);
        assert_eq!(rig.request(T_WRITE_ZEROES, 0, &[Buffer::readable(RANGE, 15)]).0, S_IOERR);
        assert_eq!(rig.request(T_WRITE_ZEROES, 0, &[]).0, S_IOERR);
        assert_eq!(rig.count("drop_bad_ranges"), 3);
        let mut rig = Rig::with(setup, ",readonly");
        assert_eq!(ask(&mut rig, T_DISCARD, range(0, 8, 0)), S_IOERR);
        assert_eq!(rig.count("drop_read_only"), 1);
    }
}

#[test]
fn zeroes_are_written_where_the_file_system_knows_no_other_way() {
    let scratch = Scratch::new(4 << 20);
    scratch.file.write_all_at(&vec![7; 4 << 20], 0).unwrap();
    let image = Image::open(&scratch.options("")).unwrap();
    image.write_zeroes(512, 3 << 20).unwrap();
    let mut bytes = vec![1; 4 << 20];
    scratch.file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..512].iter().chain(&bytes[(3 << 20) + 512..]).all(|byte| *byte == 7));
    assert!(bytes[512..(3 << 20) + 512].iter().all(|byte| *byte == 0));
}
