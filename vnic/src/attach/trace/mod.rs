//! `vnic trace` and `vnic top` of a VM that is looked into: one thread looks at the rings again and again while somebody follows, and writes
//! events as a device's worker would; who follows them is served as a device's clients are.
//!
//! Operation: each device is a [`Shared`] of its own, with nothing but its queues' names and event rings. The devices are
//! looked up anew from time to time: a driver may have come or gone, or the guest booted. A queue that was not there when the
//! first of the present followers came is shown to those who come once all of them have gone.
//!
//! Limits: what passes between two looks is counted as missed. See also [`packed`].

pub(super) mod chain;
mod packed;
mod queue;
mod sight;
mod split;
#[cfg(test)]
mod tests;
mod told;

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::devices::{Device, Frames};
use crate::backend::guest::{Guest, Labelled};
use crate::backend::{About, Shared};
use crate::introspect::{GuestPhysical, Introspection};
use crate::observe::protocol::Reply;
use crate::serve::Admitted;
use crate::serve::client::{give_way, send, start};
use crate::serve::top;
use crate::serve::trace;
use crate::spec::device::BLK;
pub(super) use queue::Watched;
use sight::Named;
pub(super) use sight::Sight;
pub(super) use told::Wanted;

/// How often the devices are looked up.
const ANEW: Duration = Duration::from_millis(500);
/// The pause between two looks. A frame of 64 KiB takes longer at 1 GB/s; without it, the guest's CPUs would miss this one.
const BREATH: Duration = Duration::from_micros(30);
/// The pause once all rings have stood still for so long.
const PAUSE: Duration = Duration::from_micros(200);
const EAGER: Duration = Duration::from_millis(2);
/// How long a client has to be taken by the thread that serves it.
const TAKEN: Duration = Duration::from_secs(10);

/// The guest's memory, eyes on its kernel, and its devices as they are now.
#[derive(Debug)]
pub(crate) struct Found<M> {
    pub(crate) ram: Arc<M>,
    /// `None`: whose pages are what cannot be said.
    pub(crate) eyes: Option<Introspection<Arc<M>>>,
    pub(crate) devices: Vec<Device>,
}

/// The VM whose rings are looked at.
pub(crate) trait Vm<M>: Send + Sync {
    /// The guest's memory and its devices as they are now. `None`: they are not to be had now.
    fn look_up(&self) -> Option<Found<M>>;

    /// The kernel's release.
    ///
    /// # Errors
    /// It was not to be had when the devices were last looked up: why.
    fn kernel(&self) -> Result<String, String>;

    /// Shows who labels the pages of buffers.
    fn look(&self, show: &mut dyn FnMut(Labelled<'_>));
}

/// Those who follow, and what they follow.
#[derive(Debug)]
struct Tracing {
    devices: Arc<[Arc<Shared>]>,
    clients: Sender<trace::Asked>,
    keeper: top::Kept,
    wake: Sender<()>,
}

impl Tracing {
    /// For the queues that there are now.
    fn new<M: GuestPhysical + Send + Sync + 'static>(
        vm: Weak<dyn Vm<M>>,
        devices: &[Device],
    ) -> std::io::Result<Tracing> {
        let shared: Arc<[Arc<Shared>]> = devices.iter().map(|device| Arc::new(face(device))).collect();
        let (clients, served) = channel();
        let (wake, woken) = channel();
        let named = Arc::new(Named::default());
        let wish = Arc::new(());
        let outside = Outside { vm: vm.clone(), named: named.clone(), wish: Arc::downgrade(&wish), wishes: None };
        let (traced, of_trace) = (shared.clone(), outside.clone());
        start("trace", move || trace::serve(&traced, &served, &|_| Box::new(of_trace.clone())))?;
        let keeper = top::Kept::start(top::Keeping::Asked, shared.clone(), move |_| Box::new(outside.clone()))?;
        let watched = shared.clone();
        let ((ask, asked), (tell, told)) = (channel(), channel());
        start("devices", move || {
            give_way();
            look_up(&asked, &tell, &vm);
        })?;
        let lookups = LookUps { ask, told };
        start("rings", move || {
            // It sleeps most of the time, and what it misses meanwhile is gone: it does not give way, and is woken in time.
            let _ = nix::sys::prctl::set_timerslack(1000);
            watch(&watched, &woken, &lookups, &named, &wish);
        })?;
        Ok(Tracing { devices: shared, clients, keeper, wake })
    }

    /// Is it of these devices, or in use?
    fn is_for(&self, devices: &[Device]) -> bool {
        let same = |(shared, device): (&Arc<Shared>, &Device)| {
            shared.queues.iter().map(|queue| &queue.name).eq(device.queues.iter().map(|queue| &queue.name))
        };
        followed(&self.devices) || self.devices.len() == devices.len() && self.devices.iter().zip(devices).all(same)
    }

    /// One more follows.
    fn add(&self, asked: trace::Asked) {
        // Nobody is left to hear that a thread is gone.
        let _ = self.clients.send(asked);
        let _ = self.wake.send(());
    }

    /// One more wants to know from what the frames come: who tells it.
    fn teller(&self) -> top::Teller {
        let _ = self.wake.send(());
        self.keeper.teller()
    }
}

/// Those who follow, from when somebody first asks; begun anew where there are other devices by then and nobody follows.
#[derive(Debug, Default)]
pub(crate) struct OnDemand(Mutex<Option<Tracing>>);

/// What is to be followed: who knows the VM, and its devices now; or why nothing is.
pub(crate) type Followed<M> = Result<(Weak<dyn Vm<M>>, Vec<Device>), String>;

impl OnDemand {
    /// One more follows, or is told why not.
    pub(crate) fn trace<M: GuestPhysical + Send + Sync + 'static>(
        &self,
        found: Followed<M>,
        stream: UnixStream,
        admitted: Admitted,
        wanted: trace::Wanted,
    ) {
        let Ok(mut refused) = stream.try_clone() else { return };
        let client = trace::Client { stream, _admitted: Some(admitted) };
        if let Err(message) = self.with(found, |tracing| tracing.add(trace::Asked { client, wanted })) {
            let _ = send(&mut refused, &Reply::Error { message });
        }
    }

