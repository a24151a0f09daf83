//! Another process's memory, read from outside: its mappings, which of their pages exist, and what stands in them.
//!
//! Operation: `process_vm_readv`, and where that is forbidden `/proc/PID/mem`, opened for reading alone; no page of private
//! memory comes to be by reading it. The process is never stopped, signalled or traced, and does not notice. All files are opened at
//! the beginning, or when a mapping's is first asked for: who [reads files alone](Process::reads_files_alone) needs no right later, and
//! Landlock leaves none.
//!
//! Limits: `process_vm_readv` goes by the process's number, which may be another's once it has ended. Who looks for long asks
//! [`Process::has_ended`] now and then: numbers come round only after all others.

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{Pid, geteuid};

/// Most bytes of a list of mappings, and how many are read at a time.
const MAX_MAPS: usize = 16 << 20;
const MAPS_PIECE: usize = 64 << 10;
/// Page numbers read at a time.
const PAGES: usize = 8192;
const PAGE: u64 = 4096;
/// Pieces read in one call: `UIO_MAXIOV`.
const MOST_PARTS: usize = 1024;
/// In an entry of `/proc/PID/pagemap`: the page is there, or was swapped out.
const THERE: u64 = 1 << 63 | 1 << 62;

/// Why a process's memory cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// No such process, or it has no memory any more.
    #[error("there is no process {0}")]
    Gone(u32),
    /// It may not be looked into.
    #[error("may not read the memory of process {pid}: {why}")]
    NotAllowed {
        /// Which.
        pid: u32,
        /// What forbids it, and what would help.
        why: String,
    },
    /// Anything else.
    #[error("cannot read {}: {source}", path.display())]
    Host {
        /// What was read.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A process whose memory can be read.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    name: String,
    mem: File,
    pagemap: File,
    maps: File,
    /// Of shared mappings, those that were asked for: device and inode, and the file.
    files: Mutex<Vec<((u64, u64), File)>>,
    /// `process_vm_readv` is not to be called any more.
    files_alone: AtomicBool,
}

/// A mapping that can be read and written: a guest's memory may be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
    /// Is it shared with others?
    pub shared: bool,
    /// Where in the file it begins.
    pub offset: u64,
    /// Device and inode of the file; 0: none.
    pub file: (u64, u64),
}

impl Mapping {
    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Is the other a part of it?
    pub(super) fn has_within(&self, other: &Mapping) -> bool {
        self != other && self.start <= other.start && other.end <= self.end
    }

    /// A line of `/proc/PID/maps`, if it is memory that a guest may have.
    fn parse(line: &str) -> Option<Mapping> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let perms = words.next()?.as_bytes();
        // What can be executed is code that the VMM made of the guest's.
        let (true, shared) = (perms.starts_with(b"rw-"), perms.get(3) == Some(&b's')) else { return None };
        let offset = hex(words.next()?)?;
        let (major, minor) = words.next()?.split_once(':')?;
        let device = hex(major)? << 32 | hex(minor)?;
        let inode = words.next()?.parse().ok()?;
        if words.next().is_some_and(|name| name.starts_with("[heap") || name.starts_with("[stack")) {
            return None;
        }
        Some(Mapping { start: hex(start)?, end: hex(end)?, shared, offset, file: (device, inode) })
    }

    /// Goes `next` on where this one ends, in memory and in the file?
    fn goes_on(&self, next: &Mapping) -> bool {
        let in_file = self.file.1 == 0 || self.offset.checked_add(self.size()) == Some(next.offset);
        self.end == next.start && self.shared == next.shared && self.file == next.file && in_file
    }
}

impl Process {
    /// Opens the memory of a process.
    ///
    /// # Errors
    /// There is none, or it may not be looked into.
    pub fn open(pid: u32) -> Result<Process, ProcessError> {
        let open = |name: &str| {
            let path = PathBuf::from(format!("/proc/{pid}/{name}"));
            File::open(&path).map_err(|source| refused(pid, path, source))
        };
        let (mem, pagemap, maps) = (open("mem")?, open("pagemap")?, open("maps")?);
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned();
        let (files, files_alone) = (Mutex::default(), AtomicBool::new(false));
        Ok(Process { pid, name, mem, pagemap, maps, files, files_alone })
    }

