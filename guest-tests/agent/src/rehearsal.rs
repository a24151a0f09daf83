//! What a program copies beside the file: it reads its libraries, an interpreter its modules, before it sends a byte.
//!
//! Operation: the program first sends a file of one byte, with the books open. What it had copied then, it had not copied
//! for the file's sake, and is taken off the books of the transfer. They say so.

use vnic_experiment::wire::{Books, TransferSpec};

use super::transfer::Prepared;

/// The books of a transfer of one byte by the same program, or why there are none.
pub(super) fn books(spec: &TransferSpec) -> Result<Books, String> {
    let spec = TransferSpec { bytes: 1, offset: 0, cold: false, pause: false, ..spec.clone() };
    let sent = Prepared::new(spec).and_then(|prepared| prepared.send(&mut |_| Ok(())));
    sent.map(|done| done.books).map_err(|error| format!("{error:#}"))
}

/// Takes off what was copied in the rehearsal, and notes how much that was.
pub(super) fn take_off(books: &mut Books, rehearsal: Result<Books, String>) {
    let rehearsed = match rehearsal {
        Ok(rehearsed) => rehearsed.copied_bytes,
        Err(why) => {
            let note =
                format!("what the program copies beside the file is in the figures: it does not send one byte ({why})");
            books.notes.push(note);
            return;
        }
    };
    let mut taken_off = 0_u64;
    for (function, bytes) in &mut books.copied_bytes {
        if let (Some(bytes), Some(Some(beside))) = (bytes.as_mut(), rehearsed.get(function)) {
            let beside = (*beside).min(*bytes);
            *bytes -= beside;
            taken_off = taken_off.saturating_add(beside);
        }
    }
    if taken_off > 0 {
        books.notes.push(format!("{taken_off} bytes that it copies beside the file are not counted"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(bytes: &[(&str, Option<u64>)]) -> Books {
        let copied_bytes = bytes.iter().map(|(function, bytes)| ((*function).to_owned(), *bytes)).collect();
        Books { copied_bytes, ..Books::default() }
    }

    #[test]
    fn what_is_copied_for_one_byte_is_not_the_files() {
        let mut books = copied(&[("read", Some(5000)), ("write", Some(10)), ("other", None)]);
        take_off(&mut books, Ok(copied(&[("read", Some(4096)), ("write", Some(20)), ("other", Some(1))])));
        assert_eq!(
            books.copied_bytes,
            copied(&[("read", Some(904)), ("write", Some(0)), ("other", None)]).copied_bytes
        );
        assert_eq!(books.notes, ["4106 bytes that it copies beside the file are not counted"]);
    }

    #[test]
    fn without_a_rehearsal_all_of_it_counts_and_the_books_say_so() {
        let mut books = copied(&[("read", Some(5000))]);
        take_off(&mut books, Err("it ended with exit status: 1".to_owned()));
        assert_eq!(books.copied_bytes["read"], Some(5000));
        assert!(books.notes[0].contains("exit status: 1"), "{:?}", books.notes);
        take_off(&mut books, Ok(copied(&[("read", Some(0))])));
        assert_eq!(books.notes.len(), 1, "nothing was taken off");
    }
}
