//! The file behind a disk: opened, locked against other programs, measured.
//!
//! Invariants: a disk keeps the capacity it was opened with. A file that shrinks is an error of each request that meets its end.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::options::{Cache, DiskOptions};
use crate::memory::transfer::{Operation, Transfer};
use crate::observe::counters::Counter;
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
    /// It cannot be read past the host's page cache.
    #[error(
        "the disk image {} cannot be used with cache=direct: its file system does not take single sectors that way; use cache=host",
        path.display()
    )]
    NotDirect {
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
    path: PathBuf,
    bytes: u64,
    read_only: bool,
    serial: [u8; ID_LEN],
    /// Past the host's page cache.
    direct: bool,
    /// A block device does not shrink.
    regular: bool,
    /// What the file system likes to read and write, bytes.
    block: u64,
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
        let direct = match options.cache {
            Some(Cache::Host) => false,
            _ => make_direct(&file).map_err(failed)?,
        };
        if options.cache == Some(Cache::Direct) && !direct {
            return Err(ImageError::NotDirect { path: path.clone() });
        }
        let metadata = file.metadata().map_err(failed)?;
        Ok(Image {
            path: path.clone(),
            bytes,
            read_only,
            serial: options.serial.0,
            direct,
            regular: metadata.file_type().is_file(),
            block: metadata.blksize(),
            file,
        })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Does nothing of it stay in the host's page cache?
    #[must_use]
    pub const fn is_direct(&self) -> bool {
        self.direct
    }

    /// Sectors in a block of its file system, as a power of two.
    #[must_use]
    pub const fn block_exponent(&self) -> u8 {
        let sectors = self.block / SECTOR;
        if sectors.is_power_of_two() && sectors <= 1 << 15 { sectors.trailing_zeros() as u8 } else { 0 }
    }

    /// Does it lie in the host's memory, without a disk behind it?
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        fstatfs(&self.file).is_ok_and(|filesystem| filesystem.filesystem_type() == TMPFS_MAGIC)
    }

    /// How long it is now.
    #[must_use]
    pub fn len_now(&self) -> u64 {
        if !self.regular {
            return self.bytes;
        }
        // What cannot be asked has not shrunk: the request itself will tell.
        self.file.metadata().map_or(self.bytes, |metadata| metadata.len())
    }

    /// Can the kernel move this straight between the file and the guest's pages?
    #[must_use]
    pub fn takes(&self, transfer: &Transfer) -> bool {
        !self.direct || transfer.is_aligned(SECTOR as usize)
    }

    /// Carries out a request here and now. Where the guest's buffers lie as the disk does not take them, the data are copied, and
    /// counted.
    ///
    /// # Errors
    /// The file cannot do it.
    pub fn run(&self, operation: Operation, transfer: &mut Transfer, copied: &Counter) -> io::Result<()> {
        match operation {
            Operation::Move { direction, offset } if !self.takes(transfer) => {
                copied.add(transfer.run_copied(&self.file, direction, offset)?);
                Ok(())
            }
            operation => operation.run(&self.file, transfer),
        }
    }

    /// Writes zeroes as data are written, where the file system knows no other way.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        static ZEROES: Zeroes = Zeroes([0; 256 << 10]);
        let mut at = offset;
        while at < offset + len {
            let count = (offset + len - at).min(ZEROES.0.len() as u64);
            self.file.write_all_at(ZEROES.0.get(..count as usize).unwrap_or_default(), at)?;
            at += count;
        }
        Ok(())
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

/// Zeroes as any disk takes them.
#[repr(align(4096))]
struct Zeroes([u8; 256 << 10]);

/// Has the file read and written past the page cache, if it takes single sectors that way: that is found by reading one. Returns
/// whether it does.
fn make_direct(file: &File) -> io::Result<bool> {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    if fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT)).is_err() {
        return Ok(false);
    }
    let mut page = Page([0; 4096]);
    let sector = page.0.get_mut(SECTOR as usize..2 * SECTOR as usize).unwrap_or_default();
    if file.read_exact_at(sector, 0).is_ok() {
        return Ok(true);
    }
    fcntl(file, FcntlArg::F_SETFL(flags))?;
    Ok(false)
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

/// How long the lock of a process that was killed may outlive it: until the kernel has taken its io_uring apart.
const LINGERS: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Locks the whole file: who writes has it alone, who reads shares it with others who read. The lock goes with this process.
fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), ImageError> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    let whole = libc::flock { l_type: kind as _, l_whence: libc::SEEK_SET as _, l_start: 0, l_len: 0, l_pid: 0 };
    let started = Instant::now();
    let locked = loop {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
            Err(Errno::EAGAIN | Errno::EACCES) if started.elapsed() < LINGERS => thread::sleep(LOOK_AGAIN),
            locked => break locked,
        }
    };
    match locked {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(ImageError::Locked { path: path.to_owned() }),
        // A file system without locks.
        Err(error) => {
            tracing::warn!(%error, image = %path.display(), "the image cannot be locked: nobody else must write to it");
            Ok(())
        }
    }
}