    /// Reads through the files that are open from now on, and opens no other.
    pub fn reads_files_alone(&self) {
        self.files_alone.store(true, Ordering::Relaxed);
    }

    fn files_alone(&self) -> bool {
        self.files_alone.load(Ordering::Relaxed)
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its name, as the kernel had it at the beginning.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Did it end? Its number may be another's by now: what is asked is its memory.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        // Of memory that is gone there is nothing to be read at any address; of an address without memory, an error.
        matches!(self.mem.read_at(&mut [0], 0), Ok(0))
    }

    /// The mappings that may be a guest's memory, in the order of their addresses; behind them, neighbours taken together.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn mappings(&self) -> Result<Vec<Mapping>, ProcessError> {
        let text = self.list().map_err(|source| {
            let path = PathBuf::from(format!("/proc/{}/maps", self.pid));
            refused(self.pid, path, source)
        })?;
        let mut all: Vec<Mapping> = text.lines().filter_map(Mapping::parse).collect();
        // The kernel splits a mapping where a part of it is treated otherwise. What it lists singly may as well be two.
        let mut together: Vec<Mapping> = Vec::new();
        for mapping in &all {
            match together.last_mut() {
                Some(last) if last.goes_on(mapping) => last.end = mapping.end,
                _ => together.push(mapping.clone()),
            }
        }
        together.retain(|mapping| !all.contains(mapping));
        all.append(&mut together);
        Ok(all)
    }

    /// The list of the mappings, from its beginning.
    fn list(&self) -> io::Result<String> {
        let (mut text, mut filled) = (Vec::new(), 0);
        while filled < MAX_MAPS {
            text.resize(filled + MAPS_PIECE, 0);
            let read = text.get_mut(filled..).map_or(Ok(0), |rest| self.maps.read_at(rest, filled as u64))?;
            filled += read;
            if read == 0 {
                break;
            }
        }
        text.truncate(filled);
        // Names of files may be anything; addresses are what is wanted.
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Reads all of `out` at an address of the process's. `None`: there is not so much memory, or the process is gone.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Option<()> {
        let len = out.len();
        match self.read_parts(&[RemoteIoVec { base: address as usize, len }], out) {
            Err(Errno::EPERM | Errno::ENOSYS) => self.mem.read_exact_at(out, address).ok(),
            read => (read == Ok(len)).then_some(()),
        }
    }

    /// Reads the first `each` bytes of so many pages as fit into `out`, from the one at an address of the process's on. `None`:
    /// one of them is not there, or the pages have to be read one by one.
    pub fn read_starts(&self, address: u64, each: usize, out: &mut [u8]) -> Option<()> {
        for (number, part) in (0..).zip(out.chunks_mut(each * MOST_PARTS)) {
            let first = address.checked_add(number * MOST_PARTS as u64 * PAGE)?;
            let starts = (first..).step_by(PAGE as usize).take(part.len() / each);
            let parts: Vec<_> = starts.map(|start| RemoteIoVec { base: start as usize, len: each }).collect();
            (self.read_parts(&parts, part) == Ok(part.len())).then_some(())?;
        }
        Some(())
    }

    /// Reads pieces of the process's memory, in their order; in one call, if all of them are there. Says of each whether it is.
    pub fn read_pieces(&self, pieces: &mut [(u64, &mut [u8])]) -> Vec<bool> {
        if self.files_alone() {
            return pieces.iter_mut().map(|(address, bytes)| self.read(*address, bytes).is_some()).collect();
        }
        let mut there = Vec::with_capacity(pieces.len());
        while let Some(rest) = pieces.get_mut(there.len()..).filter(|rest| !rest.is_empty()) {
            let part = |(address, bytes): &(u64, &mut [u8])| RemoteIoVec { base: *address as usize, len: bytes.len() };
            let parts: Vec<_> = rest.iter().take(MOST_PARTS).map(part).collect();
            let mut out: Vec<_> = rest.iter_mut().take(MOST_PARTS).map(|(_, bytes)| IoSliceMut::new(bytes)).collect();
            let read = process_vm_readv(Pid::from_raw(self.pid.cast_signed()), &mut out, &parts);
            // It ends within the first that is not all there.
            let mut left = read.unwrap_or(0);
            let whole = parts.iter().take_while(|part| left.checked_sub(part.len).map(|after| left = after).is_some());
            let whole = whole.count();
            there.extend(std::iter::repeat_n(true, whole));
            if let Some((address, bytes)) = rest.get_mut(whole).filter(|_| whole < parts.len()) {
                there.push(self.read(*address, bytes).is_some());
            }
        }
        there
    }

    fn read_parts(&self, parts: &[RemoteIoVec], out: &mut [u8]) -> nix::Result<usize> {
        if self.files_alone() {
            return Err(Errno::EPERM);
        }
        process_vm_readv(Pid::from_raw(self.pid.cast_signed()), &mut [IoSliceMut::new(out)], parts)
    }

    /// Tells from where to where there are pages with content, among these addresses.
    ///
    /// # Errors
    /// The host does not say.
    pub fn existing(&self, start: u64, end: u64, tell: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        let mut entries = vec![0; 8 * PAGES];
        let mut run: Option<u64> = None;
        let mut at = start;
        while at < end {
            let pages = ((end - at).div_ceil(PAGE) as usize).min(PAGES);
            let Some(part) = entries.get_mut(..8 * pages) else { break };
            self.pagemap.read_exact_at(part, at / PAGE * 8)?;
            for (entry, page) in part.chunks_exact(8).zip((at..).step_by(PAGE as usize)) {
                let there = entry.try_into().is_ok_and(|entry| u64::from_le_bytes(entry) & THERE != 0);
                match (run, there) {
                    (None, true) => run = Some(page),
                    (Some(from), false) => {
                        tell(from, page);
                        run = None;
                    }
                    _ => {}
                }
            }
            at += pages as u64 * PAGE;
        }
        if let Some(from) = run {
            tell(from, end);
        }
        Ok(())
    }

    /// The file of a shared mapping, open for reading; `None`: the process has closed it, it is another's, or it was never asked for
    /// while files could be opened.
    #[must_use]
    pub fn file_of(&self, mapping: &Mapping) -> Option<File> {
        let mut known = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, file)) = known.iter().find(|(which, _)| *which == mapping.file) {
            return file.try_clone().ok();
        }
        if self.files_alone() {
            return None;
        }
        let wanted = |file: &fs::Metadata| (device(file.dev()), file.ino()) == mapping.file;
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid)).ok()?;
        let paths = files.filter_map(|entry| Some(entry.ok()?.path()));
        let found = paths.filter(|path| fs::metadata(path).is_ok_and(|file| wanted(&file)));
        let opened = found.filter_map(|path| File::open(path).ok());
        let file = { opened }.find(|file| file.metadata().is_ok_and(|file| wanted(&file)))?;
        known.extend(file.try_clone().map(|file| (mapping.file, file)));
        Some(file)
    }
}

