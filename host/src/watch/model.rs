//! What is known and what is chosen: all that a picture is made of.
//!
//! Place: [`Model::take`] puts news into it, [`super::input`] what somebody does; [`super::draw`] makes pictures of it and changes
//! nothing.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use vnic::observe::protocol::{LifeOf, QueueStatus, Report, RingSnapshot, Status};

use super::chains::Chains;
use super::feed::{Known, Look, News};
use crate::views::top::By;

/// Over so long a time rates are taken.
const RATE: Duration = Duration::from_secs(1);
/// So many rates are kept.
const HISTORY: usize = 300;

/// The views.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Tab {
    #[default]
    Rings,
    Chains,
    Flows,
    Counters,
    Page,
    Hold,
}

impl Tab {
    pub(crate) const ALL: [Tab; 6] = [Tab::Rings, Tab::Chains, Tab::Flows, Tab::Counters, Tab::Page, Tab::Hold];

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Tab::Rings => "Rings",
            Tab::Chains => "Chains",
            Tab::Flows => "Flows and files",
            Tab::Counters => "Counters and drops",
            Tab::Page => "Page",
            Tab::Hold => "Hold",
        }
    }

    pub(crate) fn at(self) -> usize {
        Tab::ALL.iter().position(|tab| *tab == self).unwrap_or_default()
    }

    /// So many further on, round and round.
    pub(crate) fn moved(self, by: isize) -> Tab {
        let at = (self.at() as isize + by).rem_euclid(Tab::ALL.len() as isize);
        Tab::ALL[at as usize]
    }
}

/// How fast a queue's counters rise, per second, second by second, the last one last.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    at: Option<Instant>,
    counters: BTreeMap<String, u64>,
    pub(crate) now: BTreeMap<String, f64>,
    pub(crate) bytes: VecDeque<u64>,
}

impl Rates {
    fn update(&mut self, counters: &BTreeMap<String, u64>, at: Instant) {
        let Some(since) = self.at else {
            (self.at, self.counters) = (Some(at), counters.clone());
            return;
        };
        let elapsed = at.saturating_duration_since(since);
        if elapsed < RATE {
            return;
        }
        // A device that was started anew counts from 0 again.
        let before = |name: &String| self.counters.get(name).copied().unwrap_or_default();
        let rate = |(name, now): (&String, &u64)| {
            (name.clone(), now.saturating_sub(before(name)) as f64 / elapsed.as_secs_f64())
        };
        self.now = counters.iter().map(rate).collect();
        if self.bytes.len() == HISTORY {
            self.bytes.pop_front();
        }
        // Of a VM that is looked at from outside, only the chains can be counted.
        self.bytes.push_back(self.of(if counters.contains_key("bytes") { "bytes" } else { "used_idx" }) as u64);
        (self.at, self.counters) = (Some(at), counters.clone());
    }

    /// Of a counter.
    pub(crate) fn of(&self, name: &str) -> f64 {
        self.now.get(name).copied().unwrap_or_default()
    }
}

/// What the tab of a page has.
#[derive(Debug, Default)]
pub(crate) struct PageTab {
    /// What is being written, if it is.
    pub(crate) editing: Option<String>,
    /// What was asked.
    pub(crate) asked: Option<LifeOf>,
    pub(crate) known: Option<Known>,
    /// Why what was written cannot be asked.
    pub(crate) refused: Option<String>,
}

/// What the tab of flows has.
#[derive(Debug, Default)]
pub(crate) struct FlowsTab {
    pub(crate) last: Option<Box<Report>>,
    pub(crate) before: Option<Box<Report>>,
    pub(crate) by: By,
    pub(crate) trouble: Option<String>,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) status: Status,
    /// Has the device answered yet?
    pub(crate) seen: bool,
    pub(crate) rings: Vec<RingSnapshot>,
    pub(crate) rates: BTreeMap<String, Rates>,
    /// Why the device cannot be asked now.
    pub(crate) gone: Option<String>,
    /// Why there are no labels.
    pub(crate) unlabelled: Option<String>,
    pub(crate) tab: Tab,
    /// The queue that is looked at, by its name; until somebody chooses one, the one that does most.
    pub(crate) queue: Option<String>,
    pub(crate) chosen: bool,
    pub(crate) labels: bool,
    /// Rings: each buffer, and not a line for a chain.
    pub(crate) buffers: bool,
    pub(crate) help: bool,
    /// Lines that are above the picture, by tab.
    pub(crate) scroll: [u16; Tab::ALL.len()],
    pub(crate) chains: Chains,
    pub(crate) flows: FlowsTab,
    pub(crate) page: PageTab,
    /// What came of the last hold or release.
    pub(crate) touched: Option<Result<String, String>>,
}

impl Model {
    /// With nothing known yet.
    pub(crate) fn new(tab: Tab, labels: bool) -> Model {
        Model { tab, labels, ..Model::default() }
    }

    /// The devices.
    pub(crate) fn devices(&self) -> &[Status] {
        if self.status.devices.is_empty() { std::slice::from_ref(&self.status) } else { &self.status.devices }
    }

