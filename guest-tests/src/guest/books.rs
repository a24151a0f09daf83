//! The guest kernel's own books of a transfer, as far as the ordinary interfaces keep them.
//!
//! Operation: [`Books::open`] before the transfer, [`Books::close`] after it, on the same thread. CPU time and context
//! switches come from `getrusage`; page faults from a perf software counter, because `getrusage` does not tell faults
//! in user mode from those the kernel takes on the program's behalf.
//!
//! Limits: system calls and copied bytes are not counted here, and say so.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use vnic::record::wire;

/// The kernel's functions through which payload is copied by the CPU.
pub const COPY_FUNCTIONS: [&str; 5] =
    ["_copy_to_iter", "_copy_from_iter", "skb_copy_bits", "skb_copy_and_csum_bits", "skb_copy_ubufs"];

/// Books that are open.
#[derive(Debug)]
pub struct Books {
    before: Usage,
    faults: io::Result<File>,
}

impl Books {
    /// Starts counting for this thread.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn open() -> nix::Result<Books> {
        Ok(Books { faults: count_user_faults(), before: getrusage(UsageWho::RUSAGE_THREAD)? })
    }

    /// What was counted since.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn close(self) -> nix::Result<wire::Books> {
        let after = getrusage(UsageWho::RUSAGE_THREAD)?;
        let since = |of: fn(&Usage) -> i64| u64::try_from(of(&after) - of(&self.before)).ok();
        let mut reasons = BTreeMap::new();
        let page_faults = match self.faults.and_then(read_counter) {
            Ok(count) => Some(count),
            Err(error) => {
                reasons.insert("page_faults".to_owned(), format!("the perf counter of page faults: {error}"));
                None
            }
        };
        for figure in ["syscalls", "mode_switches"] {
            reasons.insert(figure.to_owned(), "no witness counts system calls yet".to_owned());
        }
        for function in COPY_FUNCTIONS {
            reasons
                .insert(format!("copied_bytes.{function}"), "no witness watches the copying functions yet".to_owned());
        }
        Ok(wire::Books {
            syscalls: None,
            mode_switches: None,
            page_faults,
            kernel_page_faults: None,
            voluntary_switches: since(Usage::voluntary_context_switches),
            involuntary_switches: since(Usage::involuntary_context_switches),
            user_us: since(|usage| usage.user_time().num_microseconds()),
            system_us: since(|usage| usage.system_time().num_microseconds()),
            copied_bytes: COPY_FUNCTIONS.map(|function| (function.to_owned(), None)).into(),
            claims: BTreeMap::new(),
            reasons,
        })
    }
}

/// `struct perf_event_attr` in its first published size (`PERF_ATTR_SIZE_VER0`), which every kernel takes.
#[repr(C)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

const _: () = assert!(size_of::<PerfEventAttr>() == 64);

const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_PAGE_FAULTS: u64 = 2;
/// The bit `exclude_kernel` of the flags.
const EXCLUDE_KERNEL: u64 = 1 << 5;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

/// A counter of the page faults this thread takes in user mode.
fn count_user_faults() -> io::Result<File> {
    let attr = PerfEventAttr {
        kind: PERF_TYPE_SOFTWARE,
        size: size_of::<PerfEventAttr>() as u32,
        config: PERF_COUNT_SW_PAGE_FAULTS,
        sample_period: 0,
        sample_type: 0,
        read_format: 0,
        flags: EXCLUDE_KERNEL,
        wakeup_events: 0,
        bp_type: 0,
        config1: 0,
    };
    let (this_thread, any_cpu, no_group): (libc::pid_t, i32, i32) = (0, -1, -1);
    // SAFETY: perf_event_open reads attr.size bytes of attr, which lives here.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attr, this_thread, any_cpu, no_group, PERF_FLAG_FD_CLOEXEC)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just opened this descriptor for us, and nothing else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn read_counter(mut counter: File) -> io::Result<u64> {
    let mut count = [0; 8];
    counter.read_exact(&mut count)?;
    Ok(u64::from_ne_bytes(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_counted_says_why() {
        let books = Books::open().expect("opened").close().expect("closed");
        assert_eq!(books.syscalls, None);
        assert!(books.reasons.contains_key("syscalls"));
        for (function, count) in &books.copied_bytes {
            assert_eq!(*count, None);
            assert!(books.reasons.contains_key(&format!("copied_bytes.{function}")));
        }
        assert_eq!(books.page_faults.is_none(), books.reasons.contains_key("page_faults"));
    }

    #[test]
    fn waiting_counts_as_a_voluntary_switch() {
        let books = Books::open().expect("opened");
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || drop(sender));
        assert!(receiver.recv().is_err());
        other.join().expect("the other thread ends");
        let books = books.close().expect("closed");
        assert!(books.voluntary_switches.is_some());
        assert!(books.user_us.is_some() && books.system_us.is_some());
    }
}
