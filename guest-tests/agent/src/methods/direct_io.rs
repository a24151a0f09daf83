//! `O_DIRECT` + `write`: the disk's DMA fills the program's own buffer, the page cache is bypassed.
//!
//! For programs that cache themselves (databases). The rules: address, offset and length of each read are multiples of
//! the file system's block; only the file's end may cut a read short. One CPU copy remains, buffer → socket.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use nix::errno::Errno;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use vnic_experiment::wire::PAGE_SIZE;

use super::{Job, file_too_short, unsupported};
use crate::buffer::PageBuffer;

/// Does this file have a way past the page cache?
pub(super) fn available(job: &Job<'_>) -> io::Result<()> {
    if fstatfs(job.file)?.filesystem_type() == TMPFS_MAGIC {
        // Linux 6.6 and later let the open through, and then read through the page cache all the same.
        return Err(unsupported("a tmpfs file is nothing but page cache: O_DIRECT has no way past it"));
    }
    match DirectFile::open(job.file) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {
            Err(unsupported("this file system does not take O_DIRECT: open gives EINVAL"))
        }
        Err(error) => Err(error),
    }
}

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    let file = DirectFile::open(job.file)?;
    let mut buffer = PageBuffer::new(DirectFile::room_for(job.chunk))?;
    let mut socket = job.socket;
    let mut sent = 0;
    while sent < job.bytes {
        let piece = file.read(&mut buffer, job.offset + sent, job.piece(sent))?;
        if piece.is_empty() {
            return Err(file_too_short(sent, job));
        }
        socket.write_all(piece)?;
        sent += piece.len() as u64;
        job.taken(sent)?;
    }
    Ok(sent)
}

/// A file opened with `O_DIRECT`. Pages are a multiple of every block size met in practice, so that is what it aligns to.
#[derive(Debug)]
pub(super) struct DirectFile(File);

impl DirectFile {
    /// Opens the file once more.
    pub(super) fn open(file: &File) -> io::Result<DirectFile> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(DirectFile(OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?))
    }

    /// As it was opened.
    pub(super) fn file(&self) -> &File {
        &self.0
    }

    /// The buffer that a piece of `length` bytes at any offset needs.
    pub(super) fn room_for(length: usize) -> usize {
        let page = PAGE_SIZE as usize;
        (length.saturating_add(page - 1)).next_multiple_of(page)
    }

    /// Reads `length` bytes at `offset`, fewer at the file's end: a bit more than that is read, on both sides.
    pub(super) fn read<'a>(&self, buffer: &'a mut PageBuffer, offset: u64, length: usize) -> io::Result<&'a [u8]> {
        let before = (offset % PAGE_SIZE) as usize;
        let aligned = (before + length).next_multiple_of(PAGE_SIZE as usize);
        let read = self.0.read_at(&mut buffer.bytes_mut()[..aligned], offset - before as u64)?;
        let end = read.min(before + length);
        Ok(&buffer.bytes()[before.min(end)..end])
    }
}
