//! Looks at this machine: what the demo needs, what is there, how to get what is not.
//!
//! Each check looks for itself and changes nothing that lasts.

use schemars::JsonSchema;
use serde::Serialize;

mod kernel;
mod kvm;
mod memory;
mod migration;
mod qemu;
mod sandbox;
mod tap;

/// How good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// All there.
    Good,
    /// The demo runs, but something is slower or cannot be done.
    Limited,
    /// The demo cannot run.
    Missing,
}

/// One thing looked at.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Check {
    /// What it is.
    pub(crate) name: &'static str,
    /// How good it is.
    pub(crate) state: State,
    /// What was found.
    pub(crate) found: String,
    /// What follows from it.
    pub(crate) follows: String,
    /// How to get more, where there is more to get.
    pub(crate) fix: Option<String>,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>, follows: impl Into<String>) -> Self {
        Check { name, state: State::Good, found: found.into(), follows: follows.into(), fix: None }
    }

    fn limited(
        name: &'static str,
        found: impl Into<String>,
        follows: impl Into<String>,
        fix: impl Into<Option<String>>,
    ) -> Self {
        Check { name, state: State::Limited, found: found.into(), follows: follows.into(), fix: fix.into() }
    }

    fn missing(
        name: &'static str,
        found: impl Into<String>,
        follows: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Check { name, state: State::Missing, found: found.into(), follows: follows.into(), fix: Some(fix.into()) }
    }
}

/// The first number of the version of the QEMU that the scripts would use.
pub(crate) fn qemu_major() -> Option<u32> {
    qemu::find().ok()?.major()
}

/// All checks, in the order a run needs things.
pub(crate) fn examine() -> Vec<Check> {
    let qemu = qemu::find();
    let kernel = kernel::find();
    let (shared, tap) = (memory::check_shared(), tap::check());
    let migration = migration::check(qemu.as_ref().ok(), &shared, &tap);
    vec![
        qemu::check(qemu.as_ref()),
        kernel::check(kernel.as_deref()),
        kvm::check(qemu.as_ref().ok(), kernel.as_deref()),
        shared,
        memory::check_hugepages(),
        tap,
        migration,
        sandbox::check(),
    ]
}

/// Can `scripts/demo.sh` install Debian packages by itself?
fn can_install() -> bool {
    nix::unistd::geteuid().is_root() && in_path("apt-get").is_some()
}

/// The program of this name in `PATH`.
fn in_path(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}
