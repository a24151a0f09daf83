//! What a device is asked for, on threads of their own, so that a device that does not answer keeps no key waiting.
//!
//! Operation: one thread asks for status and rings, a few times a second, and whatever is asked in between; when the device is gone
//! it tries to find it again at the same socket. A trace and reports of what is sent come over connections of their own while they are wanted.
//!
//! Limits: a trace is read only so fast ([`EVENTS`]). What the device has more of it does not record, which costs it a
//! count, and tells as lost: nobody could read it either, and so a watch stays cheap however fast the rings go.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::eventfd::EventFd;
use vnic::observe::protocol::{Life, LifeOf, Report, Request, RingSnapshot, Status, TraceEvent};

use crate::control::{Client, Hangup, Page, Since, Wanted};
use crate::labels;

/// How often the device is asked.
const REFRESH: Duration = Duration::from_millis(250);
/// How often a device that is gone is looked for.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a connection that was refused is not asked for again.
const REFUSED: Duration = Duration::from_secs(1);
/// How long labels are not asked for where there were none.
const NOT_YET: Duration = Duration::from_secs(3);
/// So many events of a trace are read in so long at most.
const EVENTS: (usize, Duration) = (200, Duration::from_millis(50));
/// News that wait to be drawn at most.
const WAITING: usize = 64;
/// Of so many rings all are looked at; of more, the one that is shown.
const RINGS: usize = 8;

/// What is new.
#[derive(Debug)]
pub(crate) enum News {
    /// The device's state.
    State { at: Instant, status: Box<Status>, rings: Vec<RingSnapshot>, unlabelled: Option<String> },
    /// It cannot be asked: why.
    Gone(String),
    /// Chains that passed.
    Chains(Vec<TraceEvent>),
    /// There are no labels in the trace: why.
    NoLabels(String),
    /// The trace ended: why.
    TraceEnded(String),
    /// What was sent.
    Report(Box<Report>),
    /// There are no more reports: why.
    TopEnded(String),
    /// What is known of a page, or of a file.
    Known(LifeOf, Box<Known>),
    /// What came of hold or release.
    Touched(String, Result<(), String>),
}

/// What is known of a page, or of a file.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// Whose page it is; `None`: a file was asked for.
    pub(crate) page: Option<Result<Page, String>>,
    pub(crate) life: Result<Life, String>,
}

/// What the device is asked beside its state.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Whose page that is, and what happened to it.
    Known(LifeOf),
    /// Hold this queue.
    Hold(String),
    /// Let it go.
    Release(String),
    /// What is shown has changed.
    Look(Look),
}

/// What is shown of the rings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// The queue in the middle.
    pub(crate) queue: Option<String>,
    /// With whose memory its buffers are.
    pub(crate) labels: bool,
}

/// Where news come from.
#[derive(Debug)]
pub(crate) struct Feed {
    asks: Sender<Ask>,
    news: Receiver<News>,
    post: Post,
    path: PathBuf,
    trace: Option<Following>,
    top: Option<Following>,
}

/// Puts news where they are found, and says so.
#[derive(Debug, Clone)]
struct Post {
    news: SyncSender<News>,
    bell: Arc<EventFd>,
}

impl Post {
    /// Is there somebody to read it?
    fn send(&self, news: News) -> bool {
        self.news.send(news).is_ok() && self.bell.write(1).is_ok()
    }
}

