//! `passthrough FOLDER AT`: shows the files of a folder again at another place, as a file system in user space.
//!
//! As little as a transfer needs: files are looked up, opened, read, closed and removed. They are kept in the page cache, as most
//! of these file systems want it. What was read leaves no trace here: not in this program's buffer, nor in the page cache of the
//! folder's own file system. Whoever looks for a file's bytes in memory is to find those of the file that was sent.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Parser;
use fuser::{
    Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, MountOption,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// For so long the kernel may remember what it was told: nobody else changes the folder.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Shows the files of a folder again at another place.
#[derive(Debug, Parser)]
struct Options {
    /// The folder
    folder: PathBuf,
    /// Where they are shown
    at: PathBuf,
}

fn main() -> Result<()> {
    let Options { folder, at } = Options::parse();
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("passthrough".to_owned()), MountOption::NoAtime];
    let shown = Passthrough { folder, names: Mutex::default(), open: Mutex::default() };
    fuser::mount(shown, &at, &config).with_context(|| format!("mount at {}", at.display()))
}

#[derive(Debug)]
struct Passthrough {
    folder: PathBuf,
    /// Files that were looked up, by their inode's number.
    names: Mutex<HashMap<u64, PathBuf>>,
    /// Files that are open; each one's handle is its descriptor's number.
    open: Mutex<HashMap<u64, File>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attributes(number: INodeNo, about: &Metadata) -> FileAttr {
    let kind = if about.is_dir() { FileType::Directory } else { FileType::RegularFile };
    let modified = about.modified().unwrap_or(UNIX_EPOCH);
    FileAttr {
        ino: number,
        size: about.len(),
        blocks: about.blocks(),
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind,
        perm: (about.permissions().mode() & 0o7777) as u16,
        nlink: about.nlink() as u32,
        uid: about.uid(),
        gid: about.gid(),
        rdev: 0,
        blksize: about.blksize() as u32,
        flags: 0,
    }
}

impl Passthrough {
    fn path(&self, number: INodeNo) -> io::Result<PathBuf> {
        if number == INodeNo::ROOT {
            return Ok(self.folder.clone());
        }
        locked(&self.names).get(&u64::from(number)).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn about(&self, number: INodeNo) -> io::Result<FileAttr> {
        Ok(attributes(number, &fs::metadata(self.path(number)?)?))
    }

    fn find(&self, name: &OsStr) -> io::Result<FileAttr> {
        let path = self.folder.join(name);
        let about = fs::metadata(&path)?;
        locked(&self.names).insert(about.ino(), path);
        Ok(attributes(INodeNo(about.ino()), &about))
    }

    fn read(&self, handle: FileHandle, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let open = locked(&self.open);
        let file = open.get(&u64::from(handle)).ok_or(io::ErrorKind::NotFound)?;
        let mut done = 0;
        while done < bytes.len() {
            match file.read_at(&mut bytes[done..], offset + done as u64)? {
                0 => break,
                read => done += read,
            }
        }
        posix_fadvise(file, offset.cast_signed(), done.cast_signed() as i64, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        Ok(done)
    }
}

impl Filesystem for Passthrough {
    fn lookup(&self, _: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(name) {
            Ok(about) => reply.entry(&REMEMBERED, &about, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.about(number) {
            Ok(about) => reply.attr(&REMEMBERED, &about),
            Err(error) => reply.error(error.into()),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.path(number).and_then(File::open) {
            Ok(file) => {
                let mut open = locked(&self.open);
                let handle = (0..).find(|handle| !open.contains_key(handle)).unwrap_or_default();
                open.insert(handle, file);
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        match Passthrough::read(self, handle, offset, &mut bytes) {
            Ok(read) => reply.data(&bytes[..read]),
            Err(error) => reply.error(error.into()),
        }
        bytes.fill(0);
        // The compiler must take it that someone looks at the zeros, and cannot leave them out.
        std::hint::black_box(&bytes);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        drop(locked(&self.open).remove(&u64::from(handle)));
        reply.ok();
    }

    fn unlink(&self, _: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match fs::remove_file(self.folder.join(name)) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }
}
