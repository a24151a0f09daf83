//! `vnic top` and `vnic verdict`: from what the frames come that the guest sends.
//!
//! Place: a thread beside the data path, the [`Keeper`]'s, which keeps all [`Account`]s: one since the device was first served, where
//! that is wanted, and one for each client that wants to know what is sent from now on. A client has a thread of its own.
//!
//! Operation:
//! 1. While there is any account, the workers record samples of what they send, with stamps: what the pages of a frame were
//!    while the device had them ([`Stamper`](crate::introspect::Stamper)).
//! 2. The keeper reads them, looks the pages up, and adds them to all accounts.
//! 3. Then it pauses, by what those samples have cost the workers: no more than [`SHARE`] of their time. What comes by
//!    meanwhile and has no room in the rings went by unseen: the queues have counted it, and an account says how much of all it
//!    has seen.
//!
//! The guest's kernel is looked for when something is sent, not before; and where it cannot be looked into, seldom again.

mod follow;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::follow::{Device, passed};
use super::client::{Admitted, give_way, send, start};
use crate::backend::Shared;
use crate::backend::guest::Guest;
use crate::observe::protocol::Reply;
use crate::provenance::{Account, Passed, Report};

/// Of a worker's time, what its samples may cost: one part of this many.
const SHARE: u32 = 100;
/// The shortest pause.
const PAUSE: Duration = Duration::from_millis(20);
/// The pause while nothing is sent, and after how long of that.
const IDLE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// How long a client may take to read a report.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// Reports come no more often.
const OFTEN: Duration = Duration::from_millis(100);

/// Who asked.
#[derive(Debug)]
pub struct Client {
    /// Where it reads.
    pub stream: UnixStream,
    /// It counts among the clients for as long as this lives.
    pub admitted: Admitted,
    /// Between two reports.
    pub every: Duration,
    /// Wants to know of what was sent before it came, too, where that is known.
    pub so_far: bool,
}

/// When accounts are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keeping {
    /// As long as a client is there.
    #[default]
    Asked,
    /// From the start.
    Always,
}

/// Not such a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not when accounts are kept: it is one of always, asked")]
pub struct UnknownKeeping(String);

impl FromStr for Keeping {
    type Err = UnknownKeeping;

    fn from_str(word: &str) -> Result<Self, UnknownKeeping> {
        match word {
            "always" => Ok(Keeping::Always),
            "asked" => Ok(Keeping::Asked),
            _ => Err(UnknownKeeping(word.to_owned())),
        }
    }
}

/// Accounts are kept as long as this lives.
#[derive(Debug)]
pub(crate) struct Kept(Arc<Keeper>);

impl Kept {
    /// Starts to keep accounts of these devices. `guest` knows the guest of each.
    pub(crate) fn start(
        keeping: Keeping,
        devices: impl Into<Arc<[Arc<Shared>]>>,
        guest: impl Fn(&Shared) -> Box<dyn Guest + '_> + Send + 'static,
    ) -> io::Result<Self> {
        let (devices, state, changed) = (devices.into(), Mutex::default(), Condvar::new());
        let keeper = Arc::new(Keeper { keeping, devices, state, changed });
        let keeps = keeper.clone();
        start("top", move || keeps.keep(guest))?;
        Ok(Kept(keeper))
    }

    /// Who tells clients; it does not keep the accounts kept.
    pub(crate) fn teller(&self) -> Teller {
        Teller(self.0.clone())
    }
}

/// Tells a client from these accounts, as long as they are kept.
#[derive(Debug)]
pub(crate) struct Teller(Arc<Keeper>);

