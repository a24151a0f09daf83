//! Who carries out requests: io_uring, many at a time, or system calls that wait, where this host has none or refuses it.

use std::io;
use std::os::fd::BorrowedFd;

use super::image::Image;
use crate::memory::transfer::{Operation, Transfer, Transfers};

/// See the [module](self).
#[derive(Debug)]
pub(super) enum Engine {
    /// By io_uring.
    Uring(Box<Transfers>),
    /// Each here and now.
    Waiting,
}

impl Engine {
    /// What suits this image: one that lies in memory is read and written at once, while io_uring would hand each request to another
    /// thread of the kernel's, as it cannot know that it will not wait (there is no `FMODE_NOWAIT` on tmpfs).
    pub(super) fn suited(image: &Image) -> Self {
        if image.is_in_memory() { Engine::Waiting } else { Engine::new(image) }
    }

    /// By io_uring, if it is there, for requests for this image.
    pub(super) fn new(image: &Image) -> Self {
        match image.file().try_clone().and_then(Transfers::new) {
            Ok(transfers) => Engine::Uring(Box::new(transfers)),
            Err(error) => {
                tracing::warn!(%error, "no io_uring on this host: a disk's requests are done one after the other");
                Engine::Waiting
            }
        }
    }

    /// Is there room for another request?
    pub(super) fn has_room(&self) -> bool {
        match self {
            Engine::Uring(transfers) => transfers.has_room(),
            Engine::Waiting => true,
        }
    }

    /// Starts a request; `None`: it is to be done here and now.
    pub(super) fn start(&mut self, operation: Operation, transfer: &mut Transfer) -> Option<u16> {
        match self {
            Engine::Uring(transfers) => transfers.start(operation, transfer),
            Engine::Waiting => None,
        }
    }

    /// Hands over to the kernel what was started.
    pub(super) fn submit(&mut self) {
        if let Engine::Uring(transfers) = self {
            transfers.submit();
        }
    }

    /// Waits until a request is done.
    pub(super) fn wait(&mut self) {
        if let Engine::Uring(transfers) = self {
            transfers.wait();
        }
    }

    /// The next that is done, to be finished.
    pub(super) fn next_done(&mut self) -> Option<(u16, io::Result<()>)> {
        match self {
            Engine::Uring(transfers) => transfers.next_done(),
            Engine::Waiting => None,
        }
    }

    /// Tells the driver of one that is done.
    pub(super) fn finish(&mut self, ticket: u16, status: u8) {
        if let Engine::Uring(transfers) = self {
            transfers.finish(ticket, status);
        }
    }

    /// Readable while there is something done.
    pub(super) fn files(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Engine::Uring(transfers) => vec![transfers.events()],
            Engine::Waiting => Vec::new(),
        }
    }
}
