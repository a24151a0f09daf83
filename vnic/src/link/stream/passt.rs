//! `passt` as the far end: the guest's network without any rights on the host.
//!
//! Operation: passt is started with one end of a socket pair (`--fd`), so it ends with the connection. It reads its options,
//! takes its ports and locks itself in before it answers anything; so a connection is handed on only once an ARP request
//! for the gateway has been answered, or its last words are the error.
//!
//! The guest has 10.0.2.15 (by DHCP, or set by hand), the gateway 10.0.2.2 is the host's loopback, as with QEMU's own user
//! network.

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::connector::{Dial, Mac};
use crate::net::{MAX_FRAME_LEN, MIN_FRAME_LEN};
use crate::sandbox::{self, Role};

/// How long passt may take to its first answer: it does so in 50 ms, on a machine that has time.
const START_DEADLINE: Duration = Duration::from_secs(10);

const GUEST: [u8; 4] = [10, 0, 2, 15];
const GATEWAY: [u8; 4] = [10, 0, 2, 2];

/// A port of the host's that leads to one of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    /// UDP instead of TCP.
    pub udp: bool,
}

/// What passt is to do, and who starts it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// The ports that lead into the guest.
    pub publish: Vec<Publish>,
    /// A program that [starts passt](super::starter) for this process, which then can be locked in. `None`: this process does.
    pub starter: Option<PathBuf>,
}

/// Not a port to publish.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` publishes no port: it is HOST:GUEST, such as 8080:80, or 5353:53/udp, with ports from 1 to 65535")]
pub struct ParsePublishError(String);

impl FromStr for Publish {
    type Err = ParsePublishError;

    fn from_str(text: &str) -> Result<Self, ParsePublishError> {
        let port = |text: &str| text.parse().ok().filter(|port| *port > 0);
        let parse = || {
            let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            let (host, guest) = ports.split_once(':')?;
            let udp = match protocol {
                "tcp" => false,
                "udp" => true,
                _ => return None,
            };
            Some(Publish { host: port(host)?, guest: port(guest)?, udp })
        };
        parse().ok_or_else(|| ParsePublishError(text.to_owned()))
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}{}", self.host, self.guest, if self.udp { "/udp" } else { "" })
    }
}

/// Starts passt, and starts it again.
#[derive(Debug)]
pub(super) struct Passt {
    program: &'static str,
    publish: Vec<Publish>,
    running: Option<Child>,
}

impl Passt {
    pub(super) fn new(publish: &[Publish]) -> Self {
        Passt { program: "passt", publish: publish.to_vec(), running: None }
    }

    /// The options, with `fd` as the connected socket.
    fn options(&self, fd: BorrowedFd<'_>) -> Vec<String> {
        let dotted = |[a, b, c, d]: [u8; 4]| format!("{a}.{b}.{c}.{d}");
        let mut options: Vec<String> = ["--foreground", "--quiet", "--netmask", "24"].map(str::to_owned).into();
        options.extend(["--fd".into(), fd.as_raw_fd().to_string()]);
        options.extend(["--address".into(), dotted(GUEST), "--gateway".into(), dotted(GATEWAY)]);
        for port in &self.publish {
            let option = if port.udp { "--udp-ports" } else { "--tcp-ports" };
            options.extend([option.into(), format!("{}:{}", port.host, port.guest)]);
        }
        options
    }

    fn end(&mut self) {
        if let Some(mut child) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        self.end();
    }
}

impl Dial for Passt {
    /// passt makes itself a place in namespaces of its own, which a process that is locked in could not let it do.
    const ROLE: Role = Role::Starter;

