//! Which receive queue a frame to the driver goes to.
//!
//! Operation (VIRTIO 1.3, 5.1.6.5.6 Automatic receive steering in multiqueue mode): a flow's frames go to the receiveq of
//! the pair on whose transmitq the driver sent last for it; where the driver has that one not in use, and for what is of
//! no flow, to the first that is.
//!
//! Limits: flows are told apart by a hash of [`SLOTS`] values. Two that share one also share the pair, which costs
//! balance and nothing else.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::net::parse::{Packet, parse};

/// A power of two, and more than a guest has flows that matter.
const SLOTS: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Steering {
    /// By a flow's hash: the pair it was last seen on.
    pairs: Box<[u8; SLOTS]>,
    /// By pair: has the driver its receiveq in use?
    receiving: Box<[bool]>,
}

impl Steering {
    pub(super) fn new(pairs: usize) -> Self {
        Steering { pairs: Box::new([0; SLOTS]), receiving: vec![false; pairs].into_boxed_slice() }
    }

    /// The driver sent this frame on `pair`.
    pub(super) fn note(&mut self, frame: &[u8], pair: usize) {
        if self.receiving.len() < 2 {
            return;
        }
        // vhost-user can name no more than 128 pairs.
        if let (Some(slot), Ok(pair)) = (self.pairs.get_mut(slot(frame)), u8::try_from(pair)) {
            *slot = pair;
        }
    }

    /// The driver has the receiveq of `pair` in use from now on, or no longer.
    pub(super) fn set_receiving(&mut self, pair: usize, on: bool) {
        if let Some(receiving) = self.receiving.get_mut(pair) {
            *receiving = on;
        }
    }

    /// The pair that a frame to the driver goes to. Always one there is.
    pub(super) fn pair(&self, frame: &[u8]) -> usize {
        if self.receiving.len() < 2 {
            return 0;
        }
        let noted = self.pairs.get(slot(frame)).map_or(0, |pair| usize::from(*pair));
        if self.receiving.get(noted).is_some_and(|on| *on) { noted } else { self.first() }
    }

    /// The first pair whose receiveq is in use; 0 if none is.
    pub(super) fn first(&self) -> usize {
        self.receiving.iter().position(|on| *on).unwrap_or(0)
    }
}

/// The same for both directions of a flow.
fn slot(frame: &[u8]) -> usize {
    let Packet::Transport(packet) = parse(frame, u32::try_from(frame.len()).unwrap_or(u32::MAX)) else { return 0 };
    let end = |address: std::net::SocketAddr| {
        let mut hasher = DefaultHasher::new();
        (packet.protocol, address).hash(&mut hasher);
        hasher.finish()
    };
    (end(packet.source).wrapping_add(end(packet.destination)) % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ethernet, IPv4 and UDP from 10.0.2.`from.0`:`from.1` to `to`.
    fn datagram(from: (u8, u16), to: (u8, u16)) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, from.0, 10, 0, 2, to.0]);
        frame.extend([from.1.to_be_bytes(), to.1.to_be_bytes(), 8u16.to_be_bytes(), [0; 2]].concat());
        frame
    }

    #[test]
    fn an_answer_goes_to_the_pair_its_flow_was_sent_on() {
        let mut steering = Steering::new(4);
        (0..4).for_each(|pair| steering.set_receiving(pair, true));
        for pair in [3, 1, 0, 2] {
            steering.note(&datagram((15, 1000), (2, 7)), pair);
            assert_eq!(steering.pair(&datagram((2, 7), (15, 1000))), pair);
        }
    }

    #[test]
    fn a_flow_whose_receiveq_is_not_in_use_goes_to_the_first_that_is() {
        let mut steering = Steering::new(3);
        steering.set_receiving(1, true);
        steering.note(&datagram((15, 1000), (2, 7)), 2);
        assert_eq!(steering.pair(&datagram((2, 7), (15, 1000))), 1);
        steering.set_receiving(2, true);
        assert_eq!(steering.pair(&datagram((2, 7), (15, 1000))), 2);
        steering.set_receiving(2, false);
        steering.set_receiving(1, false);
        assert_eq!(steering.pair(&datagram((2, 7), (15, 1000))), 0);
    }

    #[test]
    fn no_frame_and_no_pair_goes_where_nothing_is() {
        let mut steering = Steering::new(2);
        steering.set_receiving(9, true);
        steering.note(&datagram((15, 1000), (2, 7)), 9);
        for frame in [&[][..], &[0; 14], &datagram((2, 7), (15, 1000))] {
            assert!(steering.pair(frame) < 2);
        }
    }
}
