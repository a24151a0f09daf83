//! The ways to send a file over TCP or UDP: one file per method, each readable as the textbook's example of it.
//!
//! Place: [`crate::transfer`] prepares file and socket and calls one [`Method`]; nothing here prepares,
//! measures or prints.
//!
//! Operation: after each piece that the kernel has taken a method says so ([`Job::taken`]), with its buffers, mappings
//! and pipes as the call left them. Who follows the transfer may let it stand there for a while.

mod completions;
mod cow;
mod datagrams;
mod direct_io;
mod direct_io_zerocopy;
mod io_uring_send_zc;
mod io_uring_splice;
mod ktls_sendfile;
mod mmap_write;
mod msg_zerocopy;
mod msg_zerocopy_udp;
mod program;
mod read_write;
mod read_write_udp;
mod sendfile;
mod sendfile_direct;
mod sendfile_udp;
mod splice;
mod vmsplice;

use std::fmt;
use std::fs::File;
use std::io;
use std::net::TcpStream;

use vnic_experiment::row::PROGRAM;

use crate::tls_records::Stream;

/// What to send, and where to.
#[derive(Debug)]
pub struct Job<'a> {
    /// The file, open for reading.
    pub file: &'a File,
    /// The receiver, connected: a stream, or a socket of UDP in a stream's clothes.
    pub socket: &'a TcpStream,
    /// The number of the transfer, where it goes in datagrams ([`vnic::datagram`]).
    pub transfer: u64,
    /// Where in the file the bytes start.
    pub offset: u64,
    /// How many there are.
    pub bytes: u64,
    /// The most to hand to the kernel in one call, for the methods that work in pieces.
    pub chunk: usize,
    /// Whether the first call is to take one chunk only, for the methods that otherwise need one call for all.
    pub first_chunk_apart: bool,
    /// The program that is to do it, with its arguments, where one of the user's own is.
    pub program: &'a [String],
    /// Who is told how it goes.
    pub follower: &'a dyn Follower,
}

/// Who follows a transfer.
pub trait Follower {
    /// The kernel has taken `sent` bytes so far. An error ends the transfer.
    ///
    /// # Errors
    /// The follower's own.
    fn taken(&self, sent: u64) -> io::Result<()>;

    /// Something of it may have been taken: the accounts had better keep up.
    fn working(&self) {}

    /// The kernel says of itself that something happened `count` times.
    fn claim(&self, what: &'static str, count: u64);

    /// The program's own writes had the kernel copy this many bytes.
    fn copied_on_write(&self, bytes: u64);
}

impl fmt::Debug for dyn Follower + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Follower")
    }
}

/// Nobody follows.
#[derive(Debug)]
pub struct Nobody;

impl Follower for Nobody {
    fn taken(&self, _sent: u64) -> io::Result<()> {
        Ok(())
    }

    fn claim(&self, _what: &'static str, _count: u64) {}

    fn copied_on_write(&self, _bytes: u64) {}
}

impl Job<'_> {
    /// The size of the next piece when `sent` bytes are done.
    fn piece(&self, sent: u64) -> usize {
        usize::try_from(self.bytes.saturating_sub(sent)).map_or(self.chunk, |left| left.min(self.chunk))
    }

    /// All that is left when `sent` bytes are done; the first chunk alone where that is asked for.
    fn rest(&self, sent: u64) -> usize {
        if self.first_chunk_apart && sent == 0 {
            return self.piece(sent);
        }
        usize::try_from(self.bytes.saturating_sub(sent)).unwrap_or(usize::MAX)
    }

