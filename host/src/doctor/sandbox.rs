//! What `vnic serve`, `attach` and `proxy` can give up on this kernel.

use vnic::sandbox::Possible;

use super::Check;

const NAME: &str = "sandbox";

/// Can a process lock itself in?
pub(super) fn check() -> Check {
    let Possible { landlock, seccomp } = Possible::on_this_kernel();
    let landlock_found = landlock.map_or("no Landlock".to_owned(), |version| format!("Landlock {version}"));
    let found = format!("{landlock_found}, {}", if seccomp { "seccomp" } else { "no seccomp" });
    if landlock.is_some() && seccomp {
        let follows = "serve, attach and proxy give up files and most system calls before they begin";
        return Check::good(NAME, found, follows);
    }
    Check::limited(
        NAME,
        found,
        "serve, attach and proxy keep what this kernel cannot take from them; vnic status says what",
        landlock.is_none().then(|| "a kernel from 5.13 on, with landlock in its lsm= list".to_owned()),
    )
}
