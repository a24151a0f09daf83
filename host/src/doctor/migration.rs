//! What it takes to move a running guest from here, or to here. (`docs/migration.md`)

use super::qemu::Qemu;
use super::{Check, State};

const NAME: &str = "migration";

/// Can a guest move, and its connections with it? By what was found of the memory that two processes share, and of taps.
pub(super) fn check(qemu: Option<&Qemu>, shared: &Check, tap: &Check) -> Check {
    // QEMU's log of dirty pages is such memory, too: the device writes it.
    if shared.state != State::Good {
        let found = format!("no shared memory ({})", shared.found);
        return Check::limited(
            NAME,
            found,
            "no guest can move: QEMU has no log to share with the device",
            shared.fix.clone(),
        );
    }
    let Some(qemu) = qemu else {
        let fix = "install QEMU: see the line qemu".to_owned();
        return Check::limited(NAME, "no QEMU", "there is no guest to move", fix);
    };
    let found = format!("shared memory, QEMU {}", qemu.version());
    if tap.state != State::Good {
        return Check::limited(
            NAME,
            format!("{found}; no tap of its own ({})", tap.found),
            "a guest can move; over peer and passt its connections end, over a ready-made tap they go on",
            tap.fix.clone(),
        );
    }
    Check::good(
        NAME,
        format!("{found}, taps"),
        "a guest can move while it runs; over a tap on a bridge its connections go on",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_prevents_a_move_is_named_with_what_helps() {
        let good = |name| Check::good(name, "it works", "");
        let bad = |name| Check::limited(name, "it does not", "", "do this".to_owned());
        let qemu = Qemu::of("qemu", "10.0.2");
        let fine = check(Some(&qemu), &good("shared memory"), &good("tap"));
        assert_eq!((fine.state, fine.found.as_str()), (State::Good, "shared memory, QEMU 10.0.2, taps"));
        let alone = check(Some(&qemu), &good("shared memory"), &bad("tap"));
        assert!(alone.state == State::Limited && alone.follows.contains("connections end"), "{alone:?}");
        let none = check(Some(&qemu), &bad("shared memory"), &good("tap"));
        assert!(none.follows.contains("no guest can move"), "{none:?}");
        for check in [alone, none] {
            assert!(check.found.contains("it does not") && check.fix.as_deref() == Some("do this"), "{check:?}");
        }
        let no_qemu = check(None, &good("shared memory"), &good("tap"));
        assert!(no_qemu.state == State::Limited && no_qemu.fix.is_some(), "{no_qemu:?}");
    }
}
