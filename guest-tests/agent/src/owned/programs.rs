//! A program's own memory, of each kind.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::raw::c_void;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollTimeout, poll};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};
use nix::unistd::{ForkResult, fork, pause};
use vnic_driver::mapping::Mapping;
use vnic_experiment::owned::{Owned, Owner};
use vnic_experiment::wire::PAGE_SIZE;

use super::{HUGE, Kept, MERGED, PAGES};
use crate::buffer::PageBuffer;
use crate::pages;

/// For the kernel to merge what is the same.
const MERGES: Duration = Duration::from_secs(60);

pub(super) fn private(kept: &mut Kept) -> Result<()> {
    let buffer = filled(PAGES * PAGE_SIZE as usize, None)?;
    kept.add_program(address(&buffer), PAGES, &[], 0)?;
    kept.buffers.push(buffer);
    Ok(())
}

pub(super) fn huge(kept: &mut Kept) -> Result<()> {
    // A kernel with little memory does not give them by itself.
    fs::write("/sys/kernel/mm/transparent_hugepage/enabled", "madvise").context("huge pages")?;
    let buffer = filled(8 << 20, Some(MmapAdvise::MADV_HUGEPAGE))?;
    kept.add_program(address(&buffer), (8 << 20) / PAGE_SIZE as usize, &[], HUGE)?;
    kept.buffers.push(buffer);
    Ok(())
}

/// To the kernel it is a file of tmpfs that was never named.
pub(super) fn shared(kept: &mut Kept) -> Result<()> {
    let bytes = PAGES * PAGE_SIZE as usize;
    let length = NonZeroUsize::new(bytes).context("a length")?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: no address is asked for, so the kernel places the mapping where nothing else is. It stays to the end.
    let base = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_SHARED) }?;
    // SAFETY: the mapping's own bytes, writable, and nobody else has them.
    unsafe { base.cast::<u8>().write_bytes(7, bytes) };
    let maps = fs::read_to_string("/proc/self/maps").context("/proc/self/maps")?;
    let start = format!("{:x}-", base.as_ptr() as u64);
    let line = maps.lines().find(|line| line.starts_with(&start)).context("the mapping is not in the list")?;
    let name = line.splitn(6, ' ').last().unwrap_or_default().trim();
    let name = name.strip_suffix(" (deleted)").context("the mapping is a named file's")?;
    for (page, gpa) in (0..).zip(pages::frames(base.as_ptr() as u64, PAGES)?) {
        let by = Owner::File { names: vec![name.to_owned()], filesystem: "tmpfs".to_owned(), page, deleted: true };
        kept.pages.push(Owned { gpa, by });
    }
    Ok(())
}

/// Pages of a file that were written to in a private mapping of it.
pub(super) fn copy(kept: &mut Kept) -> Result<()> {
    let (path, bytes) = ("/tmp/copied", PAGES as u64 * PAGE_SIZE);
    fs::write(path, vec![3; bytes as usize])?;
    let mut mapping = Mapping::private_of_file(&File::open(path)?, 0, bytes)?;
    ensure!(mapping.write_to_pages(0, bytes) == bytes, "not all of {path} was written to");
    kept.add_program(mapping.address() as u64, PAGES, &[], 0)?;
    kept.mappings.push(mapping);
    Ok(())
}

/// The child has all that its parent had.
pub(super) fn forked(kept: &mut Kept) -> Result<()> {
    let buffer = filled(PAGES * PAGE_SIZE as usize, None)?;
    // SAFETY: this program has one thread, and the child only waits.
    let child = match unsafe { fork() }? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => loop {
            pause();
        },
    };
    kept.add_program(address(&buffer), PAGES, &[child.as_raw().cast_unsigned()], 0)?;
    kept.buffers.push(buffer);
    Ok(())
}

/// Two buffers of the same content, which the kernel makes one.
pub(super) fn merged(kept: &mut Kept) -> Result<()> {
    let buffers = [0, 1].map(|_| filled(PAGES * PAGE_SIZE as usize, Some(MmapAdvise::MADV_MERGEABLE)));
    let [one, other] = buffers;
    let (one, other) = (one?, other?);
    for (setting, value) in [("pages_to_scan", "1000"), ("sleep_millisecs", "10"), ("run", "1")] {
        let path = format!("/sys/kernel/mm/ksm/{setting}");
        fs::write(&path, value).with_context(|| path.clone())?;
    }
    let start = Instant::now();
    loop {
        let [frames, others] = [&one, &other].map(|buffer| pages::frames(address(buffer), PAGES));
        let (frames, others) = (frames?, others?);
        let is_merged = |at: usize| frames.get(at) == others.get(at);
        if (0..PAGES).all(is_merged) {
            kept.add_program(address(&one), PAGES, &[], MERGED)?;
            break;
        }
        ensure!(start.elapsed() < MERGES, "the kernel does not merge what is the same");
        // An interrupted wait only means an earlier look.
        let _ = poll(&mut [], PollTimeout::from(50_u16));
    }
    for page in &mut kept.pages {
        if let Owner::Program { places, .. } = &mut page.by {
            let again: Vec<_> = places.iter().map(|(pid, at)| (*pid, at - address(&one) + address(&other))).collect();
            places.extend(again);
        }
    }
    kept.buffers.extend([one, other]);
    // What is merged stays, and nothing more is.
    fs::write("/sys/kernel/mm/ksm/run", "0").context("stop merging")
}

fn address(buffer: &PageBuffer) -> u64 {
    buffer.bytes().as_ptr() as u64
}

/// Each page has a content of its own.
fn filled(bytes: usize, advice: Option<MmapAdvise>) -> Result<PageBuffer> {
    let mut buffer = PageBuffer::new(bytes)?;
    if let Some(advice) = advice {
        let start = NonNull::new(buffer.bytes_mut().as_mut_ptr().cast::<c_void>()).context("a buffer")?;
        // SAFETY: the advice changes where the buffer's bytes lie, never what they are.
        unsafe { madvise(start, bytes, advice) }.context("madvise")?;
    }
    for (page, number) in buffer.bytes_mut().chunks_mut(PAGE_SIZE as usize).zip(1_u32..) {
        page.fill(7);
        if let Some(start) = page.first_chunk_mut() {
            *start = number.to_le_bytes();
        }
    }
    Ok(buffer)
}
