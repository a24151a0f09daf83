//! What a kTLS connection puts on the wire, computed apart from it: TLS 1.3 records framed here, encrypted by the kernel's
//! AES-GCM through an `AF_ALG` socket.
//!
//! RFC 8446, 5.2 Record Payload Protection: a record is a header of five bytes, the encrypted content with its type (one
//! byte) behind it, and a tag of 16 bytes. The nonce is the initialisation vector with the record's number XORed into its
//! end; the header is authenticated with the content.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::sys::socket::sockopt::{AlgSetAeadAuthSize, AlgSetKey};
use nix::sys::socket::{
    AddressFamily, AlgAddr, ControlMessage, MsgFlags, SockFlag, SockType, accept4, bind, sendmsg, setsockopt, socket,
};
use sha2::{Digest, Sha256};

/// The most content of a record.
const RECORD: usize = 16384;
const TAG: usize = 16;
const HEADER: usize = 5;
const APPLICATION_DATA: u8 = 23;

/// The secrets of a connection, as `TLS_TX` takes them.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    /// AES-128.
    pub key: [u8; 16],
    /// The first four bytes of the initialisation vector.
    pub salt: [u8; 4],
    /// The other eight.
    pub iv: [u8; 8],
    /// The first record's number, big-endian.
    pub sequence: [u8; 8],
}

/// A stream of records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, lower-case hex.
    pub sha256: String,
}

/// The stream for `bytes` of the file from `offset`, sent with calls of `chunk` bytes: each call ends its last record.
///
/// # Errors
/// The file cannot be read, or the kernel has no AES-GCM for user space.
pub fn stream_of(file: &File, offset: u64, bytes: u64, chunk: u64, keys: Keys) -> io::Result<Stream> {
    let cipher = Cipher::new(&keys.key)?;
    let mut number = u64::from_be_bytes(keys.sequence);
    let mut content = vec![0_u8; RECORD];
    let mut digest = Sha256::new();
    let mut streamed = 0;
    let mut at = 0;
    while at < bytes {
        let left_of_call = chunk - at % chunk;
        let left = left_of_call.min(bytes - at);
        let content = &mut content[..usize::try_from(left).map_or(RECORD, |left| left.min(RECORD))];
        file.read_exact_at(content, offset + at)?;
        let record = cipher.record(&keys, number, content)?;
        digest.update(&record);
        streamed += record.len() as u64;
        number = number.wrapping_add(1);
        at += content.len() as u64;
    }
    Ok(Stream { bytes: streamed, sha256: vnic_experiment::wire::hex(&digest.finalize()) })
}

/// AES-128-GCM of the kernel.
struct Cipher {
    operation: File,
    /// The key lives in this socket.
    _algorithm: OwnedFd,
}

impl Cipher {
    fn new(key: &[u8; 16]) -> io::Result<Cipher> {
        let algorithm = socket(AddressFamily::Alg, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        bind(algorithm.as_raw_fd(), &AlgAddr::new("aead", "gcm(aes)"))?;
        setsockopt(&algorithm, AlgSetKey::default(), &key.as_slice())?;
        setsockopt(&algorithm, AlgSetAeadAuthSize, &TAG)?;
        let operation = accept4(algorithm.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: the kernel just opened this descriptor for us, and nothing else owns it.
        Ok(Cipher { operation: unsafe { File::from_raw_fd(operation) }, _algorithm: algorithm })
    }

    fn record(&self, keys: &Keys, number: u64, content: &[u8]) -> io::Result<Vec<u8>> {
        let protected = u16::try_from(content.len() + 1 + TAG).map_err(io::Error::other)?.to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, protected[0], protected[1]];
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&keys.salt);
        nonce[4..].copy_from_slice(&(u64::from_be_bytes(keys.iv) ^ number).to_be_bytes());
        let parts = [IoSlice::new(&header), IoSlice::new(content), IoSlice::new(&[APPLICATION_DATA])];
        let orders = [
            ControlMessage::AlgSetOp(&libc::ALG_OP_ENCRYPT),
            ControlMessage::AlgSetIv(&nonce),
            ControlMessage::AlgSetAeadAssoclen(&(HEADER as u32)),
        ];
        sendmsg::<()>(self.operation.as_raw_fd(), &parts, &orders, MsgFlags::empty(), None)?;
        // The answer has the authenticated header in front, as it was.
        let mut record = vec![0; HEADER + content.len() + 1 + TAG];
        (&self.operation).read_exact(&mut record)?;
        record[..HEADER].copy_from_slice(&header);
        Ok(record)
    }
}
