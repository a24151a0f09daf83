//! A process that starts passt for one that is locked in, and cannot.
//!
//! Operation: [`Starter`] starts the program that it is told (`vnic` itself) with `passt-starter` and the published ports, and one
//! end of a socket pair as its standard input. Each attempt is a message with the guest's MAC address, and its answer: one byte and passt's
//! socket, or why there is none. The process [serves](serve) until the socket ends, and passt ends with it.
//!
//! Place: begun before `serve` gives up anything. It reads nothing of a guest's but that address.

use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::connector::{Dial, Mac};
use super::passt::{Passt, Publish};
use crate::sandbox::Role;

/// The command that is such a process.
pub const COMMAND: &str = "passt-starter";

/// Longer than an attempt takes.
const DEADLINE: Duration = Duration::from_secs(20);
/// The first byte of an answer.
const STARTED: u8 = 0;
const FAILED: u8 = 1;
/// The longest answer: its byte, and what passt said.
const ANSWER: usize = 512;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Starter {
    socket: UnixStream,
    /// It ends with the socket, and this process does not wait for it.
    _process: Option<Child>,
}

impl Starter {
    /// Starts the process.
    pub(super) fn start(program: &OsStr, publish: &[Publish]) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let mut command = Command::new(program);
        command.arg(COMMAND).args(publish.iter().map(ToString::to_string));
        let process = command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).spawn()?;
        Starter::at(socket, Some(process))
    }

    fn at(socket: UnixStream, process: Option<Child>) -> io::Result<Self> {
        socket.set_read_timeout(Some(DEADLINE))?;
        Ok(Starter { socket, _process: process })
    }
}

impl Dial for Starter {
    const ROLE: Role = Role::Connector;

    fn dial(&mut self, guest: Mac) -> io::Result<UnixStream> {
        self.socket.write_all(&guest)?;
        let mut answer = [0; ANSWER];
        let mut buffers = [IoSliceMut::new(&mut answer)];
        let mut space = nix::cmsg_space!([i32; 1]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.socket.as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
        let mut files = message.cmsgs()?.filter_map(|part| match part {
            ControlMessageOwned::ScmRights(files) => files.first().copied(),
            _ => None,
        });
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        let file = files.next().map(|file| unsafe { OwnedFd::from_raw_fd(file) });
        let len = message.bytes;
        match (answer.get(..len).unwrap_or_default(), file) {
            ([STARTED], Some(file)) => Ok(UnixStream::from(file)),
            ([FAILED, why @ ..], None) => Err(io::Error::other(String::from_utf8_lossy(why).into_owned())),
            _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the process that starts passt is gone")),
        }
    }
}

/// Starts passt for whoever is at the other end of the standard input, until that is closed.
///
/// # Errors
/// It is no socket, or fails.
pub fn serve(publish: &[Publish]) -> io::Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    answer(UnixStream::from(socket), Passt::new(publish))
}

fn answer(mut socket: UnixStream, mut dial: impl Dial) -> io::Result<()> {
    let mut guest: Mac = [0; 6];
    while socket.read_exact(&mut guest).map_or_else(ended, |()| Ok(true))? {
        match dial.dial(guest) {
            Ok(passt) => {
                let files = [passt.as_raw_fd()];
                let rights = [ControlMessage::ScmRights(&files)];
                let buffers = [IoSlice::new(&[STARTED])];
                sendmsg::<()>(socket.as_raw_fd(), &buffers, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
            }
            Err(error) => {
                let mut words = vec![FAILED];
                words.extend(error.to_string().bytes().take(ANSWER - 1));
                socket.write_all(&words)?;
            }
        }
    }
    Ok(())
}

/// Whoever asked is gone: that is the end, and no error.
fn ended(error: io::Error) -> io::Result<bool> {
    if error.kind() == io::ErrorKind::UnexpectedEof { Ok(false) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far ends that a test has made, the last first; without one it fails.
    #[derive(Debug)]
    struct Made(Vec<UnixStream>);

    impl Dial for Made {
        const ROLE: Role = Role::Starter;

        fn dial(&mut self, guest: Mac) -> io::Result<UnixStream> {
            assert_eq!(guest, [2, 0, 0, 0, 0, 7]);
            self.0.pop().ok_or_else(|| io::Error::other("passt does not come up: no such port"))
        }
    }

    #[test]
    fn a_far_end_is_handed_over_and_why_there_is_none_is_said() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut guest, far_end) = UnixStream::pair().unwrap();
        let process = std::thread::spawn(|| answer(theirs, Made(vec![far_end])));
        let mut starter = Starter::at(ours, None).unwrap();
        let mac = [2, 0, 0, 0, 0, 7];
        starter.dial(mac).unwrap().write_all(b"frame").unwrap();
        let mut heard = [0; 5];
        guest.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"frame");
        assert_eq!(starter.dial(mac).unwrap_err().to_string(), "passt does not come up: no such port");
        drop(starter);
        process.join().unwrap().unwrap();
    }

    #[test]
    fn a_process_that_is_gone_is_an_error_each_time() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut starter = Starter::at(ours, None).unwrap();
        drop(theirs);
        assert!(starter.dial([0; 6]).is_err() && starter.dial([0; 6]).is_err());
        let error = Starter::start(OsStr::new("/nonexistent/vnic"), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
