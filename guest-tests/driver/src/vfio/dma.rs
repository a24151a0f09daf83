//! What the device may reach: maps of memory at I/O virtual addresses, each for as long as a value lives.
//!
//! Operation: a [`DmaMap`] takes addresses from the container's [`Space`](super::space::Space), has the kernel pin the pages
//! and enter them into the IOMMU (VFIO_IOMMU_MAP_DMA), and takes all of it back when dropped.
//!
//! Invariants: a map's pages stay pinned until it is gone, so no page that the device can reach is ever given to anybody
//! else, also when the program unmaps or truncates what it mapped.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IOMMU_INFO_CAPS,
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_TYPE, vfio_iommu_type1_dma_map,
};
use vfio_ioctls::VfioContainer;
use vnic::memory::{Access, Gpa, Memory, RegionSpec, UserAddr};

use super::space::PAGE;
use super::{Device, VfioFault};
use crate::mapping::Mapping;

mod ioctl {
    use super::{VFIO_BASE, VFIO_TYPE, vfio_iommu_type1_dma_map};

    nix::ioctl_write_ptr_bad!(
        /// VFIO_IOMMU_MAP_DMA: `vfio-ioctls` maps for reading and writing only.
        map_dma,
        nix::request_code_none!(VFIO_TYPE, VFIO_BASE + 13),
        vfio_iommu_type1_dma_map
    );
    nix::ioctl_read_bad!(
        /// VFIO_IOMMU_GET_INFO.
        get_info,
        nix::request_code_none!(VFIO_TYPE, VFIO_BASE + 12),
        u64
    );
}

/// Addresses that are taken, and unmapped and free again when dropped.
#[derive(Debug)]
struct Addresses<'d> {
    device: &'d Device,
    iova: u64,
    /// Whole pages, bytes.
    size: u64,
    /// Is something mapped there?
    entered: bool,
}

impl<'d> Addresses<'d> {
    fn take(device: &'d Device, size: u64) -> Result<Self, VfioFault> {
        let iova = device.with_space(|space| space.take(size))?;
        Ok(Addresses { device, iova, size, entered: false })
    }

    /// Has the kernel pin the pages behind `vaddr` and enter them into the IOMMU.
    fn enter(mut self, vaddr: u64, writable: bool) -> Result<Self, VfioFault> {
        let Addresses { device, iova, size, .. } = self;
        let flags = VFIO_DMA_MAP_FLAG_READ | if writable { VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
        let argsz = size_of::<vfio_iommu_type1_dma_map>() as u32;
        let map = vfio_iommu_type1_dma_map { argsz, flags, vaddr, iova, size };
        // SAFETY: the ioctl reads `map`, which lives here. The pages behind `vaddr` are a file's, for reading, or a memfd's
        // that is only ever accessed as device-shared memory (`Memory`); they stay pinned until the map is gone.
        unsafe { ioctl::map_dma(device.container.as_raw_fd(), &raw const map) }
            .map_err(|error| VfioFault::map(io::Error::from(error), iova, size, writable))?;
        self.entered = true;
        Ok(self)
    }
}

impl Drop for Addresses<'_> {
    fn drop(&mut self) {
        if self.entered {
            let unmapped = self.device.container.vfio_dma_unmap(self.iova, self.size as usize);
            debug_assert!(unmapped.is_ok(), "{unmapped:?}");
        }
        self.device.with_space(|space| space.give_back(self.iova));
    }
}

/// Addresses under which the device reaches memory, until dropped. It borrows the memory and the device's container.
#[derive(Debug)]
pub struct DmaMap<'m> {
    addresses: Addresses<'m>,
    /// Where the asked bytes start in it.
    skip: u64,
    len: u64,
    memory: PhantomData<&'m [u8]>,
}

impl<'m> DmaMap<'m> {
    /// The page cache's own pages of a file, for reading.
    pub(super) fn of_file(device: &'m Device, file: &'m Mapping) -> Result<Self, VfioFault> {
        let len = file.bytes_at(0, usize::MAX).len() as u64;
        let mapped = file.pages() as u64 * PAGE;
        // The mapping starts at a page's border, and so does the DMA map.
        let skip = file.start() as u64;
        let addresses = Addresses::take(device, mapped)?.enter(file.address() as u64, false)?;
        Ok(DmaMap { addresses, skip, len, memory: PhantomData })
    }

    /// The device's address of the first byte.
    #[must_use]
    pub fn iova(&self) -> u64 {
        self.addresses.iova + self.skip
    }

    /// How many bytes the device may reach from there on.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes at `offset`, as a descriptor takes them; `None` outside the map.
    #[must_use]
    pub fn slice(&self, offset: u64, len: u32) -> Option<DmaSlice<'_>> {
        let end = offset.checked_add(u64::from(len))?;
        (end <= self.len).then(|| DmaSlice { iova: self.iova() + offset, len, map: PhantomData })
    }
}

/// Bytes of a map that a descriptor may point at for as long as `'m`: the map is borrowed, so it stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmaSlice<'m> {
    iova: u64,
    len: u32,
    map: PhantomData<&'m ()>,
}

impl DmaSlice<'_> {
    /// The device's address of the first byte.
    #[must_use]
    pub fn iova(self) -> u64 {
        self.iova
    }

    /// Bytes.
    #[must_use]
    pub fn len(self) -> u32 {
        self.len
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Bytes at any address, mapped or not: for who wants to see the device fault.
    #[must_use]
    pub fn unchecked(iova: u64, len: u32) -> DmaSlice<'static> {
        DmaSlice { iova, len, map: PhantomData }
    }
}

