//! `truncate`: another process shortens the file while it is being sent.

use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, Result, ensure};
use nix::sys::sendfile::sendfile64;

use super::{Child, Story};
use crate::connection::{connect, read_receipt};
use crate::file::TestFile;
use crate::filesystems;
use vnic_driver::mapping::Mapping;

const BYTES: u64 = 1 << 20;
const CHUNK: usize = 65536;
/// What is left of the file: less than was mapped, more than was sent.
const LEFT: u64 = CHUNK as u64 + 8192;

pub(super) fn show(to: SocketAddr) -> Result<Story> {
    let mut story = Story::default();
    touch(&mut story)?;
    write_from_mapping(&mut story, to)?;
    sendfile(&mut story, to)?;
    Ok(story)
}

fn file() -> Result<TestFile> {
    filesystems::make("tmpfs", 0, BYTES)
}

fn shorten(file: &TestFile) -> Result<()> {
    let status = Child::truncates(file.path(), LEFT)?.wait()?;
    ensure!(status.success(), "the truncating process ended with {status}");
    Ok(())
}

/// A program that looks at mapped bytes itself.
fn touch(story: &mut Story) -> Result<()> {
    let file = file()?;
    let mut reader = Child::touches(file.path())?;
    story.step(format!("mmap: a process maps a file of {BYTES} bytes"));
    shorten(&file)?;
    story.step(format!("mmap: another process truncates it to {LEFT} bytes"));
    reader.go()?;
    let status = reader.wait()?;
    story.check(
        status.signal() == Some(libc::SIGBUS),
        format!("mmap: the first touches the mapping's last page, and ends with {status}"),
    );
    Ok(())
}

/// A program that has the kernel look at them.
fn write_from_mapping(story: &mut Story, to: SocketAddr) -> Result<()> {
    let file = file()?;
    let mut socket = connect(to, Some(BYTES))?;
    let mapping = Mapping::of_file(&file.file, 0, BYTES)?;
    let mut sent = socket.write(mapping.bytes_at(0, CHUNK))? as u64;
    story.step(format!("mmap-write: the first call takes {sent} bytes"));
    shorten(&file)?;
    let rest = usize::try_from(BYTES - sent)?;
    match socket.write(mapping.bytes_at(sent, rest)) {
        Ok(taken) => {
            story.check(taken < rest, format!("mmap-write: after the truncation {taken} of {rest} bytes are taken"));
            sent += taken as u64;
            let again = socket.write(mapping.bytes_at(sent, rest - taken));
            let code = again.as_ref().err().and_then(std::io::Error::raw_os_error);
            story.check(code == Some(libc::EFAULT), format!("mmap-write: the next call gives {}", told(again)));
        }
        Err(error) => story.check(
            error.raw_os_error() == Some(libc::EFAULT),
            format!("mmap-write: after the truncation the call gives {error}"),
        ),
    }
    arrived(story, "mmap-write", &socket, sent)
}

fn sendfile(story: &mut Story, to: SocketAddr) -> Result<()> {
    let file = file()?;
    let socket = connect(to, Some(BYTES))?;
    let mut offset = 0;
    let mut sent = sendfile64(&socket, &file.file, Some(&mut offset), CHUNK)? as u64;
    story.step(format!("sendfile: the first call takes {sent} bytes"));
    shorten(&file)?;
    let rest = usize::try_from(BYTES - sent)?;
    let taken = sendfile64(&socket, &file.file, Some(&mut offset), rest)?;
    sent += taken as u64;
    story.check(sent == LEFT, format!("sendfile: after the truncation {taken} of {rest} bytes are taken"));
    let again = sendfile64(&socket, &file.file, Some(&mut offset), rest)?;
    story.check(again == 0, format!("sendfile: the next call gives {again}, the file's end"));
    arrived(story, "sendfile", &socket, sent)
}

/// Nothing hangs: the connection ends as ever.
fn arrived(story: &mut Story, what: &str, socket: &std::net::TcpStream, sent: u64) -> Result<()> {
    socket.shutdown(Shutdown::Write).context("shut down the write side")?;
    let receipt = read_receipt(socket)?;
    story.check(receipt.bytes == sent, format!("{what}: the receiver got {} of {sent} bytes taken", receipt.bytes));
    Ok(())
}

fn told(result: std::io::Result<usize>) -> String {
    result.map_or_else(|error| error.to_string(), |count| format!("{count} bytes"))
}
