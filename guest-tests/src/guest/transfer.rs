//! One whole transfer: file and connection prepared, sent by a method, confirmed by the receiver.
//!
//! Operation: [`Prepared::new`] sets the NIC, makes the file, notes its pages and connects; between that and
//! [`Prepared::send`] whoever watches the NIC can get ready. `send` runs the method with the books open, shuts down the
//! write side, reads the receipt and notes the pages again.

use std::io::{BufRead, BufReader};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vnic::record::run::NicState;
use vnic::record::wire::{Flow, PageRun, Receipt, TransferSpec};

use super::books::Books;
use super::file::TestFile;
use super::nic::{self, Nic};
use super::pages::page_runs;
use crate::methods::{self, Job, Method};

/// How long the receiver may take to accept the connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// How long nothing may move on the connection: a device that was restarted has TCP wait for its retransmission.
const STALL_DEADLINE: Duration = Duration::from_secs(180);

/// What a request cannot be: known, and impossible in this guest.
#[derive(Debug)]
pub struct Unsupported(pub String);

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unsupported {}

/// A transfer that can start.
#[derive(Debug)]
pub struct Prepared {
    method: &'static Method,
    spec: TransferSpec,
    made: TestFile,
    socket: TcpStream,
    /// The connection.
    pub flow: Flow,
    /// The NIC's switches, read back.
    pub nic: NicState,
    /// The file's pages before.
    pub pages: Vec<PageRun>,
}

/// A transfer that is over.
#[derive(Debug)]
pub struct Done {
    /// Bytes the method says it sent.
    pub bytes_sent: u64,
    /// From the first call to the receiver's receipt.
    pub took: Duration,
    /// What the receiver got.
    pub receipt: Receipt,
    /// The file's pages after.
    pub pages: Vec<PageRun>,
    /// The kernel's books.
    pub books: vnic::record::wire::Books,
}

impl Prepared {
    /// Prepares a transfer.
    ///
    /// # Errors
    /// [`Unsupported`] where this guest cannot do it; else what failed.
    pub fn new(spec: TransferSpec) -> Result<Prepared> {
        let Some(method) = methods::by_name(&spec.method) else {
            let names: Vec<&str> = methods::METHODS.iter().map(|method| method.name).collect();
            bail!(Unsupported(format!("no method is called {:?}; there are {}", spec.method, names.join(", "))));
        };
        ensure!(spec.chunk > 0, "a chunk of 0 bytes never gets anywhere");
        let nic = Nic::open(nic::NAME)?.apply(spec.nic)?;
        let made = TestFile::create(folder_of(&spec.filesystem)?, spec.offset, spec.bytes)?;
        let pages = page_runs(&made.file)?;
        let socket = TcpStream::connect_timeout(&spec.to, CONNECT_DEADLINE)
            .with_context(|| format!("connect to the receiver at {}", spec.to))?;
        socket.set_read_timeout(Some(STALL_DEADLINE))?;
        socket.set_write_timeout(Some(STALL_DEADLINE))?;
        let flow = Flow { protocol: 6, local: socket.local_addr()?, remote: socket.peer_addr()? };
        Ok(Prepared { method, spec, made, socket, flow, nic, pages })
    }

    /// SHA-256 of the bytes to be sent, from the file's content apart from the transfer.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.made.sha256
    }

    /// Sends, and waits for the receipt.
    ///
    /// # Errors
    /// What failed, the receiver's silence included.
    pub fn send(self) -> Result<Done> {
        let chunk = usize::try_from(self.spec.chunk).context("chunk")?;
        let job = Job {
            file: &self.made.file,
            socket: &self.socket,
            offset: self.spec.offset,
            bytes: self.spec.bytes,
            chunk,
        };
        let start = Instant::now();
        let books = Books::open().context("open the books")?;
        let sent = (self.method.send)(&job);
        let books = books.close().context("close the books")?;
        let bytes_sent = sent.with_context(|| format!("{} to {}", self.method.name, self.spec.to))?;
        self.socket.shutdown(Shutdown::Write).context("shut down the write side")?;
        let receipt = read_receipt(&self.socket)?;
        let took = start.elapsed();
        Ok(Done { bytes_sent, took, receipt, pages: page_runs(&self.made.file)?, books })
    }
}

/// Where files of a file system are made.
fn folder_of(filesystem: &str) -> Result<&'static Path> {
    match filesystem {
        "tmpfs" => Ok(Path::new("/tmp")),
        other => bail!(Unsupported(format!("this guest has no {other} file system mounted"))),
    }
}

fn read_receipt(socket: &TcpStream) -> Result<Receipt> {
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).context("wait for the receiver's receipt")?;
    parse_receipt(&line).with_context(|| format!("the receiver answered {line:?}, not `bytes N sha256 HEX`"))
}

fn parse_receipt(line: &str) -> Option<Receipt> {
    let mut words = line.strip_suffix('\n')?.split(' ');
    let receipt = match (words.next()?, words.next()?, words.next()?, words.next()?) {
        ("bytes", bytes, "sha256", sha256) => Receipt { bytes: bytes.parse().ok()?, sha256: sha256.to_owned() },
        _ => return None,
    };
    let is_digest = receipt.sha256.len() == 64 && receipt.sha256.bytes().all(|c| c.is_ascii_hexdigit());
    (is_digest && words.next().is_none()).then_some(receipt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_bytes_and_digest_and_nothing_else() {
        let digest = "ab".repeat(32);
        let good = format!("bytes 12 sha256 {digest}\n");
        assert_eq!(parse_receipt(&good), Some(Receipt { bytes: 12, sha256: digest.clone() }));
        for bad in [
            String::new(),
            format!("bytes 12 sha256 {digest}"),
            format!("bytes x sha256 {digest}\n"),
            "bytes 12 sha256 abcd\n".to_owned(),
            format!("bytes 12 sha256 {digest} more\n"),
        ] {
            assert_eq!(parse_receipt(&bad), None, "{bad:?}");
        }
    }
}
