//! What all share who talk with clients of the control socket.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::sandbox::{self, Role};

/// Stack of a control thread, bytes: there are many, and they do little.
const STACK: usize = 512 << 10;

/// A client counts as one until this is dropped.
#[derive(Debug)]
pub struct Admitted(pub(super) Arc<AtomicUsize>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Starts a thread.
pub(crate) fn start(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // By one like it, where somebody asks for what nobody did before.
    let inherits = sandbox::has_entered();
    let body = move || {
        if inherits || sandbox::enters(Role::Control) {
            body();
        }
    };
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body).map(drop)
}

/// Writes one line of JSON.
pub(crate) fn send(stream: &mut (impl Write + AsFd), value: &impl serde::Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Makes this thread the nicest there is: a trace loses events rather than take a worker's CPU.
pub(crate) fn give_way() {
    // SAFETY: the call takes three numbers; on Linux 0 is the calling thread, which does nothing else.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) } < 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "a trace that takes its share of the CPUs");
    }
}