    /// Tells the follower.
    fn taken(&self, sent: u64) -> io::Result<()> {
        self.follower.taken(sent)
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
    /// Can this be done here? Why not, in one sentence of kind [`io::ErrorKind::Unsupported`].
    pub available: fn(&Job<'_>) -> io::Result<()>,
    /// The file's pages are not used: better none of them are in memory.
    pub bypasses_page_cache: bool,
    /// It sends datagrams, and no stream.
    pub datagrams: bool,
    /// A chunk is to find room in the socket at once.
    pub chunk_fits: bool,
    /// The modules that the kernel may need for it (a group of the image's list).
    pub modules: Option<&'static str>,
    /// Where the receiver gets other bytes than the file's: which ones.
    pub stream: Option<fn(&Job<'_>) -> io::Result<Stream>>,
}

/// A method that every kernel has.
const fn everywhere(name: &'static str, summary: &'static str, send: fn(&Job<'_>) -> io::Result<u64>) -> Method {
    let available = |_: &Job<'_>| Ok(());
    Method {
        name,
        summary,
        send,
        available,
        bypasses_page_cache: false,
        datagrams: false,
        chunk_fits: false,
        modules: None,
        stream: None,
    }
}

/// A method that sends datagrams, which every kernel has.
const fn in_datagrams(name: &'static str, summary: &'static str, send: fn(&Job<'_>) -> io::Result<u64>) -> Method {
    Method { datagrams: true, chunk_fits: true, ..everywhere(name, summary, send) }
}

/// Every method there is.
pub const METHODS: &[Method] = &[
    everywhere("read-write", "read into a buffer of the program, write from it", read_write::send),
    everywhere("mmap-write", "map the file, write from the mapping", mmap_write::send),
    everywhere("sendfile", "one call: the kernel takes the file's pages", sendfile::send),
    everywhere("splice", "the file's pages go through a pipe to the socket", splice::send),
    everywhere("vmsplice", "pages of a mapping go through a pipe to the socket", vmsplice::send),
    Method {
        available: direct_io::available,
        bypasses_page_cache: true,
        ..everywhere(
            "direct-io",
            "read past the page cache into a buffer of the program, write from it",
            direct_io::send,
        )
    },
    Method {
        available: direct_io_zerocopy::available,
        bypasses_page_cache: true,
        ..everywhere(
            "direct-io-zerocopy",
            "read past the page cache into a buffer of the program, send that with MSG_ZEROCOPY",
            direct_io_zerocopy::send,
        )
    },
    Method {
        available: completions::available,
        ..everywhere("msg-zerocopy", "map the file, send from the mapping with MSG_ZEROCOPY", msg_zerocopy::send)
    },
    Method {
        available: io_uring_send_zc::available,
        ..everywhere("io-uring-send-zc", "map the file, send from the mapping with SEND_ZC", io_uring_send_zc::send)
    },
    Method {
        available: completions::available,
        ..everywhere("cow", "MSG_ZEROCOPY from a private mapping, half of it written to before", cow::send)
    },
    Method {
        available: ktls_sendfile::available,
        chunk_fits: true,
        modules: Some("tls"),
        stream: Some(ktls_sendfile::stream),
        ..everywhere("ktls-sendfile", "sendfile over a connection that the kernel encrypts", ktls_sendfile::send)
    },
    Method {
        available: sendfile_direct::available,
        bypasses_page_cache: true,
        ..everywhere(
            "sendfile-direct",
            "sendfile from an O_DIRECT descriptor: past the page cache",
            sendfile_direct::send,
        )
    },
    Method {
        available: io_uring_splice::available,
        ..everywhere("io-uring-splice", "splice by io_uring, through a pipe to the socket", io_uring_splice::send)
    },
    Method {
        available: io_uring_send_zc::registered_available,
        ..everywhere(
            "io-uring-send-zc-fixed",
            "SEND_ZC from a mapping whose pages were registered beforehand",
            io_uring_send_zc::send_registered,
        )
    },
    Method {
        available: ktls_sendfile::ro_available,
        chunk_fits: true,
        modules: Some("tls"),
        stream: Some(ktls_sendfile::stream),
        ..everywhere("ktls-sendfile-ro", "ktls-sendfile with TLS_TX_ZEROCOPY_RO", ktls_sendfile::send_ro)
    },
    in_datagrams("read-write-udp", "read into a buffer, send datagrams from it", read_write_udp::send),
    Method {
        available: sendfile_udp::available,
        ..in_datagrams("sendfile-udp", "sendfile into a socket of UDP, a datagram a call", sendfile_udp::send)
    },
    Method {
        available: completions::available,
        ..in_datagrams(
            "msg-zerocopy-udp",
            "MSG_ZEROCOPY of several datagrams at once, which the NIC cuts, or the kernel",
            msg_zerocopy_udp::send,
        )
    },
    Method {
        available: program::available,
        chunk_fits: true,
        ..everywhere(PROGRAM, "a program of your own, from its standard input to its standard output", program::send)
    },
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

/// This kernel or file cannot do that.
fn unsupported(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, why.into())
}

#[cfg(test)]
mod tests;
