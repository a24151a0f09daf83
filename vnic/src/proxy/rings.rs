//! A session's rings: where they are, what is in them, and what the guest's kernel says of them beside.
//!
//! Operation: the rings are the view's. Where the guest is a Linux that can be looked into, its driver's own books are found by
//! where the rings lie: how far the driver has collected, and where driver and device are in a packed ring. Without them what was used
//! counts as collected, and a packed ring is read off its flags.

use std::sync::{Arc, Mutex, PoisonError};

use super::kind::{self, DeviceKind};
use super::view::{Eyes, Vring, unread};
use crate::attach::devices::{Device, Finder, Frames, Queue};
use crate::attach::packed::Packed;
use crate::backend::labels::GuestMemory;
use crate::introspect::Introspection;
use crate::memory::{Memory, Onlooker};
use crate::ring::RingLayout;
use crate::ring::snapshot::{self, EventSuppression, NotifyWhen, RingSnapshot};
use crate::spec::{Feature, Features};

/// The device as the view has it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) guest: GuestMemory,
    pub(super) features: Features,
    pub(super) queues: Vec<SeenQueue>,
    /// The guest's kernel and the device's driver in it; why not, if there is none to be seen.
    pub(super) kernel: Result<Kernel, String>,
}

/// What the guest's kernel says of the device.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    pub(super) release: String,
    /// The device, where one of its rings is one of the session's.
    pub(super) device: Option<Device>,
}

/// A queue, as the view has it and as its driver does.
#[derive(Debug, Clone)]
pub(super) struct SeenQueue {
    pub(super) vring: Vring,
    pub(super) queue: Queue,
    /// Are the driver's books known?
    pub(super) has_books: bool,
}

/// Finds the device in the guest's kernel.
#[derive(Debug, Default)]
pub(super) struct InKernel(Mutex<Option<(String, Finder)>>);

impl InKernel {
    /// The guest may be another's by now.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The device of which one ring lies here, if the kernel knows it.
    fn find(&self, eyes: &Introspection<Arc<Onlooker>>, rings: &[RingLayout]) -> Option<Device> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = |device: &Device| device.queues.iter().any(|queue| rings.contains(&queue.layout));
        let look = |finder: &Finder| finder.devices(eyes).ok()?.into_iter().find(is_ours);
        let known_there = known.as_ref().filter(|(release, _)| release == eyes.release());
        if let Some(found) = known_there.and_then(|(_, finder)| look(finder)) {
            return Some(found);
        }
        // Another kernel's addresses lead nowhere.
        let finder = Finder::new(eyes).ok()?;
        let found = look(&finder);
        *known = Some((eyes.release().to_owned(), finder));
        found
    }
}

/// What there is now. `None`: no memory was shared, or no ring set up.
pub(super) fn see(eyes: &Eyes, in_kernel: &InKernel) -> Option<Seen> {
    let kind = eyes.kind();
    let guest = eyes.guest_memory()?;
    let (features, vrings) = {
        let view = eyes.view();
        (view.said.negotiated, view.said.vrings.clone())
    };
    if vrings.is_empty() {
        return None;
    }
    let layouts: Vec<RingLayout> = vrings.values().map(|vring| vring.layout).collect();
    let kernel = look_into(eyes, in_kernel, &guest, &layouts);
    let books = kernel.as_ref().ok().and_then(|kernel| kernel.device.as_ref());
    let queues = vrings.into_iter().map(|(index, vring)| {
        let own = books.and_then(|device| device.queues.iter().find(|queue| queue.layout == vring.layout));
        let queue = queue(kind, index, vring.layout, features, own);
        SeenQueue { vring, queue, has_books: own.is_some() }
    });
    let queues = queues.collect();
    Some(Seen { guest, features, queues, kernel })
}

/// What the guest's kernel says. One that cannot be looked into is not looked for again and again.
fn look_into(eyes: &Eyes, in_kernel: &InKernel, guest: &GuestMemory, rings: &[RingLayout]) -> Result<Kernel, String> {
    // As long as it is here, a kernel that was found is taken for found.
    let _wanted = eyes.labels.want_stamps(guest)?;
    let look = |eyes: &mut Introspection<Arc<Onlooker>>| Kernel {
        release: eyes.release().to_owned(),
        device: in_kernel.find(eyes, rings),
    };
    eyes.labels.watch(guest, look).map_err(|error| error.to_string())
}