/// As the list of mappings has it.
fn device(number: u64) -> u64 {
    nix::sys::stat::major(number) << 32 | nix::sys::stat::minor(number)
}

/// In a sentence: which right is missing.
fn refused(pid: u32, path: PathBuf, source: io::Error) -> ProcessError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => ProcessError::Gone(pid),
        Some(libc::EACCES | libc::EPERM) => ProcessError::NotAllowed { pid, why: why_not(pid) },
        _ => ProcessError::Host { path, source },
    }
}

fn why_not(pid: u32) -> String {
    let user = fs::metadata(format!("/proc/{pid}")).map(|process| process.uid()).ok();
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match (user, scope.trim()) {
        (_, "3") => "kernel.yama.ptrace_scope is 3: until the next boot nobody may".to_owned(),
        (Some(user), _) if user != geteuid().as_raw() => {
            format!("it belongs to the user {user}; that takes the same user's rights or CAP_SYS_PTRACE (sudo)")
        }
        (_, scope @ ("1" | "2")) => {
            format!("kernel.yama.ptrace_scope is {scope}; that takes CAP_SYS_PTRACE (sudo), or the scope 0")
        }
        _ => "it has more rights than this command, or keeps its memory to itself; that takes CAP_SYS_PTRACE (sudo)"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_memory_that_is_written_and_no_code_may_be_a_guests() {
        let line = "7f9b6be00000-7f9b8be00000 rw-p 00000000 00:00 0 ";
        let ram = Mapping { start: 0x7f9b_6be0_0000, end: 0x7f9b_8be0_0000, shared: false, offset: 0, file: (0, 0) };
        assert_eq!(Mapping::parse(line), Some(ram.clone()));
        assert_eq!(ram.size(), 512 << 20);
        let shared = "7f4153fff000-7f4173fff000 rw-s 00001000 00:01 1034 /memfd:memory-backend-memfd (deleted)";
        let shared = Mapping::parse(shared).unwrap();
        assert_eq!((shared.shared, shared.offset, shared.file), (true, 0x1000, (1, 1034)));
        for other in ["rwxp 0 00:00 0", "r--p 0 00:00 0", "---p 0 00:00 0", "rw-p 0 00:00 0 [heap]", "rw-p", ""] {
            assert_eq!(Mapping::parse(&format!("7f9b6be00000-7f9b8be00000 {other}")), None, "{other}");
        }
    }

    #[test]
    fn of_this_process_what_exists_is_told_and_read() {
        let process = Process::open(std::process::id()).unwrap();
        assert!(!process.has_ended());
        // Far more than is touched: the rest does not exist.
        let mut memory: Vec<u8> = Vec::with_capacity(64 << 20);
        memory.extend_from_slice(&[7; 3 << 12]);
        let start = memory.as_ptr() as u64;
        let (mut runs, mut all) = (Vec::new(), 0);
        let end = (start + (64 << 20)) / PAGE * PAGE;
        process.existing(start / PAGE * PAGE, end, &mut |from, to| runs.push((from, to))).unwrap();
        runs.iter().for_each(|(from, to)| all += to - from);
        assert!(runs.iter().any(|(from, to)| (*from..*to).contains(&(start + PAGE))), "{runs:x?}");
        assert!((3 * PAGE..8 << 20).contains(&all), "{all} bytes exist");
        let mut bytes = [0; 16];
        process.read(start + PAGE, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 16]);
        assert!(process.read(0, &mut bytes).is_none());
        // Of several, one that is not there is no trouble for the others; more than one call takes, too.
        let mut rooms = vec![[0; 4]; 2 * MOST_PARTS + 3];
        let missing = |at: usize| matches!(at, 0 | 7 | MOST_PARTS);
        let mut pieces: Vec<(u64, &mut [u8])> = Vec::new();
        for (at, room) in rooms.iter_mut().enumerate() {
            pieces.push((if missing(at) { 8 } else { start + at as u64 }, room.as_mut_slice()));
        }
        let there = process.read_pieces(&mut pieces);
        assert_eq!(there.len(), rooms.len());
        for (at, (there, room)) in there.iter().zip(rooms).enumerate() {
            assert_eq!((*there, room), if missing(at) { (false, [0; 4]) } else { (true, [7; 4]) }, "{at}");
        }
    }

    #[test]
    fn a_process_that_has_ended_is_known_to() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(!process.has_ended());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process.has_ended());
        assert!(process.read(0x1000, &mut [0]).is_none());
        assert!(matches!(Process::open(child.id()), Err(ProcessError::Gone(_))));
    }
}
