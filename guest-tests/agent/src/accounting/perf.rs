//! Events of the kernel's perf subsystem, by `perf_event_open`: the plain counters, and what the others stand on.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};

/// `struct perf_event_attr` in the size that first had `sample_regs_intr` (`PERF_ATTR_SIZE_VER5`, Linux 4.1).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Attr {
    pub(super) kind: u32,
    pub(super) size: u32,
    pub(super) config: u64,
    pub(super) sample_period: u64,
    pub(super) sample_type: u64,
    pub(super) read_format: u64,
    pub(super) flags: u64,
    pub(super) wakeup_events: u32,
    pub(super) bp_type: u32,
    pub(super) bp_addr: u64,
    pub(super) bp_len: u64,
    pub(super) branch_sample_type: u64,
    pub(super) sample_regs_user: u64,
    pub(super) sample_stack_user: u32,
    pub(super) clockid: i32,
    pub(super) sample_regs_intr: u64,
    pub(super) aux_watermark: u32,
    pub(super) sample_max_stack: u16,
    pub(super) reserved: u16,
}

const _: () = assert!(size_of::<Attr>() == 112);

pub(super) const TYPE_SOFTWARE: u32 = 1;
pub(super) const TYPE_TRACEPOINT: u32 = 2;
pub(super) const TYPE_BREAKPOINT: u32 = 5;
pub(super) const COUNT_PAGE_FAULTS: u64 = 2;
/// Bits of the flags.
pub(super) const DISABLED: u64 = 1 << 0;
/// Those that the task starts later are counted, too.
pub(super) const INHERIT: u64 = 1 << 1;
pub(super) const EXCLUDE_USER: u64 = 1 << 4;
pub(super) const EXCLUDE_KERNEL: u64 = 1 << 5;
/// Counting begins when the task becomes another program.
pub(super) const ENABLE_ON_EXEC: u64 = 1 << 12;

const FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
const IOC_ENABLE: libc::c_ulong = 0x2400;
const IOC_DISABLE: libc::c_ulong = 0x2401;

/// Whose events.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scope {
    /// This thread's, on every CPU.
    ThisThread,
    /// Everyone's on this CPU.
    Cpu(i32),
}

/// Opens an event.
pub(super) fn open(attr: Attr, scope: Scope) -> io::Result<File> {
    let attr = Attr { size: size_of::<Attr>() as u32, ..attr };
    let (pid, cpu): (libc::pid_t, i32) = match scope {
        Scope::ThisThread => (0, -1),
        Scope::Cpu(cpu) => (-1, cpu),
    };
    let no_group: i32 = -1;
    // SAFETY: perf_event_open reads attr.size bytes of attr, which lives here.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, pid, cpu, no_group, FLAG_FD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just opened this descriptor for us, and nothing else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Lets an event count.
pub(super) fn enable(event: &File) -> io::Result<()> {
    control(event, IOC_ENABLE)
}

/// Has an event count no more.
pub(super) fn disable(event: &File) -> io::Result<()> {
    control(event, IOC_DISABLE)
}

fn control(event: &File, request: libc::c_ulong) -> io::Result<()> {
    // SAFETY: both requests take an integer and no pointer.
    if unsafe { libc::ioctl(event.as_raw_fd(), request, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A counter's count.
pub(super) fn count(mut event: &File) -> io::Result<u64> {
    let mut count = [0; 8];
    event.read_exact(&mut count)?;
    Ok(u64::from_ne_bytes(count))
}
