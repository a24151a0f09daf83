//! `vnic watch` and `vnic top` in a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use vnic::observe::protocol::Request;

use crate::device::{self, Asked, Device};
use crate::serve::Serve;
use crate::util::{Scratch, wait_for};

const ENTER: &str = "\u{1b}[?1049h";
const LEAVE: &str = "\u{1b}[?1049l";

/// Where is the cursor?
const WHERE: &str = "\u{1b}[6n";

/// Does a terminal say where its cursor is?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    All,
    None,
}

/// A terminal that takes nothing, and one that takes all.
pub(crate) const STALLED: usize = 0;
pub(crate) const FAST: usize = usize::MAX;

pub(crate) fn some(size: u16) -> NonZero<u16> {
    NonZero::new(size).unwrap()
}

/// A command that outlives no test.
pub(crate) struct Killed(pub(crate) Child);

fn end(child: &mut Killed, what: &str) -> ExitStatus {
    wait_for(what, || child.0.try_wait().unwrap())
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A terminal with a command in it.
pub(crate) struct Terminal {
    pub(crate) keyboard: File,
    /// Kept open: the terminal's settings are looked at after the end.
    inside: File,
    /// All that was written to it.
    pub(crate) written: Arc<Mutex<String>>,
    /// What it shows of that.
    screen: Arc<Mutex<vt100::Parser>>,
    /// Tells the reader to close its side after what it reads next.
    enough: Arc<AtomicBool>,
    /// How fast it takes what is written to it: bytes in a tenth of a second, [`STALLED`] or [`FAST`].
    pace: Arc<AtomicUsize>,
    reader: JoinHandle<()>,
    pub(crate) child: Killed,
}

impl Terminal {
    fn start(scratch: &Scratch, device: &Device) -> Self {
        Terminal::with(scratch.vnic(), &["watch", "--control", device.control()], "in flight 1")
    }

    /// Waits for what the first picture has.
    pub(crate) fn with(command: Command, words: &[&str], first: &str) -> Self {
        Terminal::open(command, words, first, Answers::All)
    }

    fn open(mut command: Command, words: &[&str], first: &str, answers: Answers) -> Self {
        // Not `openpty`: a command that another test starts meanwhile would inherit the outside, and keep it open.
        let outside = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&outside).unwrap();
        unlockpt(&outside).unwrap();
        let path = ptsname_r(&outside).unwrap();
        let inside = File::options().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(path).unwrap();
        let side = || Stdio::from(inside.try_clone().unwrap());
        let sized = Command::new("stty").args(["rows", "20", "cols", "80"]).stdin(side()).status().unwrap();
        assert!(sized.success());
        command.args(words).stdin(side()).stdout(side()).stderr(side());
        let child = command.spawn().unwrap();
        // The command holds the terminal open as long as it lives.
        drop(command);
        let keyboard = File::from(OwnedFd::from(outside));
        let (mut outside, mut typed) = (keyboard.try_clone().unwrap(), keyboard.try_clone().unwrap());
        let written = Arc::new(Mutex::new(String::new()));
        let screen = Arc::new(Mutex::new(vt100::Parser::new(some(20), some(80), 0)));
        let (enough, pace) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(FAST)));
        let (raw, shown, stop, at) = (written.clone(), screen.clone(), enough.clone(), pace.clone());
        let reader = thread::spawn(move || {
            let (mut buffer, mut answered) = ([0; 4096], 0);
            loop {
                let most = match at.load(Ordering::Relaxed) {
                    FAST => buffer.len(),
                    pace => {
                        thread::sleep(Duration::from_millis(100));
                        pace.min(buffer.len())
                    }
                };
                if most == STALLED {
                    continue;
                }
                let Ok(count @ 1..) = outside.read(&mut buffer[..most]) else { break };
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let mut raw = raw.lock().unwrap();
                raw.push_str(&String::from_utf8_lossy(&buffer[..count]));
                // As every terminal does, once it has come to that.
                let questions = raw.matches(WHERE).count();
                drop(raw);
                for _ in answered..questions {
                    if answers == Answers::All {
                        // It may have ended meanwhile.
                        let _ = typed.write_all(b"\x1b[20;80R");
                    }
                }
                answered = questions;
                shown.lock().unwrap().process(&buffer[..count]);
            }
        });
        let terminal = Terminal { keyboard, inside, written, screen, enough, pace, reader, child: Killed(child) };
        wait_for("the first picture", || terminal.shows(first).then_some(()));
        terminal
    }

    /// From now on it takes so much in a tenth of a second of what is written to it.
    pub(crate) fn takes(&self, bytes: usize) {
        self.pace.store(bytes, Ordering::Relaxed);
    }

    /// Gives it another size, as a window's frame does.
    pub(crate) fn sized(&self, rows: u16, columns: u16) {
        let (inside, size) = (self.inside.try_clone().unwrap(), [rows, columns].map(|size| size.to_string()));
        let mut stty = Command::new("stty");
        stty.args(["rows", &size[0], "cols", &size[1]]).stdin(inside);
        assert!(stty.status().unwrap().success());
        self.screen.lock().unwrap().screen_mut().set_size(some(rows), some(columns));
        kill(Pid::from_raw(self.child.0.id() as i32), Signal::SIGWINCH).unwrap();
    }

    /// The screen as somebody sees it.
    pub(crate) fn picture(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    pub(crate) fn shows(&self, words: &str) -> bool {
        self.picture().contains(words)
    }

    /// Presses these keys, and waits until the screen has these words.
    #[track_caller]
    pub(crate) fn press(&mut self, keys: &str, words: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
        self.waits_for(words);
    }

    #[track_caller]
    pub(crate) fn waits_for(&self, words: &str) {
        wait_for(&format!("{words:?} on the screen"), || self.shows(words).then_some(()));
    }

    /// Has it room for nothing more of what is written to it?
    fn is_full(&self) -> bool {
        poll(&mut [PollFd::new(self.inside.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO).unwrap() == 0
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.inside).unwrap().local_flags.contains(LocalFlags::ICANON)
    }

    /// Closes the terminal's window: nothing is left of it outside. Waits for the end of what ran in it.
    pub(crate) fn closes(mut self) {
        self.enough.store(true, Ordering::Relaxed);
        drop(self.keyboard);
        // It ends with the next picture.
        self.reader.join().unwrap();
        let status = end(&mut self.child, "vnic watch to end with its terminal");
        assert_eq!(status.code(), Some(0), "{status}");
    }

    /// Waits for the end; the terminal must be as before.
    pub(crate) fn ends_well(mut self) {
        let status = end(&mut self.child, "vnic watch to end");
        assert_eq!(status.code(), Some(0));
        assert!(!self.is_raw(), "the terminal was left in raw mode");
        // The terminal's inside closes with this, and ends the reader.
        drop(self.inside);
        self.reader.join().unwrap();
        let screen = self.written.lock().unwrap();
        assert_eq!((screen.matches(ENTER).count(), screen.matches(LEAVE).count()), (1, 1), "{screen:?}");
    }
}

#[test]
fn q_puts_the_terminal_back() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), device::busy());
    let mut terminal = Terminal::start(&scratch, &device);
    assert!(terminal.is_raw());
    terminal.keyboard.write_all(b"q").unwrap();
    terminal.ends_well();
}

