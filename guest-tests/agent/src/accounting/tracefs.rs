//! Counting in the kernel by tracefs: a kprobe event with a histogram trigger sums an argument, without a stream of events.
//!
//! Place: for functions that accept kprobe events. Those of the kernel's `lib/` do not; see [`super::samples`], which also
//! counts an event where the kernel is built without `CONFIG_HIST_TRIGGERS` and refuses the trigger, as Debian's 5.10.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};

/// Where PID 1 mounts it.
pub(super) const ROOT: &str = "/sys/kernel/tracing";

const TRIGGER: &str = "hist:keys=common_pid:vals=bytes";

/// An event of each call of one function; taken away again when dropped.
#[derive(Debug)]
pub(super) struct Kprobe {
    function: &'static str,
}

impl Kprobe {
    /// Has the event tell `argument` as `bytes`, in the notation of kprobe events: `%cx:u32`.
    pub(super) fn open(function: &'static str, argument: &str) -> io::Result<Kprobe> {
        // An event that an earlier transfer left when it was killed.
        let _ = remove(function);
        append("kprobe_events", &format!("p:vnic/{function} {function} bytes={argument}"))?;
        Ok(Kprobe { function })
    }

    /// Starts to sum the argument.
    pub(super) fn sum(&self) -> io::Result<()> {
        append(&format!("events/vnic/{}/trigger", self.function), TRIGGER)
    }

    /// The event's number, for perf.
    pub(super) fn number(&self) -> io::Result<u64> {
        let number = fs::read_to_string(format!("{ROOT}/events/vnic/{}/id", self.function))?;
        number.trim().parse().map_err(io::Error::other)
    }

    /// The sums so far, by the thread whose turn it was.
    pub(super) fn sums(&self) -> Result<Vec<(u32, u64)>, String> {
        let path = format!("{ROOT}/events/vnic/{}/hist", self.function);
        let hist = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        self.none_missed()?;
        parse(&hist)
    }

    /// That no call was missed.
    pub(super) fn none_missed(&self) -> Result<(), String> {
        let path = format!("{ROOT}/kprobe_profile");
        let profile = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        match missed(&profile, self.function) {
            Some(0) => Ok(()),
            Some(calls) => Err(format!("the kernel missed {calls} calls: records lost")),
            None => Err(format!("{path} does not say how many calls were missed")),
        }
    }
}

impl Drop for Kprobe {
    fn drop(&mut self) {
        // Nothing can be done about a failure but to leave it there.
        let _ = remove(self.function);
    }
}

fn remove(function: &str) -> io::Result<()> {
    let _ = append(&format!("events/vnic/{function}/trigger"), &format!("!{TRIGGER}"));
    append("kprobe_events", &format!("-:vnic/{function}"))
}

/// Opening for append matters: to truncate `kprobe_events` removes everyone's events.
fn append(file: &str, line: &str) -> io::Result<()> {
    OpenOptions::new().append(true).open(format!("{ROOT}/{file}"))?.write_all(format!("{line}\n").as_bytes())
}

/// A histogram's `bytes` by its key, a thread. One that dropped entries gives no figure.
fn parse(hist: &str) -> Result<Vec<(u32, u64)>, String> {
    let mut sums = Vec::new();
    for line in hist.lines() {
        if let Some((_, dropped)) = line.split_once("Dropped:")
            && dropped.trim() != "0"
        {
            return Err(format!("the histogram dropped {} calls", dropped.trim()));
        }
        if line.starts_with('{') {
            sums.push(entry(line).ok_or_else(|| format!("a histogram line that is none: {line}"))?);
        }
    }
    Ok(sums)
}

/// `{ common_pid:        104 } hitcount:        720  bytes:    1048576`
fn entry(line: &str) -> Option<(u32, u64)> {
    let (key, values) = line.strip_prefix('{')?.split_once('}')?;
    let (_, thread) = key.split_once("common_pid:")?;
    let (_, bytes) = values.split_once("bytes:")?;
    Some((thread.trim().parse().ok()?, bytes.trim().parse().ok()?))
}

/// Calls during which the kernel was in another probe: `  skb_copy_bits      HITS      MISSED`.
fn missed(profile: &str, event: &str) -> Option<u64> {
    profile.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == event).then(|| words.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIST: &str = "# event histogram\n#\n# trigger info: hist:keys=common_pid:vals=hitcount,bytes:sort=hitcount:size=2048 [active]\n#\n\n\
        { common_pid:          0 } hitcount:         12  bytes:        480\n\
        { common_pid:        104 } hitcount:        720  bytes:    1048576\n\n\
        Totals:\n    Hits: 732\n    Entries: 2\n    Dropped: 0\n";

    #[test]
    fn a_histogram_has_a_sum_for_each_thread() {
        assert_eq!(parse(HIST), Ok(vec![(0, 480), (104, 1_048_576)]));
        assert_eq!(parse(""), Ok(Vec::new()));
        assert!(parse(&HIST.replace("1048576", "many")).is_err());
    }

    #[test]
    fn dropped_calls_are_no_figure() {
        let error = parse(&HIST.replace("Dropped: 0", "Dropped: 3")).expect_err("three are missing");
        assert!(error.contains('3'), "{error}");
    }

    #[test]
    fn missed_calls_are_noticed() {
        let profile = "  skb_copy_bits_more      9      7\n  skb_copy_bits            720               3\n";
        assert_eq!(missed(profile, "skb_copy_bits"), Some(3));
        assert_eq!(missed(profile, "skb_copy_ubufs"), None);
        assert_eq!(missed("  skb_copy_bits 720", "skb_copy_bits"), None);
    }
}
