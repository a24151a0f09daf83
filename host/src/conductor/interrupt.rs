//! ^C and SIGTERM end a run in order: waits give up, what is held is released. A second one ends the process at once.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static CAME: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: std::ffi::c_int) {
    CAME.store(true, Ordering::Relaxed);
}

/// From now on the first signal is only noted.
pub(super) fn watch() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESETHAND, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler does nothing but store to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.context("cannot watch for signals")?;
    }
    Ok(())
}

/// Did one come?
pub(super) fn came() -> bool {
    CAME.load(Ordering::Relaxed)
}