    /// The queues of all devices.
    pub(crate) fn queues(&self) -> impl Iterator<Item = &QueueStatus> {
        self.devices().iter().flat_map(|device| &device.queues)
    }

    /// The queue that is looked at.
    pub(crate) fn selected(&self) -> Option<&QueueStatus> {
        self.queues().find(|queue| Some(&queue.queue) == self.queue.as_ref())
    }

    /// Its ring, or that of another.
    pub(crate) fn ring(&self, queue: &str) -> Option<&RingSnapshot> {
        self.rings.iter().find(|ring| ring.queue == queue)
    }

    /// What the device is to be asked for.
    pub(crate) fn look(&self) -> Look {
        Look { queue: self.queue.clone(), labels: self.labels && self.tab == Tab::Rings }
    }

    /// Looks at the queue that is so many further down.
    pub(crate) fn move_queue(&mut self, by: isize) {
        let names: Vec<&str> = self.queues().map(|queue| queue.queue.as_str()).collect();
        let at = names.iter().position(|name| Some(*name) == self.queue.as_deref()).unwrap_or_default();
        let at = at.saturating_add_signed(by).min(names.len().saturating_sub(1));
        if let Some(name) = names.get(at) {
            let name = Some((*name).to_owned());
            self.choose(name);
        }
    }

    /// Looks at this queue.
    pub(crate) fn choose(&mut self, queue: Option<String>) {
        self.chosen = true;
        if self.queue != queue {
            self.queue = queue;
            self.scroll[Tab::Rings.at()] = 0;
            self.scroll[Tab::Counters.at()] = 0;
        }
    }

    /// Takes notice of what is new.
    pub(crate) fn take(&mut self, news: News) {
        match news {
            News::State { at, status, rings, unlabelled } => {
                (self.status, self.rings, self.unlabelled) = (*status, rings, unlabelled);
                (self.gone, self.seen) = (None, true);
                let mut rates = std::mem::take(&mut self.rates);
                rates.retain(|name, _| self.queues().any(|queue| queue.queue == *name));
                for queue in self.queues() {
                    rates.entry(queue.queue.clone()).or_default().update(&queue.counters, at);
                }
                self.rates = rates;
                self.choose_busiest();
            }
            News::Gone(why) => self.gone = Some(why),
            News::Chains(events) => self.chains.take(events),
            News::NoLabels(why) => self.chains.unlabelled = Some(why),
            News::TraceEnded(why) => self.chains.trouble = Some(why),
            News::Report(report) => {
                self.flows.before = self.flows.last.replace(report);
                self.flows.trouble = None;
            }
            News::TopEnded(why) => {
                // The next one may count from the beginning again.
                self.flows.before = None;
                self.flows.trouble = Some(why);
            }
            News::Known(of, known) if self.page.asked.as_ref() == Some(&of) => self.page.known = Some(*known),
            News::Known(..) => {}
            News::Touched(what, done) => self.touched = Some(done.map(|()| what)),
        }
    }

    /// Until somebody chooses: a transmitq, and of these the one with most bytes.
    fn choose_busiest(&mut self) {
        if self.chosen && self.selected().is_some() {
            return;
        }
        let count = |queue: &QueueStatus, name| queue.counters.get(name).copied().unwrap_or_default();
        let key =
            |queue: &&QueueStatus| (queue.queue.contains("transmitq"), count(queue, "bytes"), count(queue, "used_idx"));
        // Of equals the first.
        let busiest = self.queues().fold(None, |best: Option<&QueueStatus>, queue| match best {
            Some(best) if key(&best) >= key(&queue) => Some(best),
            _ => Some(queue),
        });
        self.queue = busiest.map(|queue| queue.queue.clone());
    }

    /// Queues that are held now.
    pub(crate) fn held(&self) -> impl Iterator<Item = &QueueStatus> {
        self.queues().filter(|queue| queue.state == "held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second_and_a_restart_is_no_negative_rate() {
        let mut rates = Rates::default();
        let counters = |chains: u64, bytes: u64| [("chains".to_owned(), chains), ("bytes".to_owned(), bytes)].into();
        let start = Instant::now();
        rates.update(&counters(100, 1000), start);
        assert!(rates.now.is_empty());
        rates.update(&counters(120, 2000), start + Duration::from_millis(500));
        assert!(rates.now.is_empty(), "too soon");
        rates.update(&counters(300, 5000), start + Duration::from_secs(2));
        assert_eq!((rates.of("chains"), rates.of("bytes")), (100.0, 2000.0));
        rates.update(&counters(0, 0), start + Duration::from_secs(3));
        assert_eq!((rates.of("chains"), rates.of("bytes")), (0.0, 0.0));
        assert_eq!(rates.bytes, [2000, 0]);
    }

    #[test]
    fn tabs_go_round() {
        assert_eq!(Tab::Rings.moved(-1), Tab::Hold);
        assert_eq!(Tab::Hold.moved(1), Tab::Rings);
    }
}