#[test]
fn ctrl_c_puts_the_terminal_back_even_while_something_is_written() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), device::busy());
    let mut terminal = Terminal::start(&scratch, &device);
    terminal.press("5/0x2ee", "address or file: 0x2ee");
    terminal.keyboard.write_all(b"\x03").unwrap();
    terminal.ends_well();
}

#[test]
fn a_signal_puts_the_terminal_back() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), device::busy());
    let terminal = Terminal::start(&scratch, &device);
    kill(Pid::from_raw(terminal.child.0.id() as i32), Signal::SIGTERM).unwrap();
    terminal.ends_well();
}

#[test]
fn a_closed_window_ends_it() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), device::busy());
    Terminal::start(&scratch, &device).closes();
}

#[test]
fn a_closed_window_that_sends_sighup_ends_it() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), device::busy());
    // As in a shell: the terminal is the session's own, and its end is a SIGHUP to the session.
    let mut command = Command::new("setsid");
    command.args(["--ctty", env!("CARGO_BIN_EXE_vnic")]);
    Terminal::with(command, &["watch", "--control", device.control()], "in flight 1").closes();
}

#[test]
fn top_is_by_flow_then_by_file_and_its_last_picture_stays() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), device::busy());
    let words = ["top", "--control", device.control()];
    // The second report has a rate.
    let mut terminal = Terminal::with(scratch.vnic(), &words, "rate");
    let first = |terminal: &Terminal| {
        let last = terminal.picture();
        last.find("zero-copy").zip(last.find("share")).map(|(flows, files)| flows < files)
    };
    assert!(terminal.is_raw());
    wait_for("flows first", || (first(&terminal) == Some(true)).then_some(()));
    terminal.keyboard.write_all(b"f").unwrap();
    wait_for("files first", || (first(&terminal) == Some(false)).then_some(()));
    terminal.keyboard.write_all(b"q").unwrap();
    let written = terminal.written.clone();
    terminal.ends_well();
    let screen = written.lock().unwrap();
    assert!(screen.rsplit(LEAVE).next().unwrap_or_default().contains("/var/www/html/big.bin"), "{screen:?}");
}

#[test]
fn top_shows_what_happened_to_the_page_that_was_sent_last() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), device::busy());
    let terminal = Terminal::with(scratch.vnic(), &["top", "--control", device.control()], "rate");
    terminal.sized(40, 100);
    // From the disk to the wire, in this order.
    let steps = [
        "/var/www/html/big.bin page 0, at 0x2ee1000, was sent last:",
        "filled from sector 2048 by disk0.requestq0 #12",
        "sent by transmitq0 #14 to 10.0.2.2:51514 at seq 4711",
        "held by transmitq0 #14 for 1.25 ms",
        "completed by transmitq0 #14",
    ];
    let in_order = |picture: &str| {
        let places: Option<Vec<usize>> = steps.iter().map(|step| picture.find(step)).collect();
        places.is_some_and(|places| places.is_sorted())
    };
    wait_for("the page's life", || in_order(&terminal.picture()).then_some(()));
    terminal.closes();
}