    /// Tells one more from what the frames come until it goes, or why not.
    pub(crate) fn top<M: GuestPhysical + Send + Sync + 'static>(&self, found: Followed<M>, mut client: top::Client) {
        match self.with(found, Tracing::teller) {
            Ok(teller) => teller.tell(client),
            Err(message) => drop(send(&mut client.stream, &Reply::Error { message })),
        }
    }

    fn with<M: GuestPhysical + Send + Sync + 'static, R>(
        &self,
        found: Followed<M>,
        add: impl FnOnce(&Tracing) -> R,
    ) -> Result<R, String> {
        let (vm, devices) = found?;
        let mut tracing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Tracing::new(vm, &devices).map_err(|error| format!("there is no thread to be had: {error}"));
        let tracing = match tracing.take_if(|tracing| !tracing.is_for(&devices)).map_or(tracing.as_ref(), |_| None) {
            Some(tracing) => tracing,
            None => tracing.insert(new()?),
        };
        Ok(add(tracing))
    }
}

/// The guest that is looked into; who looks at its rings takes the stamps.
struct Outside<M> {
    vm: Weak<dyn Vm<M>>,
    named: Arc<Named>,
    /// As long as somebody has it, names and stamps are wanted.
    wish: Weak<()>,
    wishes: Option<Arc<()>>,
}

impl<M> Clone for Outside<M> {
    fn clone(&self) -> Self {
        Outside { vm: self.vm.clone(), named: self.named.clone(), wish: self.wish.clone(), wishes: self.wishes.clone() }
    }
}

impl<M> Guest for Outside<M> {
    fn open(&mut self) -> Result<String, String> {
        self.wishes = self.wish.upgrade();
        self.vm.upgrade().ok_or_else(|| "it is about to end".to_owned())?.kernel()
    }

    fn costs_workers(&self) -> bool {
        false
    }

