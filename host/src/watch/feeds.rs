//! Several devices as one: the news of each, with its name before those of its queues, and what is asked of whom.
//!
//! Operation: each device has a [`Feed`] of its own, so that one that does not answer keeps no other waiting. Their states are told
//! together, once each of them has a new one; one that is gone is told of as such, and looked for again. A single device keeps
//! its queues' names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vnic::observe::protocol::{RingSnapshot, Status, TraceEvent};

use super::feed::{Ask, Feed, Look, News};
use crate::control::Client;

/// How long the states of those that answer wait for that of one that does not.
const TOGETHER: Duration = Duration::from_secs(1);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Feeds {
    parts: Vec<Part>,
    bell: Arc<EventFd>,
    told: Instant,
    /// The device of the queue that is looked at.
    chosen: usize,
}

/// A device among others.
#[derive(Debug)]
struct Part {
    /// With what follows it; empty where there is only one device.
    prefix: String,
    path: PathBuf,
    feed: Feed,
    status: Option<Box<Status>>,
    rings: Vec<RingSnapshot>,
    unlabelled: Option<String>,
    gone: Option<String>,
    /// Not told yet.
    new: bool,
}

/// What a device is called: its socket's name, without what every socket's name ends in.
fn name(path: &Path) -> String {
    let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let name = file.strip_suffix(".control").unwrap_or(&file);
    name.strip_suffix(".sock").unwrap_or(name).to_owned()
}

/// A name for each, no two of which are the same.
fn names(paths: &[&Path]) -> Vec<String> {
    let mut given = BTreeSet::new();
    let unused = |path: &&Path| {
        let name = name(path);
        let mut others = (2..).map(|number| format!("{name}-{number}"));
        let mut unused = name.clone();
        while !given.insert(unused.clone()) {
            unused = others.next().unwrap_or_default();
        }
        unused
    };
    paths.iter().map(unused).collect()
}

impl Part {
    /// With its device's name before it.
    fn named(&self, queue: &mut String) {
        queue.insert_str(0, &self.prefix);
    }

    /// Takes notice; what is to be told as it is comes back.
    fn take(&mut self, news: News) -> Option<News> {
        let words = |why: String| format!("{}{why}", self.prefix.replace('/', ": "));
        match news {
            News::State { mut status, mut rings, unlabelled, .. } => {
                let devices = status.devices.iter_mut().flat_map(|device| &mut device.queues);
                devices.chain(&mut status.queues).for_each(|queue| queue.queue.insert_str(0, &self.prefix));
                rings.iter_mut().for_each(|ring| self.named(&mut ring.queue));
                (self.status, self.rings, self.unlabelled) = (Some(status), rings, unlabelled);
                (self.gone, self.new) = (None, true);
                None
            }
            News::Gone(why) => {
                (self.gone, self.new) = (Some(why), true);
                None
            }
            News::Chains(mut events) => {
                for event in &mut events {
                    match event {
                        TraceEvent::Chain(chain) => self.named(&mut chain.queue),
                        TraceEvent::Lost { queue, .. } => self.named(queue),
                    }
                }
                Some(News::Chains(events))
            }
            News::NoLabels(why) => Some(News::NoLabels(words(why))),
            News::TraceEnded(why) => Some(News::TraceEnded(words(why))),
            News::Touched(what, done) => Some(News::Touched(format!("{}{what}", self.prefix), done.map_err(words))),
            other => Some(other),
        }
    }

    /// Its devices, as the others are told; one that is gone has no queues.
    fn devices(&self) -> Vec<Status> {
        let socket = || self.path.display().to_string();
        match (&self.gone, &self.status) {
            (Some(why), _) => vec![Status { socket: socket(), last_error: Some(why.clone()), ..Status::default() }],
            (None, None) => vec![Status { socket: socket(), ..Status::default() }],
            (None, Some(status)) if status.devices.is_empty() => vec![(**status).clone()],
            (None, Some(status)) => status.devices.clone(),
        }
    }
}

