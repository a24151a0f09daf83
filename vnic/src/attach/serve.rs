//! `attach`, from the process to its end: looks into the VM for whoever asks on the control socket.

use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::answers::Answers;
use super::{AttachError, Attached};
use crate::observe::discovery;
use crate::serve::control::ControlSocket;
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
}

/// Looks into a VM until SIGINT or SIGTERM, or until it ends. `ready` hears the kernel's release once it answers.
///
/// # Errors
/// There is nothing to look into, or the control socket is not to be had.
pub fn serve(options: &Options, ready: impl FnOnce(&str)) -> Result<(), AttachError> {
    let attached = Attached::open(options.pid)?;
    let release = attached.release().to_owned();
    let signals = block_signals()?;
    let answers = Answers::new(attached);
    let failed = |source| ServeError::Control { path: options.control.clone(), source };
    let control = ControlSocket::bind(&options.control).map_err(failed)?;
    control.serve_source(answers.clone()).map_err(failed)?;
    let _published = discovery::publish_or_say(&options.control, "VM");
    ready(&release);
    while !answers.has_ended() {
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
