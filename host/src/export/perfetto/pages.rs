//! Which pages a disk has filled, and which frames took them from there.
//!
//! Place: a read of a disk is [kept](Pages::filled) here until its pages are others', since only then is it known how many arrows
//! begin at it; a frame that is sent [asks](Pages::sent) for those that filled its pages.
//!
//! Invariants: no more than [`MOST`] reads are kept, of each no more than [`PAGES`] pages and [`ARROWS`] arrows.
//!
//! Limits: what a CPU of the guest writes is not seen: a page that it has overwritten since counts as filled by the disk still.

use std::collections::{HashMap, VecDeque};

use vnic::observe::protocol::ChainEvent;

/// Reads that are kept.
const MOST: usize = 8192;
/// Pages of one read, and arrows from it.
const PAGES: usize = 512;
const ARROWS: usize = 256;

const PAGE: u64 = 4096;

/// A read that is kept.
#[derive(Debug)]
pub(super) struct Fill {
    pub(super) chain: ChainEvent,
    /// Where it is drawn.
    pub(super) track: u64,
    /// The arrows that begin at it.
    pub(super) arrows: Vec<u64>,
    /// Of its pages, those that are still as it left them.
    left: usize,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// By number, the oldest first; `None`: it was written already.
    fills: VecDeque<Option<Fill>>,
    /// The number of the first.
    first: u64,
    /// By page, which filled it.
    by_page: HashMap<u64, u64>,
    next_arrow: u64,
}

impl Pages {
    /// A disk has read into these pages. Returns those reads of which no page is left.
    pub(super) fn filled(&mut self, chain: ChainEvent, track: u64) -> Vec<Fill> {
        let mut over = self.overwritten(&chain);
        let number = self.first + self.fills.len() as u64;
        let mut pages: Vec<u64> = pages(&chain, true).take(PAGES).collect();
        pages.dedup();
        let left = pages.len();
        for page in pages {
            self.by_page.insert(page, number);
        }
        self.fills.push_back(Some(Fill { chain, track, arrows: Vec::new(), left }));
        while self.fills.len() > MOST {
            over.extend(self.fills.pop_front().flatten());
            self.first += 1;
        }
        over
    }

    /// A device has written there. Returns those reads of which no page is left.
    pub(super) fn overwritten(&mut self, chain: &ChainEvent) -> Vec<Fill> {
        let mut over = Vec::new();
        for page in pages(chain, true).take(PAGES) {
            let Some(place) = self.by_page.remove(&page).and_then(|number| self.place(number)) else { continue };
            if let Some(fill) = place {
                fill.left = fill.left.saturating_sub(1);
                if fill.left == 0 {
                    over.extend(place.take());
                }
            }
        }
        over
    }

    /// A frame goes out of these pages. Returns an arrow from each read that filled one of them.
    pub(super) fn sent(&mut self, chain: &ChainEvent) -> Vec<u64> {
        let mut numbers: Vec<u64> =
            pages(chain, false).take(PAGES).filter_map(|page| self.by_page.get(&page).copied()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut arrows = Vec::new();
        for number in numbers {
            let arrow = self.next_arrow + 1;
            if let Some(Some(fill)) = self.place(number)
                && fill.arrows.len() < ARROWS
            {
                fill.arrows.push(arrow);
                arrows.push(arrow);
                self.next_arrow = arrow;
            }
        }
        arrows
    }

    /// So many arrows there are.
    pub(super) fn arrows(&self) -> u64 {
        self.next_arrow
    }

    /// All that are left.
    pub(super) fn take_all(&mut self) -> Vec<Fill> {
        self.by_page.clear();
        std::mem::take(&mut self.fills).into_iter().flatten().collect()
    }

    fn place(&mut self, number: u64) -> Option<&mut Option<Fill>> {
        let at = number.checked_sub(self.first)?;
        self.fills.get_mut(usize::try_from(at).ok()?)
    }
}

/// The pages of the buffers that the device writes, or of those that it reads. What is shorter than a page is no page's data: a
/// header, or a status.
fn pages(chain: &ChainEvent, writable: bool) -> impl Iterator<Item = u64> {
    let buffers = chain.buffers.iter().filter(move |buffer| buffer.writable == writable);
    buffers.flat_map(move |buffer| {
        let at = buffer.gpa.unwrap_or(buffer.addr);
        let (first, last) = (at / PAGE, at.saturating_add(u64::from(buffer.len).saturating_sub(1)) / PAGE);
        // A disk fills whole sectors.
        let is_data = !writable || buffer.len >= 512;
        (first..=last).filter(move |_| is_data)
    })
}
