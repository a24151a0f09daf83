//! A proxy between any vhost-user front-end and any back-end: hands on every message and file as it came, and looks on.
//!
//! Place: `vnic proxy`. It is not on the data path: memory, kicks and calls are the two sides' own, whose files pass through here once.
//!
//! Operation:
//! 1. `relay`: messages in one direction; `session`: both directions, until either side goes. Then the other is let go, too.
//! 2. `mirror`: what the front-end asks makes a view of memory and rings, by the same code that serves a front-end
//!    ([`State`](crate::vhost_user::State)); what the back-end answers says what is on offer.
//! 3. `rings`, `answers`: the control socket's answers, from that view.
//! 4. Before the first front-end is heard the process is [locked in](crate::sandbox): its main thread, which passes messages on, opens
//!    nothing but its socket to the back-end.
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

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use kind::DeviceKind;

use crate::sandbox::{self, Paths, Program, Role};
use crate::serve::control::Source;
use crate::serve::looking::Looking;
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
    /// How much the process gives up before it hears a front-end.
    pub sandbox: sandbox::Mode,
}

/// Passes on what front-ends and the back-end say, one front-end after the other, until SIGINT or SIGTERM. `ready` is called once
/// front-ends can connect.
///
/// # Errors
/// A socket is not to be had, or failed, or the process cannot be locked in.
pub fn serve(options: &Options, ready: impl FnOnce()) -> Result<(), ServeError> {
    pass(options, |answers| answers, ready)
}

/// The same, with another's answers on the control socket.
pub(crate) fn pass(
    options: &Options,
    answered: impl FnOnce(Arc<dyn Source>) -> Arc<dyn Source>,
    ready: impl FnOnce(),
) -> Result<(), ServeError> {
    sandbox::set(options.sandbox, Program::Proxy);
    let signals = block_signals()?;
    let listener = Listener::bind(&options.socket)?;
    let mut paths = Paths::default();
    listener.path().into_iter().for_each(|path| paths.remove(path));
    paths.read(Path::new(view::NOTIFICATIONS));
    // What Landlock has allowed is this very folder, which the kernel makes anew when nobody has it open.
    let _stays = File::open(view::NOTIFICATIONS);
    let answers = Answers::new(About {
        socket: options.socket.display().to_string(),
        back_end: options.back_end.display().to_string(),
        device: options.device,
    });
    let source = |locked_in| {
        answers.locked_in(locked_in);
        answered(answers.clone())
    };
    let _looking = Looking::begin(&options.control, "proxy", paths, source)?;
    sandbox::enter(Role::Session { connects: true })?;
    ready();
    loop {
        let [incoming, stop] = wait([listener.as_fd(), signals.as_fd()])?;
        if stop {
            return Ok(());
        }
        if incoming
            && let Some(front_end) = listener.accept(signals.as_fd())?
            && session::run(front_end, &options.back_end, &answers, signals.as_fd())? == End::Process
        {
            return Ok(());
        }
    }
}
