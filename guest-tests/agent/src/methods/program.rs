//! A program of the user's own: the file is its standard input, the connection its standard output.
//!
//! So `cat` sends a file, and so does a server's inner loop behind ten lines that take both from there. The program begins
//! at the file's position and sends to the file's end; what it says on its standard error is told when it fails.
//!
//! Its buffers are looked for in memory while it still has them: where a transfer is to pause, the program is stopped at its
//! very end, before the kernel takes its memory away (`PTRACE_O_TRACEEXIT`, ptrace(2)). One that is measured is not traced.
//!
//! Limits: of a program that starts others, only itself is stopped so.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Job, unsupported};

/// Between two looks whether it has ended: each takes the CPU from it.
const LOOK: Duration = Duration::from_millis(20);
/// The most of its complaints that are told.
const COMPLAINTS: u64 = 2048;

/// Was one named?
pub(super) fn available(job: &Job<'_>) -> io::Result<()> {
    if job.program.is_empty() { Err(unsupported("no program was named (--program)")) } else { Ok(()) }
}

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    available(job)?;
    let mut input = job.file.try_clone()?;
    input.seek(SeekFrom::Start(job.offset))?;
    let mut complaints = File::from(memfd_create(c"stderr", MFdFlags::MFD_CLOEXEC)?);
    let mut command = Command::new(&job.program[0]);
    command
        .args(&job.program[1..])
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(OwnedFd::from(job.socket.try_clone()?)))
        .stderr(Stdio::from(complaints.try_clone()?));
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", job.program[0]));
    let ended = if job.first_chunk_apart {
        stopped_at_its_end(&mut command, job).map_err(named)?
    } else {
        let child = command.spawn().map_err(named)?;
        followed(child, job)?
    };
    if !ended.success() {
        let mut said = String::new();
        complaints.rewind()?;
        complaints.take(COMPLAINTS).read_to_string(&mut said)?;
        return Err(io::Error::other(format!(
            "the program {} ended with {ended}: {}",
            job.program[0],
            said.trim_end()
        )));
    }
    Ok(job.bytes)
}

/// Waits for it, and has the accounts keep up meanwhile.
fn followed(mut child: Child, job: &Job<'_>) -> io::Result<ExitStatus> {
    loop {
        if let Some(ended) = child.try_wait()? {
            job.taken(job.bytes)?;
            return Ok(ended);
        }
        job.follower.working();
        std::thread::sleep(LOOK);
    }
}

/// Runs it to its end, and tells the follower while it still has its memory.
fn stopped_at_its_end(command: &mut Command, job: &Job<'_>) -> io::Result<ExitStatus> {
    // SAFETY: between fork and exec this makes one system call and touches no memory of the parent's.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let mut child = command.spawn()?;
    let told = traced(Pid::from_raw(child.id().cast_signed()), job);
    if told.is_err() {
        // Else it would stay where it was stopped.
        child.kill()?;
    }
    let ended = child.wait()?;
    told.map(|()| ended)
}

/// Follows a program that stops at its first instruction, and lets go of it at its last.
fn traced(pid: Pid, job: &Job<'_>) -> io::Result<()> {
    waitpid(pid, None)?;
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACEEXIT)?;
    let mut signal = None;
    loop {
        ptrace::cont(pid, signal)?;
        match waitpid(pid, None)? {
            WaitStatus::PtraceEvent(_, Signal::SIGTRAP, libc::PTRACE_EVENT_EXIT) => {
                job.taken(job.bytes)?;
                return Ok(ptrace::detach(pid, None)?);
            }
            WaitStatus::Stopped(_, came) => signal = Some(came),
            other => return Err(io::Error::other(format!("it did not end as programs do: {other:?}"))),
        }
    }
}
