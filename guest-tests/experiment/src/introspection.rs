//! The guest's kernel as a witness, read from outside: whose the pages are that a flow's payload lay in.
//!
//! Place: beside the device's own accounts ([`flow`](crate::flow)), which it shares nothing with but the addresses of the
//! payload: it is not told which file was sent, nor where that file's pages are.
//!
//! Operation: while the device has a buffer, the stamp of its pages is taken ([`Stamper`](vnic::introspect::Stamper)). When the last
//! byte was sent, each page is looked up, and believed if it still has its stamp: what has changed hands since is *unsettled*, or
//! of the kind that it was then. Pages of one file that stand at their place in it, seen from the stream, are counted together; the
//! file with most of them is the one that was sent.
//!
//! Limits: of a page that went from one owner to another and back, the stamp says nothing. So a page in a file, but not at its
//! place, is unsettled all the same, and so is a page that is alone; and only places up to the stream's own count.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vnic::introspect::{Kind, Label, Stamped};

use crate::run::IntrospectionAccounts;
use crate::trail::Piece;

/// Addresses that are looked up at a time.
const AT_ONCE: usize = 1024;

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Introspected {
    /// The accounts.
    Accounts(IntrospectionAccounts),
    /// There are none: why, one clause.
    Unknown(String),
}

/// A file's pages at their place in the stream.
#[derive(Debug, Default)]
struct Run {
    name: String,
    bytes: u64,
    pages: u64,
}

/// Asks `label` whose the pages are that these pieces lay in.
///
/// # Errors
/// The guest's kernel cannot be looked into: why.
pub fn testify(
    pieces: impl IntoIterator<Item = (Piece, u64)>,
    mut labels: impl FnMut(&[Stamped]) -> Result<Vec<Vec<Label>>, String>,
) -> Result<IntrospectionAccounts, String> {
    let pieces: Vec<(Piece, u64)> = pieces.into_iter().collect();
    let mut runs = BTreeMap::<(Option<Arc<str>>, Option<u64>, i64), Run>::new();
    let (mut payload, mut in_files, mut unsettled) = (0, 0, 0);
    let mut parts = 0;
    for pieces in pieces.chunks(AT_ONCE) {
        let buffer = |(piece, stamp): &(Piece, u64)| Stamped { gpa: piece.gpa, len: piece.len as u32, stamp: *stamp };
        let buffers: Vec<Stamped> = pieces.iter().map(buffer).collect();
        // A label for each page, or one for all.
        let labelled = pieces.iter().zip(labels(&buffers)?).flat_map(|((piece, _), labels)| {
            let last = labels.last().cloned();
            let labels = labels.into_iter().map(Some).chain(std::iter::repeat(last));
            piece.by_page().zip(labels.map_while(|label| label))
        });
        for (part, label) in labelled {
            parts += 1;
            payload += part.len;
            match (label.kind, label.page) {
                (Kind::Unsettled, _) | (Kind::File, None) => unsettled += part.len,
                (Kind::File, Some(page)) => {
                    in_files += part.len;
                    // Both are below 2⁶⁴; what overflows is a place no file has.
                    let shift = part.shift(page) as i64;
                    let run = runs
                        .entry((label.device.clone(), label.inode, shift))
                        .or_insert_with(|| Run { name: Label { page: None, ..label }.to_string(), ..Run::default() });
                    run.bytes += part.len;
                    run.pages += 1;
                }
                _ => {}
            }
        }
    }
    let one_page = parts == 1;
    let believed = |shift: i64, run: &Run| shift <= 0 && (run.pages > 1 || one_page);
    let runs = runs.into_iter().filter(|((_, _, shift), run)| believed(*shift, run));
    let sent = runs.max_by_key(|(_, run)| run.bytes).map(|(_, run)| run).unwrap_or_default();
    Ok(IntrospectionAccounts {
        payload_bytes: payload,
        from_page_cache_bytes: sent.bytes,
        unsettled_bytes: unsettled + in_files - sent.bytes,
        paths: if sent.bytes > 0 { vec![sent.name] } else { Vec::new() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight pages sent one after the other, that labels say these things of.
    fn eight(said: impl Fn(u64, Label) -> Label) -> IntrospectionAccounts {
        let pieces = [(Piece { gpa: 0x1000, len: 0x8000, offset: 0 }, 7)];
        let label = |gpa: u64| said(gpa / 4096 - 1, Label::of(gpa, Kind::Slab));
        let labels = |buffer: &Stamped| (0..8).map(|page| label(buffer.gpa + page * 4096)).collect();
        testify(pieces, |buffers| Ok(buffers.iter().map(labels).collect())).unwrap()
    }

    fn of_file(label: Label, inode: u64, page: u64) -> Label {
        let path = Some(format!("/f{inode}").into());
        Label { kind: Kind::File, inode: Some(inode), page: Some(page), path, ..label }
    }

    #[test]
    fn pages_of_a_file_at_their_place_are_its_own_also_behind_a_header() {
        let all = eight(|at, label| of_file(label, 1, at));
        assert_eq!((all.payload_bytes, all.from_page_cache_bytes, all.unsettled_bytes), (0x8000, 0x8000, 0));
        assert_eq!(all.paths, ["/f1"]);
        let behind = eight(|at, label| if at == 0 { label } else { of_file(label, 1, at - 1) });
        assert_eq!((behind.from_page_cache_bytes, behind.unsettled_bytes), (0x7000, 0));
        assert_eq!(eight(|_, label| label).from_page_cache_bytes, 0);
    }

    #[test]
    fn pages_that_a_file_was_given_since_are_not_what_was_sent() {
        // Read ahead into buffers that were let go; a page alone; another file's.
        for said in [
            (|at, label| of_file(label, 1, at + 3)) as fn(u64, Label) -> Label,
            |at, label| if at == 5 { of_file(label, 1, 5) } else { label },
            |at, label| of_file(label, at, at),
        ] {
            let accounts = eight(said);
            assert_eq!((accounts.from_page_cache_bytes, accounts.paths.len()), (0, 0));
            assert!(accounts.unsettled_bytes >= 4096, "{accounts:?}");
        }
    }

    #[test]
    fn pages_that_changed_hands_are_of_the_kind_that_they_were_and_of_no_file() {
        let pieces = [0, 1].map(|at| (Piece { gpa: 0x1000 + (at << 15), len: 0x8000, offset: at << 15 }, 7 + at));
        let labels = |buffer: &Stamped| match buffer.stamp {
            7 => vec![Label::of(buffer.gpa, Kind::File)],
            _ => vec![Label::of(buffer.gpa, Kind::Socket)],
        };
        let accounts = testify(pieces, |buffers| Ok(buffers.iter().map(labels).collect())).unwrap();
        assert_eq!(
            (accounts.payload_bytes, accounts.from_page_cache_bytes, accounts.unsettled_bytes),
            (0x1_0000, 0, 0x8000)
        );
    }

    #[test]
    fn a_kernel_that_cannot_be_looked_into_is_no_copy() {
        let piece = (Piece { gpa: 0, len: 1, offset: 0 }, 7);
        assert_eq!(testify([piece], |_| Err("no Linux".to_owned())), Err("no Linux".to_owned()));
    }
}
