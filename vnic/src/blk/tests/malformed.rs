//! Requests that are none: each has a name, the driver is told, and the next is served.

use super::*;
use crate::spec::blk::S_UNSUPP;

#[test]
fn each_malformed_request_is_counted_by_its_name_and_the_next_is_served() {
    let data = |len| Buffer::readable(DATA, len);
    let room = |len| Buffer::writable(DATA, len);
    for setup in setups() {
        for (name, status, kind, sector, buffers) in [
            ("wrong_direction", S_IOERR, T_IN, 0, &[data(512), room(512)][..]),
            ("wrong_direction", S_IOERR, T_OUT, 0, &[data(512), room(512)]),
            ("wrong_direction", S_IOERR, T_GET_ID, 0, &[data(1), room(20)]),
            ("partial_sector", S_IOERR, T_IN, 0, &[room(511)]),
            ("partial_sector", S_IOERR, T_OUT, 0, &[data(513)]),
            ("beyond_capacity", S_IOERR, T_IN, SECTORS, &[room(512)]),
            ("beyond_capacity", S_IOERR, T_OUT, SECTORS - 1, &[data(1024)]),
            ("beyond_capacity", S_IOERR, T_IN, u64::MAX, &[room(512)]),
            ("beyond_capacity", S_IOERR, T_OUT, 1 << 55, &[data(512)]),
            ("beyond_capacity", S_IOERR, T_IN, u64::MAX / 512, &[room(1024)]),
            ("unknown_type", S_UNSUPP, 99, 0, &[room(512)]),
            ("unknown_type", S_UNSUPP, u32::MAX, 0, &[data(512)]),
        ] {
            let mut rig = Rig::new(setup);
            assert_eq!(rig.request(kind, sector, buffers).0, status, "{name} {setup:?}");
            assert_eq!(
                [rig.count(&format!("drop_{name}")), rig.count("drops"), rig.count("errors")],
                [1, 1, 0],
                "{name}"
            );
            assert_eq!(rig.request(T_IN, 0, &[room(512)]), (S_OK, 513), "{name}");
        }
    }
}

#[test]
fn a_chain_without_a_header_or_without_a_status_is_returned_by_name() {
    for setup in setups() {
        let mut rig = Rig::new(setup);
        rig.queue.add(&[Buffer::readable(HEADER, 15), Buffer::writable(STATUS, 1)]);
        assert_eq!((rig.queue.used().written, rig.ram.read(STATUS, 1).unwrap()[0]), (1, S_IOERR), "{setup:?}");
        rig.queue.add(&[Buffer::readable(HEADER, 16)]);
        assert_eq!(rig.queue.used().written, 0);
        rig.queue.add(&[Buffer::readable(HEADER, 16), Buffer::writable(STATUS, 0)]);
        assert_eq!(rig.queue.used().written, 0);
        assert_eq!(["drop_short_header", "drop_no_status", "drops"].map(|name| rig.count(name)), [1, 2, 3]);
        assert_eq!(rig.request(T_FLUSH, 0, &[]), (S_OK, 1));
    }
}

#[test]
fn a_disk_that_is_read_only_says_so_and_is_not_written() {
    for setup in setups() {
        let mut rig = Rig::with(setup, ",readonly");
        assert!(Features(rig.device.offered().0).0 & BlkFeature::Ro.mask() != 0);
        rig.ram.write(DATA, &[7; 512]).unwrap();
        assert_eq!(rig.request(T_OUT, 0, &[Buffer::readable(DATA, 512)]).0, S_IOERR);
        assert_eq!(rig.count("drop_read_only"), 1);
        assert_eq!(rig.request(T_IN, 0, &[Buffer::writable(DATA, 512)]), (S_OK, 513));
        assert_eq!(rig.ram.read(DATA, 512).unwrap(), [0; 512]);
    }
}

#[test]
fn an_image_that_cannot_be_a_disk_is_refused_in_a_sentence() {
    let scratch = Scratch::new(1000);
    let refused = |options: &DiskOptions| {
        let error = Image::open(options).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    };
    assert!(refused(&scratch.options("")).contains("1000 bytes, which are no multiple of a sector: make it 1024"));
    scratch.file.set_len(0).unwrap();
    assert!(refused(&scratch.options("")).contains("is empty"));
    let named = |file: &str| format!("s,file={file}").parse().unwrap();
    assert!(refused(&named("/nonexistent/disk.img")).contains("make one with truncate"));
    assert!(refused(&named("/tmp")).contains("is a directory"));
    assert!(refused(&named("/dev/null")).contains("is a character device"));
    scratch.file.set_len(4096).unwrap();
    let first = Image::open(&scratch.options("")).unwrap();
    assert!(refused(&scratch.options(",readonly")).contains("is locked by another program"));
    drop(first);
    let readers = [(); 2].map(|()| Image::open(&scratch.options(",readonly")).unwrap());
    assert!(refused(&scratch.options("")).contains("is locked by another program"));
    drop(readers);
    assert_eq!(Image::open(&scratch.options("")).unwrap().bytes(), 4096);
}
