//! The ways in which mappings of a VMM may be its guest's RAM: one, or one behind the other where the guest has several NUMA nodes,
//! around the PCI hole.

use super::process::Mapping;

/// Where the RAM below the PCI hole ends, if there is more than that: QEMU's q35 (from 2.75 GiB on, else), pc (from 3.5 GiB
/// on, else), Firecracker, Cloud Hypervisor and crosvm.
const SPLITS: [u64; 6] = [0x8000_0000, 0xb000_0000, 0xc000_0000, 0xe000_0000, 0xd000_0000, 0xe800_0000];
/// Where it goes on.
const ABOVE: u64 = 1 << 32;
/// The last of the RAM below the hole may be the firmware's, which the kernel does not map.
const FIRMWARE: u64 = 16 << 20;

/// Part of a guest's RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// The process's own address.
    pub address: u64,
    /// Offset in the mapping's file.
    pub offset: u64,
}

/// Do the kernel's page tables agree?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// All RAM that they have is there, and no more.
    Exact,
    /// They have more above: memory that was plugged in, say.
    Part,
    /// RAM is elsewhere.
    No,
}

/// How these mappings, in this order, may lie in the guest's physical memory: the parts by rising address, each with the number of its
/// mapping.
pub(super) fn placements(mappings: &[&Mapping]) -> Vec<Vec<(usize, Region)>> {
    let mut all: Vec<Vec<(usize, Region)>> = Vec::new();
    for split in SPLITS {
        let (mut parts, mut at) = (Vec::new(), 0);
        for (number, mapping) in mappings.iter().enumerate() {
            let below = mapping.size().min(split.saturating_sub(at));
            let above = ABOVE + (at + below).saturating_sub(split);
            for (from, size, gpa) in [(0, below, at), (below, mapping.size() - below, above)] {
                let region = Region { gpa, size, address: mapping.start + from, offset: mapping.offset + from };
                if size > 0 {
                    parts.push((number, region));
                }
            }
            at += mapping.size();
        }
        if !all.contains(&parts) {
            all.push(parts);
        }
    }
    all
}

/// All orders of two of so many things or more, those of most of them first.
pub(super) fn orders(count: usize) -> Vec<Vec<usize>> {
    let (mut orders, mut at) = (vec![Vec::new()], 0);
    while let Some(order) = orders.get(at).cloned() {
        let others = (0..count).filter(|next| !order.contains(next));
        orders.extend(others.map(|next| [order.as_slice(), &[next]].concat()));
        at += 1;
    }
    orders.retain(|order| order.len() > 1);
    orders.reverse();
    orders
}

