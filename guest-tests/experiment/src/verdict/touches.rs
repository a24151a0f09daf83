//! The emulated CPU's testimony: whether it ever loaded a byte of the file's pages.

use super::{Circumstances, Copies, NEARLY_NONE, Scope, TOLERANCE, Testimony, Verdict};
use crate::row::{PathKind, Row};
use crate::run::{Method, TouchAccounts};

/// Why there are no counts where none were asked for.
pub const NOT_COUNTED: &str = "accesses to the file's pages were not counted (run-qemu.sh --touches)";

/// The testimony of who counts every access; `None`: nobody was asked to. Whatever the CPU copied it had loaded before. The
/// opposite does not hold: a checksum loads, too, and copies nothing.
#[must_use]
pub fn touches(method: &Method, path_kind: PathKind, circumstances: Circumstances) -> Option<Testimony> {
    let accounts = match (&method.touches, method.reasons.get("touches")) {
        (Some(accounts), _) => accounts,
        (None, Some(reason)) if reason != NOT_COUNTED => return Some(Testimony::Silent { reason: reason.clone() }),
        (None, _) => return None,
    };
    Some(
        says(accounts, method.bytes_sent, path_kind, circumstances)
            .unwrap_or_else(|reason| Testimony::Silent { reason }),
    )
}

fn says(
    accounts: &TouchAccounts,
    sent: Option<u64>,
    path_kind: PathKind,
    circumstances: Circumstances,
) -> Result<Testimony, String> {
    let TouchAccounts { loaded, loaded_by_programs, control, .. } = accounts;
    let sent = sent.filter(|sent| *sent > 0).ok_or("no bytes were sent")?;
    // Who is blind says zero.
    for (when, counted) in [("before", control.before), ("after", control.after)] {
        if control.pages == 0 || counted != control.pages {
            return Err(format!(
                "of {} bytes read for control {when} the transfer, {counted} were counted",
                control.pages
            ));
        }
    }
    if loaded_by_programs > loaded {
        return Err("its figures do not add up".to_owned());
    }
    if path_kind == PathKind::Direct {
        return Err("the bytes did not come from the watched pages".to_owned());
    }
    if circumstances.pages_moved > 0 {
        return Err(format!("{} pages of the file moved in memory during the transfer", circumstances.pages_moved));
    }
    let share = *loaded as f64 / sent as f64;
    let mut figures = format!("the CPU loaded {loaded} bytes of the file's pages, {share:.2} for each that was sent");
    if *loaded_by_programs > 0 {
        figures += &format!(" ({loaded_by_programs} of them in programs)");
    }
    let (verdict, copies) = if share <= NEARLY_NONE {
        (Some(Verdict::ZeroCopy), Copies::exactly(0.0))
    } else {
        (None, Copies::at_least(0.0))
    };
    Ok(Testimony::Says { verdict, copies, scope: Scope::Whole, figures })
}

/// Methods whose bytes the CPU sums on their way, for the NIC may not (docs/findings.md).
const SUMMED: [&str; 1] = ["sendfile-udp"];

