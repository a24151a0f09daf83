//! The chains of a trace: the last ones, of those that are wanted.

use std::collections::VecDeque;

use vnic::observe::protocol::{ChainEvent, TraceEvent};

use crate::filter::Filter;

/// So many are kept.
const KEPT: usize = 500;

/// A chain, and its number among all that came.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) number: u64,
    pub(crate) chain: ChainEvent,
}

/// What the tab of chains has.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    pub(crate) list: VecDeque<Entry>,
    /// All that came.
    pub(crate) came: u64,
    /// Those that the trace could not follow.
    pub(crate) lost: u64,
    /// Those that came by while nothing was to move.
    pub(crate) ignored: u64,
    pub(crate) paused: bool,
    filter: Filter,
    /// The filter as it was written.
    pub(crate) line: String,
    /// The filter as it is being written.
    pub(crate) editing: Option<String>,
    pub(crate) refused: Option<String>,
    /// The chain that is looked at, by its number; none: always the last one.
    pub(crate) selected: Option<u64>,
    /// It is shown whole, with this of its buffers in the middle.
    pub(crate) open: Option<usize>,
    /// Why the trace ended.
    pub(crate) trouble: Option<String>,
    pub(crate) unlabelled: Option<String>,
}

impl Chains {
    /// What passed.
    pub(crate) fn take(&mut self, events: Vec<TraceEvent>) {
        self.trouble = None;
        for event in events {
            match event {
                TraceEvent::Lost { events, .. } => self.lost += events,
                TraceEvent::Chain(_) if self.paused => self.ignored += 1,
                TraceEvent::Chain(chain) => {
                    self.came += 1;
                    if self.filter.admits(&chain) {
                        self.list.push_back(Entry { number: self.came, chain });
                    }
                }
            }
        }
        while self.list.len() > KEPT {
            self.list.pop_front();
        }
    }

    /// Shows only what this line says, from now on and of what is there.
    pub(crate) fn choose(&mut self, line: &str) {
        match Filter::parse(line) {
            Ok(filter) => {
                self.list.retain(|entry| filter.admits(&entry.chain));
                (self.filter, self.line, self.refused) = (filter, line.trim().to_owned(), None);
            }
            Err(why) => self.refused = Some(why),
        }
    }

    /// Where the chain that is looked at stands in the list.
    pub(crate) fn at(&self) -> usize {
        let last = self.list.len().saturating_sub(1);
        // One that is gone stood before all that are there.
        self.selected.map_or(last, |number| self.list.partition_point(|entry| entry.number < number).min(last))
    }

    /// The chain that is looked at.
    pub(crate) fn chain(&self) -> Option<&ChainEvent> {
        self.list.get(self.at()).map(|entry| &entry.chain)
    }

    /// Looks at the one so many further down; at the end, at whatever comes.
    pub(crate) fn move_by(&mut self, by: isize) {
        let at = self.at().saturating_add_signed(by);
        let last = self.list.len().saturating_sub(1);
        self.selected = if at >= last && by > 0 { None } else { self.list.get(at).map(|entry| entry.number) };
    }

    /// Shows it whole: what is looked at does not change meanwhile.
    pub(crate) fn enter(&mut self) {
        if let Some(entry) = self.list.get(self.at()) {
            self.selected = Some(entry.number);
            self.open = Some(0);
        }
    }

    /// Looks at another of its buffers.
    pub(crate) fn move_buffer(&mut self, by: isize) {
        let count = self.chain().map_or(0, |chain| chain.buffers.len());
        if let Some(at) = &mut self.open {
            *at = at.saturating_add_signed(by).min(count.saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(idx: u16, queue: &str) -> TraceEvent {
        TraceEvent::Chain(ChainEvent {
            at_ns: u64::from(idx),
            available_ns: 0,
            queue: queue.to_owned(),
            head: idx,
            idx,
            indirect: false,
            buffers: Vec::new(),
            descriptors: 0,
            written: 0,
            summary: String::new(),
            headers: None,
        })
    }

    #[test]
    fn what_is_looked_at_stays_while_others_come_and_goes_with_the_oldest() {
        let mut chains = Chains::default();
        chains.take((0..10).map(|idx| chain(idx, "transmitq0")).collect());
        assert_eq!(chains.chain().unwrap().idx, 9);
        chains.move_by(-2);
        chains.take((10..20).map(|idx| chain(idx, "transmitq0")).collect());
        assert_eq!(chains.chain().unwrap().idx, 7);
        chains.take((0..KEPT as u16).map(|idx| chain(100 + idx, "transmitq0")).collect());
        assert_eq!((chains.list.len(), chains.chain().unwrap().idx), (KEPT, 100));
        chains.move_by(KEPT as isize);
        assert_eq!(chains.selected, None);
    }

    #[test]
    fn a_filter_is_of_what_is_there_and_of_what_comes() {
        let mut chains = Chains::default();
        let both = || vec![chain(1, "receiveq0"), chain(2, "transmitq0")];
        chains.take(both());
        chains.choose("transmitq0");
        chains.take(both());
        assert_eq!((chains.list.len(), chains.came), (2, 4));
        chains.choose("0xno");
        assert!(chains.refused.is_some() && chains.line == "transmitq0");
    }

    #[test]
    fn what_comes_during_a_pause_is_counted() {
        let mut chains = Chains { paused: true, ..Chains::default() };
        chains.take(vec![chain(1, "transmitq0"), TraceEvent::Lost { queue: "transmitq0".to_owned(), events: 7 }]);
        assert_eq!((chains.list.len(), chains.ignored, chains.lost), (0, 1, 7));
    }
}
