//! A disk's driver, good and bad: the driver half of the rings, real workers, a real file.

mod logged;
mod malformed;
mod ranges;
pub(crate) mod resumed;
mod traced;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::*;
use crate::backend::{About, Backend, Shared};
use crate::memory::testing::GuestRam;
use crate::nic::tests::{Queue as Driven, RAM, start_of, wait_for, with_workers};
use crate::ring::{Buffer, Placement};
use crate::spec;
use crate::spec::blk::{BlkHeader, S_IOERR, S_OK, T_FLUSH, T_GET_ID, T_IN, T_OUT};
use crate::vhost_user::Device;

/// Where a test's buffers are.
const HEADER: u64 = 0x10_0000;
const STATUS: u64 = 0x11_0000;
const DATA: u64 = 0x20_0000;

/// Sectors of a test's disk.
const SECTORS: u64 = 2048;

/// What a disk is tried with.
#[derive(Debug, Clone, Copy)]
struct Setup {
    features: spec::Features,
    /// Without io_uring.
    waiting: bool,
}

/// Split and packed, by io_uring and without.
fn setups() -> [Setup; 4] {
    let split = OFFERED.without(Feature::RingPacked).without(Feature::AccessPlatform);
    let split = Features(split.0 | BlkFeature::Flush.mask());
    let setup = |features, waiting| Setup { features, waiting };
    let packed = split.with(Feature::RingPacked);
    [setup(split, false), setup(packed, false), setup(split, true), setup(packed, true)]
}

/// An image in a file of its own, removed with it.
struct Scratch {
    path: PathBuf,
    file: File,
}

impl Scratch {
    fn new(bytes: u64) -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vnic-blk-{}-{number}.img", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(bytes).unwrap();
        Scratch { path, file }
    }

    fn options(&self, more: &str) -> DiskOptions {
        format!("sock,file={}{more}", self.path.display()).parse().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A disk, and its driver.
struct Rig {
    scratch: Scratch,
    ram: GuestRam,
    device: Backend,
    shared: Arc<Shared>,
    queue: Driven,
    /// Past the host's page cache: this file system can.
    direct: bool,
}

impl Rig {
    fn new(setup: Setup) -> Self {
        Rig::with(setup, "")
    }

    fn with(Setup { features, waiting }: Setup, more: &str) -> Self {
        let scratch = Scratch::new(SECTORS * SECTOR);
        let model = Blk::new(Image::open(&scratch.options(more)).unwrap(), 1, 256);
        let disk = Arc::clone(&model.disk);
        let direct = disk.image.is_direct();
        let about = About { device: "blk", offered: model.offered(), ..About::default() };
        let names = [model.queue_name(0)];
        let (shared, workers, _) = with_workers(about, names, |workers, plan| {
            let engine = if waiting { Engine::Waiting } else { Engine::new(&disk.image) };
            workers.add(BlkDataPath::new(disk, Arc::clone(plan.shared), engine), plan)
        });
        let mut device = Backend::new(model, shared.clone(), workers);
        let ram = GuestRam::new(RAM).unwrap();
        let queue = Driven::new(&ram, 0x1000, features);
        device.set_features(features).unwrap();
        device.set_memory(Arc::clone(ram.memory())).unwrap();
        device.start_queue(0, queue.setup_at(start_of(features))).unwrap();
        Rig { scratch, ram, device, shared, queue, direct }
    }

    /// Makes a request available, of this type and sector, with these buffers between header and status.
    fn ask(&mut self, kind: u32, sector: u64, data: &[Buffer]) {
        self.ram.write(HEADER, &BlkHeader { kind, sector }.to_bytes()).unwrap();
        self.ram.write(STATUS, &[0xee]).unwrap();
        let chain = [&[Buffer::readable(HEADER, 16)], data, &[Buffer::writable(STATUS, 1)]].concat();
        self.queue.add(&chain);
    }

    /// The same, and waits for it. Returns the status, and how many bytes the device says it wrote.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.ask(kind, sector, data);
        let written = self.queue.used().written;
        (self.ram.read(STATUS, 1).unwrap()[0], written)
    }

    fn count(&self, name: &str) -> u64 {
        self.shared.queues[0].counters.snapshot().get(name).copied().unwrap_or(0)
    }
}

/// Bytes that can be foretold.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

#[test]
fn what_is_written_is_in_the_file_and_is_read_back() {
    for setup in setups() {
        let mut rig = Rig::new(setup);
        let bytes = pattern(6 * 512);
        rig.ram.write(DATA, &bytes).unwrap();
        // Header, data and status may be divided as the driver likes.
        let buffers = [Buffer::readable(DATA, 1000), Buffer::readable(DATA + 1000, 2072)];
        assert_eq!(rig.request(T_OUT, 7, &buffers), (S_OK, 1), "{setup:?}");
        let mut there = vec![0; bytes.len()];
        rig.scratch.file.read_exact_at(&mut there, 7 * 512).unwrap();
        assert!(there == bytes);
        let buffers = [Buffer::writable(DATA + 0x8000, 512), Buffer::writable(DATA + 0x9001, 2560)];
        assert_eq!(rig.request(T_IN, 7, &buffers), (S_OK, 3073));
        let got = [rig.ram.read(DATA + 0x8000, 512).unwrap(), rig.ram.read(DATA + 0x9001, 2560).unwrap()].concat();
        assert!(got == bytes);
        assert_eq!(rig.request(T_FLUSH, 0, &[]), (S_OK, 1));
        assert_eq!(["chains", "descriptors", "bytes", "drops"].map(|name| rig.count(name)), [3, 10, 6144, 0]);
    }
}

