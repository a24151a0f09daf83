//! Whose memory the buffers of a ring are.
//!
//! Operation: the rings are looked at, then the pages, then the rings again. As long as the device has a chain its pages are
//! nobody else's; so a label is given to what was in flight before and after.

use std::collections::BTreeMap;

use anyhow::Result;
use vnic::observe::protocol::{ChainSnapshot, Label, RingSnapshot};
use vnic::provenance::owner;

use crate::control::Client;

/// Most pages that are asked for.
const MAX_PAGES: usize = 4096;

/// The rings, with labels for what the device is to read.
pub(crate) fn rings(client: &mut Client, queue: Option<&String>) -> Result<Vec<RingSnapshot>> {
    let translated = translated(client)?;
    let mut before = client.rings(queue.cloned())?;
    before.retain(|ring| !translated.iter().any(|device| ring.queue.starts_with(device)));
    let mut addresses: Vec<u64> = before.iter().flat_map(|ring| &ring.chains).flat_map(readable).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MAX_PAGES);
    let pages = client.page(addresses.clone())?;
    let labels: BTreeMap<u64, Label> = addresses.into_iter().zip(pages.into_iter().map(|page| page.label)).collect();
    let mut rings = client.rings(queue.cloned())?;
    for ring in &mut rings {
        let known = before.iter().find(|known| known.queue == ring.queue && known.size == ring.size);
        let Some(known) = known.filter(|known| stands(known, ring)) else { continue };
        for chain in ring.chains.iter_mut().filter(|chain| known.chains.contains(chain)) {
            let addresses = readable(chain).collect::<Vec<_>>();
            let read = chain.buffers.iter_mut().filter(|buffer| !buffer.writable);
            for (buffer, address) in read.zip(addresses) {
                let label = labels.get(&address);
                buffer.label = label.map(Label::to_string);
                buffer.owner = label.map(std::slice::from_ref).and_then(owner);
            }
        }
    }
    Ok(rings)
}

/// Of a VM that is looked at from outside, the devices behind the guest's IOMMU, as their queues' names begin: their addresses lead
/// nowhere that can be said.
fn translated(client: &mut Client) -> Result<Vec<String>> {
    let status = client.status()?;
    let names = status.features.negotiated.iter().filter_map(|name| name.strip_suffix("access_platform"));
    Ok(names.filter(|device| device.ends_with('.')).map(str::to_owned).collect())
}

/// Where the device is to read, guest-physical.
fn readable(chain: &ChainSnapshot) -> impl Iterator<Item = u64> {
    chain.buffers.iter().filter(|buffer| !buffer.writable).map(|buffer| buffer.gpa.unwrap_or(buffer.addr))
}

/// Has the ring not come round meanwhile? Then what is in it before and after was there all the time.
fn stands(before: &RingSnapshot, after: &RingSnapshot) -> bool {
    let moved = after.avail_idx.wrapping_sub(before.avail_idx);
    before.consistent && after.consistent && moved < before.size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_that_came_round_says_nothing_of_what_was_in_it_before() {
        let ring = |avail| -> RingSnapshot {
            format!("transmitq0 split size=4 avail.idx={avail} used.idx=0 in-flight=0").parse().unwrap()
        };
        assert!(stands(&ring(7), &ring(7)) && stands(&ring(7), &ring(10)));
        assert!(!stands(&ring(7), &ring(11)));
        assert!(!stands(&ring(7), &RingSnapshot { consistent: false, ..ring(7) }));
    }
}
