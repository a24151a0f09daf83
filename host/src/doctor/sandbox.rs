//! What `vnic serve` can give up on this kernel.

use vnic::sandbox::Possible;

use super::Check;

const NAME: &str = "sandbox";

/// Can a process lock itself in?
pub(super) fn check() -> Check {
    let Possible { landlock, seccomp } = Possible::on_this_kernel();
    let found = |landlock: String, seccomp: &str| format!("{landlock}, {seccomp}");
    match (landlock, seccomp) {
        (Some(version), true) => Check::good(
            NAME,
            found(format!("Landlock {version}"), "seccomp"),
            "vnic serve gives up files and most system calls before it reads a message",
        ),
        (landlock, seccomp) => Check::limited(
            NAME,
            found(
                landlock.map_or("no Landlock".to_owned(), |version| format!("Landlock {version}")),
                if seccomp { "seccomp" } else { "no seccomp" },
            ),
            "vnic serve keeps what this kernel cannot take from it; it says which in vnic status",
            landlock.is_none().then(|| "a kernel from 5.13 on, with landlock in its lsm= list".to_owned()),
        ),
    }
}
