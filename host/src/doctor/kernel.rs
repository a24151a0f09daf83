//! The guest's kernel, unpacked by the scripts.

use std::path::{Path, PathBuf};

use super::{Check, in_path};

const NAME: &str = "guest kernel";
/// Where the scripts unpack kernels, from the repository's root; `stable` is a link to this Debian's.
const UNPACKED: &str = "target/guest/kernel";

/// The kernel that guests boot, if it is unpacked.
pub(super) fn find() -> Option<PathBuf> {
    std::fs::canonicalize(Path::new(UNPACKED).join("stable/vmlinuz")).ok()
}

/// Unpacked already?
pub(super) fn check(kernel: Option<&Path>) -> Check {
    match kernel {
        Some(path) => Check::good(NAME, path.display().to_string(), "nothing has to be downloaded"),
        None if in_path("apt-get").is_some() && in_path("dpkg").is_some() => Check::limited(
            NAME,
            format!("none unpacked under {UNPACKED}/ here"),
            "scripts/demo.sh downloads Debian's and unpacks it there, without installing it",
            "run scripts/demo.sh from the repository's root, or bring your own with --kernel FILE --modules DIR"
                .to_owned(),
        ),
        None => Check::missing(
            NAME,
            format!("none unpacked under {UNPACKED}/ here, and no apt-get and dpkg to fetch Debian's with"),
            "there is no guest to boot",
            "bring your own: scripts/run-qemu.sh --kernel FILE --modules DIR",
        ),
    }
}