/// `maps` says whether the kernel's page tables have a page of RAM at an address.
pub(super) fn fit(regions: &[Region], maps: impl Fn(u64) -> bool) -> Fit {
    let mut fit = Fit::Exact;
    for region in regions {
        let end = region.gpa + region.size;
        let goes_on = regions.iter().any(|other| other.gpa == end);
        let at_hole = end <= ABOVE && !goes_on;
        let last = if at_hole { end.saturating_sub(FIRMWARE) } else { end - 4096 };
        if !maps(last) || at_hole && maps(end) {
            return Fit::No;
        }
        if !goes_on && !at_hole && maps(end) {
            fit = Fit::Part;
        }
    }
    let ends_below = regions.iter().all(|region| region.gpa < ABOVE);
    if ends_below && maps(ABOVE) { Fit::Part } else { fit }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn mapping(start: u64, size: u64) -> Mapping {
        Mapping { start, end: start + size, shared: false, offset: 0, file: (0, 0) }
    }

    fn regions(placement: &[(usize, Region)]) -> Vec<Region> {
        placement.iter().map(|(_, region)| *region).collect()
    }

    #[test]
    fn ram_around_the_pci_hole_is_where_the_page_tables_have_it() {
        assert_eq!(placements(&[&mapping(0x7000_0000_0000, GIB)]).len(), 1, "up to 2 GiB there is one way");
        let all = placements(&[&mapping(0x7000_0000_0000, 4 * GIB)]);
        assert_eq!(all.len(), SPLITS.len());
        // As QEMU's q35 has it, where there are 4 GiB: 2 GiB, and 2 GiB above.
        let maps = |gpa: u64| gpa < 2 * GIB - (1 << 20) || (4 * GIB..6 * GIB).contains(&gpa);
        let fitting: Vec<_> = all.iter().filter(|parts| fit(&regions(parts), maps) != Fit::No).collect();
        assert_eq!(fitting.len(), 1, "{fitting:?}");
        assert_eq!(fit(&regions(fitting[0]), maps), Fit::Exact);
        let above = Region { gpa: 4 * GIB, size: 2 * GIB, address: 0x7000_8000_0000, offset: 2 * GIB };
        assert_eq!(fitting[0][1], (0, above));
        // Memory was plugged in behind it.
        let plugged = |gpa: u64| maps(gpa) || (6 * GIB..7 * GIB).contains(&gpa);
        let fits: Vec<_> =
            all.iter().map(|parts| fit(&regions(parts), plugged)).filter(|fit| *fit != Fit::No).collect();
        assert_eq!(fits, [Fit::Part]);
        // A small guest, whose plugged memory begins above the hole.
        let small = regions(&placements(&[&mapping(0, GIB)])[0]);
        assert_eq!(fit(&small, |gpa| gpa < GIB), Fit::Exact);
        assert_eq!(fit(&small, |gpa| gpa < GIB || (4 * GIB..5 * GIB).contains(&gpa)), Fit::Part);
        assert_eq!(fit(&small, |gpa| gpa < 2 * GIB), Fit::No);
    }

    #[test]
    fn nodes_lie_one_behind_the_other_and_one_of_them_on_both_sides_of_the_hole() {
        let (one, other) = (mapping(0x1000_0000, GIB), mapping(0x7000_0000_0000, 3 * GIB));
        let maps = |gpa: u64| gpa < 2 * GIB - (1 << 20) || (4 * GIB..6 * GIB).contains(&gpa);
        let exact = |mappings: &[&Mapping]| {
            let mut all = placements(mappings);
            all.retain(|parts| fit(&regions(parts), maps) == Fit::Exact);
            all
        };
        let found = exact(&[&one, &other]);
        let expected = [
            (0, Region { gpa: 0, size: GIB, address: 0x1000_0000, offset: 0 }),
            (1, Region { gpa: GIB, size: GIB, address: 0x7000_0000_0000, offset: 0 }),
            (1, Region { gpa: 4 * GIB, size: 2 * GIB, address: 0x7000_4000_0000, offset: GIB }),
        ];
        assert_eq!(found, [expected]);
        assert_eq!(exact(&[&one]).len() + exact(&[&other]).len(), 0, "one of them alone is not all there is");
        // Two that meet at the hole.
        let halves = [mapping(0, 2 * GIB), mapping(8 * GIB, 2 * GIB)];
        let [found] = exact(&[&halves[0], &halves[1]]).try_into().unwrap();
        assert_eq!(found.iter().map(|(_, region)| region.gpa).collect::<Vec<_>>(), [0, 4 * GIB]);
        assert_eq!(exact(&[&halves[0]]), [] as [Vec<_>; 0]);
    }

    #[test]
    fn every_order_of_two_or_more_is_tried_once() {
        assert_eq!(orders(0).len() + orders(1).len(), 0);
        assert_eq!(orders(2).len(), 2);
        let all = orders(4);
        assert_eq!(all.len(), 24 + 24 + 12);
        assert!(all.iter().enumerate().all(|(at, order)| !all[..at].contains(order)), "{all:?}");
        assert_eq!((all[0].len(), all[59].len()), (4, 2));
    }
}
