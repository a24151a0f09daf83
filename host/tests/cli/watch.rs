//! `vnic watch` in a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::thread::{self, JoinHandle};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

use crate::device::{self, Device};
use crate::util::{Scratch, wait_for};

const ENTER: &str = "\u{1b}[?1049h";
const LEAVE: &str = "\u{1b}[?1049l";

/// A terminal with `vnic watch` in it.
struct Terminal {
    keyboard: File,
    /// Kept open: the terminal's settings are looked at after the end.
    inside: OwnedFd,
    screen: std::sync::Arc<std::sync::Mutex<String>>,
    reader: JoinHandle<()>,
    child: Child,
}

impl Terminal {
    fn start(scratch: &Scratch, device: &Device) -> Self {
        let size = Winsize { ws_row: 20, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let side = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = scratch.vnic();
        command.args(["watch", "--control", device.control()]).stdin(side()).stdout(side()).stderr(side());
        let child = command.spawn().unwrap();
        // The command holds the terminal open as long as it lives.
        drop(command);
        let mut outside = File::from(pty.master.try_clone().unwrap());
        let screen = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let shown = screen.clone();
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = outside.read(&mut buffer) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        let terminal = Terminal { keyboard: File::from(pty.master), inside: pty.slave, screen, reader, child };
        wait_for("the first picture", || terminal.shows("in-flight=1").then_some(()));
        terminal
    }

    fn shows(&self, words: &str) -> bool {
        self.screen.lock().unwrap().contains(words)
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.inside).unwrap().local_flags.contains(LocalFlags::ICANON)
    }

    /// Waits for the end; the terminal must be as before.
    fn ends_well(mut self) {
        let child = &mut self.child;
        let status = wait_for("vnic watch to end", || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0));
        assert!(!self.is_raw(), "the terminal was left in raw mode");
        // The terminal's inside closes with this, and ends the reader.
        drop(self.inside);
        self.reader.join().unwrap();
        let screen = self.screen.lock().unwrap();
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
fn a_signal_puts_the_terminal_back() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), device::busy());
    let terminal = Terminal::start(&scratch, &device);
    kill(Pid::from_raw(terminal.child.id() as i32), Signal::SIGTERM).unwrap();
    terminal.ends_well();
}
