//! A live screen: what a view draws, on the terminal's other screen, until somebody ends it.
//!
//! Operation: it is drawn anew when it is time, when there is something new to be read, and when a key asks for it; in between
//! it waits for these, for a signal (read from a signalfd) or the terminal's end. News that come fast are drawn a few times a second
//! only. The terminal is put back by [`Screen`]'s drop and by the panic hook.
//!
//! The keyboard is read here and not by crossterm, whose reader spins in its own loop once the terminal is gone: `read`
//! then says 0 for ever.

mod keys;
mod taken;
mod tty;

use std::cell::Cell;
use std::env;
use std::io::{self, BufWriter};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossterm::{Command, cursor, execute, style, terminal};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::read;
use ratatui::backend::CrosstermBackend;
use ratatui::buffer::Buffer;
use ratatui::style::Color;
use ratatui::{Frame, Terminal};

use keys::Keyboard;
pub(crate) use keys::{Input, Key};
use taken::Taken;
use tty::Tty;

/// Between two pictures that nobody asked for by a key.
const PICTURE: Duration = Duration::from_millis(100);
/// How long the rest of a key's bytes may take.
const REST: Duration = Duration::from_millis(60);
/// How long the terminal may take in the end to answer what it was asked: later the shell would have it for a command.
const LAST_ANSWER: Duration = Duration::from_secs(3);

/// What happens to a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Happening {
    /// It is time, or the screen has another size.
    Time,
    /// There is something to be read.
    News,
    /// Somebody did something.
    Input(Input),
}

/// Does it go on?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It is drawn again.
    Draw,
    /// It ends.
    End,
}

/// What is shown.
pub(crate) trait Show {
    /// Takes notice.
    fn happens(&mut self, what: Happening) -> Result<Next>;

    /// Draws all of it.
    fn draw(&self, frame: &mut Frame<'_>);
}

/// Takes reports of clicks and of the wheel, in the form that has room for any column.
struct Mouse(bool);

impl Command for Mouse {
    fn write_ansi(&self, f: &mut impl std::fmt::Write) -> std::fmt::Result {
        f.write_str(if self.0 { "\x1b[?1000h\x1b[?1006h" } else { "\x1b[?1006l\x1b[?1000l" })
    }
}

/// The terminal in raw mode on its other screen; dropping it puts everything back.
struct Screen;

impl Screen {
    fn enter(signals: &Signals) -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        // From here on `drop` puts back whatever part was done.
        let screen = Screen;
        execute!(Tty::new(signals), terminal::EnterAlternateScreen, cursor::Hide, Mouse(true))?;
        Ok(screen)
    }

    fn leave() {
        // Nothing better can be done about a terminal that refuses.
        let _ = execute!(Tty::last(), Mouse(false), cursor::Show, terminal::LeaveAlternateScreen);
        let _ = terminal::disable_raw_mode();
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        Screen::leave();
    }
}

/// The signals that end a screen, or tell its new size, as something to be waited for.
#[derive(Debug)]
pub(crate) struct Signals {
    file: SignalFd,
    /// One has come that ends it.
    ended: Cell<bool>,
    /// One has come that tells a new size, and it is not drawn in it yet.
    resized: Cell<bool>,
}

impl Signals {
    /// Blocks them, in this thread and in those that it starts from now on: in others they would end the program.
    pub(crate) fn block() -> Result<Signals> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGWINCH] {
            set.add(signal);
        }
        set.thread_block().context("cannot block signals")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let file = SignalFd::with_flags(&set, flags).context("cannot receive signals")?;
        Ok(Signals { file, ended: Cell::new(false), resized: Cell::new(false) })
    }

    /// Takes notice of those that have come. Is it over?
    fn end(&self) -> io::Result<bool> {
        while let Some(signal) = self.file.read_signal()? {
            let which = if signal.ssi_signo == Signal::SIGWINCH as u32 { &self.resized } else { &self.ended };
            which.set(true);
        }
        Ok(self.ended.get())
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs until the view ends, Ctrl-C, a signal, the terminal's end, or an error. It is drawn again after `refresh` at the latest, and
/// when `news` has something to be read. Is there somebody left to be told more?
pub(crate) fn run(signals: &Signals, refresh: Duration, news: BorrowedFd<'_>, show: &mut impl Show) -> Result<bool> {
    // A panic's words must land on the ordinary screen.
    let told = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        Screen::leave();
        told(panic);
    }));
    let screen = Screen::enter(signals).context("cannot take over the terminal")?;
    let files = [signals.as_fd(), news];
    let mut live =
        Live { refresh, signals, files, keyboard: Keyboard::default(), taken: Taken::default(), waits: false };
    let ended = live.run(show);
    live.last_answer();
    drop(screen);
    if matches!(wait(&files, Duration::ZERO), Ok(Woken::Gone)) {
        // Whatever failed, nobody is left to be told.
        return Ok(false);
    }
    ended.map(|()| true)
}

struct Live<'s> {
    refresh: Duration,
    signals: &'s Signals,
    files: [BorrowedFd<'s>; 2],
    keyboard: Keyboard,
    taken: Taken,
    /// There is something to be drawn once the terminal has shown the last picture.
    waits: bool,
}

