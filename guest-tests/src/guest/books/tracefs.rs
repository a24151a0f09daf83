//! Counting in the kernel by tracefs: a kprobe event with a histogram trigger sums an argument, without a stream of events.
//!
//! Place: for functions that accept kprobe events. Those of the kernel's `lib/` do not; see [`super::breakpoint`].

use std::fs::{self, OpenOptions};
use std::io::{self, Write};

/// Where PID 1 mounts it.
pub(super) const ROOT: &str = "/sys/kernel/tracing";

const TRIGGER: &str = "hist:keys=common_pid:vals=bytes";

/// A sum over calls of one function; taken away again when dropped.
#[derive(Debug)]
pub(super) struct Kprobe {
    function: &'static str,
}

impl Kprobe {
    /// Starts to sum `argument`, in the notation of kprobe events: `%cx:u32`.
    pub(super) fn open(function: &'static str, argument: &str) -> io::Result<Kprobe> {
        // An event that an earlier transfer left when it was killed.
        let _ = remove(function);
        append("kprobe_events", &format!("p:vnic/{function} {function} bytes={argument}"))?;
        let kprobe = Kprobe { function };
        append(&format!("events/vnic/{function}/trigger"), TRIGGER)?;
        Ok(kprobe)
    }

    /// The sum so far.
    pub(super) fn sum(&self) -> Result<u64, String> {
        let path = format!("{ROOT}/events/vnic/{}/hist", self.function);
        let hist = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        parse(&hist)
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

/// Sums a histogram's `bytes` over all keys. One that dropped entries gives no figure.
fn parse(hist: &str) -> Result<u64, String> {
    let mut sum = 0_u64;
    for line in hist.lines() {
        if let Some((_, dropped)) = line.split_once("Dropped:")
            && dropped.trim() != "0"
        {
            return Err(format!("the histogram dropped {} calls", dropped.trim()));
        }
        if line.starts_with('{')
            && let Some((_, bytes)) = line.split_once("bytes:")
        {
            sum += bytes.trim().parse::<u64>().map_err(|_| format!("a histogram line that is none: {line}"))?;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIST: &str = "# event histogram\n#\n# trigger info: hist:keys=common_pid:vals=hitcount,bytes:sort=hitcount:size=2048 [active]\n#\n\n\
        { common_pid:          0 } hitcount:         12  bytes:        480\n\
        { common_pid:        104 } hitcount:        720  bytes:    1048576\n\n\
        Totals:\n    Hits: 732\n    Entries: 2\n    Dropped: 0\n";

    #[test]
    fn a_histogram_is_summed_over_its_keys() {
        assert_eq!(parse(HIST), Ok(1_049_056));
        assert_eq!(parse(""), Ok(0));
    }

    #[test]
    fn dropped_calls_are_no_figure() {
        let error = parse(&HIST.replace("Dropped: 0", "Dropped: 3")).expect_err("three are missing");
        assert!(error.contains('3'), "{error}");
    }
}