    fn dial(&mut self, guest: Mac) -> io::Result<UnixStream> {
        self.end();
        let (ours, theirs) = UnixStream::pair()?;
        // Inherited by this child; one that another thread starts in this moment would have it too, and only keep it open.
        fcntl(theirs.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        let mut command = Command::new(self.program);
        command.args(self.options(theirs.as_fd())).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                io::Error::new(error.kind(), "passt is not installed (Debian: apt install passt)")
            }
            _ => error,
        })?;
        drop(theirs);
        let last_words = listen(&mut child);
        self.running = Some(child);
        match first_answer(&ours, guest) {
            Ok(()) => {
                ours.set_read_timeout(None)?;
                Ok(ours)
            }
            Err(error) => {
                self.end();
                // It has ended, so its words have, too.
                let words = last_words.and_then(|thread| thread.join().ok().flatten());
                let because = words.unwrap_or_else(|| error.to_string());
                Err(io::Error::new(error.kind(), format!("passt does not come up: {because}")))
            }
        }
    }
}

/// Logs what passt says, as it says it, in a thread that ends with it, and with its last line. Without that thread its words
/// are lost, and nothing else.
fn listen(child: &mut Child) -> Option<JoinHandle<Option<String>>> {
    let stderr = BufReader::new(child.stderr.take()?);
    let lines = || {
        if !sandbox::enters(Role::Control) {
            return None;
        }
        let lines = stderr.lines().map_while(Result::ok).filter(|line| !line.is_empty());
        lines.inspect(|line| tracing::debug!(line, "passt")).last()
    };
    std::thread::Builder::new().name("passt-log".into()).spawn(lines).ok()
}

/// Waits for an answer to an ARP request in the guest's name: passt takes its sender for the guest's address from then on.
/// What else comes before it is for a guest that is not there yet.
fn first_answer(mut socket: &UnixStream, guest: Mac) -> io::Result<()> {
    const ARP: [u8; 2] = [0x08, 0x06];
    let mut request = Vec::from(42_u32.to_be_bytes());
    for part in [&[0xff; 6][..], &guest, &ARP, &[0, 1, 8, 0, 6, 4, 0, 1], &guest, &GUEST, &[0; 6], &GATEWAY] {
        request.extend(part);
    }
    socket.write_all(&request)?;
    let deadline = Instant::now() + START_DEADLINE;
    let mut frame = vec![0; MAX_FRAME_LEN as usize];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {START_DEADLINE:?}")));
        }
        socket.set_read_timeout(Some(left))?;
        let mut prefix = [0; 4];
        socket.read_exact(&mut prefix)?;
        let len = u32::from_be_bytes(prefix);
        let frame = frame.get_mut(..len as usize).filter(|_| len >= MIN_FRAME_LEN);
        let frame = frame.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it speaks another language"))?;
        socket.read_exact(frame)?;
        if frame.get(12..14) == Some(&ARP) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_port_reads_back_as_printed() {
        for text in ["8080:80", "5353:53/udp"] {
            assert_eq!(text.parse::<Publish>().unwrap().to_string(), text);
        }
        assert_eq!("8080:80/tcp".parse(), Ok(Publish { host: 8080, guest: 80, udp: false }));
    }

    #[test]
    fn what_publishes_no_port_is_refused_in_a_sentence() {
        for text in ["", "80", "0:80", "80:0", "65536:80", "80:80/sctp", "127.0.0.1:80:80", "a:b"] {
            let error = text.parse::<Publish>().unwrap_err().to_string();
            assert!(error.contains("8080:80"), "{error}");
        }
    }

    #[test]
    fn passt_gets_its_socket_and_the_ports() {
        let passt = Passt::new(&["8080:80".parse().unwrap(), "53:5353/udp".parse().unwrap()]);
        let options = passt.options(std::io::stdin().as_fd()).join(" ");
        assert!(options.contains("--fd 0") && options.contains("--tcp-ports 8080:80"), "{options}");
        assert!(options.ends_with("--udp-ports 53:5353"), "{options}");
    }

    #[test]
    fn a_program_that_is_missing_or_ends_at_once_is_an_error_with_its_last_words() {
        let dial =
            |program| Passt { program, publish: Vec::new(), running: None }.dial([2; 6]).unwrap_err().to_string();
        assert!(dial("/nonexistent/passt").contains("apt install passt"));
        // It knows none of passt's options, and says so.
        let error = dial("/bin/cat");
        assert!(error.contains("does not come up: ") && error.contains("cat"), "{error}");
    }
}
