//! A guest's RAM among the mappings of its VMM's process, by guest-physical address.
//!
//! Operation: the largest mappings are tried one after the other, each in the ways in which VMMs lay RAM around the PCI hole
//! ([`placement`](super::placement)). It is the guest's if a kernel is found in it, and lies so if the kernel's page tables agree: RAM
//! where it should be, none where it ends. Where no single one is all of it, several are tried one behind the other.
//!
//! Limits: memory that was plugged in is a mapping of its own, and which of them lies where nothing says: it is not seen.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::AttachError;
pub use super::placement::Region;
use super::placement::{Fit, fit, orders, placements};
use super::process::{Mapping, Process};
use crate::introspect::vmcoreinfo::{self, Found};
use crate::introspect::{self, GuestPhysical, Introspection, Piece, Work};

/// A smaller mapping is no guest's memory.
const LEAST: u64 = 32 << 20;
/// Mappings that are tried alone, and together in every order.
const TRIED: usize = 4;

/// A guest's RAM.
#[derive(Debug)]
pub struct Ram {
    process: Arc<Process>,
    /// By rising address. A part's memory is read through its file, where it has one: by that nothing comes to exist that does not.
    parts: Vec<(Region, Option<Arc<File>>)>,
    /// The same, mapped: a fuzzer reads it millions of times a second.
    #[cfg(fuzzing)]
    mapped: Option<crate::memory::Onlooker>,
}

/// Finds the RAM and the kernel in it.
///
/// # Errors
/// There is no large mapping, or none with a kernel that can be looked into.
pub(super) fn find(process: &Arc<Process>) -> Result<Introspection<Arc<Ram>>, AttachError> {
    let mut search = Search::new(process);
    let mut mappings = process.mappings()?;
    mappings.retain(|mapping| mapping.size() >= LEAST);
    // Of about the same size, single ones stay in front of those taken together.
    mappings.sort_by_key(|mapping| std::cmp::Reverse(mapping.size().ilog2()));
    let mut candidates = Vec::new();
    for mapping in mappings.into_iter().take(TRIED) {
        let Some(candidate) = search.candidate(mapping) else { continue };
        if let Some(eyes) = search.look(&[&candidate])? {
            return Ok(eyes);
        }
        candidates.push(candidate);
    }
    let is_of_others = |one: &Candidate| candidates.iter().any(|other| one.mapping.has_within(&other.mapping));
    let single: Vec<&Candidate> = candidates.iter().filter(|candidate| !is_of_others(candidate)).collect();
    for order in orders(single.len()) {
        let ordered: Vec<&Candidate> = order.iter().filter_map(|number| single.get(*number).copied()).collect();
        if let Some(eyes) = search.look(&ordered)? {
            return Ok(eyes);
        }
    }
    let Some(eyes) = search.part else { return Err(search.best) };
    let (pid, seen) = (process.pid(), eyes.memory().regions().map(|region| region.size >> 20).sum::<u64>());
    tracing::warn!(
        process = pid,
        MiB = seen,
        "the guest has more memory than this, in mappings whose place is not known"
    );
    Ok(eyes)
}

/// A mapping that may be a guest's memory.
struct Candidate {
    mapping: Mapping,
    file: Option<Arc<File>>,
    /// Those of kernels that lie in it.
    notes: Found,
}

struct Search<'p> {
    process: &'p Arc<Process>,
    /// What says most of why there is nothing.
    best: AttachError,
    /// A guest of which not all memory was found.
    part: Option<Introspection<Arc<Ram>>>,
    work: Work,
}

impl<'p> Search<'p> {
    fn new(process: &'p Arc<Process>) -> Self {
        let best = AttachError::NoVmm { pid: process.pid(), name: process.name().to_owned() };
        Search { process, best, part: None, work: Work::default() }
    }

    /// `None`: nobody says what is in it.
    fn candidate(&mut self, mapping: Mapping) -> Option<Candidate> {
        let file = (mapping.file.1 != 0).then(|| self.process.file_of(&mapping)).flatten().map(Arc::new);
        let all = Region { gpa: 0, size: mapping.size(), address: mapping.start, offset: mapping.offset };
        match vmcoreinfo::find(&Ram::new(self.process.clone(), vec![(all, file.clone())])) {
            Ok(notes) => Some(Candidate { mapping, file, notes }),
            Err(error) => {
                self.note(error.into());
                None
            }
        }
    }

