//! What a program copies beside the file: it reads its libraries, an interpreter its modules, before it sends a byte.
//!
//! Operation: the program first sends a file of one byte, with the accounts open. What it had copied then, it had not copied
//! for the file's sake, and is taken off the accounts of the transfer. They say so.

use vnic_experiment::wire::{Accounts, TransferSpec};

use super::transfer::Prepared;

/// The accounts of a transfer of one byte by the same program, or why there are none.
pub(super) fn accounts(spec: &TransferSpec) -> Result<Accounts, String> {
    let spec = TransferSpec { bytes: 1, offset: 0, cold: false, pause: false, ..spec.clone() };
    let sent = Prepared::new(spec).and_then(|prepared| prepared.send(&mut |_| Ok(())));
    sent.map(|done| done.accounts).map_err(|error| format!("{error:#}"))
}

/// Takes off what was copied in the rehearsal, and notes how much that was.
pub(super) fn take_off(accounts: &mut Accounts, rehearsal: Result<Accounts, String>) {
    let rehearsed = match rehearsal {
        Ok(rehearsed) => rehearsed.copied_bytes,
        Err(why) => {
            let note =
                format!("what the program copies beside the file is in the figures: it does not send one byte ({why})");
            accounts.notes.push(note);
            return;
        }
    };
    let mut taken_off = 0_u64;
    for (function, bytes) in &mut accounts.copied_bytes {
        if let (Some(bytes), Some(Some(beside))) = (bytes.as_mut(), rehearsed.get(function)) {
            let beside = (*beside).min(*bytes);
            *bytes -= beside;
            taken_off = taken_off.saturating_add(beside);
        }
    }
    if taken_off > 0 {
        accounts.notes.push(format!("{taken_off} bytes that it copies beside the file are not counted"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(bytes: &[(&str, Option<u64>)]) -> Accounts {
        let copied_bytes = bytes.iter().map(|(function, bytes)| ((*function).to_owned(), *bytes)).collect();
        Accounts { copied_bytes, ..Accounts::default() }
    }

    #[test]
    fn what_is_copied_for_one_byte_is_not_the_files() {
        let mut accounts = copied(&[("read", Some(5000)), ("write", Some(10)), ("other", None)]);
        take_off(&mut accounts, Ok(copied(&[("read", Some(4096)), ("write", Some(20)), ("other", Some(1))])));
        assert_eq!(
            accounts.copied_bytes,
            copied(&[("read", Some(904)), ("write", Some(0)), ("other", None)]).copied_bytes
        );
        assert_eq!(accounts.notes, ["4106 bytes that it copies beside the file are not counted"]);
    }

    #[test]
    fn without_a_rehearsal_all_of_it_counts_and_the_accounts_say_so() {
        let mut accounts = copied(&[("read", Some(5000))]);
        take_off(&mut accounts, Err("it ended with exit status: 1".to_owned()));
        assert_eq!(accounts.copied_bytes["read"], Some(5000));
        assert!(accounts.notes[0].contains("exit status: 1"), "{:?}", accounts.notes);
        take_off(&mut accounts, Ok(copied(&[("read", Some(0))])));
        assert_eq!(accounts.notes.len(), 1, "nothing was taken off");
    }
}
