//! `sendfile` over a connection that the kernel encrypts (kTLS): the program still touches no byte, the CPU every one.
//!
//! Operation: a real program does the TLS handshake in user space and then hands the keys to the kernel. Here the keys
//! are fixed ones of TLS 1.3 with AES-128-GCM, since nobody needs to be kept from reading. The receiver gets TLS records;
//! [`stream`] foretells them.
//!
//! Expected: one pass of the CPU over the bytes, page cache → records. It is a cipher's and no copying function's, so
//! the kernel's accounts do not show it; the NIC is handed other pages than the file's.
//!
//! Each call sends one chunk, and a chunk fits into the socket's buffer. Else the transfer stands still now and then (seen
//! on 6.1): the kernel pushes nothing to TCP before a call's last page, so when the buffer is full before that, and nothing
//! is in flight whose acknowledgement would push, it waits for room until the other side says something of its own.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{TcpTlsTx, TcpUlp, TlsCryptoInfo};

use vnic_experiment::wire::PAGE_SIZE;

use super::{Job, unsupported};
use crate::tls_records::{Keys, Stream, stream_of};

const KEYS: Keys = Keys { key: *b"vnic kTLS key 16", salt: *b"salt", iv: *b"vnic iv.", sequence: [0; 8] };

/// Can this kernel encrypt TLS 1.3?
pub(super) fn available(job: &Job<'_>) -> io::Result<()> {
    encrypt(job).map_err(|error| match error {
        Errno::ENOENT | Errno::ENOPROTOOPT => unsupported("this kernel has no kTLS (module tls)"),
        error => unsupported(format!("this kernel's kTLS has no TLS 1.3 with AES-128-GCM: {error}")),
    })
}

/// Gives the connection its keys: what is sent from now on is encrypted.
fn encrypt(job: &Job<'_>) -> nix::Result<()> {
    match setsockopt(job.socket, TcpUlp::default(), b"tls") {
        // Done before: `available` has set the connection up.
        Err(Errno::EEXIST) => return Ok(()),
        done => done?,
    }
    let info = libc::tls12_crypto_info_aes_gcm_128 {
        info: libc::tls_crypto_info { version: libc::TLS_1_3_VERSION, cipher_type: libc::TLS_CIPHER_AES_GCM_128 },
        iv: KEYS.iv,
        key: KEYS.key,
        salt: KEYS.salt,
        rec_seq: KEYS.sequence,
    };
    setsockopt(job.socket, TcpTlsTx, &TlsCryptoInfo::Aes128Gcm(info))
}

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    encrypt(job)?;
    super::sendfile::send_by(job, |sent| job.piece(sent))
}

/// Sends the job with `TLS_TX_ZEROCOPY_RO` set: the program promises that the file does not change, and a NIC that enciphers may read its
/// pages. Without such a NIC the kernel takes the promise and enciphers as before.
pub(super) fn send_ro(job: &Job<'_>) -> io::Result<u64> {
    encrypt(job)?;
    promise(job)?;
    send(job)
}

/// Can this kernel be promised that?
pub(super) fn ro_available(job: &Job<'_>) -> io::Result<()> {
    available(job)?;
    promise(job).map_err(|error| unsupported(format!("this kernel's kTLS has no TLS_TX_ZEROCOPY_RO: {error}")))
}

fn promise(job: &Job<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `on`, which lives here.
    let done = unsafe {
        libc::setsockopt(
            job.socket.as_raw_fd(),
            libc::SOL_TLS,
            libc::TLS_TX_ZEROCOPY_RO,
            (&raw const on).cast(),
            length,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What the receiver will get: full records, and each call of `sendfile` ends its last one. Only for whole pages: from
/// within a page the kernel ends records earlier too, wherever its pipe between file and socket was full.
pub(super) fn stream(job: &Job<'_>) -> io::Result<Stream> {
    if !job.offset.is_multiple_of(PAGE_SIZE) {
        return Err(unsupported("where the kernel ends its records is not known for a start within a page"));
    }
    stream_of(job.file, job.offset, job.bytes, job.chunk as u64, KEYS)
}
