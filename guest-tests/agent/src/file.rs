//! The test file: made of stamps, its digest known apart from any transfer.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::sys::statvfs::statvfs;
use sha2::{Digest, Sha256};
use vnic_experiment::stamp;
use vnic_experiment::wire::hex;

/// Bytes filled and written at a time; a multiple of a stamp.
const PIECE: usize = 1 << 20;

/// A file made for one transfer; removed when dropped.
#[derive(Debug)]
pub struct TestFile {
    /// Open for reading.
    pub file: File,
    /// In its stamps.
    pub file_id: u64,
    /// SHA-256 of the bytes from the asked offset to the end, lower-case hex.
    pub sha256: String,
    path: PathBuf,
}

impl TestFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl TestFile {
    /// The same file, that stands by its name in another folder now; this one is removed.
    ///
    /// # Errors
    /// It does not stand there.
    pub(crate) fn moved_to(self, folder: &Path) -> Result<TestFile> {
        let path = folder.join(self.path.file_name().unwrap_or_default());
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(TestFile { file, file_id: self.file_id, sha256: self.sha256.clone(), path })
    }

    /// The same file, that is seen by its name in another folder, too: from now on it is open there.
    ///
    /// # Errors
    /// It is not seen there.
    pub(crate) fn seen_in(mut self, folder: &Path) -> Result<TestFile> {
        let path = folder.join(self.path.file_name().unwrap_or_default());
        self.file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        self.path = path;
        Ok(self)
    }

    /// Makes a file of `offset + bytes` bytes in `folder`; the digest covers the last `bytes`.
    ///
    /// # Errors
    /// No room, no rights.
    pub fn create(folder: &Path, offset: u64, bytes: u64) -> Result<TestFile> {
        let file_id = fresh_id();
        ensure_room(folder, offset.saturating_add(bytes))?;
        let path = folder.join(format!("vnic-{file_id:016x}"));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("create {}", path.display()))?;
        let digest = write_stamps(&mut file, file_id, offset, bytes);
        let written = digest.and_then(|digest| file.sync_all().map(|()| digest));
        let sha256 = match written {
            Ok(digest) => hex(&digest.finalize()),
            Err(error) => {
                let _ = fs::remove_file(&path);
                return Err(error).with_context(|| format!("write {} bytes to {}", offset + bytes, path.display()));
            }
        };
        // Read-only from here: a lease on the file would be refused while it is open for writing.
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(TestFile { file, file_id, sha256, path })
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Fails early where a file cannot fit: filling a file system takes long.
fn ensure_room(folder: &Path, bytes: u64) -> Result<()> {
    let about = statvfs(folder).with_context(|| format!("statvfs of {}", folder.display()))?;
    let room = about.blocks_available().saturating_mul(about.fragment_size());
    ensure!(bytes <= room, "a file of {bytes} bytes does not fit into {}, which has {room} left", folder.display());
    Ok(())
}

fn write_stamps(file: &mut File, file_id: u64, offset: u64, bytes: u64) -> io::Result<Sha256> {
    let length = offset.checked_add(bytes).ok_or_else(|| io::Error::other("the file would be longer than 2^64"))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0_u8; PIECE];
    let mut at = 0;
    while at < length {
        let piece = usize::try_from(length - at).map_or(PIECE, |left| left.min(PIECE));
        let piece = &mut buffer[..piece];
        stamp::fill(file_id, at, piece);
        file.write_all(piece)?;
        let skipped = usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
        digest.update(&piece[skipped..]);
        at += piece.len() as u64;
    }
    scrub(&mut buffer);
    Ok(digest)
}

/// Leaves none of the file's bytes in the program's memory: whoever looks for them in the guest's memory is to find only
/// those that a transfer has put there.
fn scrub(buffer: &mut [u8]) {
    buffer.fill(0);
    // The compiler must take it that someone looks at the zeros, and cannot leave them out.
    std::hint::black_box(&buffer);
    // The last stamp may still lie on the stack, where the making of another one puts its own.
    stamp::fill(0, 0, std::hint::black_box(&mut [0; stamp::STAMP_BYTES]));
}

/// An id no other file of this guest has: stamps that earlier files left in free memory are never taken for this one's.
pub(super) fn fresh_id() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64
}

/// A temporary file without a name, for tests of what needs a file.
#[cfg(test)]
pub(crate) fn unlinked_temporary() -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("vnic-test-{}-{:016x}", std::process::id(), fresh_id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn the_digest_is_of_the_bytes_from_the_offset_to_the_end() {
        let folder = std::env::temp_dir();
        for (offset, bytes) in [(0, 1), (0, 4096), (4097, 1_234_567), (1 << 20, 77), ((1 << 20) + 1, 1 << 20)] {
            let made = TestFile::create(&folder, offset, bytes).expect("a file");
            let length = made.file.metadata().expect("stat").len();
            assert_eq!(length, offset + bytes);
            let mut content = vec![0; usize::try_from(bytes).expect("small")];
            made.file.read_exact_at(&mut content, offset).expect("read back");
            assert_eq!(made.sha256, hex(&Sha256::digest(&content)), "offset {offset} bytes {bytes}");
        }
    }

    #[test]
    fn a_file_that_cannot_fit_is_refused_at_once() {
        let error = TestFile::create(&std::env::temp_dir(), 0, 1 << 60).expect_err("no disk is that large");
        assert!(error.to_string().contains("fit"), "{error:#}");
    }

    #[test]
    fn the_file_is_gone_when_dropped() {
        let made = TestFile::create(&std::env::temp_dir(), 0, 10).expect("a file");
        let path = made.path.clone();
        assert!(path.exists());
        drop(made);
        assert!(!path.exists());
    }
}
