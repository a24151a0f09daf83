//! transmitq → link: one burst.

use super::queue::Queue;
use super::worker::{BURST, Eyes, Progress};
use crate::link::{Port, Transmitted};
use crate::net::Frame;
use crate::ring::{Chain, DeviceRing};
use crate::spec::Features;

/// Takes up to [`BURST`] chains from `queue` and offers their frames to `port`. What the link has no room for stays
/// in the ring.
pub(super) fn burst<P: Port>(
    queue: &mut Queue,
    port: &mut P,
    pair: usize,
    features: Features,
    eyes: &mut Eyes<'_>,
) -> Progress {
    let mut used = 0;
    let mut outcome = Progress::Idle;
    let shared = queue.shared.clone();
    let counters = &shared.counters;
    for _ in 0..BURST {
        queue.segments.clear();
        let chain = match queue.ring.pop(&mut queue.segments) {
            Ok(Some(chain)) => chain,
            Ok(None) => break,
            Err(error) => {
                queue.stop_ring(&error);
                break;
            }
        };
        let frame = match Frame::new(&queue.segments, &chain, features) {
            Ok(frame) => frame,
            // The chain is sound, what it holds is no frame: the driver gets it back, the others live on.
            Err(error) => {
                counters.count_drop(error.name());
                finish(queue, &chain);
                used += 1;
                continue;
            }
        };
        match port.transmit(pair, &frame) {
            Ok(Transmitted::Taken { read, copied }) => {
                counters.bytes.add(u64::from(frame.len));
                counters.dma_read_bytes.add(u64::from(read));
                counters.device_copied_bytes.add(u64::from(copied));
                eyes.transmitted(&shared, &queue.segments, &frame, read, copied);
            }
            Ok(Transmitted::Full) => {
                queue.unpop(&[chain]);
                counters.link_full.add(1);
                outcome = Progress::Blocked;
                break;
            }
            // The port has counted it by reason; a log line per frame would cost more than the frame.
            Err(_) => {
                counters.count_drop("link_error");
            }
        }
        finish(queue, &chain);
        used += 1;
    }
    if used > 0 {
        queue.publish();
        if outcome == Progress::Idle {
            outcome = if used == BURST { Progress::More } else { Progress::Some };
        }
    }
    outcome
}

/// The chain goes back to the driver, whatever became of its frame.
fn finish(queue: &mut Queue, chain: &Chain) {
    queue.shared.counters.chains.add(1);
    queue.shared.counters.descriptors.add(u64::from(chain.descriptors));
    queue.push_used(chain, 0);
}
