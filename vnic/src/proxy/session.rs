//! One front-end and the back-end, from the first message to the end of either.
//!
//! Operation: the back-end is connected to once a front-end is there, and waited for where it is not. Each direction goes on by
//! itself; while one side does not read, the other is not read from.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::answers::Answers;
use super::mirror::Mirror;
use super::relay::{Relay, Step};
use super::view::Peers;
use crate::serve::ServeError;
use crate::vhost_user::SessionError;
use crate::vhost_user::listen::{Connector, ListenError};

/// How often is looked whether rings stand still.
const GLANCE: Duration = Duration::from_secs(1);

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// One of both sides is gone.
    Session,
    /// The process is to end.
    Process,
}

/// Passes on what this front-end and the back-end say.
pub(super) fn run(
    front_end: OwnedFd,
    back_end: &Path,
    answers: &Arc<Answers>,
    stop: BorrowedFd<'_>,
) -> Result<End, ServeError> {
    let eyes = answers.eyes();
    answers.begin();
    eyes.view().sessions += 1;
    tracing::info!("front-end connected");
    let end = match connect(&front_end, back_end, stop) {
        Ok(Some(back_end)) => {
            eyes.view().peers = Peers::Both;
            tracing::info!("back-end connected");
            pass(&front_end, &back_end, answers, stop)
        }
        Ok(None) => Ok(if is_readable(stop) { End::Process } else { End::Session }),
        Err(error) => {
            eyes.note(format!("the back-end cannot be connected to: {error}"));
            Ok(End::Session)
        }
    };
    eyes.forget(Peers::None);
    tracing::info!("session over");
    end
}

/// The back-end, as soon as it is there; `None`: the front-end has gone, or the process is to end.
fn connect(front_end: &OwnedFd, back_end: &Path, stop: BorrowedFd<'_>) -> Result<Option<OwnedFd>, ListenError> {
    let failed = |errno| ListenError::io("wait for", back_end, errno);
    // What the front-end has sent already is no reason to wait no longer.
    let gone = || -> nix::Result<Epoll> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(front_end, EpollEvent::new(EpollFlags::EPOLLRDHUP, 0))?;
        epoll.add(stop, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
        Ok(epoll)
    };
    let gone = gone().map_err(failed)?;
    Connector::new(back_end).connect(gone.0.as_fd())
}

/// Both directions, until there is one no more.
fn pass(
    front_end: &OwnedFd,
    back_end: &OwnedFd,
    answers: &Arc<Answers>,
    stop: BorrowedFd<'_>,
) -> Result<End, ServeError> {
    let eyes = answers.eyes();
    let (mut there, mut back) = (Relay::new(), Relay::new());
    let mut mirror = Mirror::new(eyes.clone());
    let before = eyes.view().counts.files;
    let end = loop {
        let mut waits = vec![PollFd::new(stop, PollFlags::POLLIN)];
        for (relay, from, to) in [(&there, front_end, back_end), (&back, back_end, front_end)] {
            let (fd, events) = if relay.is_blocked() { (to, PollFlags::POLLOUT) } else { (from, PollFlags::POLLIN) };
            waits.push(PollFd::new(fd.as_fd(), events));
        }
        let timeout = PollTimeout::try_from(GLANCE).unwrap_or(PollTimeout::MAX);
        match poll(&mut waits, timeout) {
            Ok(0) => {
                answers.glance();
                continue;
            }
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(ServeError::Host { action: "wait for a message", source: errno.into() }),
        }
        let ready: Vec<bool> = waits.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        if let [true, ..] = ready.as_slice() {
            break End::Process;
        }
        let [_, from_front_end, from_back_end] = ready.as_slice() else { break End::Process };
        let mut over = None;
        if *from_front_end {
            over = match there.step(front_end.as_fd(), back_end.as_fd()) {
                Ok(Step::Passed(message)) => {
                    mirror.asked(message);
                    None
                }
                Ok(Step::PassedLong(header)) => {
                    mirror.asked_long(header);
                    None
                }
                other => ended(other, "front-end", "back-end"),
            };
        }
        if over.is_none() && *from_back_end {
            over = match back.step(back_end.as_fd(), front_end.as_fd()) {
                Ok(Step::Passed(message)) => {
                    mirror.answered(&message);
                    None
                }
                Ok(Step::PassedLong(_)) => {
                    mirror.answered_long();
                    None
                }
                other => ended(other, "back-end", "front-end"),
            };
        }
        eyes.view().counts.files = before + there.files + back.files;
        if let Some(why) = over {
            if let Some(why) = why {
                eyes.note(why);
            }
            break End::Session;
        }
    };
    mirror.end();
    Ok(end)
}

/// Is a session over by this step, and is there something to say of it?
fn ended(step: Result<Step, SessionError>, from: &str, to: &str) -> Option<Option<String>> {
    let closed = |who: &str| (who == "back-end").then(|| "the back-end closed the session".to_owned());
    match step {
        Ok(Step::Closed) => Some(closed(from)),
        Ok(Step::Refused) => Some(closed(to)),
        Ok(Step::Waiting | Step::Blocked | Step::Passed(_) | Step::PassedLong(_)) => None,
        Err(error) => Some(Some(format!("the {from}'s messages cannot be passed on: {error}"))),
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
