//! Whose the guest's pages are, for the control socket: the eyes on the guest's kernel, opened when somebody asks.
//!
//! Operation: the kernel is found anew for a new driver and for other memory, since the guest may have booted another; and
//! where the one that was found runs no more. While somebody wants to know whose the bytes of frames are, the workers find a
//! [`Stamper`] here.
//!
//! Invariants: whoever serves the session never waits here ([`Labels::forget`]), a worker neither ([`Labels::stamper`]), and
//! memory that is the guest's no more is let go, whoever still wants stamps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use crate::introspect::{AttachError, Introspection, Label, Stamper};
use crate::memory::{Memory, Onlooker};

/// The eyes, as they are here.
pub(crate) type Eyes = Introspection<Arc<Onlooker>>;
/// What takes stamps for them.
pub(crate) type EyesStamper = Stamper<Arc<Onlooker>>;

/// Who looks without end makes sure that the kernel still runs no more often than this: a new one that sends anything has
/// a driver that began.
const ALIVE_AGAIN: Duration = Duration::from_millis(200);

/// How long until a kernel that was not found is looked for again, at least; and in proportion to what looking takes: a
/// hundredth of the time goes into it.
const TRY_AGAIN: Duration = Duration::from_secs(1);
const LOOKING: u32 = 100;

/// The eyes on the guest's kernel.
#[derive(Debug, Default)]
pub struct Labels {
    /// Rises with each driver, and each time the memory is another.
    epoch: AtomicU64,
    open: Mutex<Option<Open>>,
    /// Rises whenever `stamps` are others.
    version: AtomicU64,
    stamps: Mutex<Stamps>,
    /// The last time that there was no kernel to be found for stamps.
    failed: Mutex<Option<Failed>>,
}

/// What takes stamps, and who wants them.
#[derive(Debug, Default)]
struct Stamps {
    /// Of the guest's memory as it is: gone with it.
    stamper: Option<Arc<EyesStamper>>,
    wanted: Weak<()>,
}

/// Somebody wants stamps to be taken, as long as this lives.
#[derive(Debug)]
pub(crate) struct Wanted {
    _alive: Arc<()>,
}

/// A guest's memory, and when that was what it had.
#[derive(Debug, Clone)]
pub(crate) struct GuestMemory {
    epoch: u64,
    pub(crate) memory: Arc<Memory>,
}

#[derive(Debug)]
struct Failed {
    epoch: u64,
    why: String,
    /// Until then it is not worth another try.
    until: Instant,
}

#[derive(Debug)]
struct Open {
    epoch: u64,
    eyes: Eyes,
    alive_at: Instant,
}

/// A worker's own copy of where the stamper is.
#[derive(Debug, Default)]
pub(crate) struct StamperCopy {
    version: u64,
    stamper: Weak<EyesStamper>,
    wanted: Weak<()>,
}

