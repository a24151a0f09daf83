//! A disk: virtio-blk on the [engine](crate::backend), with a file or block device of the host behind it. VIRTIO 1.3, 5.2 Block
//! Device.
//!
//! | file | |
//! |---|---|
//! | [`options`] | what a disk is told |
//! | [`image`] | the file behind it: opened, locked, measured |
//! | `request` | a chain becomes a request, or is malformed, with a name |
//! | `data_path` | a pass over the request queues |
//! | `engine` | who carries the requests out: io_uring, or system calls that wait |
//! | `counters`, `trace`, `watch` | what is counted and shown of them |
//!
//! The data go straight between the file and the guest's pages: no byte of them passes through this process, unless the guest's
//! buffers lie as the disk does not take them.

mod counters;
mod data_path;
mod engine;
pub mod image;
pub mod options;
mod request;
#[cfg(test)]
pub(crate) mod tests;
mod trace;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backend::{DeviceModel, NamedCounters, Plan, Workers};
use crate::spec::blk::{BlkConfig, BlkFeature, BlkFeatures, CONFIG_WRITEBACK, ID_LEN, SECTOR};
use crate::spec::{Feature, Features, device};
use crate::vhost_user::DeviceError;

use counters::DiskCounters;
pub use data_path::BlkDataPath;
use engine::Engine;
pub use image::{Image, ImageError};
pub use options::{Cache, DiskOptions};
#[cfg(fuzzing)]
pub use request::{Touched, touched};
pub(crate) use trace::{describe, summary};
pub(crate) use watch::observe;

/// What any disk offers.
const OFFERED: Features = Features::of(&[
    Feature::ProtocolFeatures,
    Feature::Version1,
    Feature::IndirectDesc,
    Feature::EventIdx,
    Feature::RingPacked,
    Feature::AccessPlatform,
]);

/// The most data segments of a request: what fits, with header and status, into a ring of 256.
const SEG_MAX: u32 = 254;

/// What a disk's workers share.
#[derive(Debug)]
pub(crate) struct Disk {
    image: Image,
    /// Is what is written kept until it is flushed? The driver may choose.
    writeback: AtomicBool,
    counters: DiskCounters,
}

impl Disk {
    /// The serial number, as far as there is room for it.
    fn serial_for(&self, room: u32) -> &[u8] {
        let serial = self.image.serial();
        serial.get(..ID_LEN.min(room as usize)).unwrap_or_default()
    }
}

/// A disk as its driver finds it.
#[derive(Debug)]
pub struct Blk {
    disk: Arc<Disk>,
    queues: u16,
    queue_size: u16,
}

impl Blk {
    /// A disk with this image behind it.
    #[must_use]
    pub fn new(image: Image, queues: u16, queue_size: u16) -> Self {
        let disk = Disk { image, writeback: AtomicBool::new(true), counters: DiskCounters::default() };
        Blk { disk: Arc::new(disk), queues, queue_size }
    }

    /// What is behind it, in words.
    #[must_use]
    pub fn about(&self) -> String {
        let image = &self.disk.image;
        let way = if image.is_direct() { "direct" } else { "by the host's cache" };
        let may = if image.is_read_only() { ", read-only" } else { "" };
        format!("{} ({way}{may})", image.path().display())
    }

    /// What is counted of it.
    #[must_use]
    pub fn counters(&self) -> Arc<dyn NamedCounters> {
        Arc::clone(&self.disk) as Arc<dyn NamedCounters>
    }

    /// What starts its workers: one for each CPU that is named, as far as there are queues, or one.
    pub fn starter(&self) -> impl FnOnce(&Plan<'_>) -> std::io::Result<Workers> + 'static {
        let (disk, queues) = (Arc::clone(&self.disk), usize::from(self.queues));
        move |plan| {
            let mut workers = Workers::new(1);
            for _ in 0..plan.cpus.len().clamp(1, queues.max(1)) {
                let engine = Engine::suited(&disk.image);
                workers.add(BlkDataPath::new(Arc::clone(&disk), Arc::clone(plan.shared), engine), plan)?;
            }
            Ok(workers)
        }
    }

    fn configuration(&self) -> BlkConfig {
        let image = &self.disk.image;
        let exponent = image.block_exponent();
        BlkConfig {
            capacity: image.bytes() / SECTOR,
            seg_max: SEG_MAX,
            blk_size: SECTOR as u32,
            physical_block_exp: exponent,
            min_io_size: 1 << exponent,
            opt_io_size: 0,
            writeback: self.disk.writeback.load(Ordering::Relaxed),
            num_queues: self.queues,
            max_discard_sectors: request::MAX_RANGE_SECTORS,
            max_discard_seg: 1,
            discard_sector_alignment: 1 << exponent,
            max_write_zeroes_sectors: request::MAX_RANGE_SECTORS,
            max_write_zeroes_seg: 1,
            write_zeroes_may_unmap: true,
        }
    }
}

impl DeviceModel for Blk {
    fn name(&self) -> &'static str {
        "blk"
    }

    fn device_id(&self) -> u32 {
        device::BLK
    }

    fn offered(&self) -> Features {
        let always = BlkFeatures::of(&[
            BlkFeature::SegMax,
            BlkFeature::BlkSize,
            BlkFeature::Topology,
            BlkFeature::Flush,
            BlkFeature::ConfigWce,
            BlkFeature::Mq,
        ]);
        let own = match self.disk.image.is_read_only() {
            true => always.with(BlkFeature::Ro),
            // A writable image is locked: nobody else can have it open while a guest moves.
            false => always.with(BlkFeature::Discard).with(BlkFeature::WriteZeroes),
        };
        let moves = if self.disk.image.is_read_only() { Features::of(&[Feature::LogAll]) } else { Features::NONE };
        Features(OFFERED.0 | own.0 | moves.0)
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn queue_name(&self, index: u16) -> String {
        format!("requestq{index}")
    }

    fn max_queue_size(&self) -> u16 {
        self.queue_size
    }

    fn records_in_flight(&self) -> bool {
        true
    }

    fn config(&self) -> Option<Vec<u8>> {
        Some(self.configuration().to_bytes().to_vec())
    }

    fn set_config(&mut self, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        let [value @ (0 | 1)] = bytes else {
            return Err(format!("only `writeback` can be set, to 0 or 1: not {} bytes at {offset}", bytes.len()).into());
        };
        if offset != CONFIG_WRITEBACK {
            return Err(format!("only `writeback` can be set, at {CONFIG_WRITEBACK}, not at {offset}").into());
        }
        self.disk.writeback.store(*value == 1, Ordering::Relaxed);
        Ok(())
    }
}
