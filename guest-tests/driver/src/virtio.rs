//! Bringing up a virtio device: VIRTIO 1.3, 3.1.1 Driver Requirements: Device Initialization.
//!
//! Operation: [`Virtio::open`] takes steps 1 to 3, [`Virtio::negotiate`] 4 to 6, [`Virtio::queue`] is part of 7, and
//! [`Virtio::driver_ok`] is 8. A device that is dropped is reset: it must have let go of all memory before that is unmapped.

use std::time::{Duration, Instant};

use vnic::spec::device::status;
use vnic::spec::{Feature, Features, pci};

use super::DriverError;
use super::pci::Structures;
use super::queue::{self, Queue};
use crate::vfio::{Device, Registers};

/// No interrupt at all. VIRTIO 1.3, 4.1.5.1.2 MSI-X Vector Configuration.
const NO_VECTOR: u16 = 0xffff;

/// How long a reset may take.
const RESET: Duration = Duration::from_secs(10);

/// A virtio device on PCI.
#[derive(Debug)]
pub struct Virtio<'v> {
    device: &'v Device,
    structures: Structures,
    features: Features,
}

impl<'v> Virtio<'v> {
    /// Finds the device's registers and takes the first three steps.
    ///
    /// # Errors
    /// Its registers are not where the specification has them, or it does not reset itself.
    pub fn open(device: &'v Device) -> Result<Self, DriverError> {
        let virtio = Virtio { device, structures: Structures::find(device)?, features: Features::NONE };
        // 1. Reset the device.
        virtio.reset()?;
        // 2. Set the ACKNOWLEDGE status bit: the guest OS has noticed the device.
        virtio.add_status(status::ACKNOWLEDGE);
        // 3. Set the DRIVER status bit: the guest OS knows how to drive the device.
        virtio.add_status(status::DRIVER);
        Ok(virtio)
    }

    /// Takes of `wanted` what the device offers, and of `required` all.
    ///
    /// # Errors
    /// One that is required is not offered, or the device refuses the selection.
    pub fn negotiate(&mut self, required: Features, wanted: Features) -> Result<Features, DriverError> {
        // 4. Read device feature bits, and write the subset of feature bits understood by the OS and driver to the device.
        let offered = self.offered();
        let missing = Feature::ALL.iter().find(|feature| required.minus(offered).has(**feature));
        if let Some(feature) = missing {
            self.add_status(status::FAILED);
            // The one whose absence has consequences that nobody would guess.
            return Err(match feature {
                Feature::AccessPlatform => DriverError::PastTheIommu,
                feature => DriverError::NotOffered(feature.name()),
            });
        }
        let features = Features(offered.and(wanted).0 | required.0);
        let common = &self.structures.common;
        for (select, half) in [(0, features.0 as u32), (1, (features.0 >> 32) as u32)] {
            common.write32(pci::DRIVER_FEATURE_SELECT, select);
            common.write32(pci::DRIVER_FEATURE, half);
        }
        // 5. Set the FEATURES_OK status bit. The driver MUST NOT accept new feature bits after this step.
        self.add_status(status::FEATURES_OK);
        // 6. Re-read device status to ensure the FEATURES_OK bit is still set: otherwise, the device does not support our
        //    subset of features and is unusable.
        if self.status() & status::FEATURES_OK == 0 {
            self.add_status(status::FAILED);
            return Err(DriverError::FeaturesRefused(features));
        }
        self.features = features;
        Ok(features)
    }

    /// What the device offers.
    #[must_use]
    pub fn offered(&self) -> Features {
        let common = &self.structures.common;
        let half = |select| {
            common.write32(pci::DEVICE_FEATURE_SELECT, select);
            u64::from(common.read32(pci::DEVICE_FEATURE))
        };
        let low = half(0);
        Features(low | half(1) << 32)
    }

    /// What was negotiated.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// The device type's own configuration: of a network card, its MAC address comes first.
    #[must_use]
    pub fn config(&self) -> &Registers {
        &self.structures.device
    }

