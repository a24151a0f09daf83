//! Guest memory without a guest: for tests, the driver end of benchmarks, and front-ends of our own.
//!
//! Not behind a feature, as the tests of other crates use it too; nothing in the device does.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

#[cfg(not(miri))]
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::{Gpa, Memory, MemoryError, RegionSpec, UserAddr};

/// Where the fake front-end says its mappings are: guest-physical address plus this.
pub const USER_BASE: u64 = 0x7f00_0000_0000;

/// Shared memory in one memfd, and the regions a front-end would announce.
#[derive(Debug)]
pub struct GuestRam {
    file: OwnedFd,
    specs: Vec<RegionSpec>,
    memory: Arc<Memory>,
}

impl GuestRam {
    /// One region of `size` bytes at guest-physical address 0.
    ///
    /// # Errors
    /// The host has no such memory.
    pub fn new(size: u64) -> io::Result<Self> {
        Self::with_regions(&[(Gpa(0), size)])
    }

    /// Regions at these addresses and of these sizes, one behind the other in the file.
    ///
    /// # Errors
    /// The host has no such memory, or the regions make no memory table.
    pub fn with_regions(regions: &[(Gpa, u64)]) -> io::Result<Self> {
        #[cfg(miri)]
        let file = OwnedFd::from(File::open("/dev/null")?);
        #[cfg(not(miri))]
        let file = memfd_create(c"guest-ram", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        Self::of(file, regions)
    }

    /// One region of `size` bytes at guest-physical address 0 that is this file, which somebody else has, too.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub fn of_file(file: OwnedFd, size: u64) -> io::Result<Self> {
        Self::of(file, &[(Gpa(0), size)])
    }

    fn of(file: OwnedFd, regions: &[(Gpa, u64)]) -> io::Result<Self> {
        let mut specs = Vec::new();
        let mut offset = 0_u64;
        for &(gpa, size) in regions {
            let user_addr = UserAddr(gpa.0.wrapping_add(USER_BASE));
            specs.push(RegionSpec { gpa, size, user_addr, mmap_offset: offset });
            offset = offset.saturating_add(size);
        }
        let memory = Arc::new(Self::map(&file, &specs, offset)?);
        Ok(GuestRam { file, specs, memory })
    }

    /// The regions in the file, which gets this many bytes.
    #[cfg(not(miri))]
    fn map(file: &OwnedFd, specs: &[RegionSpec], len: u64) -> io::Result<Memory> {
        ftruncate(file, i64::try_from(len).map_err(io::Error::other)?)?;
        let table = specs.iter().map(|spec| Ok((*spec, File::from(file.try_clone()?)))).collect::<io::Result<_>>()?;
        Memory::map(table).map_err(io::Error::other)
    }

    /// The interpreter maps no files: the regions are this process's own.
    #[cfg(miri)]
    fn map(_file: &OwnedFd, specs: &[RegionSpec], _len: u64) -> io::Result<Memory> {
        super::GuestRegions::private(specs).map(Memory::from).map_err(io::Error::other)
    }

    /// The memory, mapped.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The regions as announced.
    #[must_use]
    pub fn specs(&self) -> &[RegionSpec] {
        &self.specs
    }

    /// The memory file, to be sent to a back-end or truncated under one.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Has nothing but zeroes in it, as if new.
    ///
    /// # Errors
    /// The host refuses it.
    pub fn clear(&self) -> io::Result<()> {
        let len: u64 = self.specs.iter().map(|spec| spec.size).sum();
        [0, len].into_iter().try_for_each(|len| {
            let len = i64::try_from(len).map_err(io::Error::other)?;
            Ok(ftruncate(&self.file, len)?)
        })
    }

    /// Writes into guest memory.
    ///
    /// # Errors
    /// The range is not guest memory.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.memory.write(addr, bytes)
    }

    /// Reads `len` bytes of guest memory.
    ///
    /// # Errors
    /// The range is not guest memory.
    pub fn read(&self, addr: u64, len: usize) -> Result<Vec<u8>, MemoryError> {
        let mut bytes = vec![0; len];
        self.memory.read(addr, &mut bytes)?;
        Ok(bytes)
    }
}