    fn look(&mut self, show: &mut dyn FnMut(Labelled<'_>)) -> Option<()> {
        self.vm.upgrade()?.look(&mut |label| {
            show(&mut |buffer, stamp, labels| match self.named.get(buffer.gpa, stamp) {
                Some(known) => labels.push(known),
                None => label(buffer, stamp, labels),
            });
        });
        Some(())
    }
}

/// The other end of [`look_up`].
struct LookUps<M> {
    ask: Sender<()>,
    told: Receiver<Option<Found<M>>>,
}

impl<M> LookUps<M> {
    /// What was found, if the look-up that was asked for is done. `waits`: until it is.
    fn found(&self, waits: bool) -> Option<Option<Found<M>>> {
        if waits { self.told.recv().ok() } else { self.told.try_recv().ok() }
    }
}

/// What followers see of a device.
fn face(device: &Device) -> Shared {
    let about = About { device: if device.kind == BLK { "blk" } else { "" }, ..About::default() };
    let shared = Shared::new(about, device.queues.iter().map(|queue| queue.name.clone()), Vec::new());
    let mut view = shared.view();
    view.negotiated = device.features;
    view.rings = (0..).zip(&device.queues).map(|(at, queue)| (at, queue.layout)).collect();
    drop(view);
    shared
}

/// Does anybody follow any of them?
fn followed(devices: &[Arc<Shared>]) -> bool {
    devices.iter().any(|shared| shared.traced() || shared.sampled())
}

/// Looks the devices up whenever it is asked to, and tells. That takes a while, in which the rings go on.
fn look_up<M>(asked: &Receiver<()>, found: &Sender<Option<Found<M>>>, vm: &Weak<dyn Vm<M>>) {
    while asked.recv().is_ok() {
        let Some(vm) = vm.upgrade() else { return };
        if found.send(vm.look_up()).is_err() {
            return;
        }
    }
}

/// The guest's memory, and who looks whose its pages are, where that can be said.
type Looked<M> = (Arc<M>, Option<Sight<M>>);

/// Looks while somebody follows, until nobody can come any more.
fn watch<M: GuestPhysical>(
    devices: &[Arc<Shared>],
    wake: &Receiver<()>,
    lookups: &LookUps<M>,
    named: &Arc<Named>,
    wish: &Arc<()>,
) {
    let traced = || followed(devices);
    while wake.recv().is_ok() {
        let deadline = Instant::now() + TAKEN;
        while !traced() && Instant::now() < deadline {
            std::thread::sleep(PAUSE);
        }
        let mut rings: Vec<(Instant, Watched)> = Vec::new();
        let mut guest: Option<Looked<M>> = None;
        let (mut asked, mut moved) = (None, Instant::now());
        let (mut looked_at_all, mut is_asked) = (true, false);
        while traced() {
            let now = Instant::now();
            if !is_asked && asked.is_none_or(|at| now.duration_since(at) > ANEW) {
                if lookups.ask.send(()).is_err() {
                    return;
                }
                (asked, is_asked) = (Some(now), true);
            }
            if let Some(found) = lookups.found(is_asked && guest.is_none()) {
                is_asked = false;
                if let Some((ram, Some(sight))) = &mut guest {
                    sight.name(ram, false);
                }
                guest = found.map(|Found { ram, eyes, devices: found }| {
                    renew(devices, &mut rings, &ram, &found);
                    (ram, eyes.map(|eyes| Sight::new(eyes, named.clone())))
                });
            }
            let Some((ram, sight)) = &mut guest else {
                std::thread::sleep(PAUSE);
                continue;
            };
            // One is had here.
            let mut sight = sight.as_mut().filter(|_| Arc::strong_count(wish) > 1);
            let all = sight.is_none() || devices.iter().any(|shared| shared.traced());
            if all && !looked_at_all {
                // What went through the others until now was nobody's to follow.
                rings.retain(|(_, ring)| ring.frames() == Frames::Sent);
                asked = None;
            }
            looked_at_all = all;
            let mut any = false;
            // Who wants to know from what frames come needs those that are sent.
            for (epoch, ring) in rings.iter_mut().filter(|(_, ring)| all || ring.frames() == Frames::Sent) {
                let wanted = Wanted { at_ns: epoch.elapsed().as_nanos() as u64, all };
                any |= ring.look(ram.as_ref(), wanted, sight.as_deref_mut());
            }
            if let Some(sight) = sight {
                sight.name(ram, any);
            }
            if any {
                moved = now;
            }
            std::thread::sleep(if now.duration_since(moved) > EAGER { PAUSE } else { BREATH });
        }
        // What was asked for is not for those who come later.
        if is_asked {
            lookups.found(true);
        }
    }
}

/// Watches what there is now: what is still the same ring goes on, all else begins anew.
fn renew(devices: &[Arc<Shared>], rings: &mut Vec<(Instant, Watched)>, ram: &impl GuestPhysical, found: &[Device]) {
    let mut old = std::mem::take(rings);
    for device in found {
        for queue in &device.queues {
            if let Some(at) = old.iter().position(|(_, ring)| ring.is(queue, device.features)) {
                rings.push(old.swap_remove(at));
                continue;
            }
            let known = |shared: &Arc<Shared>| {
                let face = shared.queues.iter().find(|face| face.name == queue.name)?;
                Some((shared.started, face.clone()))
            };
            let Some((epoch, face)) = devices.iter().find_map(known) else { continue };
            rings.extend(Watched::new(ram, queue, device.features, face).map(|ring| (epoch, ring)));
        }
    }
    // Frames are what most look for.
    rings.sort_by_key(|(_, ring)| matches!(ring.frames(), Frames::Requests | Frames::None));
}