impl Feeds {
    /// News of these devices.
    pub(super) fn start(clients: Vec<Client>, look: &Look) -> Result<Feeds> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let bell = Arc::new(EventFd::from_flags(flags).context("cannot be told of news")?);
        let several = clients.len() > 1;
        let names = names(&clients.iter().map(Client::path).collect::<Vec<_>>());
        let parts = names.into_iter().zip(clients).map(|(name, client)| Part {
            prefix: if several { format!("{name}/") } else { String::new() },
            path: client.path().to_owned(),
            feed: Feed::start(client, look.clone(), bell.clone(), several),
            status: None,
            rings: Vec::new(),
            unlabelled: None,
            gone: None,
            new: false,
        });
        Ok(Feeds { parts: parts.collect(), bell, told: Instant::now(), chosen: 0 })
    }

    /// Says when there are news.
    pub(super) fn bell(&self) -> Arc<EventFd> {
        self.bell.clone()
    }

    /// What is new by now.
    pub(super) fn news(&mut self) -> Vec<News> {
        // It says only whether there is something.
        let _ = self.bell.read();
        let mut all = Vec::new();
        for (at, part) in self.parts.iter_mut().enumerate() {
            for news in part.feed.news() {
                all.extend(match news {
                    // Of one that nobody looks at it says nothing of what is looked at.
                    News::NoLabels(_) if at != self.chosen => None,
                    // As it is, and with its own time.
                    News::State { .. } | News::Gone(_) if part.prefix.is_empty() => Some(news),
                    news => part.take(news),
                });
            }
        }
        let waits = self.parts.iter().any(|part| !part.new && part.gone.is_none());
        if self.parts.iter().any(|part| part.new) && (!waits || self.told.elapsed() > TOGETHER) {
            self.told = Instant::now();
            self.parts.iter_mut().for_each(|part| part.new = false);
            all.push(self.state());
        }
        all
    }

    /// All of them together.
    fn state(&self) -> News {
        let whys: Vec<&String> = self.parts.iter().filter_map(|part| part.gone.as_ref()).collect();
        if let (true, Some(why)) = (whys.len() == self.parts.len(), whys.first()) {
            return News::Gone((*why).clone());
        }
        let devices: Vec<Status> = self.parts.iter().flat_map(Part::devices).collect();
        let there = self.parts.len() - whys.len();
        let status = Status {
            socket: format!("{there} of {} control sockets", self.parts.len()),
            connected: devices.iter().all(|device| device.connected),
            devices,
            ..Status::default()
        };
        let unlabelled = self.parts.get(self.chosen).and_then(|part| part.unlabelled.clone());
        let rings = self.parts.iter().filter(|part| part.gone.is_none()).flat_map(|part| part.rings.clone()).collect();
        News::State { at: self.told, status: Box::new(status), rings, unlabelled }
    }

    /// The device that this queue is of, and its own name for it.
    fn of<'q>(&self, queue: &'q str) -> Option<(usize, &'q str)> {
        let of = |(at, part): (usize, &Part)| Some((at, queue.strip_prefix(&part.prefix)?));
        self.parts.iter().enumerate().find_map(of)
    }

    /// Asks for something, whom it is about.
    pub(super) fn ask(&mut self, ask: Ask) {
        match ask {
            Ask::Look(look) => {
                let queue = look.queue.as_deref().and_then(|queue| self.of(queue));
                let (at, own) = queue.map_or((self.chosen, None), |(at, queue)| (at, Some(queue.to_owned())));
                self.chosen = at;
                for (other, part) in self.parts.iter().enumerate() {
                    let queue = own.clone().filter(|_| other == at);
                    part.feed.ask(Ask::Look(Look { queue, ..look.clone() }));
                }
            }
            Ask::Hold(queue) => self.order(&queue, Ask::Hold),
            Ask::Release(queue) => self.order(&queue, Ask::Release),
            Ask::Known(of) => {
                if let Some(part) = self.parts.get(self.chosen) {
                    part.feed.ask(Ask::Known(of));
                }
            }
        }
    }

    fn order(&self, queue: &str, order: impl FnOnce(String) -> Ask) {
        if let Some((at, own)) = self.of(queue)
            && let Some(part) = self.parts.get(at)
        {
            part.feed.ask(order(own.to_owned()));
        }
    }

    /// A trace is wanted of all of them, or of none.
    pub(super) fn want_trace(&mut self, wanted: bool) {
        self.parts.iter_mut().for_each(|part| part.feed.want_trace(wanted && part.gone.is_none()));
    }

    /// Reports are wanted, or not: of the device that is looked at.
    pub(super) fn want_top(&mut self, wanted: bool) {
        for (at, part) in self.parts.iter_mut().enumerate() {
            part.feed.want_top(wanted && at == self.chosen && part.gone.is_none());
        }
    }

    /// What lets a queue go.
    pub(super) fn release(&self, queue: &str) -> String {
        match self.of(queue).and_then(|(at, own)| Some((self.parts.get(at)?, own))) {
            Some((part, own)) if self.parts.len() > 1 => {
                format!("vnic release --control {} --queue {own}", part.path.display())
            }
            _ => format!("vnic release --queue {queue}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_called_after_its_socket_and_no_two_the_same() {
        let paths = ["/run/a/web.sock.control", "/run/b/web.sock.control", "db", "/run/web-2"].map(Path::new);
        assert_eq!(names(&paths), ["web", "web-2", "db", "web-2-2"]);
    }
}