/// How often each payload byte was read, where that is more often than copies account for: by a pass that nobody is known to make, or by a
/// count that is wrong.
pub(super) fn unaccounted(method: &Method) -> Option<f64> {
    let row = Row::parse(&method.method).ok()?;
    let asked = touches(method, row.path_kind(), Circumstances::default());
    let (Some(Testimony::Says { .. }), Some(accounts)) = (asked, &method.touches) else { return None };
    let known = method.cpu_copies? + if SUMMED.contains(&row.method.as_str()) { 1.0 } else { 0.0 };
    // A program may read as it likes.
    let read = accounts.loaded.saturating_sub(accounts.loaded_by_programs) as f64 / method.bytes_sent? as f64;
    Some(read).filter(|read| *read > known + TOLERANCE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{GuestAccounts, TouchControl};
    use crate::verdict::{Judgement, guest, join};

    const SENT: u64 = 1 << 20;

    /// A transfer of which the kernel says that it copied so many bytes, and the emulator that the CPU loaded so many.
    fn method(copied: u64, loaded: u64) -> Method {
        Method {
            method: "sendfile".to_owned(),
            bytes_sent: Some(SENT),
            guest: GuestAccounts {
                copied_bytes: [("_copy_to_iter".to_owned(), Some(copied))].into(),
                ..GuestAccounts::default()
            },
            touches: Some(TouchAccounts {
                loaded,
                loaded_by_programs: 0,
                stored: 0,
                control: TouchControl { pages: 256, before: 256, after: 256 },
            }),
            ..Method::default()
        }
    }

    fn joined(method: &Method) -> Judgement {
        let (kind, circumstances) = (PathKind::PageCache, Circumstances::default());
        join(&[
            ("guest", guest(method, kind, circumstances)),
            ("touches", touches(method, kind, circumstances).expect("asked")),
        ])
    }

    #[test]
    fn what_was_copied_must_have_been_loaded() {
        assert_eq!(joined(&method(0, 0)).verdict, Some(Verdict::ZeroCopy));
        assert_eq!(joined(&method(SENT, SENT)).verdict, Some(Verdict::Copied));
        assert_eq!(joined(&method(2 * SENT, SENT)).verdict, Some(Verdict::Copied));
        // Accounts of copies that never happened.
        let lie = joined(&method(SENT, 0));
        assert_eq!(lie.verdict, Some(Verdict::WitnessesDisagree), "{}", lie.why);
        assert!(lie.why.contains("the CPU loaded 0 bytes of the file's pages, 0.00 for each"), "{}", lie.why);
        // A pass that copies nothing, such as a checksum's, shows and contradicts nobody.
        let pass = joined(&method(0, SENT));
        assert_eq!(pass.verdict, Some(Verdict::ZeroCopy));
        assert!(pass.why.contains("1.00 for each"), "{}", pass.why);
    }

    #[test]
    fn a_pass_that_nobody_is_known_to_make_is_surprising() {
        let read = |name: &str, copies, loaded| {
            let row = Method { method: name.to_owned(), cpu_copies: copies, ..method(0, loaded) };
            unaccounted(&row).map(|read| (read * 10.0).round() as u64)
        };
        assert_eq!(read("sendfile", Some(0.0), 0), None);
        assert_eq!(read("sendfile", Some(0.0), SENT), Some(10));
        assert_eq!(read("sendfile-no-sg", Some(1.0), SENT + SENT / 50), None, "ends that are read twice");
        assert_eq!(read("sendfile-no-sg", Some(1.0), 2 * SENT), Some(20));
        assert_eq!(read("sendfile-udp", Some(0.02), SENT), None, "the sum");
        assert_eq!(read("sendfile-udp", Some(0.02), 2 * SENT), Some(20));
        assert_eq!(read("ktls-sendfile", None, SENT), None, "what is not known accounts for anything");
        let mut by_program = Method { cpu_copies: Some(0.0), ..method(0, SENT) };
        by_program.touches.as_mut().expect("it has them").loaded_by_programs = SENT;
        assert_eq!(unaccounted(&by_program), None);
    }

    #[test]
    fn who_does_not_see_its_control_is_not_believed() {
        for (pages, before, after, named) in [(256, 0, 256, "before"), (256, 256, 255, "after"), (0, 0, 0, "before")] {
            let blind = TouchAccounts { control: TouchControl { pages, before, after }, ..TouchAccounts::default() };
            let blind = Method { touches: Some(blind), ..method(SENT, 0) };
            let judgement = joined(&blind);
            assert_eq!(judgement.verdict, Some(Verdict::Copied), "{}", judgement.why);
            assert!(judgement.why.contains(named), "{}", judgement.why);
        }
    }

    #[test]
    fn nobody_asked_is_no_witness_and_a_reason_is_told() {
        let mut row = Method { touches: None, ..method(0, 0) };
        let of = |row: &Method| touches(row, PathKind::PageCache, Circumstances::default());
        assert_eq!(of(&row), None);
        row.reasons.insert("touches".to_owned(), NOT_COUNTED.to_owned());
        assert_eq!(of(&row), None);
        row.reasons.insert("touches".to_owned(), "the file was not in memory".to_owned());
        assert_eq!(of(&row), Some(Testimony::Silent { reason: "the file was not in memory".to_owned() }));
        let moved = Circumstances { pages_moved: 1, ..Circumstances::default() };
        assert!(matches!(touches(&method(0, 0), PathKind::PageCache, moved), Some(Testimony::Silent { .. })));
        let direct = touches(&method(0, 0), PathKind::Direct, Circumstances::default());
        assert!(matches!(direct, Some(Testimony::Silent { .. })));
    }
}
