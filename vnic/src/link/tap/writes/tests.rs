//! Frames for a stream that is full or not.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use super::*;
use crate::net::features::OFFERED;
use crate::net::testing::Nic;

/// No frames, and a stream to write to; `None` where there is no io_uring.
fn writes() -> Option<(Writes, UnixStream, UnixStream)> {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    match Writes::new() {
        Ok(writes) => Some((writes, near, far)),
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "how a test says that it was skipped")]
            {
                eprintln!("SKIP: this host allows no io_uring: {error}");
            }
            None
        }
    }
}

fn add(nic: &mut Nic, writes: &mut Writes, to: &UnixStream, frame: &[u8], cuts: &[usize]) -> Added {
    let bytes = [&[0; NET_HEADER_LEN][..], frame].concat();
    nic.with_frame(&bytes, cuts, |frame| writes.add(to.as_fd(), 3, b"header", &frame.unwrap()))
}

#[test]
fn frames_are_written_by_one_call_and_none_before() {
    let Some((mut writes, near, mut far)) = writes() else { return };
    let mut nic = Nic::new(OFFERED, 0, 0);
    // Buffers come back to the driver at once in `with_frame`, so all frames are the same here.
    for number in 0..20 {
        assert_eq!(add(&mut nic, &mut writes, &near, &[7; 100], &[12, 30, 0, 9]), Added::Ticket(number));
    }
    assert!(writes.is_waiting() && writes.next().is_none());
    far.set_nonblocking(true).unwrap();
    assert_eq!(far.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    writes.submit();
    let done: Vec<Event> = std::iter::from_fn(|| writes.next()).collect();
    assert_eq!(done.len(), 20, "a socket with room takes all at once");
    assert!(done.iter().all(|done| matches!(done.what, What::Written(Ok(()))) && done.pair == 3 && done.bytes == 100));
    let mut got = vec![0; 20 * 106];
    far.read_exact(&mut got).unwrap();
    let one = [&b"header"[..], &[7; 100]].concat();
    assert!(got.chunks(106).all(|frame| frame == one));
}

#[test]
fn more_frames_than_tickets_and_more_pieces_than_it_takes_are_refused() {
    let Some((mut writes, near, _far)) = writes() else { return };
    let mut nic = Nic::new(OFFERED, 0, 0);
    let pieces = |count: usize| vec![1; 12 + count - 1];
    assert_eq!(add(&mut nic, &mut writes, &near, &[7; 100], &pieces(PIECES)), Added::TooManyPieces);
    assert_eq!(add(&mut nic, &mut writes, &near, &[7; 100], &pieces(PIECES - 1)), Added::Ticket(0));
    for number in 1..MOST {
        assert_eq!(add(&mut nic, &mut writes, &near, &[7; 100], &[]), Added::Ticket(number));
    }
    assert_eq!(add(&mut nic, &mut writes, &near, &[7; 100], &[]), Added::Full);
    writes.submit();
    assert!(writes.next().is_some());
    assert!(matches!(add(&mut nic, &mut writes, &near, &[7; 100], &[]), Added::Ticket(_)));
}

/// Fills the stream, and adds frames for which it has no room.
fn stuck(writes: &mut Writes, near: &UnixStream, frames: u16) {
    let mut nic = Nic::new(OFFERED, 0, 0);
    while (&*near).write(&[1; 4096]).is_ok() {}
    while (&*near).write(&[1]).is_ok() {}
    for number in 0..frames {
        assert_eq!(add(&mut nic, writes, near, &[7; 100], &[]), Added::Ticket(number));
    }
    writes.submit();
    // Whether the kernel waits or refuses them is its own choice.
    assert!(writes.next().is_none(), "there was room");
}

/// Empties the stream, and has everything written to it. Returns the events, and the stream's last bytes.
fn drained(writes: &mut Writes, far: &mut UnixStream, frames: usize) -> (Vec<Event>, Vec<u8>) {
    let (mut events, mut got) = (Vec::new(), Vec::new());
    far.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    let mut bytes = [0; 65536];
    while !got.ends_with(&[&b"header"[..], &[7; 100]].concat().repeat(frames)) {
        let count = far.read(&mut bytes).expect("frames are missing");
        got.extend_from_slice(&bytes[..count]);
        writes.submit();
        events.extend(std::iter::from_fn(|| writes.next()));
    }
    writes.submit();
    events.extend(std::iter::from_fn(|| writes.next()));
    (events, got)
}

#[test]
fn frames_without_room_wait_for_it() {
    let Some((mut writes, near, mut far)) = writes() else { return };
    stuck(&mut writes, &near, 3);
    let (events, _) = drained(&mut writes, &mut far, 3);
    assert!(events.iter().all(|event| matches!(event.what, What::Written(Ok(())))), "{events:?}");
    assert_eq!((events.len(), writes.unused.len()), (3, usize::from(MOST)));
}

#[test]
fn who_waits_for_room_is_told_when_there_is_some() {
    let Some((mut writes, near, mut far)) = writes() else { return };
    stuck(&mut writes, &near, 1);
    far.set_nonblocking(true).unwrap();
    while far.read(&mut [0; 65536]).is_ok() {}
    let kernel_waits = writes.refused.is_empty();
    let flags = if kernel_waits { nix::poll::PollFlags::POLLIN } else { nix::poll::PollFlags::POLLOUT };
    let file = if kernel_waits { writes.file() } else { near.as_fd() };
    assert_eq!(nix::poll::poll(&mut [nix::poll::PollFd::new(file, flags)], 10_000_u16).unwrap(), 1, "not told");
    writes.submit();
    assert!(matches!(writes.next().expect("it is done with").what, What::Written(Ok(()))));
}

#[test]
fn what_has_no_room_when_its_buffers_must_go_is_copied_and_written_later() {
    let Some((mut writes, near, mut far)) = writes() else { return };
    stuck(&mut writes, &near, 3);
    writes.quiesce(4);
    assert!(writes.next().is_none(), "another pair's frames are none of its business");
    writes.quiesce(3);
    let events: Vec<Event> = std::iter::from_fn(|| writes.next()).collect();
    assert!(events.iter().all(|event| matches!(event.what, What::Copied)), "{events:?}");
    assert_eq!((events.len(), writes.submitted), (3, 0));
    assert!(writes.writes.iter().all(|write| !write.is_in_buffers()));
    writes.quiesce(3);
    assert!(writes.next().is_none(), "a copy is made once");
    let (events, _) = drained(&mut writes, &mut far, 3);
    assert!(events.iter().all(|event| matches!(event.what, What::CopyWritten(Ok(())))), "{events:?}");
    assert_eq!((events.len(), writes.unused.len()), (3, usize::from(MOST)));
}

#[test]
fn what_has_no_room_is_given_up_when_all_must_end() {
    let Some((mut writes, near, _far)) = writes() else { return };
    stuck(&mut writes, &near, 1);
    writes.give_up();
    assert_eq!(writes.submitted, 0);
    let What::Written(Err(error)) = writes.next().expect("it is done with").what else { panic!("it was written") };
    assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
    assert!(writes.next().is_none() && writes.unused.len() == usize::from(MOST));
    stuck(&mut writes, &near, 1);
    drop(writes);
}
