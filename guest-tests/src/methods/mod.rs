//! The ways to send a file over TCP: one file per method, each readable as the textbook's example of it.
//!
//! Place: [`crate::guest::transfer`] prepares file and socket and calls one [`Method`]; nothing here prepares,
//! measures or prints.

mod mmap_write;
mod read_write;
mod sendfile;
mod splice;

use std::fs::File;
use std::io;
use std::net::TcpStream;

/// What to send, and where to.
#[derive(Debug)]
pub struct Job<'a> {
    /// The file, open for reading.
    pub file: &'a File,
    /// The receiver, connected.
    pub socket: &'a TcpStream,
    /// Where in the file the bytes start.
    pub offset: u64,
    /// How many there are.
    pub bytes: u64,
    /// The most to hand to the kernel in one call, for the methods that work in pieces.
    pub chunk: usize,
}

impl Job<'_> {
    /// The size of the next piece when `sent` bytes are done.
    fn piece(&self, sent: u64) -> usize {
        usize::try_from(self.bytes.saturating_sub(sent)).map_or(self.chunk, |left| left.min(self.chunk))
    }
}

/// A method by its name.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// As in the record.
    pub name: &'static str,
    /// What it shows, for people.
    pub summary: &'static str,
    /// Sends the job; returns the bytes the kernel took.
    pub send: fn(&Job<'_>) -> io::Result<u64>,
}

/// Every method there is.
pub const METHODS: &[Method] = &[
    Method { name: "read-write", summary: "read into a buffer of the program, write from it", send: read_write::send },
    Method { name: "mmap-write", summary: "map the file, write from the mapping", send: mmap_write::send },
    Method { name: "sendfile", summary: "one call: the kernel takes the file's pages", send: sendfile::send },
    Method { name: "splice", summary: "the file's pages go through a pipe to the socket", send: splice::send },
];

/// The method of this name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}

/// The file ended before the job did.
fn file_too_short(sent: u64, job: &Job<'_>) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("the file ended after {sent} of {} bytes from offset {}", job.bytes, job.offset),
    )
}

#[cfg(test)]
mod tests;
