//! Pages at rest: those of each kind, against `/proc/self/pagemap`; and all of memory, against `/proc/kpageflags`.

use std::collections::BTreeMap;

use guest_fixture::{Agent, Deadline, until};
use vnic::introspect::{Kind, Label};
use vnic_experiment::owned::{Owned, Owner};

use crate::guest::Guest;
use crate::tally::{Line, Tally, Verdict};

/// What the guest can show (`pages show`).
const KINDS: &[&str] = &[
    "rootfs",
    "tmpfs",
    "tmpfs, huge pages",
    "ext4",
    "ext4, large folios",
    "xfs",
    "xfs, large folios",
    "overlayfs",
    "deleted",
    "never named",
    "memfd",
    "hard links",
    "bind mount",
    "anonymous",
    "anonymous, huge pages",
    "shared anonymous",
    "private copy of a file",
    "forked",
    "merged (KSM)",
];

/// Of them, some that every kernel has.
const SOME: &[&str] = &["rootfs", "tmpfs", "ext4", "deleted", "anonymous"];

/// How the guest's console says that all flags were read once.
const READ: &str = "the pages' flags are read";
const READ_AGAIN: Deadline = Deadline::secs("the guest to read its pages' flags again", 120);

/// A line for each kind, and one for all of memory.
#[track_caller]
pub(crate) fn all(guest: &mut Guest) -> Vec<Line> {
    let mut lines: Vec<Line> = KINDS.iter().map(|kind| of_kind(guest, kind)).collect();
    lines.push(everything(guest));
    lines
}

#[track_caller]
fn of_kind(guest: &mut Guest, kind: &str) -> Line {
    let said = match guest.try_run(&["pages", "show", kind]) {
        Err(why) => return guest.line(kind, Tally::default(), Some(why)),
        Ok(said) => said,
    };
    let pages: Vec<Owned> =
        said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect();
    let mut eyes = guest.watched.eyes();
    let mut tally = Tally::default();
    for page in &pages {
        let label = eyes.label(page.gpa);
        tally.add(verdict(page, &label), || format!("{kind}: {page:?} is said to be {label:?}"));
    }
    guest.line(kind, tally, None)
}

/// Some kinds that every kernel has, by `labels` of their addresses.
#[track_caller]
pub(crate) fn some(agent: &mut Agent, when: &str, labels: impl Fn(&[u64]) -> Vec<Label>) -> Vec<Line> {
    let mut of_kind = |kind: &&str| {
        let said = agent.run(&["pages", "show", kind]);
        let pages: Vec<Owned> = said.lines().map(|line| serde_json::from_str(line).expect("a page")).collect();
        let addresses: Vec<u64> = pages.iter().map(|page| page.gpa).collect();
        let mut tally = Tally::default();
        for (page, label) in pages.iter().zip(&labels(&addresses)) {
            tally.add(verdict(page, label), || format!("{page:?} is said to be {label:?}"));
        }
        Line { kernel: agent.kernel.clone(), machine: when.to_owned(), kind: (*kind).to_owned(), tally, note: None }
    };
    SOME.iter().map(&mut of_kind).collect()
}

/// Is the label what the guest says?
pub(crate) fn verdict(page: &Owned, label: &Label) -> Verdict {
    let is = |right: bool| if right { Verdict::Right } else { Verdict::Wrong };
    match (&page.by, label.kind) {
        (_, Kind::Unsettled) => Verdict::Unsettled,
        (Owner::File { names, filesystem, page, deleted }, Kind::File) => is(label.page == Some(*page)
            && label.deleted == Some(*deleted)
            && label.filesystem.as_ref() == Some(&filesystem.as_str().into())
            && label.path.as_ref().is_some_and(|path| names.iter().any(|name| **name == **path))),
        (Owner::Program { name, places }, Kind::Anonymous) => match label.pid.zip(label.address) {
            // Nothing is said of whose it is.
            None => Verdict::Unsettled,
            Some(place) => is(label.program.as_ref() == Some(name) && places.contains(&place)),
        },
        _ => Verdict::Wrong,
    }
}

/// Bits of `/proc/kpageflags`.
const UPTODATE: u64 = 1 << 3;
const LRU: u64 = 1 << 5;
const SLAB: u64 = 1 << 7;
const BUDDY: u64 = 1 << 10;
const ANONYMOUS: u64 = 1 << 12;
const HEAD: u64 = 1 << 15;
const TAIL: u64 = 1 << 16;
const NO_PAGE: u64 = 1 << 20;
const PAGE_TABLE: u64 = 1 << 26;
const RESERVED: u64 = 1 << 32;

/// What may be said of a page with these flags.
fn allowed(flags: u64) -> &'static [Kind] {
    let has = |flag: u64| flags & flag != 0;
    match () {
        () if has(NO_PAGE) => &[Kind::Firmware, Kind::Reserved, Kind::Unknown],
        () if has(RESERVED) => &[Kind::Reserved, Kind::Firmware],
        () if has(SLAB) => &[Kind::Slab],
        () if has(BUDDY) => &[Kind::Free],
        () if has(PAGE_TABLE) => &[Kind::Unknown],
        () if has(ANONYMOUS) => &[Kind::Anonymous],
        () if has(LRU) => &[Kind::File],
        // A file's page that is on its way to the list of those that are used.
        () if has(UPTODATE) => &[Kind::File, Kind::Unknown],
        // The kernel's own, or free and held ready by a CPU.
        () => &[Kind::Socket, Kind::Slab, Kind::Free, Kind::Unknown],
    }
}