    /// Sets up a queue in memory of its own, with `room` bytes for `each` entry besides the ring.
    ///
    /// # Errors
    /// The device has no such queue, or there is no memory for it.
    pub fn queue(&self, index: u16, wish: queue::Wish) -> Result<Queue<'v>, DriverError> {
        // 7. Perform device-specific setup, including discovery of virtqueues for the device […] and population of virtqueues.
        //    (4.1.5.1.3 Virtqueue Configuration)
        let common = &self.structures.common;
        common.write16(pci::QUEUE_SELECT, index);
        let most = common.read16(pci::QUEUE_SIZE);
        let bad = DriverError::BadQueue { index, size: most };
        if most == 0 || common.read16(pci::QUEUE_ENABLE) != 0 {
            return Err(bad);
        }
        let size = queue::usable_size(most.min(wish.size), self.features).ok_or(bad)?;
        common.write16(pci::QUEUE_SIZE, size);
        let vector = wish.vector.unwrap_or(NO_VECTOR);
        common.write16(pci::QUEUE_MSIX_VECTOR, vector);
        // 4.1.5.1.2.2: the driver MUST verify success by reading the vector value.
        if common.read16(pci::QUEUE_MSIX_VECTOR) != vector {
            return Err(DriverError::NoVector { index, vector });
        }
        // 4.1.4.4.1: cap.offset + queue_notify_off * notify_off_multiplier, two bytes.
        let place = u64::from(common.read16(pci::QUEUE_NOTIFY_OFF)) * u64::from(self.structures.notify_multiplier);
        let notify = &self.structures.notify;
        let place = usize::try_from(place)
            .ok()
            .filter(|place| place.is_multiple_of(2) && place.checked_add(2).is_some_and(|end| end <= notify.len()));
        let place = place.ok_or(DriverError::NoStructure("notification (for this queue)"))?;
        let queue = Queue::new(self.device, index, size, self.features, wish, (notify.clone(), place))?;
        let layout = queue.layout();
        common.write64(pci::QUEUE_DESC, layout.desc);
        common.write64(pci::QUEUE_DRIVER, layout.avail);
        common.write64(pci::QUEUE_DEVICE, layout.used);
        common.write16(pci::QUEUE_ENABLE, 1);
        Ok(queue)
    }

    /// No interrupt for changes of the configuration.
    pub fn no_config_interrupts(&self) {
        self.structures.common.write16(pci::CONFIG_MSIX_VECTOR, NO_VECTOR);
    }

    /// Everything is set up.
    pub fn driver_ok(&self) {
        // 8. Set the DRIVER_OK status bit. At this point the device is "live".
        self.add_status(status::DRIVER_OK);
    }

    /// Reads and clears the interrupt status: the device lets go of its pin.
    #[must_use]
    pub fn interrupt_status(&self) -> u8 {
        self.structures.isr.read8(0)
    }

    /// Does the device want to be reset? A system call it is not, but a trip to the device: not for every packet.
    ///
    /// # Errors
    /// It does.
    pub fn check(&self) -> Result<(), DriverError> {
        if self.status() & status::NEEDS_RESET == 0 { Ok(()) } else { Err(DriverError::NeedsReset) }
    }

    fn status(&self) -> u8 {
        self.structures.common.read8(pci::DEVICE_STATUS)
    }

    fn add_status(&self, bit: u8) {
        self.structures.common.write8(pci::DEVICE_STATUS, self.status() | bit);
    }

    /// VIRTIO 1.3, 4.1.4.3.2: after writing 0, the driver MUST wait for a read to return 0.
    fn reset(&self) -> Result<(), DriverError> {
        self.structures.common.write8(pci::DEVICE_STATUS, 0);
        let start = Instant::now();
        while self.status() != 0 {
            if start.elapsed() > RESET {
                return Err(DriverError::ResetHangs(RESET.as_secs()));
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}

impl Drop for Virtio<'_> {
    fn drop(&mut self) {
        // A device that hangs here loses its memory all the same: the IOMMU sees to that.
        let _ = self.reset();
    }
}
