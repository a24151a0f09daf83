//! The NIC's data path: a port of the link, and the queue pairs it serves.
//!
//! Operation, one pass:
//! 1. The port does what is due ([`Port::poll`]).
//! 2. Every live transmitq hands a burst to the port; the port works on it.
//! 3. Every live receiveq takes a burst from the port. (With a hairpin port, 2 and 3 are one for each pair.)
//! 4. Transmitqs that are disabled are emptied, and their frames discarded.
//!
//! A port may keep frames beyond the burst ([`Transmitted::Kept`](crate::link::Transmitted::Kept)) and say later, in any
//! order, that it is done with them; their buffers go back then. Whoever takes a queue away has the port end that first.

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::hardware::{Accounting, Pace, TellShapes};
use super::observers::Observers;
use super::{announce, hairpin, is_transmitq, receive, transmit};
use crate::backend::{BURST, DataPath, Progress, Queue, Queues, Shared};
use crate::link::{Completion, Port};
use crate::observe::observer::Observer;
use crate::ring::DeviceRing;
use crate::spec::Features;
use crate::vhost_user::DeviceError;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct NicDataPath<P> {
    port: P,
    features: Features,
    shared: Arc<Shared>,
    observers: Observers,
    pace: Option<Pace>,
    scratch: receive::Scratch,
    look_ahead: hairpin::LookAhead,
}

/// Have transmitted frames looked at, or no longer; who looked so far comes back.
pub(super) struct Observe {
    pub(super) observer: Option<Box<dyn Observer>>,
    pub(super) reply: SyncSender<Option<Box<dyn Observer>>>,
}

impl<P: Port> NicDataPath<P> {
    pub(super) fn new(port: P, shared: Arc<Shared>, observers: Observers, pace: Option<Pace>) -> Self {
        NicDataPath {
            port,
            features: Features::NONE,
            shared,
            observers,
            pace,
            scratch: receive::Scratch::default(),
            look_ahead: hairpin::LookAhead::default(),
        }
    }

    /// Returns the buffers of kept frames that the port is done with. Returns whether there were any.
    fn complete(&mut self, queues: &mut Queues) -> bool {
        let mut any = false;
        if P::KEEPS == 0 {
            return any;
        }
        while let Some(Completion { pair, ticket, read, copied }) = self.port.completed() {
            any = true;
            if let Some(queue) = u16::try_from(2 * pair + 1).ok().and_then(|index| queues.get_mut(&index))
                && queue.in_flight.complete(ticket, 0)
            {
                self.observers.completed(&queue.shared, (pair, ticket), self.shared.started);
                queue.shared.counters.device_copied_bytes.add(u64::from(copied));
                match read {
                    Some(read) => queue.shared.counters.dma_read_bytes.add(u64::from(read)),
                    None => queue.shared.counters.count_drop("link_error"),
                }
            }
        }
        if any {
            queues.values_mut().filter(|queue| !queue.held).for_each(|queue| queue.return_completed());
        }
        any
    }

    /// Every queue has its turn with the port.
    fn both_ways(&mut self, queues: &mut Queues, now: Instant) -> Progress {
        let mut observers = self.observers.look(&self.shared, now);
        let mut best = Progress::Idle;
        // What comes to those that are held has its time as well.
        queues.values_mut().filter(|queue| queue.held && queue.is_in_use()).for_each(|queue| observers.begin(queue));
        for queue in queues.values_mut().filter(|queue| is_transmitq(queue.index) && queue.is_live()) {
            queue.ring.disable_notifications();
            let (pair, in_flight) = (usize::from(queue.index / 2), std::mem::take(&mut queue.in_flight));
            let mut link = transmit::LinkTransmit { port: &mut self.port, pair, in_flight };
            let progress = transmit::burst(queue, &mut link, self.features, &mut observers, &mut self.pace);
            queue.in_flight = link.in_flight;
            queue.blocked = progress == Progress::Blocked;
            best = best.max(progress);
        }
        if P::KEEPS > 0 {
            self.port.flush();
        }
        if best > Progress::Idle {
            self.port.poll(Instant::now());
        }
        for queue in queues.values_mut().filter(|queue| !is_transmitq(queue.index) && queue.is_live()) {
            queue.ring.disable_notifications();
            let pair = usize::from(queue.index / 2);
            let (port, scratch, pace) = (&mut self.port, &mut self.scratch, &mut self.pace);
            let progress = receive::burst(queue, port, pair, self.features, scratch, &mut observers, pace);
            queue.blocked = progress == Progress::Blocked;
            if queue.stopped {
                self.port.set_receiving(pair, false);
            }
            best = best.max(progress);
        }
        best
    }

