//! The socket where one says which pages are watched, and reads the counts. A line of text each way:
//!
//! | request | answer |
//! |---|---|
//! | `watch ADDRESS+PAGES …` | `watching N pages`: from now on every access counts |
//! | `count` | `loaded user N kernel N stored user N kernel N`: bytes since the last answer; counts anew |
//! | `rest` | `resting`: nothing counts, and the guest is as fast as before |
//!
//! An answer that begins with `error: ` says why it is none of these.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::counts::COUNTS;
use crate::{ARMED, WANTED};

/// For so long a guest may be too busy to be looked at.
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks whether it has come to it.
const LOOK: Duration = Duration::from_millis(2);
/// Bytes of a line: a page apart from all others takes some twenty, and a file may have a million.
const LINE: u64 = 32 << 20;

/// Answers at `socket` from now on, in a thread of its own. Pages must lie below `limit`.
pub(crate) fn start(socket: &str, limit: u64) -> io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    let serve = move || {
        for stream in listener.incoming().flatten() {
            // Whoever asks is gone: the next.
            let _ = serve(&stream, limit);
            WANTED.store(false, Ordering::Release);
        }
    };
    // QEMU has its own ideas about who gets its signals.
    without_signals(|| std::thread::Builder::new().name("touches".to_owned()).spawn(serve)).map(drop)
}

/// Does something with all signals blocked; a thread that it starts has them blocked for good.
fn without_signals<T>(call: impl FnOnce() -> T) -> T {
    // SAFETY: two sets of signals that live until the end of the function; sigfillset writes the first, pthread_sigmask the
    // second, which is put back.
    unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
        let result = call();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        result
    }
}

fn serve(stream: &UnixStream, limit: u64) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        if !line.ends_with('\n') {
            return Ok(());
        }
        let answer = answer(line.trim_end(), limit).unwrap_or_else(|why| format!("error: {why}"));
        let mut stream = stream;
        writeln!(stream, "{answer}")?;
    }
}

fn answer(line: &str, limit: u64) -> Result<String, String> {
    let (request, rest) = line.split_once(' ').unwrap_or((line, ""));
    match request {
        "watch" => {
            let runs =
                rest.split_whitespace().map(|run| parse(run).ok_or_else(|| format!("{run:?} is not ADDRESS+PAGES")));
            let pages = COUNTS.watch(&runs.collect::<Result<Vec<_>, _>>()?, limit)?;
            arm(true)?;
            COUNTS.take();
            Ok(format!("watching {pages} pages"))
        }
        "count" if ARMED.load(Ordering::Acquire) => Ok(COUNTS.take().to_string()),
        "count" => Err("nothing is watched".to_owned()),
        "rest" => arm(false).map(|()| "resting".to_owned()),
        _ => Err(format!("there are watch, count and rest, not {request:?}")),
    }
}

/// Waits until accesses are looked at, or not.
fn arm(wanted: bool) -> Result<(), String> {
    WANTED.store(wanted, Ordering::Release);
    let since = Instant::now();
    while ARMED.load(Ordering::Acquire) != wanted {
        if since.elapsed() > IDLE_DEADLINE {
            return Err(format!("the guest's CPU was never idle in {} seconds", IDLE_DEADLINE.as_secs()));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// `0x1a2b000+3`: the numbers of these pages.
fn parse(run: &str) -> Option<Range<u64>> {
    let (address, pages) = run.split_once('+')?;
    let address = u64::from_str_radix(address.strip_prefix("0x")?, 16).ok().filter(|address| address % 4096 == 0)?;
    let (first, pages) = (address / 4096, pages.parse::<u64>().ok().filter(|pages| *pages > 0)?);
    Some(first..first.checked_add(pages)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_given_as_runs() {
        assert_eq!(parse("0x3000+2"), Some(3..5));
        for wrong in ["3000+2", "0x3001+2", "0x3000+0", "0x3000", "0x3000+x", "0xfffffffffffff000+18446744073709551615"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_no_request_is_said_so() {
        for (line, why) in [
            ("look", "not \"look\""),
            ("", "watch, count and rest"),
            ("count", "nothing"),
            ("watch 7", "ADDRESS+PAGES"),
        ] {
            let refused = answer(line, u64::MAX).expect_err(line);
            assert!(refused.contains(why), "{line}: {refused}");
        }
    }
}