#[test]
fn a_request_may_lie_in_an_indirect_table_and_its_parts_in_any_buffers() {
    for setup in setups() {
        let mut rig = Rig::new(setup);
        rig.scratch.file.write_all_at(&pattern(1024), 0).unwrap();
        rig.ram.write(HEADER, &BlkHeader { kind: T_IN, sector: 0 }.to_bytes()).unwrap();
        let chain = [
            Buffer::readable(HEADER, 3),
            Buffer::readable(HEADER + 3, 0),
            Buffer::readable(HEADER + 3, 13),
            Buffer::writable(DATA, 1),
            // The rest of the data, and the status.
            Buffer::writable(DATA + 1, 1024),
            Buffer::writable(DATA + 0x8000, 0),
        ];
        rig.ram.write(DATA + 1024, &[0xee]).unwrap();
        rig.queue.driver.add(&chain, Placement::Indirect(0x4_0000)).unwrap();
        rig.queue.kick_if_wanted();
        assert_eq!(rig.queue.used().written, 1025);
        assert!(rig.ram.read(DATA, 1025).unwrap() == [pattern(1024), vec![S_OK]].concat(), "{setup:?}");
    }
}

#[test]
fn the_serial_number_is_given_as_far_as_there_is_room() {
    for setup in setups() {
        let mut rig = Rig::with(setup, ",serial=S-1");
        assert_eq!(rig.request(T_GET_ID, 0, &[Buffer::writable(DATA, 20)]), (S_OK, 21));
        assert_eq!(rig.ram.read(DATA, 20).unwrap(), *b"S-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(rig.request(T_GET_ID, 0, &[Buffer::writable(DATA + 0x1000, 2)]), (S_OK, 3));
        assert_eq!(rig.ram.read(DATA + 0x1000, 3).unwrap(), *b"S-\0");
    }
}

#[test]
fn a_burst_of_requests_larger_than_a_pass_is_served_in_several() {
    for setup in setups() {
        let mut rig = Rig::new(setup);
        rig.ram.write(HEADER, &BlkHeader { kind: T_IN, sector: 0 }.to_bytes()).unwrap();
        for round in 0..3 {
            for at in 0..20 {
                let chain =
                    [Buffer::readable(HEADER, 16), Buffer::writable(DATA, 1 << 20), Buffer::writable(STATUS + at, 1)];
                rig.ram.write(STATUS + at, &[0xee]).unwrap();
                rig.queue.driver.add(&chain, Placement::Direct).unwrap();
            }
            rig.queue.kick_if_wanted();
            (0..20).for_each(|_| assert_eq!(rig.queue.used().written, (1 << 20) + 1));
            assert_eq!(rig.ram.read(STATUS, 20).unwrap(), [S_OK; 20], "{setup:?} {round}");
        }
        assert_eq!(rig.count("bytes"), 60 << 20);
    }
}

#[test]
fn an_image_that_shrinks_while_it_is_open_is_an_error_of_the_request_and_not_of_the_process() {
    for setup in setups() {
        let mut rig = Rig::new(setup);
        rig.scratch.file.set_len(8 * SECTOR).unwrap();
        assert_eq!(rig.request(T_IN, 7, &[Buffer::writable(DATA, 1024)]).0, S_IOERR, "{setup:?}");
        assert_eq!(rig.request(T_IN, 9, &[Buffer::writable(DATA, 512)]).0, S_IOERR);
        assert_eq!(rig.request(T_IN, 7, &[Buffer::writable(DATA, 512)]).0, S_OK);
        assert_eq!(["drop_io_error", "errors"].map(|name| rig.count(name)), [2, 0]);
    }
}

#[test]
fn the_driver_chooses_between_write_back_and_write_through_and_sets_nothing_else() {
    let mut rig = Rig::new(setups()[0]);
    let writeback = |rig: &Rig| rig.device.config()[CONFIG_WRITEBACK];
    assert_eq!(writeback(&rig), 1);
    rig.device.set_config(CONFIG_WRITEBACK, &[0]).unwrap();
    assert_eq!(writeback(&rig), 0);
    assert_eq!(rig.request(T_OUT, 0, &[Buffer::readable(DATA, 512)]), (S_OK, 1));
    for (offset, bytes) in [(CONFIG_WRITEBACK, &[2][..]), (0, &[1]), (CONFIG_WRITEBACK, &[1, 0]), (33, &[0])] {
        assert!(rig.device.set_config(offset, bytes).is_err(), "{offset}");
    }
    assert_eq!((writeback(&rig), &rig.device.config()[..8]), (0, &SECTORS.to_le_bytes()[..]));
}

#[test]
fn a_broken_chain_stops_the_queue_and_a_restart_recovers_it() {
    for setup in setups() {
        let mut rig = Rig::new(setup);
        rig.ask(T_IN, 0, &[Buffer::writable(RAM - 4, 512)]);
        wait_for("stopped", || rig.count("error_unmapped") == 1);
        rig.device.stop_queue(0).unwrap();
        rig.queue = Driven::new(&rig.ram, 0x1000, setup.features);
        rig.device.start_queue(0, rig.queue.setup_at(start_of(setup.features))).unwrap();
        assert_eq!(rig.request(T_FLUSH, 0, &[]), (S_OK, 1));
    }
}
