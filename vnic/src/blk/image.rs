//! The file behind a disk: opened, locked against other programs, measured.
//!
//! Invariants: a disk keeps the capacity it was opened with. A file that shrinks is an error of each request that meets its end.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::options::DiskOptions;
use crate::spec::blk::{ID_LEN, SECTOR};

/// Why an image cannot be a disk: one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be opened.
    #[error("the disk image {} cannot be opened: {source}{}", path.display(), hint(source))]
    Open {
        /// The image.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Neither a file nor a block device.
    #[error("the disk image {} is {what}: it must be a file or a block device", path.display())]
    Kind {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Not made of sectors.
    #[error(
        "the disk image {} has {bytes} bytes, which are no multiple of a sector: make it {} with truncate -s",
        path.display(), bytes.next_multiple_of(SECTOR)
    )]
    Sectors {
        /// The image.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// It has no sector.
    #[error("the disk image {} is empty: give it a size with truncate -s 1G", path.display())]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// Somebody else has it.
    #[error("the disk image {} is locked by another program: end that one first, or use a copy", path.display())]
    Locked {
        /// The image.
        path: PathBuf,
    },
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => "; make one with truncate -s 1G FILE",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; give this user the right to write to it, or add ,readonly"
        }
        _ => "",
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Image {
    file: File,
    bytes: u64,
    read_only: bool,
    serial: [u8; ID_LEN],
}

impl Image {
    /// Opens the image that these options name.
    ///
    /// # Errors
    /// It is not there, not to be had, or cannot be a disk.
    pub fn open(options: &DiskOptions) -> Result<Self, ImageError> {
        let (path, read_only) = (&options.file, options.read_only);
        let failed = |source| ImageError::Open { path: path.clone(), source };
        kind(path)?;
        let mut file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(failed)?;
        lock(&file, path, read_only)?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if bytes == 0 {
            return Err(ImageError::Empty { path: path.clone() });
        }
        if !bytes.is_multiple_of(SECTOR) {
            return Err(ImageError::Sectors { path: path.clone(), bytes });
        }
        Ok(Image { file, bytes, read_only, serial: options.serial.0 })
    }

    /// The file.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// How long it was when it was opened.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// May nothing be written?
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The disk's serial number.
    #[must_use]
    pub const fn serial(&self) -> &[u8; ID_LEN] {
        &self.serial
    }
}

/// Makes sure, before it is opened, that it is something whose opening does not wait and that has sectors.
fn kind(path: &Path) -> Result<(), ImageError> {
    let metadata = path.metadata().map_err(|source| ImageError::Open { path: path.to_owned(), source })?;
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_file() || kind.is_block_device() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a character device",
    };
    Err(ImageError::Kind { path: path.to_owned(), what })
}

/// Locks the whole file: who writes has it alone, who reads shares it with others who read. The lock goes with this process.
fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), ImageError> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    let whole = libc::flock { l_type: kind as _, l_whence: libc::SEEK_SET as _, l_start: 0, l_len: 0, l_pid: 0 };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(ImageError::Locked { path: path.to_owned() }),
        // A file system without locks.
        Err(error) => {
            tracing::warn!(%error, image = %path.display(), "the image cannot be locked: nobody else must write to it");
            Ok(())
        }
    }
}
