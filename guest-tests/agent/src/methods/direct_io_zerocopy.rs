//! `O_DIRECT` + `MSG_ZEROCOPY`: the disk's DMA fills the program's buffer, the NIC's DMA empties it. No CPU copies a
//! byte, although no byte comes from the page cache.
//!
//! A buffer may be filled anew only when the kernel has said that its pages are free: until the receiver has acknowledged
//! them. So there are several, used in turn.

use std::io;

use super::completions::{self, ZerocopySocket};
use super::direct_io::{self, DirectFile};
use super::{Job, file_too_short};
use crate::buffer::PageBuffer;

/// Buffers in turn: enough to keep the connection busy while the oldest is on its way.
const BUFFERS: usize = 4;

/// Is there a way past the page cache, and `MSG_ZEROCOPY`?
pub(super) fn available(job: &Job<'_>) -> io::Result<()> {
    direct_io::available(job)?;
    completions::available(job)
}

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    let file = DirectFile::open(job.file)?;
    let mut socket = ZerocopySocket::new(job.socket)?;
    let mut buffers = Vec::new();
    for _ in 0..BUFFERS {
        buffers.push(PageBuffer::new(DirectFile::room_for(job.chunk))?);
    }
    let mut sent = 0;
    'file: loop {
        for buffer in &mut buffers {
            if sent == job.bytes {
                break 'file;
            }
            let mut piece = file.read(buffer, job.offset + sent, job.piece(sent))?;
            if piece.is_empty() {
                return Err(file_too_short(sent, job));
            }
            while !piece.is_empty() {
                let taken = socket.send(piece)?;
                piece = &piece[taken..];
                sent += taken as u64;
            }
            job.taken(sent)?;
        }
        // All are on their way: wait until all are free.
        while socket.outstanding() > 0 {
            socket.wait()?;
        }
    }
    socket.finish(job)?;
    Ok(sent)
}
