//! The witness that counts every access: QEMU's plugin `guest-touches`, over its socket.
//!
//! Operation: the plugin watches the file's pages from before the first `Go` until after `TransferEnd`. As a control, before and
//! after, the agent has its kernel read a byte of each page.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vnic_experiment::row::{Row, USERSPACE};
use vnic_experiment::run::{TouchAccounts, TouchControl};
use vnic_experiment::verdict::NOT_COUNTED;
use vnic_experiment::wire::{Event, PageRun, Request};

use super::{Conductor, port};

/// For an answer; it waits a minute itself for a guest that is busy.
const ANSWER: Duration = Duration::from_secs(90);

/// The plugin at the other end of its socket.
#[derive(Debug)]
pub(super) struct Touches(BufReader<UnixStream>);

/// Bytes that the plugin has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counts {
    loaded_by_programs: u64,
    loaded_by_kernel: u64,
    stored: u64,
}

/// What was seen of a transfer, or why nothing was.
pub(super) type Touched = Result<TouchAccounts, String>;

impl Touches {
    pub(super) fn connect(socket: &Path) -> Result<Touches> {
        let stream = UnixStream::connect(socket)
            .and_then(|stream| stream.set_read_timeout(Some(ANSWER)).map(|()| stream))
            .with_context(|| format!("cannot reach QEMU's plugin at {} (run-qemu.sh --touches)", socket.display()))?;
        Ok(Touches(BufReader::new(stream)))
    }

    fn ask(&mut self, request: &str) -> Result<String> {
        let mut answer = String::new();
        let written = self.0.get_mut().write_all(request.as_bytes());
        written.and_then(|()| self.0.read_line(&mut answer)).context("QEMU's plugin does not answer")?;
        match answer.trim_end().strip_prefix("error: ") {
            Some(why) => bail!("QEMU's plugin: {why}"),
            None => Ok(answer),
        }
    }

    fn watch(&mut self, runs: &[PageRun]) -> Result<()> {
        let runs: String = runs.iter().map(|run| format!(" {:#x}+{}", run.gpa, run.count)).collect();
        self.ask(&format!("watch{runs}\n")).map(drop)
    }

    fn count(&mut self) -> Result<Counts> {
        let answer = self.ask("count\n")?;
        parse(&answer).with_context(|| format!("QEMU's plugin counted {answer:?}"))
    }

    fn rest(&mut self) -> Result<()> {
        self.ask("rest\n").map(drop)
    }
}

fn parse(answer: &str) -> Option<Counts> {
    let words: Vec<&str> = answer.split_whitespace().collect();
    let ["loaded", "user", programs, "kernel", kernel, "stored", "user", stored, "kernel", more] = words[..] else {
        return None;
    };
    Some(Counts {
        loaded_by_programs: programs.parse().ok()?,
        loaded_by_kernel: kernel.parse().ok()?,
        stored: stored.parse::<u64>().ok()?.checked_add(more.parse().ok()?)?,
    })
}

impl Conductor<'_> {
    /// Begins to watch the pages of a row's file; the control is what it gives.
    ///
    /// # Errors
    /// Outside: the conversation broke. Inside: why nothing is watched.
    pub(super) fn begin_touches(
        &mut self,
        row: Option<&Row>,
        pages: &[PageRun],
    ) -> Result<Result<TouchControl, String>> {
        let (Some(touches), Some(row)) = (&mut self.touches, row) else { return Ok(Err(NOT_COUNTED.to_owned())) };
        if row.method == USERSPACE {
            return Ok(Err("the program that drives the NIC itself runs no control".to_owned()));
        }
        if pages.is_empty() {
            return Ok(Err("none of the file was in memory before the transfer".to_owned()));
        }
        if let Err(error) = touches.watch(pages) {
            return Ok(Err(format!("{error:#}")));
        }
        self.control_touches().map(|(pages, before)| Ok(TouchControl { pages, before, after: 0 }))
    }

    /// What was counted of the transfer that is over, and the control after it.
    pub(super) fn end_touches(&mut self, mut control: TouchControl) -> Result<TouchAccounts> {
        let counts = self.counts()?;
        control.after = self.control_touches()?.1;
        if let Some(touches) = &mut self.touches {
            touches.rest()?;
        }
        let Counts { loaded_by_programs, loaded_by_kernel, stored } = counts;
        Ok(TouchAccounts {
            loaded: loaded_by_programs.saturating_add(loaded_by_kernel),
            loaded_by_programs,
            stored,
            control,
        })
    }

    /// Has the agent read a byte of each page: the pages, and the bytes that were counted meanwhile.
    fn control_touches(&mut self) -> Result<(u64, u64)> {
        self.port.send(&Request::Touch)?;
        let pages = match self.wait("the guest to touch the file's pages")? {
            Event::Touched { pages } => pages,
            other => return Err(port::out_of_turn("touching pages", &other)),
        };
        let counts = self.counts()?;
        Ok((pages, counts.loaded_by_kernel.saturating_add(counts.loaded_by_programs)))
    }

    fn counts(&mut self) -> Result<Counts> {
        self.touches.as_mut().map_or_else(|| Ok(Counts::default()), Touches::count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_whole_or_not_at_all() {
        let counts = parse("loaded user 1 kernel 2 stored user 3 kernel 4\n").unwrap();
        assert_eq!(counts, Counts { loaded_by_programs: 1, loaded_by_kernel: 2, stored: 7 });
        for wrong in ["", "loaded user 1 kernel 2", "loaded user x kernel 2 stored user 3 kernel 4", "resting"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
