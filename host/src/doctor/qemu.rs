//! QEMU and its version.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use super::{Check, can_install, in_path};

const NAME: &str = "qemu";
const PROGRAM: &str = "qemu-system-x86_64";

/// A QEMU program that runs.
#[derive(Debug)]
pub(super) struct Qemu {
    /// The program.
    pub(super) program: PathBuf,
    version: String,
}

impl Qemu {
    /// Its version.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    #[cfg(test)]
    pub(super) fn of(program: &str, version: &str) -> Qemu {
        Qemu { program: program.into(), version: version.to_owned() }
    }

    /// The first number of its version.
    pub(super) fn major(&self) -> Option<u32> {
        major(&self.version)
    }
}

/// The QEMU the scripts use: `$QEMU`, or the one in `PATH`; an error says why there is none.
pub(super) fn find() -> Result<Qemu, String> {
    let program = match env::var_os("QEMU").filter(|program| !program.is_empty()) {
        Some(program) => PathBuf::from(program),
        None => in_path(PROGRAM).ok_or_else(|| format!("no {PROGRAM} in PATH"))?,
    };
    let output = Command::new(&program)
        .arg("--version")
        .output()
        .map_err(|error| format!("{} does not run: {error}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match version(&text) {
        Some(version) if output.status.success() => Ok(Qemu { program, version: version.to_owned() }),
        _ => Err(format!("{} does not say its version", program.display())),
    }
}

/// `QEMU emulator version 7.2.22 (Debian …)` → `7.2.22`.
fn version(text: &str) -> Option<&str> {
    text.lines().next()?.split_once("version ")?.1.split_whitespace().next()
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

/// There? Which?
pub(super) fn check(qemu: Result<&Qemu, &String>) -> Check {
    let install = "apt-get install qemu-system-x86, or name your own with QEMU=PROGRAM";
    match qemu {
        Ok(Qemu { program, version }) => {
            let found = format!("{version} ({})", program.display());
            match major(version) {
                Some(old) if old < 7 => Check::limited(
                    NAME,
                    found,
                    "older than 7.2, which nobody has tried",
                    "bring a newer one with QEMU=PROGRAM".to_owned(),
                ),
                // Seen on 7.2.22; 10.0.2 is fine. What lies between has not been tried.
                Some(old) if old < 10 => Check::limited(
                    NAME,
                    found,
                    "up to the 7.2 of Debian 12 it crashes under TCG when a vhost-user NIC uses MSI-X: the scripts give the NIC vectors=0",
                    "bring QEMU 10 with QEMU=PROGRAM to use MSI-X under TCG".to_owned(),
                ),
                _ => Check::good(NAME, found, "guests boot on the NIC, with MSI-X or without"),
            }
        }
        Err(why) if can_install() => {
            Check::limited(NAME, why, "scripts/demo.sh installs it", format!("{install}; scripts/demo.sh does it"))
        }
        Err(why) => Check::missing(NAME, why, "no guest can be booted", format!("as root: {install}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_first_line() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright";
        assert_eq!(version(text), Some("7.2.22"));
        assert_eq!(version(""), None);
        assert_eq!(major("10.0.2"), Some(10));
    }
}
