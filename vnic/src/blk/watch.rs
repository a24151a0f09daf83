//! Who looks at what the disk writes into the guest's memory.
//!
//! Operation: where a read's data go is noted when it is taken, and shown once the data are there. While nobody looks, that is a branch.

use std::any::Any;
use std::sync::mpsc::SyncSender;

use super::SEG_MAX;
use super::request::Request;
use crate::backend::Workers;
use crate::memory::transfer::MOST_UNDER_WAY;
use crate::observe::observer::{DiskObserver, DiskRead};
use crate::ring::ChainView;

/// Have reads looked at, or no longer; who looked so far comes back.
pub(super) struct Observe {
    observer: Option<Box<dyn DiskObserver>>,
    reply: SyncSender<Option<Box<dyn DiskObserver>>>,
}

/// Gives every worker of a disk an observer of its own, or none; returns those that looked so far.
pub(crate) fn observe(
    workers: &Workers,
    mut observer: impl FnMut() -> Option<Box<dyn DiskObserver>>,
) -> Vec<Box<dyn DiskObserver>> {
    let before = workers.tell(|reply| Box::new(Observe { observer: observer(), reply }));
    before.into_iter().flatten().collect()
}

/// Pieces of guest memory: address and length.
type Pieces = Vec<(u64, u64)>;

/// So many a driver that keeps to what the disk says gives a request.
const PIECES: usize = SEG_MAX as usize;

/// The observer's side of a worker.
#[derive(Debug)]
pub(super) struct Watching {
    observer: Option<Box<dyn DiskObserver>>,
    /// Of the request that was taken last.
    taken: Pieces,
    /// By ticket.
    waiting: Box<[Pieces]>,
}

impl Watching {
    pub(super) fn new() -> Self {
        Watching { observer: None, taken: Vec::new(), waiting: vec![Vec::new(); usize::from(MOST_UNDER_WAY)].into() }
    }

    /// A message for it; any other is none of its business.
    pub(super) fn told(&mut self, message: Box<dyn Any + Send>) {
        if let Ok(message) = message.downcast::<Observe>() {
            let Observe { observer, reply } = *message;
            // What is under way was not noted for this one; and it takes its room here, where nothing waits for it.
            for pieces in self.waiting.iter_mut().chain([&mut self.taken]) {
                pieces.clear();
                pieces.reserve(if observer.is_some() { PIECES } else { 0 });
            }
            // An asker that has gone away needs no answer.
            let _ = reply.send(std::mem::replace(&mut self.observer, observer));
        }
    }

    /// A request was taken.
    pub(super) fn take(&mut self, chain: ChainView<'_>, request: Request) {
        self.taken.clear();
        let Request::Read { len, .. } = request else { return };
        if self.observer.is_none() {
            return;
        }
        let memory = chain.memory();
        let mut left = len;
        for slice in chain.writable() {
            let bytes = left.min(slice.len() as u64);
            left -= bytes;
            if bytes > 0 {
                let translated = memory.iotlb().and_then(|_| memory.gpa_at(slice.as_ptr()));
                self.taken.push((translated.map_or(slice.addr(), |gpa| gpa.0), bytes));
            }
        }
    }

    /// It is under way.
    pub(super) fn under_way(&mut self, ticket: u16) {
        if let Some(place) = self.waiting.get_mut(usize::from(ticket)) {
            std::mem::swap(place, &mut self.taken);
        }
    }

    /// It was done at once.
    pub(super) fn answered(&mut self, request: Request) {
        show(&mut self.observer, &mut self.taken, request);
    }

    /// One that was under way is done.
    pub(super) fn completed(&mut self, ticket: u16, request: Request) {
        if let Some(pieces) = self.waiting.get_mut(usize::from(ticket)) {
            show(&mut self.observer, pieces, request);
        }
    }
}

fn show(observer: &mut Option<Box<dyn DiskObserver>>, pieces: &mut Pieces, request: Request) {
    if let (Some(observer), Request::Read { offset, .. }) = (observer, request)
        && !pieces.is_empty()
    {
        observer.read(&DiskRead { offset, pieces });
    }
    pieces.clear();
}