    /// Every pair has its turn: what its transmitq holds goes to its receiveq.
    fn hairpin(&mut self, queues: &mut Queues, now: Instant) -> Progress {
        let mut observers = self.observers.look(&self.shared, now);
        let mut best = Progress::Idle;
        let mut queues = queues.values_mut().peekable();
        while let Some(queue) = queues.next() {
            if is_transmitq(queue.index) {
                // One without a receiveq: nothing can be done for it.
                queue.blocked = true;
                continue;
            }
            let Some(transmitq) = queues.next_if(|next| next.index == queue.index + 1) else { continue };
            transmitq.blocked = !queue.is_live();
            if transmitq.blocked || !transmitq.is_live() {
                continue;
            }
            transmitq.ring.disable_notifications();
            queue.ring.disable_notifications();
            let (port, ahead, pace) = (&mut self.port, &mut self.look_ahead, &mut self.pace);
            let [sent, received] = hairpin::burst(transmitq, queue, port, self.features, ahead, &mut observers, pace);
            transmitq.blocked = sent == Progress::Blocked;
            queue.blocked = received == Progress::Blocked;
            best = best.max(sent).max(received);
        }
        best
    }
}

impl<P: Port + 'static> DataPath for NicDataPath<P> {
    fn pass(&mut self, queues: &mut Queues, now: Instant) -> Progress {
        self.port.poll(now);
        if let Some(pace) = &mut self.pace {
            pace.pass(now);
        }
        let mut any = self.complete(queues);
        let mut best = if P::HAIRPIN { self.hairpin(queues, now) } else { self.both_ways(queues, now) };
        for queue in queues.values_mut().filter(|queue| is_discarding(queue)) {
            queue.ring.disable_notifications();
            best = best.max(transmit::discard(queue));
            queue.blocked = false;
        }
        any |= self.complete(queues);
        if let Some(pace) = &mut self.pace {
            pace.interrupt(queues);
        }
        if any { best.max(Progress::Some) } else { best }
    }

    /// New chains help a transmitq unless the link is full, a receiveq only if frames wait.
    fn wants_kicks(&self, queue: &Queue) -> bool {
        (queue.is_live() || is_discarding(queue)) && is_transmitq(queue.index) != queue.blocked
    }

    fn keeps(&self, index: u16) -> u16 {
        if is_transmitq(index) { P::KEEPS } else { 0 }
    }

    /// A frame that is sent twice is one too many; a buffer that is filled again is not.
    fn repeats(&self, index: u16) -> u16 {
        if is_transmitq(index) { BURST.saturating_add(P::KEEPS) } else { 0 }
    }

    fn quiesce(&mut self, queues: &mut Queues, index: u16) {
        if let Some(place) = self.pace.as_ref().and_then(|pace| pace.place(index))
            && let Some(queue) = queues.get_mut(&index).filter(|queue| !queue.held && !queue.stopped)
        {
            transmit::return_sent(queue, place);
        }
        // Whoever has the queue next knows nothing of a call that waits.
        if let Some(queue) = queues.get_mut(&index) {
            queue.send_call();
        }
        if P::KEEPS == 0 || !is_transmitq(index) {
            return;
        }
        self.port.quiesce(usize::from(index / 2));
        self.complete(queues);
        if let Some(queue) = queues.get_mut(&index) {
            debug_assert!(queue.in_flight.is_empty(), "{}: the port still has frames", queue.shared.name);
            queue.return_completed();
            queue.send_call();
        }
    }

    fn set_in_use(&mut self, index: u16, on: bool) {
        self.observers.forget(index);
        if let (true, Some(accounting), Some(queue)) =
            (on, &mut self.observers.accounting, self.shared.queues.get(usize::from(index)))
        {
            accounting.have(queue);
        }
        if let (true, Some(pace)) = (on, &mut self.pace) {
            pace.have(index);
        }
        if !is_transmitq(index) {
            self.port.set_receiving(usize::from(index / 2), on);
        }
    }

    fn negotiated(&mut self, features: Features) -> Result<(), DeviceError> {
        self.features = features;
        Ok(self.port.negotiated(features)?)
    }

    fn announce(&mut self, mac: [u8; 6]) -> Result<(), DeviceError> {
        Ok(self.port.announce(&announce::rarp(mac))?)
    }

    fn rests(&self) -> bool {
        self.pace.as_ref().is_some_and(Pace::works)
    }

    fn files(&self) -> Vec<BorrowedFd<'_>> {
        let mut files = self.port.readable_fds();
        files.extend(self.pace.as_ref().map(Pace::file));
        files
    }

    fn deadline(&mut self, now: Instant) -> Option<Duration> {
        if let Some(pace) = &mut self.pace {
            pace.set_timer();
        }
        self.port.deadline(now)
    }

    fn told(&mut self, message: Box<dyn Any + Send>) {
        // An asker that has gone away needs no answer.
        match message.downcast::<Observe>() {
            Ok(message) => {
                let Observe { observer, reply } = *message;
                let _ = reply.send(std::mem::replace(&mut self.observers.other, observer));
            }
            Err(message) => {
                if let Ok(message) = message.downcast::<TellShapes>() {
                    let shapes = self.observers.accounting.as_ref().map(Accounting::shapes);
                    let _ = message.0.send(shapes.unwrap_or_default());
                }
            }
        }
    }
}

/// Is it to be emptied, and nothing of it sent? See [`transmit::discard`].
fn is_discarding(queue: &Queue) -> bool {
    is_transmitq(queue.index) && !queue.enabled && !queue.awaits_enable && queue.is_ready()
}