impl Labels {
    /// The guest's memory is another, or a driver began: what was found in it may be gone.
    pub(crate) fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.set_stamper(&mut lock(&self.stamps), None);
        self.close_stale();
    }

    /// The guest's memory, as `now` has it.
    pub(crate) fn memory(&self, now: impl FnOnce() -> Option<Arc<Memory>>) -> Option<GuestMemory> {
        // Before: what is found in memory that is replaced meanwhile is known to be old.
        let epoch = self.epoch.load(Ordering::Acquire);
        now().map(|memory| GuestMemory { epoch, memory })
    }

    fn set_stamper(&self, stamps: &mut Stamps, stamper: Option<Arc<EyesStamper>>) {
        stamps.stamper = stamper;
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Closes eyes that are open on what is gone, unless somebody looks with them: he closes them himself then.
    fn close_stale(&self) {
        let mut open = match self.open.try_lock() {
            Ok(open) => open,
            Err(TryLockError::Poisoned(open)) => open.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if open.as_ref().is_some_and(|open| open.epoch != self.epoch.load(Ordering::Acquire)) {
            *open = None;
        }
    }

    /// Labels for these guest-physical addresses, each with the names of its page's flags.
    ///
    /// # Errors
    /// There is no kernel in the memory that can be looked into.
    pub(crate) fn look_closely(
        &self,
        guest: &GuestMemory,
        gpas: &[u64],
    ) -> Result<(Vec<Label>, Vec<Vec<String>>), AttachError> {
        self.with(guest, Duration::ZERO, |eyes| gpas.iter().map(|gpa| (eyes.label(*gpa), eyes.flags(*gpa))).unzip())
    }

    /// The eyes, for someone who looks again and again.
    ///
    /// # Errors
    /// As [`look_closely`](Labels::look_closely).
    pub(crate) fn watch<R>(&self, guest: &GuestMemory, look: impl FnOnce(&mut Eyes) -> R) -> Result<R, AttachError> {
        self.with(guest, ALIVE_AGAIN, look)
    }

    fn with<R>(
        &self,
        guest: &GuestMemory,
        alive_again: Duration,
        look: impl FnOnce(&mut Eyes) -> R,
    ) -> Result<R, AttachError> {
        let looked = self.with_locked(guest, alive_again, look);
        self.close_stale();
        looked
    }

    fn with_locked<R>(
        &self,
        guest: &GuestMemory,
        alive_again: Duration,
        look: impl FnOnce(&mut Eyes) -> R,
    ) -> Result<R, AttachError> {
        let mut open = lock(&self.open);
        let epoch = guest.epoch;
        let is_usable = |open: &mut Open| {
            let known = open.alive_at.elapsed() < alive_again;
            let usable = open.epoch == epoch && (known || open.eyes.is_alive());
            if usable && !known {
                open.alive_at = Instant::now();
            }
            usable
        };
        let eyes = match open.take_if(|open| !is_usable(open)).map_or(open.as_mut(), |_| None) {
            Some(open) => &mut open.eyes,
            None => {
                let eyes = Introspection::attach(Arc::new(Onlooker::new(&guest.memory)?))?;
                tracing::info!(kernel = eyes.release(), "looks into the guest's kernel");
                // Whatever takes stamps takes them of the one before.
                self.set_stamper(&mut lock(&self.stamps), None);
                &mut open.insert(Open { epoch, eyes, alive_at: Instant::now() }).eyes
            }
        };
        Ok(look(eyes))
    }

    /// As long as the caller keeps what it gets first, the workers take stamps of what they send, where somebody follows. It may be
    /// called as often as one likes: in vain, it is tried again after a while.
    ///
    /// # Errors
    /// As [`look_closely`](Labels::look_closely): a sentence.
    pub(crate) fn want_stamps(&self, guest: &GuestMemory) -> Result<(Wanted, Arc<EyesStamper>), String> {
        let there = {
            let stamps = lock(&self.stamps);
            stamps.wanted.upgrade().zip(stamps.stamper.clone())
        };
        if let Some((wanted, stamper)) = there {
            return Ok((Wanted { _alive: wanted }, stamper));
        }
        let start = Instant::now();
        let mut failed = lock(&self.failed);
        if let Some(failed) = failed.as_ref().filter(|failed| failed.epoch == guest.epoch && failed.until > start) {
            return Err(failed.why.clone());
        }
        let stamper = match self.watch(guest, |eyes| eyes.stamper()) {
            Ok(stamper) => Arc::new(stamper),
            Err(error) => {
                let (why, until) = (error.to_string(), Instant::now() + TRY_AGAIN.max(start.elapsed() * LOOKING));
                *failed = Some(Failed { epoch: guest.epoch, why: why.clone(), until });
                return Err(why);
            }
        };
        let mut stamps = lock(&self.stamps);
        let wanted = stamps.wanted.upgrade().unwrap_or_default();
        // Of what is gone meanwhile there is none.
        if self.epoch.load(Ordering::Acquire) == guest.epoch {
            stamps.wanted = Arc::downgrade(&wanted);
            self.set_stamper(&mut stamps, Some(stamper.clone()));
        }
        Ok((Wanted { _alive: wanted }, stamper))
    }

    /// What takes stamps, if somebody wants them. For a worker: it never waits.
    pub(crate) fn stamper(&self, copy: &mut StamperCopy) -> Option<Arc<EyesStamper>> {
        let version = self.version.load(Ordering::Acquire);
        if copy.version != version {
            match self.stamps.try_lock() {
                Ok(stamps) => {
                    let stamper = stamps.stamper.as_ref().map(Arc::downgrade).unwrap_or_default();
                    *copy = StamperCopy { version, stamper, wanted: stamps.wanted.clone() };
                }
                // Somebody is about to set another.
                Err(_) => return None,
            }
        }
        if copy.wanted.strong_count() > 0 { copy.stamper.upgrade() } else { None }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