impl Teller {
    /// Tells this client until it goes, which is nobody's trouble: on its own thread, which could not start another where the process
    /// is locked in.
    pub(crate) fn tell(&self, mut client: Client) {
        drop(self.0.tell(&mut client));
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Keeps accounts. See the [module](self).
#[derive(Debug)]
struct Keeper {
    keeping: Keeping,
    devices: Arc<[Arc<Shared>]>,
    state: Mutex<State>,
    changed: Condvar,
}

/// By a number; that since the start has number 0.
#[derive(Debug, Default)]
struct State {
    accounts: BTreeMap<u64, Since>,
    /// New ones.
    joining: Vec<u64>,
    /// Clients that wanted an account or a report so far, and those of them that have what they wanted.
    asked: u64,
    answered: u64,
    kernel: Option<String>,
    why: Option<String>,
    /// Nobody keeps accounts any more.
    ended: bool,
}

impl State {
    fn is_wanted(&self) -> bool {
        !self.accounts.is_empty() || self.asked != self.answered
    }
}

#[derive(Debug)]
struct Since {
    account: Account,
    since: Instant,
    /// What had passed then.
    before: Passed,
}

const SINCE_START: u64 = 0;

impl Since {
    fn new(before: Passed) -> Self {
        Since { account: Account::default(), since: Instant::now(), before }
    }

    fn report(&self, all: Passed) -> Report {
        let report = self.account.report();
        let since = |now: u64, before: u64, seen: u64| now.saturating_sub(before).max(seen);
        // A burst is counted at its end: what was seen of it before may be more.
        let passed = Passed {
            frames: since(all.frames, self.before.frames, report.seen.frames),
            bytes: since(all.bytes, self.before.bytes, report.seen.bytes),
        };
        let seen_share = report.seen.share_of(passed);
        Report { seconds: self.since.elapsed().as_secs_f64(), passed, seen_share, ..report }
    }
}

impl Keeper {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, guest: impl Fn(&Shared) -> Box<dyn Guest + '_>) {
        give_way();
        let _ends = Ends(self);
        if self.keeping == Keeping::Always {
            self.lock().accounts.insert(SINCE_START, Since::new(Passed::default()));
        }
        loop {
            let idle = |state: &mut State| !state.ended && !state.is_wanted();
            let state = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
            if state.ended {
                return;
            }
            drop(state);
            let followed = self.devices.iter().map(|shared| Device::new(shared, guest(shared)));
            self.follow(followed.collect());
        }
    }

    /// Follows the devices as long as anybody wants to know.
    fn follow(&self, mut followed: Vec<Device<'_>>) {
        let mut sent_at = Instant::now();
        let mut state = self.lock();
        while !state.ended && state.is_wanted() {
            let State { accounts, asked, answered, .. } = &mut *state;
            let somebody = asked != answered || accounts.keys().any(|number| *number != SINCE_START);
            let mut show = |frame: &_| accounts.values_mut().for_each(|kept| kept.account.count(frame));
            let cost: Duration = followed.iter_mut().map(|device| device.advance(somebody, &mut show)).sum();
            *answered = *asked;
            let all = passed(&self.devices);
            let joining = std::mem::take(&mut state.joining);
            state.accounts.extend(joining.into_iter().map(|number| (number, Since::new(all))));
            state.kernel = followed.iter().find_map(|device| device.kernel.clone()).or(state.kernel.take());
            state.why = followed.iter().find_map(|device| device.why.clone());
            self.changed.notify_all();
            let now = Instant::now();
            if !cost.is_zero() {
                sent_at = now;
            }
            let (pause, quiet) = IDLE;
            let pause = if now - sent_at > quiet { pause } else { PAUSE.max(cost * SHARE) };
            let paused = |state: &mut State| !state.ended && state.asked == state.answered;
            state = self.changed.wait_timeout_while(state, pause, paused).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// No more accounts are kept.
    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Has the accounts brought up to date. `None`: nobody does any more.
    fn up_to_date<'k>(&'k self, mut state: MutexGuard<'k, State>) -> Option<MutexGuard<'k, State>> {
        state.asked += 1;
        let number = state.asked;
        self.changed.notify_all();
        let waits = |state: &mut State| !state.ended && state.answered < number;
        let state = self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        (!state.ended).then_some(state)
    }

    fn report(&self, number: u64) -> Option<Report> {
        let state = self.up_to_date(self.lock())?;
        let report = state.accounts.get(&number)?.report(passed(&self.devices));
        Some(Report { kernel: state.kernel.clone(), why: state.why.clone(), ..report })
    }

    /// Tells the client, until it goes away.
    fn tell(&self, client: &mut Client) -> io::Result<()> {
        client.stream.set_write_timeout(Some(READ_WITHIN))?;
        let mut state = self.lock();
        // What was kept already needs no new account.
        let own = !client.so_far || self.keeping == Keeping::Asked;
        let number = if own { state.asked + 1 } else { SINCE_START };
        state.joining.extend(own.then_some(number));
        let _joined = Joined { keeper: self, number };
        let ended = || io::Error::from(io::ErrorKind::UnexpectedEof);
        drop(self.up_to_date(state).ok_or_else(ended)?);
        send(&mut client.stream, &Reply::Done)?;
        let every = client.every.max(OFTEN);
        let mut next = Instant::now() + if own { every } else { Duration::ZERO };
        loop {
            let now = Instant::now();
            if now >= next {
                let report = self.report(number).ok_or_else(ended)?;
                send(&mut client.stream, &Reply::Top(Box::new(report)))?;
                next = now + every;
            }
            // What it has to say is that it goes.
            if readable(&client.stream, next.saturating_duration_since(Instant::now())) {
                return Ok(());
            }
        }
    }
}

/// However it ends, nobody waits for it.
struct Ends<'k>(&'k Keeper);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A client's account; with it, that goes.
struct Joined<'k> {
    keeper: &'k Keeper,
    number: u64,
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        if self.number != SINCE_START {
            let mut state = self.keeper.lock();
            state.joining.retain(|joining| *joining != self.number);
            state.accounts.remove(&self.number);
            self.keeper.changed.notify_all();
        }
    }
}

/// Waits. Has the client said something, or gone?
fn readable(stream: &UnixStream, pause: Duration) -> bool {
    let mut files = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    let said = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
    // Rounded up, so that it is not asked again for the rest of a millisecond.
    let pause = pause + Duration::from_millis(1);
    let _ = poll(&mut files, PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX));
    files.iter().any(|file| file.revents().is_some_and(|events| events.intersects(said)))
}
