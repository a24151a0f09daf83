//! `attach`, from the process to its end: looks into the VM for whoever asks on the control socket.
//!
//! Operation: everything is found with all rights there are. Then the process is [locked in](crate::sandbox) before it answers anybody:
//! the VM's memory is read through files that are open by then, its mappings' list and page numbers included, and nothing else of the
//! VM's process can be had any more.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::answers::Answers;
use super::{AttachError, Attached};
use crate::sandbox::{self, Paths, Program, Role};
use crate::serve::control::Source;
use crate::serve::looking::Looking;
use crate::serve::{ServeError, block_signals};

/// How often is looked whether the process is still there, milliseconds.
const LOOK_AGAIN_MS: u16 = 500;

/// What `attach` is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The VMM's process.
    pub pid: u32,
    /// Where to listen.
    pub control: PathBuf,
    /// How much the process gives up once the VM is found.
    pub sandbox: sandbox::Mode,
}

/// Looks into a VM until SIGINT or SIGTERM, or until it ends. `ready` hears the kernel's release once it answers.
///
/// # Errors
/// There is nothing to look into, the control socket is not to be had, or the process cannot be locked in.
pub fn serve(options: &Options, ready: impl FnOnce(&str)) -> Result<(), AttachError> {
    sandbox::set(options.sandbox, Program::Attach);
    let attached = Attached::open(options.pid)?;
    let release = attached.release().to_owned();
    if options.sandbox != sandbox::Mode::Off {
        attached.ram().process().reads_files_alone();
    }
    let answers = Answers::new(attached);
    let source = |locked_in| {
        answers.locked_in(locked_in);
        answers.clone() as Arc<dyn Source>
    };
    look(options, source, || answers.has_ended(), || ready(&release))
}

/// Answers by this source until a signal comes or `has_ended` says so, locked in.
pub(crate) fn look(
    options: &Options,
    source: impl FnOnce(sandbox::Report) -> Arc<dyn Source>,
    has_ended: impl Fn() -> bool,
    ready: impl FnOnce(),
) -> Result<(), AttachError> {
    let signals = block_signals()?;
    let _looking = Looking::begin(&options.control, "VM", Paths::default(), source)?;
    sandbox::enter(Role::Main).map_err(ServeError::from)?;
    ready();
    while !has_ended() {
        let mut waits = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waits, PollTimeout::from(LOOK_AGAIN_MS)) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(ServeError::Host { action: "wait", source: errno.into() }.into()),
        }
    }
    tracing::info!(process = options.pid, "has ended");
    Ok(())
}
