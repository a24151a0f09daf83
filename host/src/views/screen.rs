//! A live screen: what a view draws, on the terminal's other screen, until somebody ends it.
//!
//! Operation: it is drawn anew when it is time, when there is something new to be read, and when a key asks for it; in between
//! it waits for these, for a signal (read from a signalfd) or the terminal's end. The terminal is put back by [`Screen`]'s drop
//! and by the panic hook.
//!
//! The keyboard is read here and not by crossterm, whose reader spins in its own loop once the terminal is gone: `read`
//! then says 0 for ever.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossterm::{cursor, execute, queue, style as paint, terminal};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::read;

use super::style::DIM;

/// Why something is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It is time, or the screen has another size.
    Time,
    /// There is something to be read.
    News,
    /// A key that quits nothing.
    Key(u8),
}

/// The terminal in raw mode on its other screen; dropping it puts everything back.
struct Screen;

impl Screen {
    fn enter() -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        // From here on `drop` puts back whatever part was done.
        let screen = Screen;
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    fn leave() {
        // Nothing better can be done about a terminal that refuses.
        let _ = execute!(io::stdout(), cursor::Show, terminal::LeaveAlternateScreen);
        let _ = terminal::disable_raw_mode();
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        Screen::leave();
    }
}

/// Runs until `q`, Escape, Ctrl-C, a signal, the terminal's end, an error, or until there is no more to draw. It is drawn again
/// after `refresh` at the latest, and whenever `news` has something to be read. Is there somebody left to be told more?
pub(super) fn run(
    refresh: Duration,
    news: Option<&OwnedFd>,
    mut frame: impl FnMut(Why) -> Result<Option<Vec<String>>>,
) -> Result<bool> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGWINCH] {
        set.add(signal);
    }
    set.thread_block().context("cannot block signals")?;
    let signals =
        SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("cannot receive signals")?;
    // A panic's words must land on the ordinary screen.
    let told = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        Screen::leave();
        told(panic);
    }));
    let screen = Screen::enter().context("cannot take over the terminal")?;
    let files = [signals.as_fd()].into_iter().chain(news.map(AsFd::as_fd)).collect::<Vec<_>>();
    let ended = live(refresh, &signals, &files, &mut frame);
    drop(screen);
    if matches!(wait(&files, Duration::ZERO), Ok(Woken::Gone)) {
        // Whatever failed, nobody is left to be told.
        return Ok(false);
    }
    ended.map(|()| true)
}

