//! The cable between the driver's queues and smoltcp: one frame in, a bounded number of frames out.

use std::collections::VecDeque;

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::net::MAX_FRAME_LEN;

/// Frames on their way to the driver at which nothing more is taken from it.
const OUTBOUND_LIMIT: usize = 256;

/// The longest frame to the driver: an Ethernet header and 1500 bytes.
const MAX_OUTBOUND: usize = 1514;

/// See the module.
#[derive(Debug)]
pub(super) struct Wire {
    /// Room for the longest frame; `inbound` says how much of it is one.
    buffer: Box<[u8]>,
    inbound: Option<usize>,
    outbound: VecDeque<Vec<u8>>,
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
}

impl Wire {
    pub(super) fn new() -> Self {
        let buffer = vec![0; MAX_FRAME_LEN as usize].into_boxed_slice();
        Wire { buffer, inbound: None, outbound: VecDeque::new(), spare: Vec::new() }
    }

    /// Is there no room for an answer?
    pub(super) fn is_full(&self) -> bool {
        self.outbound.len() >= OUTBOUND_LIMIT
    }

    /// Where the next frame from the driver is to be gathered.
    pub(super) fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// The first `len` bytes of the buffer are a frame: smoltcp takes it at its next ingress.
    pub(super) fn arrived(&mut self, len: usize) {
        self.inbound = Some(len);
    }

    /// Length of the next frame to the driver.
    pub(super) fn next_len(&self) -> Option<usize> {
        self.outbound.front().map(Vec::len)
    }

    /// The next frame to the driver; give it back to [`Wire::done`].
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        self.outbound.pop_front()
    }

    /// A popped frame's buffer can be used again.
    pub(super) fn done(&mut self, frame: Vec<u8>) {
        self.spare.push(frame);
    }
}

/// The frame from the driver.
pub(super) struct Inbound<'w>(&'w [u8]);

/// The right to send one frame to the driver.
pub(super) struct Outbound<'w> {
    queue: &'w mut VecDeque<Vec<u8>>,
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
        self.queue.push_back(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'w> = Inbound<'w>;
    type TxToken<'w> = Outbound<'w>;

    fn receive(&mut self, _now: Instant) -> Option<(Inbound<'_>, Outbound<'_>)> {
        if self.is_full() {
            return None;
        }
        let frame = self.buffer.get(..self.inbound.take()?)?;
        Some((Inbound(frame), Outbound { queue: &mut self.outbound, spare: &mut self.spare }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outbound<'_>> {
        if self.is_full() {
            return None;
        }
        Some(Outbound { queue: &mut self.outbound, spare: &mut self.spare })
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