#[test]
fn a_signal_ends_it_though_its_terminal_takes_nothing() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), device::busy());
    // It says nothing either, so that it gets each picture.
    let words = ["watch", "--control", device.control()];
    let terminal = Terminal::open(scratch.vnic(), &words, "in flight 1", Answers::None);
    terminal.takes(STALLED);
    // Each size is another picture, of many thousand signs: until no more of them fits into what the terminal keeps.
    wait_for("the terminal to be full", || {
        for rows in [90, 100] {
            terminal.sized(rows, 400);
        }
        terminal.is_full().then_some(())
    });
    // One more, that waits.
    terminal.sized(80, 300);
    kill(Pid::from_raw(terminal.child.0.id() as i32), Signal::SIGTERM).unwrap();
    let Terminal { mut child, inside, .. } = terminal;
    assert_eq!(end(&mut child, "vnic watch to end").code(), Some(0));
    assert!(tcgetattr(&inside).unwrap().local_flags.contains(LocalFlags::ICANON), "the terminal was left in raw mode");
}

#[test]
fn every_view_is_a_key_away() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), device::busy());
    let mut terminal = Terminal::start(&scratch, &device);
    // Whose the pages are comes with a later picture than the first.
    let named = || terminal.shows("page 17") || terminal.shows("/var/www/big.bin");
    wait_for("whose the pages are", || named().then_some(()));
    terminal.press("?", "any key closes");
    terminal.press("x2", "10.0.2.15:40000 > 10.0.2.2");
    terminal.press("\r", "2 descriptors");
    terminal.press("\u{1b}[Z", "in flight 1");
    terminal.press("3", "/var/www/html/big.bin");
    terminal.press("4", "no frame was lost");
    terminal.press("5/0x2ee1000\r", "sent by transmitq0 #14");
    terminal.press("6", "these two keys touch the device");
    assert!(!device.asked.lock().unwrap().iter().any(is_touch), "only looked so far");
    terminal.press("H", "transmitq0: held");
    terminal.press("R", "transmitq0: released");
    assert!(device.asked.lock().unwrap().iter().any(is_touch));
    terminal.keyboard.write_all(b"q").unwrap();
    terminal.ends_well();
}

fn is_touch(asked: &Asked) -> bool {
    matches!(asked, Asked::Device(Request::Hold { .. } | Request::Release { .. }))
}

#[test]
fn a_click_chooses_a_view_and_the_size_may_change() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), device::busy());
    let mut terminal = Terminal::start(&scratch, &device);
    // The views' names stand below head, queues.
    let picture = terminal.picture();
    let row = 1 + picture.lines().position(|line| line.contains("6 Hold")).unwrap();
    let (before, _) = picture.lines().nth(row - 1).unwrap().split_once("6 Hold").unwrap();
    let column = 1 + before.chars().count();
    terminal.press(&format!("\u{1b}[<0;{column};{row}M"), "these two keys");
    terminal.sized(12, 40);
    wait_for("a picture of the new size", || {
        terminal.picture().lines().next_back().is_some_and(|line| line.starts_with("? keys")).then_some(())
    });
    terminal.keyboard.write_all(b"q").unwrap();
    terminal.ends_well();
}

#[test]
fn it_waits_for_a_device_that_goes_and_comes_back() {
    let scratch = Scratch::new();
    let serve = Serve::start(&scratch, "vnic.sock", &[]);
    let mut terminal = Terminal::with(scratch.vnic(), &["watch", "--control", "vnic.sock.control"], "no front-end");
    drop(serve);
    terminal.waits_for("the device is gone");
    assert!(!terminal.shows("no front-end"));
    let _again = Serve::start(&scratch, "vnic.sock", &[]);
    terminal.waits_for("no front-end");
    terminal.keyboard.write_all(b"q").unwrap();
    terminal.ends_well();
}

/// Colours that were set, in the parameters of what sets styles: 30 to 38, 40 to 48, 90 to 107.
pub(crate) fn colours(written: &str) -> usize {
    let styles = written.split("\u{1b}[").filter_map(|code| code.split_once('m')).map(|(style, _)| style);
    let numbers = styles.flat_map(|style| style.split(';')).filter_map(|number| number.parse::<u8>().ok());
    numbers.filter(|number| matches!(number, 30..=38 | 40..=48 | 90..=107)).count()
}

#[test]
fn no_color_means_no_colour() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), device::busy());
    let written = |no_color: &str| {
        let mut command = scratch.vnic();
        command.env("NO_COLOR", no_color);
        let mut terminal = Terminal::with(command, &["watch", "--control", device.control()], "in flight 1");
        let written = terminal.written.clone();
        terminal.keyboard.write_all(b"q").unwrap();
        terminal.ends_well();
        written.lock().unwrap().clone()
    };
    assert_eq!(colours(&written("1")), 0);
    assert!(colours(&written("")) > 0, "empty is as if it were not there");
}