fn live(
    refresh: Duration,
    signals: &SignalFd,
    files: &[BorrowedFd<'_>],
    frame: &mut impl FnMut(Why) -> Result<Option<Vec<String>>>,
) -> Result<()> {
    let mut why = Why::Time;
    loop {
        let Some(lines) = frame(why)? else { return Ok(()) };
        draw(&lines)?;
        let next = Instant::now() + refresh;
        why = loop {
            match wait(files, next.saturating_duration_since(Instant::now()))? {
                Woken::Time => break Why::Time,
                Woken::News => break Why::News,
                Woken::Gone => return Ok(()),
                Woken::Signal => match signals.read_signal().context("cannot receive signals")? {
                    Some(signal) if signal.ssi_signo == Signal::SIGWINCH as u32 => break Why::Time,
                    Some(_) => return Ok(()),
                    None => {}
                },
                Woken::Keyboard => {
                    let mut keys = [0; 64];
                    let count = read(io::stdin(), &mut keys).context("cannot read the keyboard")?;
                    match &keys[..count] {
                        keys if is_quit(keys) => return Ok(()),
                        [key] => break Why::Key(*key),
                        _ => {}
                    }
                }
            }
        };
    }
}

/// What ended a wait.
enum Woken {
    Time,
    Signal,
    News,
    Keyboard,
    /// The terminal's other end is closed.
    Gone,
}

/// Waits for the keyboard, and for these files: signals, and what is new.
fn wait(files: &[BorrowedFd<'_>], limit: Duration) -> Result<Woken> {
    let keyboard = io::stdin();
    let all = [keyboard.as_fd()].into_iter().chain(files.iter().copied());
    let mut all: Vec<PollFd<'_>> = all.map(|file| PollFd::new(file, PollFlags::POLLIN)).collect();
    // Rounded up: 0 would return at once, again and again, for the last millisecond.
    let limit = PollTimeout::try_from(limit + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
    match poll(&mut all, limit) {
        Ok(0) | Err(Errno::EINTR) => return Ok(Woken::Time),
        Ok(_) => {}
        Err(error) => return Err(error).context("cannot wait for the keyboard"),
    }
    let seen = |at: usize| all.get(at).and_then(PollFd::revents).unwrap_or(PollFlags::empty());
    Ok(if seen(0).intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
        Woken::Gone
    } else if seen(1).contains(PollFlags::POLLIN) {
        Woken::Signal
    } else if seen(0).contains(PollFlags::POLLIN) {
        Woken::Keyboard
    } else {
        Woken::News
    })
}

/// `q`, Ctrl-C, or Escape; other keys send longer sequences that begin as Escape does.
fn is_quit(keys: &[u8]) -> bool {
    match keys {
        [0x1b, rest @ ..] => rest.is_empty(),
        keys => keys.iter().any(|key| matches!(key, b'q' | 0x03)),
    }
}

fn draw(lines: &[String]) -> Result<()> {
    let (columns, rows) = terminal::size().context("cannot ask for the terminal's size")?;
    let (columns, rows) = (usize::from(columns), usize::from(rows));
    let mut out = io::stdout().lock();
    queue!(out, terminal::BeginSynchronizedUpdate, cursor::MoveTo(0, 0))?;
    let hidden = lines.len().saturating_sub(rows);
    let shown = if hidden > 0 { rows.saturating_sub(1) } else { lines.len() };
    for line in &lines[..shown] {
        queue!(out, paint::Print(clip(line, columns)), terminal::Clear(terminal::ClearType::UntilNewLine))?;
        queue!(out, cursor::MoveToNextLine(1))?;
    }
    if hidden > 0 {
        let more = format!("{DIM}… {} more lines{DIM:#}", lines.len() - shown);
        queue!(out, paint::Print(more), terminal::Clear(terminal::ClearType::UntilNewLine))?;
    } else {
        queue!(out, terminal::Clear(terminal::ClearType::FromCursorDown))?;
    }
    queue!(out, terminal::EndSynchronizedUpdate)?;
    out.flush()?;
    Ok(())
}

/// The first `columns` visible characters of a line with colour codes, and the end of its colour.
fn clip(line: &str, columns: usize) -> String {
    let mut clipped = String::with_capacity(line.len());
    let mut visible = 0;
    let mut in_code = false;
    for c in line.chars() {
        if c == '\u{1b}' {
            in_code = true;
        } else if !in_code {
            visible += 1;
            if visible > columns {
                clipped.push_str("\u{1b}[0m");
                break;
            }
        }
        clipped.push(c);
        if in_code && c == 'm' {
            in_code = false;
        }
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::super::style;
    use super::*;

    #[test]
    fn a_line_is_clipped_by_what_is_seen_not_by_its_codes() {
        let red = style::BAD;
        let line = format!("ab{red}cdef{red:#}gh");
        let clipped = clip(&line, 4);
        assert_eq!(anstream::adapter::strip_str(&clipped).to_string(), "abcd");
        assert!(clipped.ends_with("\u{1b}[0m"), "{clipped:?}");
        assert_eq!(clip(&line, 8), line);
    }

    #[test]
    fn escape_quits_and_an_arrow_does_not() {
        for (keys, quits) in [(&b"q"[..], true), (b"\x03", true), (b"\x1b", true), (b"\x1b[A", false), (b"x", false)] {
            assert_eq!(is_quit(keys), quits, "{keys:?}");
        }
    }
}
