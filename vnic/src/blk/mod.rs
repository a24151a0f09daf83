//! A disk: virtio-blk on the [engine](crate::backend), with a file or block device of the host behind it. VIRTIO 1.3, 5.2 Block
//! Device.
//!
//! | file | |
//! |---|---|
//! | [`options`] | what a disk is told |
//! | [`image`] | the file behind it: opened, locked, measured |
//! | `request` | a chain becomes a request, or is malformed, with a name |
//! | `data_path` | a pass over the request queues |
//!
//! The data go straight between the file and the guest's pages: no byte of them passes through this process.

mod data_path;
pub mod image;
pub mod options;
mod request;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backend::DeviceModel;
use crate::spec::blk::{BlkConfig, BlkFeature, BlkFeatures, CONFIG_WRITEBACK, SECTOR};
use crate::spec::{Feature, Features};
use crate::vhost_user::DeviceError;

pub use data_path::BlkDataPath;
pub use image::{Image, ImageError};
pub use options::DiskOptions;

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

/// A disk as its driver finds it.
#[derive(Debug)]
pub struct Blk {
    image: Arc<Image>,
    /// Is what is written kept until it is flushed? The driver may choose.
    writeback: Arc<AtomicBool>,
    queues: u16,
    queue_size: u16,
}

impl Blk {
    /// A disk with this image behind it.
    #[must_use]
    pub fn new(image: Arc<Image>, queues: u16, queue_size: u16) -> Self {
        Blk { image, writeback: Arc::new(AtomicBool::new(true)), queues, queue_size }
    }

    /// A data path for its queues.
    #[must_use]
    pub fn data_path(&self) -> BlkDataPath {
        BlkDataPath::new(Arc::clone(&self.image), Arc::clone(&self.writeback))
    }

    fn configuration(&self) -> BlkConfig {
        BlkConfig {
            capacity: self.image.bytes() / SECTOR,
            seg_max: SEG_MAX,
            blk_size: SECTOR as u32,
            writeback: self.writeback.load(Ordering::Relaxed),
            num_queues: self.queues,
            ..BlkConfig::default()
        }
    }
}

impl DeviceModel for Blk {
    fn name(&self) -> &'static str {
        "blk"
    }

    fn device_id(&self) -> u32 {
        2
    }

    fn offered(&self) -> Features {
        let own = BlkFeatures::of(&[
            BlkFeature::SegMax,
            BlkFeature::BlkSize,
            BlkFeature::Flush,
            BlkFeature::ConfigWce,
            BlkFeature::Mq,
        ]);
        let own = if self.image.is_read_only() { own.with(BlkFeature::Ro) } else { own };
        Features(OFFERED.0 | own.0)
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
        self.writeback.store(*value == 1, Ordering::Relaxed);
        Ok(())
    }
}
