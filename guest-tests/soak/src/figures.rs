//! What must not grow: a process's private memory, threads and open files.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use guest_fixture::{Deadline, note, until_or};

const AT_REST: Deadline = Deadline::secs("the device to have no more threads and files than after the first round", 30);
/// By how much private memory may differ at rest: what an allocator keeps is not always the same.
const MARGIN_KIB: u64 = 2048;

/// A run whose first third is shorter than this says nothing of memory: what the device keeps of the past, which has bounds, still
/// fills up then.
const FILLS_UP: Duration = Duration::from_secs(300);

/// Of one process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Anonymous memory, in swap or not: what no guest and no file has.
    pub(crate) private_kib: u64,
    pub(crate) threads: u64,
    pub(crate) files: u64,
}

impl Figures {
    /// # Panics
    /// The process is gone.
    #[track_caller]
    pub(crate) fn of(pid: u32) -> Figures {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the device runs");
        let number = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
        };
        Figures {
            private_kib: number("RssAnon") + number("VmSwap"),
            threads: number("Threads"),
            files: fs::read_dir(format!("/proc/{pid}/fd")).expect("the device runs").count() as u64,
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figures { private_kib, threads, files } = self;
        write!(f, "{private_kib} KiB private, {threads} threads, {files} files")
    }
}

/// What a process's open files are, and its threads' names.
fn held(pid: u32) -> Vec<String> {
    let of = |folder: &str| fs::read_dir(format!("/proc/{pid}/{folder}")).into_iter().flatten().flatten();
    let files = of("fd").filter_map(|file| Some(fs::read_link(file.path()).ok()?.display().to_string()));
    let threads = of("task").filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
    let mut all: Vec<String> = files.chain(threads.map(|name| name.trim_end().to_owned())).collect();
    all.sort();
    all
}

/// A process from the first round to the end.
#[derive(Debug)]
pub(crate) struct Flat {
    pid: u32,
    began: Instant,
    first: Option<Figures>,
    /// The most private memory in the first third of the time: until then what the device keeps of the past fills up, which has bounds.
    third_kib: u64,
    most_kib: u64,
}

impl Flat {
    pub(crate) fn new(pid: u32) -> Flat {
        Flat { pid, began: Instant::now(), first: None, third_kib: 0, most_kib: 0 }
    }

    /// The process is at rest; is the first round over with this, and how much of the run is?
    ///
    /// # Panics
    /// The process is gone.
    #[track_caller]
    pub(crate) fn look(&mut self, first_round_ends: bool, share: f64) {
        let now = Figures::of(self.pid);
        if share < 1.0 / 3.0 || self.first.is_none() {
            self.third_kib = self.third_kib.max(now.private_kib);
        }
        if first_round_ends {
            note(&format!("after the first round: {now}"));
            self.first = Some(now);
        }
        self.most_kib = self.most_kib.max(now.private_kib);
    }

    /// Nothing has grown but by the files of so many regions more of the guest's memory.
    ///
    /// # Panics
    /// Something has.
    #[track_caller]
    pub(crate) fn end(&self, regions: u64) -> String {
        let Some(first) = self.first else { return "stopped in its first round".to_owned() };
        let at_rest = || {
            let now = Figures::of(self.pid);
            (now.threads <= first.threads && now.files <= first.files + regions).then_some(now)
        };
        let now = until_or(AT_REST, at_rest, || {
            let (now, held) = (Figures::of(self.pid), held(self.pid).join(", "));
            format!(": {first}, then {now}, {regions} regions more: {held}")
        });
        let Flat { third_kib, most_kib, .. } = self;
        if self.began.elapsed() / 3 < FILLS_UP {
            return format!(
                "after the first round {first}; at the end {now}; too short a run to say whether private memory grows"
            );
        }
        let limit = third_kib + MARGIN_KIB;
        assert!(
            now.private_kib <= limit,
            "private memory has grown: {first}, at most {third_kib} KiB in the first third, then {now}"
        );
        format!(
            "after the first round {first}; private at most {third_kib} KiB in the first third, {most_kib} in all; at the end {now}"
        )
    }
}