impl Live<'_> {
    fn run(&mut self, show: &mut impl Show) -> Result<()> {
        let colour = env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
        // Its drop would show the cursor, which [`Screen`] does, and panic where there is nobody left to be told that it could not.
        let backend = CrosstermBackend::new(BufWriter::new(Tty::new(self.signals)));
        let mut terminal = ManuallyDrop::new(Terminal::new(backend).context("cannot draw")?);
        let mut what = vec![Happening::Time];
        loop {
            for what in what.drain(..) {
                if show.happens(what)? == Next::End {
                    return Ok(());
                }
            }
            let draw = |frame: &mut Frame<'_>| {
                show.draw(frame);
                if !colour {
                    bleach(frame.buffer_mut());
                }
            };
            self.signals.resized.set(false);
            self.waits = self.taken.left().is_some();
            if self.waits {
                let Some(next) = self.next(show)? else { return Ok(()) };
                what = next;
                continue;
            }
            let drawn = execute!(terminal.backend_mut(), terminal::BeginSynchronizedUpdate)
                .and_then(|()| terminal.draw(draw).map(drop))
                .and_then(|()| execute!(terminal.backend_mut(), terminal::EndSynchronizedUpdate))
                .and_then(|()| match self.taken.asks() {
                    true => execute!(terminal.backend_mut(), style::Print(taken::QUESTION)),
                    false => Ok(()),
                });
            match drawn {
                // The terminal did not take it.
                Err(_) if self.signals.ended.get() => return Ok(()),
                drawn => drawn.context("cannot draw")?,
            }
            let Some(next) = self.next(show)? else { return Ok(()) };
            what = next;
        }
    }

    /// Waits for what is to be drawn; `None`: it is over.
    fn next(&mut self, show: &mut impl Show) -> Result<Option<Vec<Happening>>> {
        let drawn = Instant::now();
        let mut next = drawn + self.refresh;
        loop {
            if self.signals.end().context("cannot receive signals")? {
                return Ok(None);
            }
            if self.signals.resized.get() {
                return Ok(Some(vec![Happening::Time]));
            }
            let limit = next.saturating_duration_since(Instant::now());
            let limit = if self.keyboard.waits() { limit.min(REST) } else { limit };
            let limit = self.taken.left().filter(|_| self.waits).map_or(limit, |left| limit.min(left));
            match wait(&self.files, limit)? {
                Woken::Time => match self.keyboard.give_up() {
                    Some(input) => return Ok(Some(vec![Happening::Input(input)])),
                    None if Instant::now() >= next => return Ok(Some(vec![Happening::Time])),
                    None => {}
                },
                Woken::News => {
                    if show.happens(Happening::News)? == Next::End {
                        return Ok(None);
                    }
                    next = next.min(drawn + PICTURE);
                }
                Woken::Gone => return Ok(None),
                // What it is is looked at above.
                Woken::Signal => {}
                Woken::Keyboard => {
                    let mut bytes = [0; 256];
                    let count = read(io::stdin(), &mut bytes).context("cannot read the keyboard")?;
                    let mut inputs = self.keyboard.take(&bytes[..count]);
                    let came = inputs.len();
                    inputs.retain(|input| *input != Input::Answer);
                    if inputs.len() < came {
                        self.taken.answered();
                        if self.waits && inputs.is_empty() {
                            return Ok(Some(Vec::new()));
                        }
                    }
                    if inputs.contains(&Input::Key(Key::Interrupt)) {
                        return Ok(None);
                    }
                    if !inputs.is_empty() {
                        return Ok(Some(inputs.into_iter().map(Happening::Input).collect()));
                    }
                }
            }
        }
    }
}

impl Live<'_> {
    /// Waits for what the terminal has yet to answer.
    fn last_answer(&mut self) {
        let deadline = Instant::now() + LAST_ANSWER;
        while self.taken.is_owed() && !self.signals.ended.get() && Instant::now() < deadline {
            let stdin = io::stdin();
            let mut keyboard = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
            let left = PollTimeout::try_from(deadline.saturating_duration_since(Instant::now()));
            let mut bytes = [0; 256];
            let Ok(1..) = poll(&mut keyboard, left.unwrap_or(PollTimeout::ZERO)) else { return };
            let Ok(count @ 1..) = read(io::stdin(), &mut bytes) else { return };
            if self.keyboard.take(&bytes[..count]).contains(&Input::Answer) {
                self.taken.answered();
            }
        }
    }
}

/// Takes the colours out; what is bold, dim or reversed stays so.
fn bleach(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        cell.set_fg(Color::Reset).set_bg(Color::Reset);
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

#[cfg(test)]
mod tests {
    use ratatui::layout::Rect;
    use ratatui::style::{Modifier, Style};

    use super::*;

    #[test]
    fn without_colour_what_is_bold_stays_bold() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 4, 1));
        buffer.set_string(0, 0, "ab", Style::new().fg(Color::Red).bg(Color::Blue).add_modifier(Modifier::BOLD));
        bleach(&mut buffer);
        let cell = &buffer[(0, 0)];
        assert_eq!((cell.fg, cell.bg, cell.modifier), (Color::Reset, Color::Reset, Modifier::BOLD));
    }
}
