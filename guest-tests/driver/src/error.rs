//! What can go wrong with a device.

use vnic::ring::RingError;
use vnic::spec::Features;

use crate::vfio::VfioFault;

/// The device cannot be driven, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// VFIO's share of it.
    #[error(transparent)]
    Vfio(#[from] VfioFault),
    /// A structure that every modern device has.
    #[error("the device has no {0} structure: is it a modern one (disable-legacy=on)?")]
    NoStructure(&'static str),
    /// A structure that is not where it should be.
    #[error("the device's {name} structure, BAR {bar} at {offset:#x}+{len}, does not fit into its BAR or its purpose")]
    BadStructure {
        /// Which.
        name: &'static str,
        /// The BAR's number.
        bar: u8,
        /// Where in it.
        offset: u32,
        /// How long.
        len: u32,
    },
    /// The device did not reset itself.
    #[error("the device did not come back from a reset within {0} s")]
    ResetHangs(u64),
    /// The device lacks what this driver cannot do without.
    #[error("the device does not offer {0}")]
    NotOffered(&'static str),
    /// Addresses would not go through the IOMMU.
    #[error(
        "the device does not offer access_platform: it would take addresses for physical ones and go past the IOMMU; \
         QEMU needs iommu_platform=on for it"
    )]
    PastTheIommu,
    /// The device refused the features.
    #[error("the device refused the features {0} (it took FEATURES_OK back)")]
    FeaturesRefused(Features),
    /// A queue that is not there or cannot be.
    #[error("queue {index} of the device has size {size}, which cannot be used")]
    BadQueue {
        /// Its number.
        index: u16,
        /// What the device says.
        size: u16,
    },
    /// The device has no resources for an interrupt.
    #[error("the device cannot send interrupts of queue {index} as vector {vector}")]
    NoVector {
        /// The queue.
        index: u16,
        /// The MSI-X vector.
        vector: u16,
    },
    /// A queue's ring is broken.
    #[error("queue {index}: {source}")]
    Ring {
        /// Its number.
        index: u16,
        /// By whom, and how.
        source: RingError,
    },
    /// The device wants to be reset.
    #[error("the device met an error from which it cannot recover (DEVICE_NEEDS_RESET)")]
    NeedsReset,
    /// A frame longer than fits.
    #[error("a frame of {len} bytes in front of its payload does not fit: there is room for {room}")]
    FrameTooLong {
        /// Of the part that is copied.
        len: usize,
        /// For it.
        room: usize,
    },
    /// Something did not happen in time.
    #[error("waited {seconds} s in vain for {what}")]
    Silence {
        /// What was waited for.
        what: &'static str,
        /// How long.
        seconds: u64,
    },
    /// Waiting failed.
    #[error("wait for an interrupt: {0}")]
    Wait(#[source] std::io::Error),
}