/// A connection that news come over until it is dropped.
#[derive(Debug)]
struct Following {
    ended: Arc<AtomicBool>,
    hangup: Arc<Mutex<Option<Hangup>>>,
    started: Instant,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Whoever waits for the device's next line learns that there will be none.
        drop(self.hangup.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// The thread's side of it.
#[derive(Debug)]
struct Line {
    path: PathBuf,
    ended: Arc<AtomicBool>,
    hangup: Arc<Mutex<Option<Hangup>>>,
}

impl Line {
    /// A connection, in the place of the one before.
    fn open(&self) -> Result<Client> {
        let client = Client::open(Some(&self.path))?;
        let hangup = client.hangup()?;
        *self.hangup.lock().unwrap_or_else(PoisonError::into_inner) = Some(hangup);
        ensure!(!self.is_over(), "nobody wants it any more");
        Ok(client)
    }

    fn is_over(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

impl Following {
    /// Has it ended, and is it time to try again? A device that refuses is not asked without a pause.
    fn is_due(&self) -> bool {
        self.ended.load(Ordering::Relaxed) && self.started.elapsed() > REFUSED
    }

    /// Starts one, with a connection to the device at `path`. Says `over` when it ends by itself.
    fn start(
        path: PathBuf,
        post: Post,
        follow: impl FnOnce(&Line, &Post) -> Result<()> + Send + 'static,
        over: impl FnOnce(String) -> News + Send + 'static,
    ) -> Following {
        let following = Following { ended: Arc::default(), hangup: Arc::default(), started: Instant::now() };
        let line = Line { path, ended: following.ended.clone(), hangup: following.hangup.clone() };
        thread::spawn(move || {
            let why = follow(&line, &post).err();
            let why = why.map_or_else(|| "the device has ended".to_owned(), |error| format!("{error:#}"));
            if !line.ended.swap(true, Ordering::Relaxed) {
                post.send(over(why));
            }
        });
        following
    }
}

impl Feed {
    /// News of this device, one of `several`; the bell says when there are some.
    pub(crate) fn start(client: Client, look: Look, bell: Arc<EventFd>, several: bool) -> Feed {
        let (asks, asked) = channel();
        let (sender, news) = sync_channel(WAITING);
        let post = Post { news: sender, bell };
        let path = client.path().to_owned();
        let (client, post_of_it) = (Some(client), post.clone());
        let asker = Asker { path: path.clone(), client, look, post: post_of_it, several, queues: 0, unlabelled: None };
        thread::spawn(move || asker.run(&asked));
        Feed { asks, news, post, path, trace: None, top: None }
    }

    /// What is new by now.
    pub(crate) fn news(&self) -> Vec<News> {
        let mut all = Vec::new();
        while all.len() < WAITING {
            match self.news.try_recv() {
                Ok(news) => all.push(news),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        all
    }

    /// Asks for something.
    pub(crate) fn ask(&self, ask: Ask) {
        // Its thread is there as long as this.
        let _ = self.asks.send(ask);
    }

    /// A trace is wanted, or not.
    pub(crate) fn want_trace(&mut self, wanted: bool) {
        keep(&mut self.trace, wanted, || {
            Following::start(self.path.clone(), self.post.clone(), follow_trace, News::TraceEnded)
        });
    }

    /// Reports are wanted, or not.
    pub(crate) fn want_top(&mut self, wanted: bool) {
        keep(&mut self.top, wanted, || {
            Following::start(self.path.clone(), self.post.clone(), follow_top, News::TopEnded)
        });
    }
}

/// Has it there if it is wanted.
fn keep(following: &mut Option<Following>, wanted: bool, start: impl FnOnce() -> Following) {
    if !wanted {
        *following = None;
    } else if following.as_ref().is_none_or(Following::is_due) {
        *following = Some(start());
    }
}

fn follow_trace(line: &Line, post: &Post) -> Result<()> {
    let mut trace = match line.open()?.trace(Wanted { labels: true, headers: true }) {
        Ok(trace) => trace,
        // Where the guest's kernel cannot be looked into, the chains can be followed still.
        Err(error) => {
            let trace = line.open()?.trace(Wanted { labels: false, headers: true })?;
            post.send(News::NoLabels(format!("{error:#}")));
            trace
        }
    };
    let (most, time) = EVENTS;
    let mut begun = Instant::now();
    let mut batch = Vec::new();
    loop {
        let event = trace.next()?;
        let over = event.is_none();
        batch.extend(event);
        if over || batch.len() >= most || !trace.has_more() {
            if !batch.is_empty() && !post.send(News::Chains(std::mem::take(&mut batch))) || over {
                return Ok(());
            }
            let pause = time.saturating_sub(begun.elapsed());
            if !line.is_over() {
                thread::sleep(pause);
            }
            begun = Instant::now();
        }
    }
}

fn follow_top(line: &Line, post: &Post) -> Result<()> {
    let mut top = line.open()?.top(Duration::from_secs(1), Since::Start)?;
    while let Some(report) = top.next()? {
        if !post.send(News::Report(Box::new(report))) {
            break;
        }
    }
    Ok(())
}

/// Asks the device.
struct Asker {
    path: PathBuf,
    client: Option<Client>,
    look: Look,
    post: Post,
    /// There are other devices: only the ring that is shown is looked at.
    several: bool,
    /// How many there were the last time.
    queues: usize,
    /// When there were no labels to be had, and why not.
    unlabelled: Option<(Instant, String)>,
}

impl Asker {
    fn run(mut self, asked: &Receiver<Ask>) {
        loop {
            let (news, pause) = match self.state() {
                Ok(state) => (state, REFRESH),
                Err(error) => {
                    self.client = None;
                    (News::Gone(format!("{error:#}")), AGAIN)
                }
            };
            if !self.post.send(news) {
                return;
            }
            let next = Instant::now() + pause;
            loop {
                let ask = match asked.recv_timeout(next.saturating_duration_since(Instant::now())) {
                    Ok(ask) => ask,
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                let shows = matches!(ask, Ask::Look(_) | Ask::Hold(_) | Ask::Release(_));
                if self.answer(ask).is_some_and(|news| !self.post.send(news)) {
                    return;
                }
                if shows {
                    break;
                }
            }
        }
    }

    fn client(&mut self) -> Result<&mut Client> {
        match self.client.take().filter(|client| !client.is_broken()) {
            Some(client) => Ok(self.client.insert(client)),
            None => Ok(self.client.insert(Client::open(Some(&self.path))?)),
        }
    }

    fn state(&mut self) -> Result<News> {
        let Look { queue, labels } = self.look.clone();
        let few = self.queues <= RINGS && !self.several;
        let mut unlabelled = self.unlabelled.take();
        let refused = unlabelled.as_ref().is_some_and(|(at, _)| at.elapsed() < NOT_YET);
        let client = self.client()?;
        let status = client.status()?;
        let all = if status.devices.is_empty() { std::slice::from_ref(&status) } else { &status.devices };
        let there = |name: &String| all.iter().flat_map(|device| &device.queues).any(|queue| queue.queue == *name);
        let queue = queue.filter(there);
        let queues = all.iter().map(|device| device.queues.len()).sum();
        let mut rings = if few { client.rings(None)? } else { Vec::new() };
        if let Some(queue) = queue {
            match (labels && !refused).then(|| labels::rings(client, Some(&queue))) {
                Some(Ok(shown)) => {
                    unlabelled = None;
                    put(&mut rings, shown);
                }
                Some(Err(error)) => unlabelled = Some((Instant::now(), format!("{error:#}"))),
                None if !few => put(&mut rings, client.rings(Some(queue))?),
                None => {}
            }
        }
        self.queues = queues;
        let why = unlabelled.as_ref().filter(|_| labels).map(|(_, why)| why.clone());
        self.unlabelled = unlabelled;
        Ok(News::State { at: Instant::now(), status: Box::new(status), rings, unlabelled: why })
    }

    fn answer(&mut self, ask: Ask) -> Option<News> {
        let words = |error: anyhow::Error| format!("{error:#}");
        match ask {
            Ask::Look(look) => {
                self.look = look;
                None
            }
            Ask::Hold(queue) => {
                let request = Request::Hold { queue: queue.clone() };
                let done = self.client().and_then(|client| client.order(&request)).map_err(words);
                Some(News::Touched(format!("{queue}: held; its buffers stay with the device"), done))
            }
            Ask::Release(queue) => {
                let request = Request::Release { queue: queue.clone() };
                let done = self.client().and_then(|client| client.order(&request)).map_err(words);
                Some(News::Touched(format!("{queue}: released"), done))
            }
            Ask::Known(of) => {
                let page = match &of {
                    LifeOf::Page { gpa } => {
                        let page = self.client().and_then(|client| client.page(vec![*gpa]));
                        Some(page.and_then(|mut page| page.pop().context("there is no answer")).map_err(words))
                    }
                    LifeOf::File { .. } | LifeOf::Pages { .. } => None,
                };
                let life = self.client().and_then(|client| client.life(of.clone())).map_err(words);
                Some(News::Known(of, Box::new(Known { page, life })))
            }
        }
    }
}

/// These in the place of those of the same queues.
fn put(rings: &mut Vec<RingSnapshot>, shown: Vec<RingSnapshot>) {
    for ring in shown {
        match rings.iter_mut().find(|other| other.queue == ring.queue) {
            Some(other) => *other = ring,
            None => rings.push(ring),
        }
    }
}
