//! A proxy between any vhost-user front-end and any back-end: hands on every message and file as it came, and looks on.
//!
//! Place: `vnic proxy`. It is not on the data path: memory, kicks and calls are the two sides' own, whose files pass through here once.
//!
//! Operation:
//! 1. `relay`: messages in one direction; `session`: both directions, until either side goes. Then the other is let go, too.
//! 2. `mirror`: what the front-end asks makes a view of memory and rings, by the same code that serves a front-end
//!    ([`State`](crate::vhost_user::State)); what the back-end answers says what is on offer.
//! 3. `rings`, `answers`: the control socket's answers, from that view.
//!
//! Invariants: what the view cannot make sense of is passed on all the same; it is counted, and the last one named. Nothing that
//! either side does waits for who looks on.
//!
//! Limits: what the back-end asks on its own channel (`SET_BACKEND_REQ_FD`) goes past the proxy: the channel's file is handed on. Once
//! a post-copy migration begins, memory is not looked at any more: a look would make pages exist that are still to come.

mod answers;
mod kind;
mod mirror;
mod relay;
mod rings;
mod session;
#[cfg(test)]
mod tests;
mod view;

use std::os::fd::AsFd;
use std::path::PathBuf;

pub use kind::DeviceKind;

use crate::observe::discovery;
use crate::serve::control::ControlSocket;
use crate::serve::server::wait;
use crate::serve::{ServeError, block_signals};
use crate::vhost_user::listen::Listener;
use answers::Answers;
use session::End;
use view::About;

/// What `proxy` is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where front-ends connect.
    pub socket: PathBuf,
    /// Where the back-end listens.
    pub back_end: PathBuf,
    /// Where to answer who looks.
    pub control: PathBuf,
    /// What kind of device it is; `None`: to be told by what passes.
    pub device: Option<DeviceKind>,
}

/// Passes on what front-ends and the back-end say, one front-end after the other, until SIGINT or SIGTERM. `ready` is called once
/// front-ends can connect.
///
/// # Errors
/// A socket is not to be had, or failed.
pub fn serve(options: &Options, ready: impl FnOnce()) -> Result<(), ServeError> {
    let signals = block_signals()?;
    let listener = Listener::bind(&options.socket)?;
    let failed = |source| ServeError::Control { path: options.control.clone(), source };
    let control = ControlSocket::bind(&options.control).map_err(failed)?;
    let answers = Answers::new(About {
        socket: options.socket.display().to_string(),
        back_end: options.back_end.display().to_string(),
        device: options.device,
    });
    control.serve_source(answers.clone()).map_err(failed)?;
    let _published = discovery::publish_or_say(&options.control, "proxy");
    ready();
    loop {
        let [incoming, stop] = wait([listener.as_fd(), signals.as_fd()])?;
        if stop {
            return Ok(());
        }
        if incoming
            && let Some(front_end) = listener.accept()?
            && session::run(front_end, &options.back_end, &answers, signals.as_fd())? == End::Process
        {
            return Ok(());
        }
    }
}
