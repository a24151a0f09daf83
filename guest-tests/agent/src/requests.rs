//! The agent: does what the host asks over the virtio-serial port, one request at a time (`vnic_experiment::wire`).
//!
//! Operation: each connection of the host starts with `Ready`. The port reads as ended while no host is connected; the
//! agent then says so on the console, and says `Ready` again, which waits until the next host is there.
//!
//! Limits: a host that comes back before the guest noticed that the last one left gets no `Ready`; the port does not
//! tell the two apart.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use vnic_experiment::wire::{Event, PORT_NAME, Request};

use crate::conversation::transfer;
use crate::hazards;
use crate::nic::{self, Nic};
use crate::pages;
use crate::port;
use crate::stage::Stage;
use crate::transfer::{Done, Unsupported};

/// What the console shows when a host has left.
pub const HOST_LEFT: &str = "vnic guest: the host has left the record port";

/// Why the agent stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The host asked for power off.
    PowerOff,
    /// The host went away.
    HostLeft,
}

/// Serves hosts until one asks for power off.
///
/// # Errors
/// The port is missing or broken.
pub fn run() -> Result<()> {
    let port = port::open(PORT_NAME)?;
    loop {
        let mut host = Host { reader: BufReader::new(port.try_clone()?), writer: port.try_clone()? };
        match host.serve()? {
            Outcome::PowerOff => return Ok(()),
            Outcome::HostLeft => {
                // Only for who reads the console.
                let _ = writeln!(io::stdout(), "{HOST_LEFT}");
            }
        }
    }
}

/// The host went away in the middle of a request.
#[derive(Debug)]
struct HostIsGone;

impl std::fmt::Display for HostIsGone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the host has left")
    }
}

impl std::error::Error for HostIsGone {}

/// The host at the port's other end.
struct Host {
    reader: BufReader<File>,
    writer: File,
}

impl Stage for Host {
    fn tell(&mut self, event: &Event) -> Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.writer.write_all(&line).context("write to the host")
    }

    fn wait_for_go(&mut self) -> Result<()> {
        match self.hear_one()? {
            Request::Go => Ok(()),
            other => Err(anyhow!("waited for go, got {other:?}")),
        }
    }

    fn wait_for_first_go(&mut self, file: &File) -> Result<()> {
        loop {
            match self.hear_one()? {
                Request::Go => return Ok(()),
                Request::Touch => self.touch(file)?,
                other => return Err(anyhow!("waited for go, got {other:?}")),
            }
        }
    }
}

impl Host {
    fn serve(&mut self) -> Result<Outcome> {
        self.tell(&Event::Ready { kernel: kernel_release()?, nic: Nic::open(nic::NAME)?.state()? })?;
        // The file of the last transfer is there until the next request: meanwhile the host may look at its pages.
        let mut last: Option<Done> = None;
        while let Some(request) = self.hear()? {
            if !matches!(request, Ok(Request::Touch)) {
                drop(last.take());
            }
            let done = match request {
                Err(error) => Err(error),
                Ok(Request::Transfer(spec)) => transfer(self, spec).map(|done| last = Some(done)),
                Ok(Request::Touch) => match &last {
                    Some(done) => self.touch(&done.made.file),
                    None => Err(anyhow!("touch without a transfer that was done")),
                },
                Ok(Request::Run { argv }) => self.run(&argv),
                Ok(Request::Go) => Err(anyhow!("go without a transfer that waits for it")),
                Ok(Request::Hazard { name, method, to }) => {
                    hazards::show(&name, &method, to, self).and_then(|story| self.tell(&story.told()))
                }
                Ok(Request::PowerOff) => return Ok(Outcome::PowerOff),
            };
            if let Err(error) = done {
                if error.chain().any(|cause| cause.is::<HostIsGone>()) {
                    return Ok(Outcome::HostLeft);
                }
                self.tell(&match error.downcast::<Unsupported>() {
                    Ok(Unsupported(why)) => Event::Unsupported { why },
                    Err(error) => Event::Failed { error: format!("{error:#}") },
                })?;
            }
        }
        Ok(Outcome::HostLeft)
    }

    fn run(&mut self, argv: &[String]) -> Result<()> {
        let (program, arguments) = argv.split_first().context("no program to run")?;
        let ran = Command::new(program).args(arguments).output().with_context(|| format!("run {program}"))?;
        let status = ran.status.code().or_else(|| ran.status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
        let output = [ran.stdout, ran.stderr].concat();
        self.tell(&Event::Ran { status, output: String::from_utf8_lossy(&output).into_owned() })
    }

    fn touch(&mut self, file: &File) -> Result<()> {
        let pages = pages::touch(file)?;
        self.tell(&Event::Touched { pages })
    }

    /// The next request of a host that must make one.
    fn hear_one(&mut self) -> Result<Request> {
        self.hear()?.unwrap_or_else(|| Err(HostIsGone.into()))
    }

    /// The next request; `None` when the host has left.
    fn hear(&mut self) -> Result<Option<Result<Request>>> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).context("read from the host")? == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&line).with_context(|| format!("not a request: {}", line.trim_end()))))
    }
}

fn kernel_release() -> Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    Ok(release.trim_end().to_owned())
}
