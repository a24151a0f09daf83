//! io_uring's `SEND_ZC` from a mapping of the file: `MSG_ZEROCOPY` without the error queue. Each send has two
//! completions: one says how many bytes were taken, one (the notification) that the pages are free again.
//!
//! Since Linux 6.2 the notification also says whether the kernel copied after all, where it was asked to with
//! `IORING_SEND_ZC_REPORT_USAGE`.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode};
use nix::errno::Errno;

use super::{Job, unsupported};
use vnic_driver::mapping::Mapping;

const REPORT_USAGE: u16 = 1 << 3;
const NOTIF_USAGE_ZC_COPIED: u32 = 1 << 31;

/// How long the receiver may take to acknowledge.
const DEADLINE: Timespec = Timespec::new().sec(60);

/// Does this kernel have io_uring, and `SEND_ZC` in it?
pub(super) fn available(_: &Job<'_>) -> io::Result<()> {
    let ring = IoUring::new(2).map_err(|error| unsupported(format!("this kernel has no io_uring: {error}")))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if probe.is_supported(opcode::SendZc::CODE) {
        Ok(())
    } else {
        Err(unsupported("this kernel's io_uring has no SEND_ZC (it came with Linux 6.0)"))
    }
}

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    let mapping = Mapping::of_file(job.file, job.offset, job.bytes)?;
    send_from(job, &mapping, IoUring::new(8)?, None)
}

/// Sends the job from buffers that the ring knows beforehand (`IORING_REGISTER_BUFFERS`): their pages are pinned once, for as long as the
/// ring lives, and not with each send. The kernel may write to what is registered, and so must the program: not every file system
/// lets pages of its files be pinned like that.
pub(super) fn send_registered(job: &Job<'_>) -> io::Result<u64> {
    let (mapping, ring) = registered(job)?;
    send_from(job, &mapping, ring, Some(0))
}

/// Can pages of this file be registered?
pub(super) fn registered_available(job: &Job<'_>) -> io::Result<()> {
    available(job)?;
    registered(job).map(drop)
}

/// The file's pages, and a ring that knows them.
fn registered(job: &Job<'_>) -> io::Result<(Mapping, IoUring)> {
    let path = format!("/proc/self/fd/{}", job.file.as_raw_fd());
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(|error| {
        unsupported(format!("the file cannot be opened for writing, as pages to be registered are: {error}"))
    })?;
    let mapping = Mapping::writable_of_file(&file, job.offset, job.bytes)?;
    let ring = IoUring::new(8)?;
    let whole = mapping.bytes_at(0, usize::MAX);
    let buffer = libc::iovec { iov_base: whole.as_ptr().cast_mut().cast(), iov_len: whole.len() };
    // SAFETY: the kernel holds on to the pages itself; what is sent from them is a slice of the mapping, which its user keeps until the ring
    // has completed every send.
    unsafe { ring.submitter().register_buffers(&[buffer]) }.map_err(|error| {
        unsupported(format!("this kernel does not register pages of such a file as buffers: {error}"))
    })?;
    Ok((mapping, ring))
}

fn send_from(job: &Job<'_>, mapping: &Mapping, ring: IoUring, registered: Option<u16>) -> io::Result<u64> {
    let mut sender = Sender { ring, registered, flags: REPORT_USAGE, pending: 0, zerocopy: 0, copied: 0 };
    let mut sent = 0;
    while sent < job.bytes {
        let bytes = mapping.bytes_at(sent, job.piece(sent));
        sent += match sender.send(job, bytes) {
            // Linux before 6.2 does not report; the first send shows it.
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) && sender.flags != 0 => {
                sender.flags = 0;
                sender.send(job, bytes)?
            }
            taken => taken?,
        };
        job.taken(sent)?;
    }
    while sender.pending > 0 {
        sender.wait()?;
    }
    if sender.flags & REPORT_USAGE == 0 {
        job.follower.claim("sends of which this kernel reports nothing", sender.zerocopy);
    } else {
        job.follower.claim("sends reported zero-copy", sender.zerocopy);
        job.follower.claim("sends reported copied", sender.copied);
    }
    Ok(sent)
}

struct Sender {
    ring: IoUring,
    /// Of the buffers that the ring knows, the one that all is sent from.
    registered: Option<u16>,
    flags: u16,
    /// Notifications to come.
    pending: u64,
    zerocopy: u64,
    copied: u64,
}

impl Sender {
    /// Sends `bytes`, which must stay as they are until the notification; returns how many were taken.
    fn send(&mut self, job: &Job<'_>, bytes: &[u8]) -> io::Result<u64> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry = opcode::SendZc::new(Fd(job.socket.as_raw_fd()), bytes.as_ptr(), length)
            .zc_flags(self.flags)
            .buf_index(self.registered)
            .build();
        // SAFETY: `bytes` is a mapping of the caller's that stays mapped until every notification is in, and so do
        // the socket and the ring.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        loop {
            if let Some(taken) = self.wait()? {
                return Ok(taken);
            }
        }
    }

    /// Submits what there is, waits for a completion; returns the bytes taken where it was a send's.
    fn wait(&mut self) -> io::Result<Option<u64>> {
        if self.ring.completion().is_empty() {
            let deadline = SubmitArgs::new().timespec(&DEADLINE);
            match self.ring.submitter().submit_with_args(1, &deadline) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(Errno::ETIME as i32) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "io_uring does not complete a SEND_ZC"));
                }
                Err(error) => return Err(error),
            }
        }
        let Some(entry) = self.ring.completion().next() else { return Ok(None) };
        let result = entry.result();
        if cqueue::notif(entry.flags()) {
            self.pending = self.pending.saturating_sub(1);
            if self.flags & REPORT_USAGE != 0 && result.cast_unsigned() & NOTIF_USAGE_ZC_COPIED != 0 {
                self.copied += 1;
            } else {
                self.zerocopy += 1;
            }
            return Ok(None);
        }
        if cqueue::more(entry.flags()) {
            self.pending += 1;
        }
        u64::try_from(result).map(Some).map_err(|_| io::Error::from_raw_os_error(-result))
    }
}
