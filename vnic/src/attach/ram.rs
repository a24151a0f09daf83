//! A guest's RAM among the mappings of its VMM's process, by guest-physical address.
//!
//! Operation: the largest mappings are tried one after the other, each with the layouts around the PCI hole that VMMs use. It
//! is the guest's if a kernel is found in it, and the layout if the kernel's page tables agree: RAM where the layout has it,
//! none where it ends.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::AttachError;
use super::process::{Mapping, Process};
use crate::introspect::{self, GuestPhysical, Introspection, Piece};

/// A smaller mapping is no guest's memory.
const LEAST: u64 = 32 << 20;
/// Mappings that are tried.
const TRIED: usize = 4;
/// Where the RAM below the PCI hole ends, if there is more than that: QEMU's q35 (from 2.75 GiB on, else), pc (from 3.5 GiB
/// on, else), Firecracker, Cloud Hypervisor and crosvm.
const SPLITS: [u64; 6] = [0x8000_0000, 0xb000_0000, 0xc000_0000, 0xe000_0000, 0xd000_0000, 0xe800_0000];
const ABOVE: u64 = 1 << 32;
/// The last of the RAM below the hole may be the firmware's, which the kernel does not map.
const FIRMWARE: u64 = 16 << 20;

/// Part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// The process's own address.
    pub address: u64,
    /// Offset in the mapping's file.
    pub offset: u64,
}

/// A guest's RAM.
#[derive(Debug)]
pub struct Ram {
    process: Arc<Process>,
    /// The memory's file, where it has one. Through it nothing comes to exist that does not.
    file: Option<File>,
    regions: Vec<Region>,
    /// The same, mapped: a fuzzer reads it millions of times a second.
    #[cfg(fuzzing)]
    mapped: Option<crate::memory::Onlooker>,
}

/// Finds the RAM and the kernel in it.
///
/// # Errors
/// There is no large mapping, or none with a kernel that can be looked into.
pub(super) fn find(process: &Arc<Process>) -> Result<Introspection<Arc<Ram>>, AttachError> {
    let pid = process.pid();
    let mut mappings = process.mappings()?;
    mappings.retain(|mapping| mapping.size() >= LEAST);
    // Of about the same size, single ones stay in front of those taken together.
    mappings.sort_by_key(|mapping| std::cmp::Reverse(mapping.size().ilog2()));
    mappings.truncate(TRIED);
    let mut best = AttachError::NoVmm { pid, name: process.name().to_owned() };
    for mapping in mappings {
        let file = (mapping.file.1 != 0).then(|| process.file_of(&mapping)).flatten().map(Arc::new);
        for regions in layouts(&mapping) {
            let file = file.as_ref().and_then(|file| file.try_clone().ok());
            let ram = Arc::new(Ram::new(process.clone(), file, regions));
            match Introspection::attach(ram.clone()) {
                Ok(eyes) if ram.is_laid_out_as(|gpa| eyes.maps_directly(gpa)) => return Ok(eyes),
                Ok(eyes) => best = AttachError::Layout { pid, release: eyes.release().to_owned() },
                // Most mappings are something else.
                Err(introspect::AttachError::NoLinux) => {}
                Err(error) if matches!(best, AttachError::NoVmm { .. } | AttachError::Guest { .. }) => {
                    best = AttachError::Guest { pid, error };
                }
                Err(_) => {}
            }
            if process.has_ended() {
                return Err(AttachError::Ended(pid));
            }
        }
        if matches!(best, AttachError::NoVmm { .. }) {
            best = AttachError::Guest { pid, error: introspect::AttachError::NoLinux };
        }
    }
    Err(best)
}

/// The ways that the mapping may lie in the guest's physical memory.
fn layouts(mapping: &Mapping) -> Vec<Vec<Region>> {
    let Mapping { start: address, offset, .. } = *mapping;
    let size = mapping.size();
    let below = |split: u64| Region { gpa: 0, size: size.min(split), address, offset };
    let mut layouts: Vec<Vec<Region>> = Vec::new();
    for split in SPLITS {
        let mut regions = vec![below(split)];
        if let Some(rest) = size.checked_sub(split).filter(|rest| *rest > 0) {
            let (address, offset) = (address + split, offset + split);
            regions.push(Region { gpa: ABOVE, size: rest, address, offset });
        }
        if !layouts.contains(&regions) {
            layouts.push(regions);
        }
    }
    layouts
}

impl Ram {
    fn new(process: Arc<Process>, file: Option<File>, regions: Vec<Region>) -> Ram {
        Ram {
            process,
            file,
            regions,
            #[cfg(fuzzing)]
            mapped: None,
        }
    }

    /// A guest's RAM that is this file, from address 0 on.
    #[cfg(any(test, fuzzing))]
    pub(super) fn of_file(file: File, size: u64) -> Ram {
        let process = Arc::new(Process::open(std::process::id()).expect("this process"));
        Ram::new(process, Some(file), vec![Region { gpa: 0, size, address: 0, offset: 0 }])
    }

    /// The same, of which we have a mapping.
    #[cfg(fuzzing)]
    pub(super) fn mapped(file: File, size: u64, mapped: crate::memory::Onlooker) -> Ram {
        Ram { mapped: Some(mapped), ..Ram::of_file(file, size) }
    }

    /// The parts, by rising address.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Do the kernel's page tables agree? `maps` says whether they have a page of RAM at an address.
    fn is_laid_out_as(&self, maps: impl Fn(u64) -> bool) -> bool {
        self.regions.iter().all(|region| {
            let end = region.gpa + region.size;
            let last = if region.gpa == 0 { end.saturating_sub(FIRMWARE) } else { end - 4096 };
            maps(last) && !maps(end)
        })
    }

