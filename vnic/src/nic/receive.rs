//! link → receiveq: one burst.

use super::hardware::{Pace, pieces_of};
use super::observers::ObserverPass;
use crate::backend::{BURST, Progress, Queue};
use crate::link::{Port, Received};
use crate::net::{MAX_BUFFERS, ReceiveSpace};
use crate::ring::{Chain, DeviceRing};
use crate::spec::net::NET_HEADER_LEN;
use crate::spec::{Feature, Features};

/// Room for the chains of one frame.
#[derive(Debug)]
pub(super) struct Scratch {
    chains: Vec<Chain>,
    filled: Vec<(Chain, u32)>,
}

impl Default for Scratch {
    fn default() -> Self {
        // A frame of 64 KiB over buffers of 1500 bytes and less.
        Scratch { chains: Vec::with_capacity(64), filled: Vec::with_capacity(64) }
    }
}

/// Fills up to [`BURST`] frames of `port` into the driver's buffers. `scratch` is reused from call to call. `Blocked` means that
/// there are frames and not enough buffers: they stay with the link until the driver adds some.
pub(super) fn burst<P: Port>(
    queue: &mut Queue,
    port: &mut P,
    pair: usize,
    features: Features,
    scratch: &mut Scratch,
    observers: &mut ObserverPass<'_>,
    pace: &mut Option<Pace>,
) -> Progress {
    observers.begin(queue);
    let Scratch { chains, filled } = scratch;
    let mergeable = features.has(Feature::MrgRxbuf);
    let shared = queue.shared.clone();
    let counters = &shared.counters;
    // Frames taken from the link, and those of them that the driver gets: what is dropped takes time as well.
    let (mut taken, mut frames): (u16, u16) = (0, 0);
    let mut outcome = Progress::Idle;
    while taken < BURST {
        let Some(needed) = port.pending(pair) else { break };
        if pace.as_mut().is_some_and(|pace| !pace.may_receive()) {
            break;
        }
        match gather(queue, needed + NET_HEADER_LEN, mergeable, chains) {
            Gathered::All if port.measure(pair) => {
                queue.unpop(chains);
                continue;
            }
            Gathered::Enough | Gathered::All => {}
            // Perhaps the frame is shorter than the link could promise.
            Gathered::TooFew if port.measure(pair) => continue,
            Gathered::TooFew => {
                counters.no_buffers.add(1);
                outcome = Progress::Blocked;
                break;
            }
            Gathered::Stopped => break,
        }
        let mut space = ReceiveSpace::new(&queue.segments, chains, features);
        let received = port.receive(pair, &mut space);
        match received {
            Ok(Received::Frame { bytes }) => {
                counters.bytes.add(u64::from(bytes));
                observers.received(&shared, &queue.segments, &space, bytes);
                if let Some(pace) = pace {
                    pace.received(pieces_of(space.frame()));
                }
                filled.clear();
                filled.extend(space.filled().map(|(chain, written)| (*chain, written)));
                for (chain, written) in filled.iter() {
                    counters.chains.add(1);
                    counters.descriptors.add(u64::from(chain.descriptors));
                    queue.complete(chain, *written);
                }
                queue.unpop(chains.get(filled.len()..).unwrap_or_default());
                frames += 1;
            }
            Ok(Received::Nothing) => {
                queue.unpop(chains);
                break;
            }
            // The port has counted it by reason; a log line per frame would cost more than the frame.
            Err(_) => {
                counters.count_drop("link_error");
                queue.spoiled(chains);
                queue.unpop(chains);
            }
        }
        taken += 1;
    }
    if frames > 0 {
        queue.publish();
    }
    match outcome {
        Progress::Idle if taken == BURST => Progress::More,
        Progress::Idle if taken > 0 => Progress::Some,
        _ => outcome,
    }
}

enum Gathered {
    Enough,
    /// Too few, and there will never be more.
    All,
    TooFew,
    Stopped,
}

/// Takes chains until they hold `bytes`; without MRG_RXBUF a frame has one chain and no more (VIRTIO 1.3, 5.1.6.4),
/// and the frame is fitted to it, or dropped, by the port. So it is with one that is longer than all the buffers that a
/// full ring holds: waiting for more would stop the queue for good (CVE-2020-16843); or than all that a frame may take.
fn gather(queue: &mut Queue, bytes: usize, mergeable: bool, chains: &mut Vec<Chain>) -> Gathered {
    queue.segments.clear();
    chains.clear();
    let (mut room, mut descriptors) = (0, 0_u32);
    while room < bytes {
        if chains.len() == MAX_BUFFERS {
            return Gathered::All;
        }
        match queue.pop() {
            Ok(Some(chain)) => {
                room += chain.writable_len as usize;
                descriptors += if chain.indirect { 1 } else { u32::from(chain.descriptors) };
                chains.push(chain);
                if !mergeable {
                    break;
                }
            }
            Ok(None) if descriptors >= u32::from(queue.ring.size()) => return Gathered::All,
            Ok(None) => {
                queue.unpop(chains);
                return Gathered::TooFew;
            }
            Err(error) => {
                queue.unpop(chains);
                queue.stop_ring(&error);
                return Gathered::Stopped;
            }
        }
    }
    Gathered::Enough
}
