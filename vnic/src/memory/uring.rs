//! io_uring for what it is set up for, and nothing else: its requests pass no filter of system calls.

use std::io;

use io_uring::IoUring;
use io_uring::register::Restriction;

/// `IORING_UNREGISTER_FILES` of `linux/io_uring.h`: a file that a ring has is closed with the ring at the latest.
const UNREGISTER_FILES: u8 = 3;
/// `IOSQE_FIXED_FILE`: a request names the file by its number among those that were registered.
const FIXED_FILE: u8 = 1;

/// A ring that takes requests of these codes (`opcode::Writev::CODE`…) and no others, for good; `prepare` registers what they use.
///
/// # Errors
/// This host has no io_uring, or none that can be restricted (Linux 5.10), or does not allow it.
pub(crate) fn restricted(
    entries: u32,
    codes: &[u8],
    prepare: impl FnOnce(&IoUring) -> io::Result<()>,
) -> io::Result<IoUring> {
    let ring = IoUring::builder().setup_r_disabled().build(entries)?;
    prepare(&ring)?;
    let others = [Restriction::register_op(UNREGISTER_FILES), Restriction::sqe_flags_allowed(FIXED_FILE)];
    let mut allowed: Vec<_> = codes.iter().map(|code| Restriction::sqe_op(*code)).chain(others).collect();
    ring.submitter().register_restrictions(&mut allowed)?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use io_uring::opcode;

    use super::*;

    /// What the kernel says to one request.
    fn result(ring: &mut IoUring, entry: &io_uring::squeue::Entry) -> i32 {
        // SAFETY: requests that touch no memory but what lives as long as the program.
        unsafe { ring.submission().push(entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        ring.completion().next().unwrap().result()
    }

    #[test]
    fn a_ring_does_what_it_is_made_for_and_opens_nothing() {
        let mut ring = restricted(4, &[opcode::Nop::CODE], |_| Ok(())).unwrap();
        assert_eq!(result(&mut ring, &opcode::Nop::new().build()), 0);
        let open = opcode::OpenAt::new(io_uring::types::Fd(libc::AT_FDCWD), c"/etc/passwd".as_ptr()).build();
        assert_eq!(result(&mut ring, &open), -libc::EACCES);
        let socket = opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build();
        assert_eq!(result(&mut ring, &socket), -libc::EACCES);
        assert!(ring.submitter().register_files(&[0]).is_err(), "nor takes it other files");
    }
}