#[track_caller]
fn everything(guest: &mut Guest) -> Line {
    guest.agent.run(&["pages", "flags"]);
    guest.wait_for_console(READ);
    let mut eyes = guest.watched.eyes();
    let mut look =
        || -> BTreeMap<u64, Label> { guest.watched.pages().map(|gpa| (gpa >> 12, eyes.label(gpa))).collect() };
    let (first, second) = (look(), look());
    guest.agent.run(&["touch", "/run/flags.go"]);
    until(READ_AGAIN, || {
        (guest.agent.run(&["sh", "-c", "test -e /run/flags && echo yes || true"]) == "yes\n").then_some(())
    });
    let mut tally = Tally::default();
    // Of a block of pages, on some kernels only the first has the block's flags.
    let mut head = None;
    let mut next = 0;
    for line in guest.agent.run(&["cat", "/run/flags"]).lines() {
        let mut words = line.split(' ');
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        let (Some(from), Some(count)) = (number(), number()) else { panic!("{line}") };
        let flags = line.rsplit_once("0x").and_then(|(_, hex)| u64::from_str_radix(hex, 16).ok()).expect("flags");
        if from != next || flags & (HEAD | TAIL) == 0 {
            head = None;
        }
        if flags & HEAD != 0 {
            head = Some(flags);
        }
        next = from + count;
        let allowed = match (flags & TAIL, head) {
            (0, _) => allowed(flags),
            (_, Some(head)) => allowed(flags | head & (LRU | UPTODATE)),
            // Its first page has changed meanwhile.
            (_, None) => continue,
        };
        for number in from..next {
            // Where the guest has no memory, there is nothing to be said of.
            let Some((label, again)) = first.get(&number).zip(second.get(&number)) else { continue };
            let verdict = match label.kind {
                Kind::Unsettled => Verdict::Unsettled,
                kind if kind != again.kind => Verdict::Unsettled,
                kind if allowed.contains(&kind) => Verdict::Right,
                _ => Verdict::Wrong,
            };
            tally.add(verdict, || format!("page {number:#x} has the flags {flags:#x}, and is said to be {label:?}"));
        }
    }
    let all = first.len() as u64;
    let changed = all.saturating_sub(tally.all());
    guest.line("all of memory", tally, Some(format!("{changed} changed their flags meanwhile")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_file() -> (Owned, Label) {
        let by =
            Owner::File { names: vec!["/a".into(), "/b".into()], filesystem: "xfs".into(), page: 3, deleted: false };
        let [path, filesystem] = ["/b", "xfs"].map(|text| Some(text.into()));
        let label = Label { path, filesystem, page: Some(3), deleted: Some(false), ..Label::of(0x1000, Kind::File) };
        (Owned { gpa: 0x1000, by }, label)
    }

    #[test]
    fn any_of_a_files_names_is_right_and_all_else_of_it_must_be() {
        let (page, label) = of_file();
        assert_eq!(verdict(&page, &label), Verdict::Right);
        let changes: [fn(&mut Label); 5] = [
            |label| label.path = Some("/c".into()),
            |label| label.filesystem = Some("ext4".into()),
            |label| label.page = Some(4),
            |label| label.deleted = Some(true),
            |label| label.kind = Kind::Anonymous,
        ];
        for change in changes {
            let mut other = label.clone();
            change(&mut other);
            assert_eq!(verdict(&page, &other), Verdict::Wrong, "{other:?}");
        }
        assert_eq!(verdict(&page, &Label::of(0x1000, Kind::Unsettled)), Verdict::Unsettled);
    }

    #[test]
    fn a_program_is_one_that_has_the_page_there() {
        let by = Owner::Program { name: "exe".into(), places: vec![(7, 0x5000), (8, 0x5000)] };
        let page = Owned { gpa: 0x1000, by };
        let said = |pid, address| {
            let program = Some("exe".to_owned());
            verdict(&page, &Label { program, pid, address, ..Label::of(0x1000, Kind::Anonymous) })
        };
        assert_eq!(said(Some(8), Some(0x5000)), Verdict::Right);
        assert_eq!(said(Some(8), Some(0x6000)), Verdict::Wrong);
        assert_eq!(said(Some(9), Some(0x5000)), Verdict::Wrong);
        assert_eq!(said(None, None), Verdict::Unsettled);
    }

    #[test]
    fn flags_leave_the_kinds_that_they_can_be_of() {
        for (flags, kind, fits) in [
            (LRU | UPTODATE, Kind::File, true),
            (LRU | UPTODATE | ANONYMOUS, Kind::File, false),
            (SLAB, Kind::Socket, false),
            (0, Kind::File, false),
            (BUDDY, Kind::Free, true),
        ] {
            assert_eq!(allowed(flags).contains(&kind), fits, "{flags:#x}");
        }
    }
}