    fn region(&self, gpa: u64, len: u64) -> Option<(&Region, u64)> {
        let region = self.regions.iter().rfind(|region| region.gpa <= gpa)?;
        let within = gpa - region.gpa;
        (within.checked_add(len)? <= region.size).then_some((region, within))
    }
}

impl GuestPhysical for Ram {
    fn copy(&self, gpa: u64, out: &mut [u8]) -> Option<()> {
        let (region, within) = self.region(gpa, out.len() as u64)?;
        #[cfg(fuzzing)]
        if let Some(mapped) = &self.mapped {
            return mapped.copy(gpa, out);
        }
        match &self.file {
            Some(file) => file.read_exact_at(out, region.offset + within).ok(),
            None => self.process.read(region.address + within, out),
        }
    }

    fn words(&self, gpa: u64, out: &mut [u64]) -> Option<()> {
        const MOST: usize = 32;
        let mut bytes = [[0; 8]; MOST];
        for (number, piece) in (0..).zip(out.chunks_mut(MOST)) {
            let bytes = bytes.get_mut(..piece.len())?;
            self.copy(gpa.checked_add(number * 8 * MOST as u64)?, bytes.as_flattened_mut())?;
            piece.iter_mut().zip(bytes).for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
        }
        gpa.is_multiple_of(8).then_some(())
    }

    fn first_words(&self, gpa: u64, out: &mut [[u64; 3]]) {
        let mut bytes = vec![[[0; 8]; 3]; out.len()];
        let all = self.region(gpa, out.len() as u64 * 4096).filter(|_| self.file.is_none());
        let all = all.and_then(|(region, within)| {
            let address = region.address + within;
            self.process.read_starts(address, 24, bytes.as_flattened_mut().as_flattened_mut())
        });
        for ((number, words), bytes) in (0..).zip(out).zip(bytes) {
            if all.is_some() {
                *words = bytes.map(u64::from_le_bytes);
            } else if self.words(gpa + 4096 * number, words).is_none() {
                *words = [0; 3];
            }
        }
    }

    fn gather(&self, pieces: &mut [Piece]) {
        if self.file.is_some() {
            for piece in pieces {
                piece.there = self.copy(piece.gpa, &mut piece.bytes).is_some();
            }
            return;
        }
        let (mut parts, mut found) = (Vec::with_capacity(pieces.len()), Vec::with_capacity(pieces.len()));
        for Piece { gpa, bytes, there } in pieces {
            *there = false;
            if let Some((region, within)) = self.region(*gpa, bytes.len() as u64) {
                parts.push((region.address + within, bytes.as_mut_slice()));
                found.push(there);
            }
        }
        let read = self.process.read_pieces(&mut parts);
        found.into_iter().zip(read).for_each(|(there, read)| *there = read);
    }

    fn reads_are_calls(&self) -> bool {
        true
    }

    fn has(&self, gpa: u64) -> bool {
        self.region(gpa, 1).is_some()
    }

    fn existing(&self, tell: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        for Region { gpa, size, address, offset } in self.regions.iter().copied() {
            match &self.file {
                Some(file) => data(file, offset, offset + size, &mut |from, to| {
                    tell(from - offset + gpa, to - offset + gpa);
                })?,
                None => self.process.existing(address, address + size, &mut |from, to| {
                    tell(from - address + gpa, to - address + gpa);
                })?,
            }
        }
        Ok(())
    }
}

/// Tells from where to where a file has content.
fn data(file: &File, start: u64, end: u64, tell: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
    let seek = |at: u64, whence| -> io::Result<Option<u64>> {
        match lseek(file, i64::try_from(at).map_err(io::Error::other)?, whence) {
            Ok(found) => Ok(u64::try_from(found).ok()),
            // There is nothing behind it.
            Err(Errno::ENXIO) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    };
    let mut at = start;
    while at < end {
        let Some(from) = seek(at, Whence::SeekData)?.filter(|from| *from < end) else { break };
        let to = seek(from, Whence::SeekHole)?.unwrap_or(end).min(end);
        if to <= from {
            break;
        }
        tell(from, to);
        at = to;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_around_the_pci_hole_is_where_the_page_tables_have_it() {
        const GIB: u64 = 1 << 30;
        let mapping = |size| Mapping {
            start: 0x7000_0000_0000,
            end: 0x7000_0000_0000 + size,
            shared: false,
            offset: 0,
            file: (0, 0),
        };
        assert_eq!(layouts(&mapping(GIB)).len(), 1, "up to 2 GiB there is one layout");
        let all = layouts(&mapping(4 * GIB));
        assert_eq!(all.len(), SPLITS.len());
        let process = Arc::new(Process::open(std::process::id()).unwrap());
        // As QEMU's q35 has it, where there are 4 GiB: 2 GiB, and 2 GiB above.
        let maps = |gpa: u64| gpa < 2 * GIB - (1 << 20) || (4 * GIB..6 * GIB).contains(&gpa);
        let fits = |regions: &Vec<Region>| Ram::new(process.clone(), None, regions.clone()).is_laid_out_as(maps);
        let fitting: Vec<_> = all.iter().filter(|regions| fits(regions)).collect();
        assert_eq!(fitting.len(), 1, "{fitting:?}");
        assert_eq!(fitting[0][1], Region { gpa: 4 * GIB, size: 2 * GIB, address: 0x7000_8000_0000, offset: 2 * GIB });
    }
}
