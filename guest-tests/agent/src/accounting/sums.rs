//! Whose copies were counted: the program's own, the kernel's own threads', or another program's.

use std::collections::HashSet;
use std::fs;

use super::Sender;

/// Bytes by whose turn it was when they were copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// This process.
    pub(super) own: u64,
    /// A thread of the kernel, or nobody: the CPU was idle.
    pub(super) kernel: u64,
    /// This process, where the program is one that it started, and that it waits for.
    pub(super) starter: u64,
    /// Another program.
    pub(super) others: u64,
    /// Calls that the kernel could not record.
    pub(super) lost: u64,
}

/// Whose copies are the transfer's own.
#[derive(Debug, Clone)]
pub(super) enum Owner {
    /// This process.
    Us,
    /// All that was not there yet, of these threads, when the accounts were opened.
    NotYet(HashSet<u32>),
}

impl Owner {
    /// To be asked before it is started.
    pub(super) fn of(sender: Sender) -> Owner {
        match sender {
            Sender::ThisThread => Owner::Us,
            Sender::Child => Owner::NotYet(threads().collect()),
        }
    }

    /// Whose a thread is that is not the kernel's.
    fn whose(&self, thread: u32) -> Whose {
        let us = || fs::exists(format!("/proc/self/task/{thread}")).unwrap_or(false);
        match self {
            Owner::Us if us() => Whose::Own,
            Owner::NotYet(others) if !others.contains(&thread) => Whose::Own,
            Owner::NotYet(_) if us() => Whose::Starter,
            _ => Whose::Other,
        }
    }
}

/// Every thread of every process.
fn threads() -> impl Iterator<Item = u32> {
    let numbers = |folder: String| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
    };
    numbers("/proc".to_owned()).flat_map(move |process| numbers(format!("/proc/{process}/task")))
}

impl Sums {
    /// Adds what was counted by threads. Looks each up in /proc, so not while the accounts are open.
    pub(super) fn count(&mut self, by_thread: &[(u32, u64)], owner: &Owner) {
        for (thread, bytes) in by_thread {
            let sum = match Whose::of(*thread, owner) {
                Whose::Own => &mut self.own,
                Whose::Kernel => &mut self.kernel,
                Whose::Other => &mut self.others,
                Whose::Starter => &mut self.starter,
            };
            *sum = sum.saturating_add(*bytes);
        }
    }
}

/// To whom a thread belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Own,
    Kernel,
    /// This process, where the program is one that it started.
    Starter,
    Other,
}

impl Whose {
    fn of(thread: u32, owner: &Owner) -> Whose {
        if thread == 0 {
            return Whose::Kernel;
        }
        // Threads of the kernel do not end while a transfer runs: one that is gone was a program's.
        match fs::read_to_string(format!("/proc/{thread}/stat")) {
            Ok(stat) if is_kernel_thread(&stat) => Whose::Kernel,
            _ => owner.whose(thread),
        }
    }
}

/// proc_pid_stat(5), field 9: the kernel's flags of the thread. The name in parentheses may hold anything.
fn is_kernel_thread(stat: &str) -> bool {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let flags = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_ascii_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u32>().ok()).is_some_and(|flags| flags & PF_KTHREAD != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_this_programs_the_kernels_or_anothers() {
        let mut other = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
        let known = Owner::of(Sender::Child);
        assert_eq!(Whose::of(other.id(), &Owner::Us), Whose::Other);
        drop(other.stdin.take());
        other.wait().expect("it ends");
        assert_eq!(Whose::of(other.id(), &Owner::Us), Whose::Other, "gone by now");
        assert_eq!(Whose::of(other.id(), &known), Whose::Other, "it was there before the program");
        let own = nix::unistd::gettid().as_raw().cast_unsigned();
        assert_eq!((Whose::of(own, &Owner::Us), Whose::of(0, &Owner::Us)), (Whose::Own, Whose::Kernel));
        assert_eq!(Whose::of(own, &known), Whose::Starter);
        let mut new = std::process::Command::new("true").spawn().expect("true");
        new.wait().expect("it ends");
        assert_eq!(Whose::of(new.id(), &known), Whose::Own, "gone, and new");
        let mut sums = Sums::default();
        sums.count(&[(own, 5), (0, 7), (other.id(), 11), (own, 1)], &Owner::Us);
        assert_eq!(sums, Sums { own: 6, kernel: 7, others: 11, ..Sums::default() });
    }

    #[test]
    fn a_kernel_thread_is_known_by_its_flags_whatever_a_name_says() {
        assert!(is_kernel_thread("15 (ksoftirqd/0) S 2 0 0 0 -1 69238848 0 0"));
        assert!(!is_kernel_thread("104 (a) S 2 0 0 0 -1 69238848) S 1 0 0 0 -1 4194304 0 0"));
        assert!(!is_kernel_thread(""));
    }
}
