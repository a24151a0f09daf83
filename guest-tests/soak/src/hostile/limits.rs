//! The device has no file descriptor left: its limit is lowered to what it has open, from outside.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use vnic::memory::testing::GuestRam;
use vnic::vhost_user::message::Request;

use super::Hostile;

/// How long somebody waits who is not to be answered, and who is.
const MOMENT: Duration = Duration::from_millis(200);
const LATER: Duration = Duration::from_secs(20);

/// Lifted when dropped.
pub(crate) struct NoFiles {
    pid: u32,
    /// What it was.
    limit: String,
}

impl NoFiles {
    /// # Panics
    /// There is no `prlimit`, or the process is gone.
    #[track_caller]
    pub(crate) fn of(pid: u32) -> NoFiles {
        let limit = prlimit(pid, &["--nofile", "--output=SOFT", "--noheadings", "--raw"]);
        // All of these are in use: there is no number left for another.
        prlimit(pid, &["--nofile=4:"]);
        NoFiles { pid, limit: limit.trim().to_owned() }
    }
}

impl Drop for NoFiles {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            prlimit(self.pid, &[&format!("--nofile={}:", self.limit)]);
        }
    }
}

#[track_caller]
fn prlimit(pid: u32, words: &[&str]) -> String {
    let done = Command::new("prlimit").args(["--pid", &pid.to_string()]).args(words).output();
    let done = done.expect("prlimit, of util-linux, is there");
    assert!(done.status.success(), "prlimit {words:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

impl Hostile {
    /// Front-ends and clients that come then are served when there are files again.
    pub(super) fn no_files(&mut self) {
        self.rests();
        let pid = self.pid();
        let limit = NoFiles::of(pid);
        let front_end = UnixStream::connect(self.socket()).expect("the device listens");
        let mut client = UnixStream::connect(self.device.control()).expect("the control socket is there");
        // A thread that waited for clients already has what it takes to hear one, and not what it takes to answer: it hangs up.
        let _ = client.write_all(b"{\"request\": \"status\"}\n");
        client.set_read_timeout(Some(MOMENT)).expect("a timeout");
        let waits = match client.read(&mut [0; 1]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Ok(0) => false,
            heard => panic!("it was answered: {heard:?}"),
        };
        drop(front_end);
        drop(limit);
        if waits {
            client.set_read_timeout(Some(LATER)).expect("a timeout");
            assert_eq!(client.read(&mut [0; 1]).expect("it is answered now"), 1);
        }
    }

    /// Frames go on; a message that brings a file cannot be taken, which ends the session and nothing else.
    pub(super) fn no_files_in_a_session(&mut self) {
        let mut driver = self.session();
        self.some(&mut driver, 2);
        let limit = NoFiles::of(self.pid());
        self.some(&mut driver, 16);
        let ram = GuestRam::new(1 << 20).expect("memory");
        let table = Request::SetMemTable(ram.specs().to_vec());
        driver.link.session().expect("a session").say(&table, &[ram.fd()]).expect("the session was there");
        driver
            .link
            .session()
            .expect("a session")
            .is_ended()
            .expect("a message whose file could not be taken ends the session");
        drop(limit);
    }
}
