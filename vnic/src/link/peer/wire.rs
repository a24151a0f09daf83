//! The cable between the driver's queues and smoltcp: one frame in, a bounded number of frames out, each on the pair that
//! [`Steering`] says.

use std::collections::VecDeque;
use std::ops::Range;

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::link::steering::Steering;
use crate::net::MAX_FRAME_LEN;

/// Frames on their way to the driver, on all pairs together, at which nothing more is taken from it.
const OUTBOUND_LIMIT: usize = 256;

/// The longest frame that the peer can take or send: an Ethernet header and a jumbo frame's 9000 bytes. What it does send is no longer than
/// the driver's end says it takes, or than what it answers.
const MAX_OUTBOUND: usize = 9014;

/// See the module.
#[derive(Debug)]
pub(super) struct Wire {
    /// Room for the longest frame; `inbound` says where in it one is.
    buffer: Box<[u8]>,
    inbound: Option<Range<usize>>,
    outbound: Outgoing,
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
}

impl Wire {
    pub(super) fn new(pairs: usize) -> Self {
        let buffer = vec![0; MAX_FRAME_LEN as usize].into_boxed_slice();
        let (queues, steering) = ((0..pairs.max(1)).map(|_| VecDeque::new()).collect(), Steering::new(pairs.max(1)));
        let outbound = Outgoing { pairs: queues, waiting: 0, steering };
        Wire { buffer, inbound: None, outbound, spare: Vec::new() }
    }

    /// Is there no room for an answer?
    pub(super) fn is_full(&self) -> bool {
        self.outbound.waiting >= OUTBOUND_LIMIT
    }

    /// Where the next frame from the driver is to be gathered.
    pub(super) fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// The frame at the buffer's start came in on `pair`: so does what answers it go out.
    pub(super) fn note(&mut self, len: usize, pair: usize) {
        self.outbound.steering.note(self.buffer.get(..len).unwrap_or_default(), pair);
    }

    /// A frame is in this part of the buffer: smoltcp takes it at its next ingress, whether there is room for an answer or
    /// not. Who calls this has looked.
    pub(super) fn arrived(&mut self, at: Range<usize>) {
        self.inbound = Some(at);
    }

    /// The driver has the receiveq of `pair` in use from now on, or no longer. What waits for one that is not goes to one
    /// that is: later in its flow than it was meant, but it is not lost.
    pub(super) fn set_receiving(&mut self, pair: usize, on: bool) {
        let Outgoing { pairs, steering, .. } = &mut self.outbound;
        steering.set_receiving(pair, on);
        let waiting = pairs.get_mut(pair).filter(|_| !on).map(std::mem::take);
        if let Some((waiting, frames)) = waiting.zip(pairs.get_mut(steering.first())) {
            frames.extend(waiting);
        }
    }

    /// Length of the next frame to the driver on `pair`.
    pub(super) fn next_len(&self, pair: usize) -> Option<usize> {
        self.outbound.pairs.get(pair)?.front().map(Vec::len)
    }

    /// The next frame to the driver on `pair`; give it back to [`Wire::done`].
    pub(super) fn pop(&mut self, pair: usize) -> Option<Vec<u8>> {
        let frame = self.outbound.pairs.get_mut(pair)?.pop_front()?;
        self.outbound.waiting -= 1;
        Some(frame)
    }

    /// A popped frame's buffer can be used again.
    pub(super) fn done(&mut self, frame: Vec<u8>) {
        self.spare.push(frame);
    }
}

/// Frames on their way to the driver, by pair.
#[derive(Debug)]
struct Outgoing {
    pairs: Box<[VecDeque<Vec<u8>>]>,
    /// How many there are, of all pairs.
    waiting: usize,
    steering: Steering,
}

impl Outgoing {
    fn push(&mut self, frame: Vec<u8>) {
        // There is a queue for each pair that steering knows.
        if let Some(frames) = self.pairs.get_mut(self.steering.pair(&frame)) {
            frames.push_back(frame);
            self.waiting += 1;
        }
    }
}

/// The frame from the driver.
pub(super) struct Inbound<'w>(&'w [u8]);

/// The right to send one frame to the driver.
pub(super) struct Outbound<'w> {
    outgoing: &'w mut Outgoing,
    spare: &'w mut Vec<Vec<u8>>,
}

impl RxToken for Inbound<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Outbound<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(MAX_OUTBOUND));
        frame.clear();
        frame.resize(len, 0);
        let result = f(&mut frame);
        self.outgoing.push(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'w> = Inbound<'w>;
    type TxToken<'w> = Outbound<'w>;

    fn receive(&mut self, _now: Instant) -> Option<(Inbound<'_>, Outbound<'_>)> {
        let frame = self.buffer.get(self.inbound.take()?)?;
        Some((Inbound(frame), Outbound { outgoing: &mut self.outbound, spare: &mut self.spare }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outbound<'_>> {
        if self.is_full() {
            return None;
        }
        Some(Outbound { outgoing: &mut self.outbound, spare: &mut self.spare })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::default();
        // `check` has looked at them, where there is a whole one to look at.
        for side in
            [&mut checksum.ipv4, &mut checksum.tcp, &mut checksum.udp, &mut checksum.icmpv4, &mut checksum.icmpv6]
        {
            *side = Checksum::Tx;
        }
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_OUTBOUND;
        capabilities.checksum = checksum;
        capabilities
    }
}
