//! A device behind VFIO: opened, its configuration space read, its BARs mapped, its interrupts as an eventfd.
//!
//! Limits: one device to a container.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::uio::{pread, pwrite};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioContainer, VfioDevice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bar::Bar;
use super::dma::{self, DmaBuffer, DmaMap};
use super::space::Space;
use super::{PciAddress, VfioFault};
use crate::mapping::Mapping;

/// PCI Local Bus Specification 3.0, 6.2.2 Device Control: the command register, memory space, bus master.
const COMMAND: u64 = 4;
const MEMORY_SPACE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;

/// An open device. Dropped, it stops being bus master, and nobody has it.
pub struct Device {
    // Before the container: the group must be free of devices when it leaves.
    vfio: VfioDevice,
    pub(super) container: Arc<VfioContainer>,
    pub(super) space: Mutex<Space>,
    address: PciAddress,
    group: u32,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("address", &self.address).field("group", &self.group).finish_non_exhaustive()
    }
}

impl Device {
    /// Opens container (`/dev/vfio/vfio`), group (`/dev/vfio/GROUP`) and device, and lets the device reach for memory: what is
    /// mapped, which is nothing yet.
    ///
    /// # Errors
    /// A step failed; the error names it.
    pub fn open(address: &PciAddress) -> Result<Self, VfioFault> {
        let group = address.group()?;
        let failed = |error| VfioFault::open(error, group, address);
        let container = Arc::new(VfioContainer::new(None).map_err(failed)?);
        let vfio = VfioDevice::new(&address.folder(), Arc::clone(&container) as _, false).map_err(failed)?;
        let space = Mutex::new(Space::new(dma::iova_ranges(&container).map_err(VfioFault::Info)?));
        let device = Device { vfio, container, space, address: address.clone(), group };
        let command = device.config16(COMMAND)?;
        device.set_config16(COMMAND, command | MEMORY_SPACE | BUS_MASTER)?;
        Ok(device)
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &PciAddress {
        &self.address
    }

    /// Its IOMMU group.
    #[must_use]
    pub fn group(&self) -> u32 {
        self.group
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is `vfio`'s, open as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.vfio.as_raw_fd()) }
    }

    /// Reads configuration space.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn config<const N: usize>(&self, offset: u64) -> Result<[u8; N], VfioFault> {
        let mut bytes = [0; N];
        let read = pread(self.fd(), &mut bytes, self.config_offset(offset));
        self.whole(offset, read, N)?;
        Ok(bytes)
    }

    fn config16(&self, offset: u64) -> Result<u16, VfioFault> {
        self.config(offset).map(u16::from_le_bytes)
    }

    fn set_config16(&self, offset: u64, value: u16) -> Result<(), VfioFault> {
        let written = pwrite(self.fd(), &value.to_le_bytes(), self.config_offset(offset));
        self.whole(offset, written, 2)
    }

    fn config_offset(&self, offset: u64) -> i64 {
        let region = self.vfio.get_region_offset(VFIO_PCI_CONFIG_REGION_INDEX);
        i64::try_from(region.saturating_add(offset)).unwrap_or(i64::MAX)
    }

    fn whole(&self, offset: u64, moved: nix::Result<usize>, wanted: usize) -> Result<(), VfioFault> {
        let source = match moved {
            Ok(count) if count == wanted => return Ok(()),
            Ok(_) => std::io::ErrorKind::UnexpectedEof.into(),
            Err(error) => error.into(),
        };
        Err(VfioFault::Config { address: self.address.clone(), offset, source })
    }

    /// Maps a BAR.
    ///
    /// # Errors
    /// There is none of this number, or its registers may not be mapped.
    pub fn bar(&self, number: u8) -> Result<Arc<Bar>, VfioFault> {
        let index = u32::from(number);
        let size = self.vfio.get_region_size(index);
        let failed = |reason: &str| VfioFault::Bar {
            bar: number,
            address: self.address.clone(),
            size,
            reason: reason.to_owned(),
        };
        if number > 5 || size == 0 {
            return Err(failed("the device has none of this number"));
        }
        if self.vfio.get_region_flags(index) & VFIO_REGION_INFO_FLAG_MMAP == 0 {
            return Err(failed("the kernel does not let it be mapped: smaller than a page, or it is I/O ports"));
        }
        let bar = Bar::map(self.fd(), self.vfio.get_region_offset(index), size);
        bar.map(Arc::new).map_err(|error| failed(&format!("mmap: {error}")))
    }

    /// Memory of the program's own that the device may read and write.
    ///
    /// # Errors
    /// No memory, no addresses, or the kernel's refusal to map.
    pub fn buffer(&self, len: u64) -> Result<DmaBuffer<'_>, VfioFault> {
        DmaBuffer::new(self, len)
    }

    /// Lets the device read the pages of a mapped file: the page cache itself. It cannot write them.
    ///
    /// # Errors
    /// No addresses, or the kernel's refusal to map.
    pub fn map_file<'m>(&'m self, file: &'m Mapping) -> Result<DmaMap<'m>, VfioFault> {
        DmaMap::of_file(self, file)
    }

    /// Has the device's interrupts arrive at an eventfd: by MSI-X where it has that, else by its pin.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn interrupts(&self) -> Result<Interrupts<'_>, VfioFault> {
        let msix = self.vfio.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX).is_some_and(|irq| irq.count > 0);
        let (index, kind) = if msix { (VFIO_PCI_MSIX_IRQ_INDEX, "MSI-X") } else { (VFIO_PCI_INTX_IRQ_INDEX, "INTx") };
        let failed = |reason: String| VfioFault::Interrupts { kind, address: self.address.clone(), reason };
        let event = EventFd::new(EFD_NONBLOCK).map_err(|error| failed(format!("eventfd: {error}")))?;
        self.vfio.enable_irq(index, vec![&event]).map_err(|error| failed(error.to_string()))?;
        Ok(Interrupts { device: self, event, index })
    }

    pub(super) fn with_space<T>(&self, work: impl FnOnce(&mut Space) -> T) -> T {
        work(&mut self.space.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Interrupts that arrive at an eventfd, until dropped.
#[derive(Debug)]
pub struct Interrupts<'d> {
    device: &'d Device,
    event: EventFd,
    index: u32,
}

impl Interrupts<'_> {
    /// Do they come by MSI-X? Then a queue must be told its vector, which is 0. Else by the pin, and the ISR status
    /// register must be read after each.
    #[must_use]
    pub fn msix(&self) -> bool {
        self.index == VFIO_PCI_MSIX_IRQ_INDEX
    }

    /// The eventfd, to wait for.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is `event`'s, open as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }

    /// Takes what has come. A pin stays masked after each interrupt until this is called; the device must have let go of it
    /// by then, or it comes again at once.
    pub fn take(&self) {
        // Nothing there is fine.
        let _ = self.event.read();
        if !self.msix() {
            // The pin exists, so it can be unmasked.
            let unmasked = self.device.vfio.unmask_irq(self.index);
            debug_assert!(unmasked.is_ok(), "{unmasked:?}");
        }
    }
}

impl Drop for Interrupts<'_> {
    fn drop(&mut self) {
        let disabled = self.device.vfio.disable_irq(self.index);
        debug_assert!(disabled.is_ok(), "{disabled:?}");
    }
}
