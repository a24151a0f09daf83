//! Starts a guest on our NIC.
//!
//! | module | one sentence |
//! |---|---|
//! | [`options`] | what `scripts/run-qemu.sh` can be asked for |
//! | [`machine`] | a virtual machine as data, and QEMU's command line for it |
//! | [`prepare`](mod@prepare) | from options to a machine: fetches, builds and writes what it is made of |
//! | [`run`](mod@run) | runs it, with `vnic serve` and `vnic judge` beside it |
//! | [`children`] | programs that end with this one |
//!
//! Place: the command behind `scripts/run-qemu.sh`, and what the guest tests start machines with.

#![expect(clippy::print_stderr, reason = "what is done is said as it is done")]

mod accelerator;
pub mod children;
pub mod machine;
pub mod options;
pub mod prepare;
pub mod run;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

pub use machine::Machine;
pub use options::Options;
pub use prepare::prepare;
pub use run::{run, vnic};

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Not on this machine, or not without a network: no newer kernel, say. The reason has been said.
    #[error("{0}")]
    NotToBeHad(String),
    /// A program that was run has said why.
    #[error("{0}")]
    Said(String),
    /// A signal asked for the end.
    #[error("interrupted")]
    Interrupted,
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

/// The repository.
#[must_use]
pub fn repository() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let built = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        built.canonicalize().unwrap_or_else(|_| built.to_owned())
    });
    &ROOT
}

/// A program found in `PATH` or in the folders of the administrator's tools.
#[must_use]
pub fn in_path(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(tool)).find(|program| program.is_file())
}

/// A command as a shell would take it.
#[must_use]
pub fn shown(words: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,.:/@%".contains(c);
    let quoted = words.into_iter().map(|word| match word.as_ref() {
        word if !word.is_empty() && word.chars().all(plain) => word.to_owned(),
        word => format!("'{}'", word.replace('\'', r"'\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_command_is_shown_so_that_a_shell_takes_it() {
        assert_eq!(super::shown(["ping", "-c", "3 4", "it's", ""]), r"ping -c '3 4' 'it'\''s' ''");
    }
}