/// Memory of the program's own that the device reads and writes: rings, headers, receive buffers.
///
/// To the program it is a [`Memory`] whose addresses are the device's, just as a device sees its guest's memory: the driver
/// half of a ring works on it as it is.
#[derive(Debug)]
pub struct DmaBuffer<'d> {
    // Before the memory: the device must have lost its way there when that is unmapped.
    map: DmaMap<'d>,
    memory: Arc<Memory>,
}

impl<'d> DmaBuffer<'d> {
    pub(super) fn new(device: &'d Device, len: u64) -> Result<Self, VfioFault> {
        let failed = |reason: String| VfioFault::Memory { len, reason };
        let size = len.max(1).next_multiple_of(PAGE);
        let file = memfd_create(c"vnic-dma", MFdFlags::MFD_CLOEXEC).map_err(|error| failed(error.to_string()))?;
        let bytes = i64::try_from(size).map_err(|error| failed(error.to_string()))?;
        ftruncate(&file, bytes).map_err(|error| failed(error.to_string()))?;
        let file = File::from(file);
        let addresses = Addresses::take(device, size)?;
        let at = addresses.iova;
        let region = RegionSpec { gpa: Gpa(at), size, user_addr: UserAddr(at), mmap_offset: 0 };
        let memory = Memory::map(vec![(region, file)]).map_err(|error| failed(error.to_string()))?;
        let host = memory.slice(at, size, Access::Write).map_err(|error| failed(error.to_string()))?.as_ptr();
        let map = DmaMap { addresses: addresses.enter(host as u64, true)?, skip: 0, len: size, memory: PhantomData };
        Ok(DmaBuffer { map, memory: Arc::new(memory) })
    }

    /// The memory, by the device's addresses.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The device's address of the first byte.
    #[must_use]
    pub fn iova(&self) -> u64 {
        self.map.iova()
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.map.len()
    }

    /// Are there none? There always are.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

/// The usable I/O virtual addresses of a container, first and last of each range: all but those that interrupts go to.
pub(super) fn iova_ranges(container: &VfioContainer) -> io::Result<Vec<(u64, u64)>> {
    // struct vfio_iommu_type1_info (24 bytes), its capabilities behind it. Words, for the alignment.
    let mut info = [0_u64; 512];
    info[0] = size_of_val(&info) as u64;
    // SAFETY: the kernel writes at most `argsz` bytes, which is the array's size.
    unsafe { ioctl::get_info(container.as_raw_fd(), info.as_mut_ptr()) }?;
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_le_bytes()).collect();
    Ok(parse_ranges(&bytes).unwrap_or_else(|| vec![(0, (1 << 32) - 1 - (18 << 20))]))
}

/// Finds the capability with the ranges; `None` on kernels before 5.4, which do not tell.
fn parse_ranges(info: &[u8]) -> Option<Vec<(u64, u64)>> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(*info.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(*info.get(at..)?.first_chunk()?));
    if u32_at(4)? & VFIO_IOMMU_INFO_CAPS == 0 {
        return None;
    }
    let mut at = u32_at(16)? as usize;
    // struct vfio_info_cap_header: id (16 bits), version (16), offset of the next (32). The chain is finite, but nothing
    // says it cannot be a circle.
    for _ in 0..64 {
        if at == 0 {
            return None;
        }
        if u32_at(at)? & 0xffff == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
            let count = u32_at(at + 8)? as usize;
            let range = |index: usize| Some((u64_at(at + 16 + 16 * index)?, u64_at(at + 24 + 16 * index)?));
            return (0..count).map(range).collect();
        }
        at = u32_at(at + 4)? as usize;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a kernel answers: another capability first, then the ranges.
    fn answer(flags: u32, next: u32) -> Vec<u8> {
        let mut info = Vec::new();
        for word in [104, flags, 4096, 0, 24, 0] {
            info.extend_from_slice(&u32::to_le_bytes(word));
        }
        for word in [3 | 1 << 16, next, 65535, 0] {
            info.extend_from_slice(&u32::to_le_bytes(word));
        }
        for word in [1 | 1 << 16, 0, 2, 0] {
            info.extend_from_slice(&u32::to_le_bytes(word));
        }
        for word in [0, 0xfedf_ffff, 0xfef0_0000, 0x7f_ffff_ffff] {
            info.extend_from_slice(&u64::to_le_bytes(word));
        }
        info
    }

    #[test]
    fn the_ranges_are_found_behind_other_capabilities() {
        let ranges = parse_ranges(&answer(VFIO_IOMMU_INFO_CAPS | 1, 40)).expect("ranges");
        assert_eq!(ranges, [(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)]);
    }

    #[test]
    fn an_answer_without_them_or_cut_short_or_round_in_a_circle_has_none() {
        assert_eq!(parse_ranges(&answer(1, 40)), None);
        assert_eq!(parse_ranges(&answer(VFIO_IOMMU_INFO_CAPS, 0)), None);
        assert_eq!(parse_ranges(&answer(VFIO_IOMMU_INFO_CAPS, 24)), None);
        let whole = answer(VFIO_IOMMU_INFO_CAPS, 40);
        assert_eq!(parse_ranges(&whole[..whole.len() - 1]), None);
    }
}