fn queue(kind: Option<DeviceKind>, index: u16, layout: RingLayout, features: Features, own: Option<&Queue>) -> Queue {
    let frames = match kind.map(DeviceKind::name) {
        Some("net") if index.is_multiple_of(2) => Frames::Received,
        Some("net") => Frames::Sent,
        Some("blk") => Frames::Requests,
        _ => Frames::None,
    };
    let name = kind::queue_name(kind, index);
    let packed = features.has(Feature::RingPacked);
    let here = || Queue {
        name: String::new(),
        index: index.into(),
        layout,
        broken: false,
        free: 0,
        added: 0,
        last_used: 0,
        packed: packed.then_some(Packed::Ring),
        frames,
        // What is used may have been collected at once.
        last_used_at: layout.used.saturating_add(2),
    };
    Queue { name, frames, index: index.into(), ..own.cloned().unwrap_or_else(here) }
}

impl Seen {
    /// The device, for those who follow its rings.
    pub(super) fn device(&self, kind: Option<DeviceKind>) -> Device {
        Device {
            name: kind.map_or("device", DeviceKind::name).to_owned(),
            parent: String::new(),
            kind: kind.map_or(0, DeviceKind::number),
            driver: None,
            features: self.features,
            queues: self.running().map(|seen| seen.queue.clone()).collect(),
            fault: None,
        }
    }

    /// Those that the back-end has.
    pub(super) fn running(&self) -> impl Iterator<Item = &SeenQueue> {
        self.queues.iter().filter(|seen| seen.vring.runs)
    }

    /// What is in a queue's ring.
    pub(super) fn ring(&self, seen: &SeenQueue, onlooker: Option<&Arc<Onlooker>>) -> RingSnapshot {
        let (queue, layout) = (&seen.queue, &seen.vring.layout);
        if !self.features.has(Feature::RingPacked) {
            return snapshot::take(&queue.name, layout, &self.guest.memory, self.features);
        }
        let position = || {
            let books = queue.packed.filter(|_| !self.features.has(Feature::AccessPlatform))?;
            let onlooker = onlooker?;
            books.device(onlooker, layout, queue.last_used)
        };
        match position() {
            Some(at) => {
                let base = || u32::from(position().unwrap_or(at).to_bits()) << 16;
                snapshot::take_packed(&queue.name, layout, &self.guest.memory, self.features, base)
            }
            // Which says that it takes the device's position.
            None => snapshot::take(&queue.name, layout, &self.guest.memory, self.features),
        }
    }

    /// When both sides want to be notified.
    pub(super) fn event_suppression(&self, seen: &SeenQueue) -> Option<EventSuppression> {
        EventSuppression::read(&seen.vring.layout, &self.guest.memory, self.features)
    }
}

/// What the notifications say of a ring that waits for somebody, and has stood so for some seconds: `; …`, or nothing.
pub(super) fn notifications(
    seen: &SeenQueue,
    ring: &RingSnapshot,
    wants: Option<EventSuppression>,
    still: u64,
) -> String {
    let SeenQueue { vring, queue, .. } = seen;
    let unread = |file: &Option<_>| file.as_deref().and_then(unread).filter(|count| *count > 0);
    let on_their_way = |number, what| match number {
        1 => format!("; a {what} is on its way, and"),
        _ => format!("; {number} {what}s are on their way, and"),
    };
    if let Some(number) = unread(&vring.call) {
        return on_their_way(number, "call") + " nobody has read " + if number == 1 { "it" } else { "them" };
    }
    // Where buffers wait for frames, the device waits for no kick.
    if ring.in_flight == 0 || queue.frames == Frames::Received {
        return String::new();
    }
    if let Some(number) = unread(&vring.kick) {
        return on_their_way(number, "kick") + " the back-end has not read " + if number == 1 { "it" } else { "them" };
    }
    match wants.map(|wants| wants.kick) {
        Some(NotifyWhen::Never) => "; the back-end wants no kicks: it polls".to_owned(),
        // While it is at work, it says so as late as it stops.
        _ if still == 0 => String::new(),
        Some(NotifyWhen::Past(idx)) if ring.format == "split" => {
            // Of the chains in flight, is there one that it asked to be kicked for?
            let asked = ring.avail_idx.wrapping_sub(idx).wrapping_sub(1) < ring.in_flight;
            if asked {
                format!(
                    "; the back-end was to be kicked past {idx}, and no kick is on its way: it has read it, or there was none"
                )
            } else {
                format!("; the back-end wants a kick only past {idx}: as it stands, nobody wakes it")
            }
        }
        _ => "; no kick is on its way: the back-end has read it, or there was none".to_owned(),
    }
}

/// Where both sides are, cheaply; of a packed ring nothing. For who looks whether it moves.
pub(super) fn indices_of(memory: &Memory, layout: &RingLayout) -> Option<(u16, u16)> {
    let index = |part: u64| {
        let mut bytes = [0; 2];
        memory.read(part.checked_add(2)?, &mut bytes).ok()?;
        Some(u16::from_le_bytes(bytes))
    };
    let used = index(layout.used)?;
    Some((index(layout.avail)?, used))
}