    /// Are these, one behind the other, all of the guest's memory?
    fn look(&mut self, candidates: &[&Candidate]) -> Result<Option<Introspection<Arc<Ram>>>, AttachError> {
        let pid = self.process.pid();
        let kernels = candidates.iter().flat_map(|candidate| candidate.notes.kernels.iter().cloned()).collect();
        let notes =
            Found { kernels, pages: candidates.iter().map(|candidate| candidate.notes.pages).sum(), malformed: 0 };
        let mappings: Vec<&Mapping> = candidates.iter().map(|candidate| &candidate.mapping).collect();
        for placement in placements(&mappings) {
            let file = |number: usize| candidates.get(number).and_then(|candidate| candidate.file.clone());
            let parts = placement.into_iter().map(|(number, region)| (region, file(number))).collect();
            let ram = Arc::new(Ram::new(self.process.clone(), parts));
            let regions: Vec<Region> = ram.regions().collect();
            match Introspection::attach_by(ram, &notes, &mut self.work) {
                Ok(eyes) => match fit(&regions, |gpa| eyes.maps_directly(gpa)) {
                    Fit::Exact => return Ok(Some(eyes)),
                    Fit::Part if self.part.is_none() => self.part = Some(eyes),
                    Fit::Part => {}
                    Fit::No => self.best = AttachError::Layout { pid, release: eyes.release().to_owned() },
                },
                Err(error) => self.note(error),
            }
            if self.process.has_ended() {
                return Err(AttachError::Ended(pid));
            }
        }
        Ok(None)
    }

    /// Most mappings, and most ways in which they may lie, are something else.
    fn note(&mut self, error: introspect::AttachError) {
        let says_more = match &self.best {
            AttachError::NoVmm { .. } => true,
            AttachError::Guest { error: best, .. } => error.rank() > best.rank(),
            _ => false,
        };
        if says_more {
            self.best = AttachError::Guest { pid: self.process.pid(), error };
        }
    }
}

impl Ram {
    fn new(process: Arc<Process>, parts: Vec<(Region, Option<Arc<File>>)>) -> Ram {
        Ram {
            process,
            parts,
            #[cfg(fuzzing)]
            mapped: None,
        }
    }

    /// A guest's RAM that is this file, from address 0 on.
    #[cfg(any(test, fuzzing))]
    pub(super) fn of_file(file: File, size: u64) -> Ram {
        let process = Arc::new(Process::open(std::process::id()).expect("this process"));
        Ram::new(process, vec![(Region { gpa: 0, size, address: 0, offset: 0 }, Some(Arc::new(file)))])
    }

    /// The same, of which we have a mapping.
    #[cfg(fuzzing)]
    pub(super) fn mapped(file: File, size: u64, mapped: crate::memory::Onlooker) -> Ram {
        Ram { mapped: Some(mapped), ..Ram::of_file(file, size) }
    }

    /// The parts, by rising address.
    pub fn regions(&self) -> impl Iterator<Item = Region> {
        self.parts.iter().map(|(region, _)| *region)
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Of the part that has all of these bytes: how far they are behind the start of its mapping's part, and its file.
    fn part(&self, gpa: u64, len: u64) -> Option<(&Region, u64, Option<&File>)> {
        let (region, file) = self.parts.iter().rfind(|(region, _)| region.gpa <= gpa)?;
        let within = gpa - region.gpa;
        (within.checked_add(len)? <= region.size).then_some((region, within, file.as_deref()))
    }
}

impl GuestPhysical for Ram {
    fn copy(&self, gpa: u64, out: &mut [u8]) -> Option<()> {
        let (region, within, file) = self.part(gpa, out.len() as u64)?;
        #[cfg(fuzzing)]
        if let Some(mapped) = &self.mapped {
            return mapped.copy(gpa, out);
        }
        match file {
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
        let all = self.part(gpa, out.len() as u64 * 4096).filter(|(.., file)| file.is_none());
        let all = all.and_then(|(region, within, _)| {
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
        if self.parts.iter().any(|(_, file)| file.is_some()) {
            for piece in pieces {
                piece.there = self.copy(piece.gpa, &mut piece.bytes).is_some();
            }
            return;
        }
        let (mut parts, mut found) = (Vec::with_capacity(pieces.len()), Vec::with_capacity(pieces.len()));
        for Piece { gpa, bytes, there } in pieces {
            *there = false;
            if let Some((region, within, _)) = self.part(*gpa, bytes.len() as u64) {
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
        self.part(gpa, 1).is_some()
    }

    fn existing(&self, tell: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        for (Region { gpa, size, address, offset }, file) in &self.parts {
            let (gpa, size, address, offset) = (*gpa, *size, *address, *offset);
            match file {
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
