//! Locked in: what a process that reads a hostile guest's memory gives up once everything is open.
//!
//! Operation, in the order in which a process does it:
//! 1. [`set`] says once how much is given up, and by which [`Program`]; whoever starts a thread has it [`enter`] its [`Role`] first
//!    of all.
//! 2. [`close`], on the main thread before it starts the others, which inherit it: no new privileges, no capabilities,
//!    no file but by a descriptor that is open (Landlock), none of the system calls that a device never makes ([`calls`]).
//! 3. [`enter`], on each thread: only the system calls of its role.
//!
//! | what a thread tries | what comes of it |
//! |---|---|
//! | to run a program, trace, map executable memory, change what it may do | the process is killed (`SIGSYS`) |
//! | another call that its role has not | `EPERM` |
//! | a file by its path | `EPERM`; what a role may remove or read by path, Landlock allows in the folders of [`Paths`] alone |
//!
//! Threads that were there before [`close`] (a capture's writer, a link's connector) give up everything by themselves
//! when they enter. A role that [`is_outside`](Role::is_outside) gives up nothing, and the status says so.
//!
//! Limits: threads share their memory. What one of them may do, another that was taken over may try to have it do;
//! that is why what no thread needs is taken from all, and why the calls that are left to each are few. Requests to io_uring
//! pass no filter of system calls: its rings allow the operations they are made for, and nothing else
//! ([`memory::uring`](crate::memory)), whatever the mode.

mod calls;
mod capabilities;
mod files;
mod status;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

pub use files::Paths;
use status::Kernel;
pub use status::{Possible, Report};

/// How much is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// All of it.
    On,
    /// Nothing, but the kernel's log says which system calls would have been refused.
    Log,
    /// Nothing.
    #[default]
    Off,
}

impl Mode {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Mode::On => "on",
            Mode::Log => "log",
            Mode::Off => "off",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not a mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not how much to give up; use on, log (refuse nothing, have the kernel log it) or off")]
pub struct UnknownMode(String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        let known = [Mode::On, Mode::Log, Mode::Off].into_iter();
        known.clone().find(|mode| mode.name() == name).ok_or_else(|| UnknownMode(name.to_owned()))
    }
}

/// Which command it is: threads of the same role may need more of the one than of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Program {
    /// `vnic serve`. No thread is started once its first message is read.
    #[default]
    Serve,
    /// `vnic attach`. Reads another process's memory, through files that are open, and starts threads when somebody follows.
    Attach,
    /// `vnic proxy`. Its main thread is its session's, which dials; how many notifications wait in a file is to be read by a path
    /// alone; and it starts threads when somebody follows.
    Proxy,
}

/// What a thread is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Waits for the end, and removes the sockets.
    Main,
    /// Talks with a front-end; with `connects`, it also dials it.
    Session {
        /// The front-end listens.
        connects: bool,
    },
    /// Serves queues.
    Worker,
    /// Answers on the control socket, or follows what observers are told.
    Control,
    /// Writes a capture.
    Writer,
    /// Connects a link to a socket.
    Connector,
    /// Starts another program, which locks itself in.
    Starter,
}

impl Role {
    /// Does it give up nothing?
    #[must_use]
    pub const fn is_outside(self) -> bool {
        matches!(self, Role::Starter)
    }
}

/// Why a process cannot be locked in.
#[derive(Debug, thiserror::Error)]
#[error("cannot be locked in: {what}: {source} (--sandbox off goes without)")]
pub struct SandboxError {
    /// What was tried.
    pub what: &'static str,
    /// What was said.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl SandboxError {
    fn new(what: &'static str) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Self {
        move |source| SandboxError { what, source }
    }
}

impl From<SandboxError> for io::Error {
    fn from(error: SandboxError) -> Self {
        io::Error::other(error)
    }
}

/// Of the whole process: it can be said once, as it can be done once.
static MODE: OnceLock<(Mode, Program)> = OnceLock::new();
/// The main thread has given up what those inherit that it starts.
static CLOSED: AtomicBool = AtomicBool::new(false);
/// Threads that are outside, by name.
static OUTSIDE: Mutex<Vec<String>> = Mutex::new(Vec::new());

thread_local! {
    /// This thread has given up all but the system calls of its role, to change that included.
    static ENTERED: Cell<bool> = const { Cell::new(false) };
}

fn mode() -> (Mode, Program) {
    MODE.get().copied().unwrap_or_default()
}

/// Says how much this process gives up, and what it is: before it starts a thread. What was said first holds.
pub fn set(mode: Mode, program: Program) {
    // Asked while there are files to ask.
    let _ = Possible::on_this_kernel();
    let _ = MODE.set((mode, program));
}

/// Gives up what no thread needs from here on, but these paths. Threads started from now on inherit it.
///
/// # Errors
/// The kernel has what is needed, and refuses it. What this kernel has not is no error: [`Report`] says so.
pub fn close(paths: &Paths) -> Result<Report, SandboxError> {
    let ((mode, _), mut kernel) = (mode(), Kernel::open());
    if mode == Mode::On {
        give_up(paths)?;
    }
    if mode != Mode::Off && Possible::on_this_kernel().seccomp {
        calls::apply(&calls::never(mode)?)?;
    }
    CLOSED.store(true, Ordering::Release);
    let outside = OUTSIDE.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(kernel.report(mode, outside))
}

/// Leaves this thread the system calls of its role, and nothing else: to be called as the first thing that it does.
///
/// # Errors
/// The kernel refuses it: the thread must not go on.
pub fn enter(role: Role) -> Result<(), SandboxError> {
    let (mode, program) = mode();
    if mode == Mode::Off {
        return Ok(());
    }
    if role.is_outside() {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        OUTSIDE.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        return Ok(());
    }
    let seccomp = Possible::on_this_kernel().seccomp;
    if !CLOSED.load(Ordering::Acquire) {
        if mode == Mode::On {
            give_up(&Paths::default())?;
        }
        if seccomp {
            calls::apply(&calls::never(mode)?)?;
        }
    }
    if !seccomp {
        return Ok(());
    }
    calls::only(role, program, mode)?.iter().try_for_each(calls::apply)?;
    ENTERED.set(true);
    Ok(())
}

/// Has this thread entered a role? Those that it starts have it from their beginning, and cannot enter one.
#[must_use]
pub fn has_entered() -> bool {
    ENTERED.get()
}

/// [`enter`], where there is nobody to hand an error to: says it, and returns whether the thread may go on.
#[must_use]
pub fn enters(role: Role) -> bool {
    let entered = enter(role);
    if let Err(error) = &entered {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        tracing::error!("the thread {name} {error}");
    }
    entered.is_ok()
}

/// Privileges and files.
fn give_up(paths: &Paths) -> Result<(), SandboxError> {
    nix::sys::prctl::set_no_new_privs().map_err(|errno| SandboxError::new("no new privileges")(Box::new(errno)))?;
    files::give_up(paths)?;
    capabilities::drop_all()
}
