//! What `vnic serve` can give up on this kernel.

use vnic::sandbox::Possible;

use super::Check;

const NAME: &str = "sandbox";

/// Can a process lock itself in?
pub(super) fn check() -> Check {
    let Possible { landlock, seccomp } = Possible::on_this_kernel();
    let landlock_found = landlock.map_or("no Landlock".to_owned(), |version| format!("Landlock {version}"));
    let found = format!("{landlock_found}, {}", if seccomp { "seccomp" } else { "no seccomp" });
    if landlock.is_some() && seccomp {
        let follows = "vnic serve gives up files and most system calls before it reads a message";
        return Check::good(NAME, found, follows);
    }
    Check::limited(
        NAME,
        found,
        "vnic serve keeps what this kernel cannot take from it; it says which in vnic status",
        landlock.is_none().then(|| "a kernel from 5.13 on, with landlock in its lsm= list".to_owned()),
    )
}
