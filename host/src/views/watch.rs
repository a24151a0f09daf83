//! `vnic watch`: the rings, live, on the terminal's other screen.
//!
//! Operation: a few times a second it asks the device for status and rings and draws what fits; in between it waits for a
//! key, a signal (read from a signalfd) or the terminal's end. The terminal is put back by [`Screen`]'s drop and by the
//! panic hook.
//!
//! The keyboard is read here and not by crossterm, whose reader spins in its own loop once the terminal is gone: `read`
//! then says 0 for ever.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::panic;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossterm::{cursor, execute, queue, style as paint, terminal};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::read;
use vnic::observe::protocol::{QueueStatus, RingSnapshot, Status};

use super::style::{self, BAD, DIM, GOOD, HEAD, WARN};
use super::{figures, notation, table};
use crate::control::Client;

/// How often the device is asked.
const REFRESH: Duration = Duration::from_millis(250);

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

/// Runs until `q`, Escape, Ctrl-C, a signal, the terminal's end, or an error.
pub(crate) fn run(mut client: Client) -> Result<()> {
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
    let ended = live(&mut client, &signals);
    drop(screen);
    match ended {
        // Whatever failed, nobody is left to be told.
        Err(_) if matches!(wait(&signals, Duration::ZERO), Ok(Woken::Gone)) => Ok(()),
        ended => ended,
    }
}

fn live(client: &mut Client, signals: &SignalFd) -> Result<()> {
    let mut rates = Rates::default();
    loop {
        let status = client.status()?;
        let rings = client.rings(None)?;
        rates.update(&status.queues, Instant::now());
        draw(&frame(&status, &rings, &rates)?)?;
        let next = Instant::now() + REFRESH;
        loop {
            match wait(signals, next.saturating_duration_since(Instant::now()))? {
                Woken::Time => break,
                Woken::Gone => return Ok(()),
                Woken::Signal => match signals.read_signal().context("cannot receive signals")? {
                    Some(signal) if signal.ssi_signo == Signal::SIGWINCH as u32 => break,
                    Some(_) => return Ok(()),
                    None => {}
                },
                Woken::Keyboard => {
                    let mut keys = [0; 64];
                    let count = read(io::stdin(), &mut keys).context("cannot read the keyboard")?;
                    if is_quit(&keys[..count]) {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// What ended a wait.
enum Woken {
    Time,
    Signal,
    Keyboard,
    /// The terminal's other end is closed.
    Gone,
}

fn wait(signals: &SignalFd, limit: Duration) -> Result<Woken> {
    let keyboard = io::stdin();
    let mut files = [keyboard.as_fd(), signals.as_fd()].map(|file| PollFd::new(file, PollFlags::POLLIN));
    // Rounded up: 0 would return at once, again and again, for the last millisecond.
    let limit = PollTimeout::try_from(limit + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
    match poll(&mut files, limit) {
        Ok(0) | Err(Errno::EINTR) => return Ok(Woken::Time),
        Ok(_) => {}
        Err(error) => return Err(error).context("cannot wait for the keyboard"),
    }
    let [keyboard, signals] = files.map(|file| file.revents().unwrap_or(PollFlags::empty()));
    Ok(if keyboard.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
        Woken::Gone
    } else if signals.contains(PollFlags::POLLIN) {
        Woken::Signal
    } else {
        Woken::Keyboard
    })
}

/// `q`, Ctrl-C, or Escape; other keys send longer sequences that begin as Escape does.
fn is_quit(keys: &[u8]) -> bool {
    match keys {
        [0x1b, rest @ ..] => rest.is_empty(),
        keys => keys.iter().any(|key| matches!(key, b'q' | 0x03)),
    }
}

/// How fast a queue's counters rise, per second.
#[derive(Debug, Default)]
struct Rates {
    last: Option<Instant>,
    before: BTreeMap<String, (u64, u64)>,
    now: BTreeMap<String, (f64, f64)>,
}

impl Rates {
    fn update(&mut self, queues: &[QueueStatus], at: Instant) {
        let elapsed = self.last.map(|last| at.saturating_duration_since(last).as_secs_f64());
        for queue in queues {
            let get = |name| queue.counters.get(name).copied().unwrap_or_default();
            let counts = (get("chains"), get("bytes"));
            let before = self.before.insert(queue.queue.clone(), counts);
            if let (Some(before), Some(elapsed)) = (before, elapsed.filter(|elapsed| *elapsed > 0.0)) {
                // A device that was started anew counts from 0 again.
                let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / elapsed;
                self.now.insert(queue.queue.clone(), (rate(counts.0, before.0), rate(counts.1, before.1)));
            }
        }
        self.last = Some(at);
    }
}

/// What to draw, top to bottom.
fn frame(status: &Status, rings: &[RingSnapshot], rates: &Rates) -> Result<Vec<String>, fmt::Error> {
    let mut text = String::new();
    let (state_style, state) = if status.connected { (GOOD, "connected") } else { (WARN, "no front-end") };
    writeln!(
        text,
        "{HEAD}vnic{HEAD:#} {}  link {}  {state_style}{state}{state_style:#}  session {}  {DIM}q quits{DIM:#}",
        status.socket, status.link, status.sessions
    )?;
    if let Some(error) = &status.last_error {
        writeln!(text, "{BAD}{error}{BAD:#}")?;
    }
    for queue in &status.queues {
        let state = style::of_state(&queue.state);
        let (chains, bytes) = rates.now.get(&queue.queue).copied().unwrap_or_default();
        writeln!(
            text,
            "\n{HEAD}{}{HEAD:#} {state}{}{state:#}  {} chains  {:.0}/s  {}/s",
            queue.queue,
            queue.state,
            figures::count(queue.counters.get("chains").copied().unwrap_or_default()),
            chains,
            figures::bytes(bytes as u64)
        )?;
        if let Some(error) = &queue.error {
            writeln!(text, "  {BAD}{error}{BAD:#}")?;
        }
        if let Some(ring) = rings.iter().find(|ring| ring.queue == queue.queue) {
            writeln!(text, "{}", notation::ring(ring, false, usize::from(table::width())))?;
        }
    }
    Ok(text.lines().map(str::to_owned).collect())
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
    use super::*;

    fn queue(chains: u64, bytes: u64) -> QueueStatus {
        QueueStatus {
            queue: "transmitq0".to_owned(),
            state: "running".to_owned(),
            waits: None,
            error: None,
            size: 256,
            event_suppression: None,
            counters: [("chains".to_owned(), chains), ("bytes".to_owned(), bytes)].into(),
        }
    }

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

    #[test]
    fn rates_are_per_second_and_a_restart_is_no_negative_rate() {
        let mut rates = Rates::default();
        let start = Instant::now();
        rates.update(&[queue(100, 1000)], start);
        assert!(rates.now.is_empty());
        rates.update(&[queue(150, 3000)], start + Duration::from_millis(500));
        assert_eq!(rates.now["transmitq0"], (100.0, 4000.0));
        rates.update(&[queue(0, 0)], start + Duration::from_millis(1000));
        assert_eq!(rates.now["transmitq0"], (0.0, 0.0));
    }
}
