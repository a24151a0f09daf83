//! Whoever knows the guest of a device, and labels what it sends: for accounts, lives, traces and captures with labels.

use std::ops::Deref;

use super::Shared;
use super::labels::Wanted;
use crate::introspect::{GuestPhysical, Introspection, Label};
use crate::observe::tracer::EventBuffer;

/// Labels for the pages of a buffer that has this stamp.
pub(crate) type Labelled<'l> = &'l mut dyn FnMut(&EventBuffer, u64, &mut Vec<Label>);

/// Whoever knows the guest of a device.
pub(crate) trait Guest {
    /// Has stamps taken of what is sent from now on, as long as it lives. Returns the kernel's release.
    ///
    /// # Errors
    /// The guest cannot be looked into: why.
    fn open(&mut self) -> Result<String, String>;

    /// Do the workers of the data path take the stamps? Then what that costs has a limit.
    fn costs_workers(&self) -> bool {
        true
    }

    /// Shows who labels pages. `None`: nobody can at the moment.
    fn look(&mut self, show: &mut dyn FnMut(Labelled<'_>)) -> Option<()>;
}

/// A device that is served has its front-end's memory.
#[derive(Debug)]
pub(crate) struct Served<S> {
    shared: S,
    /// As long as it is here, the workers take stamps.
    wanted: Option<Wanted>,
}

impl<S: Deref<Target = Shared>> Served<S> {
    pub(crate) fn new(shared: S) -> Self {
        Served { shared, wanted: None }
    }
}

impl Served<&Shared> {
    pub(crate) fn boxed(shared: &Shared) -> Box<dyn Guest + '_> {
        Box::new(Served::new(shared))
    }
}

impl<S: Deref<Target = Shared>> Guest for Served<S> {
    fn open(&mut self) -> Result<String, String> {
        let guest = self.shared.guest_memory();
        let guest = guest.ok_or_else(|| "no front-end has shared a guest's memory".to_owned());
        let stamps = guest.and_then(|guest| self.shared.labels.want_stamps(&guest));
        let (wanted, release) = match stamps {
            Ok((wanted, stamper)) => (Some(wanted), Ok(stamper.release().to_owned())),
            Err(why) => (None, Err(why)),
        };
        // The one before goes only now: where it will still do, the workers go on with it.
        self.wanted = wanted;
        release
    }

    fn look(&mut self, show: &mut dyn FnMut(Labelled<'_>)) -> Option<()> {
        let guest = self.shared.guest_memory().filter(|_| self.wanted.is_some())?;
        self.shared.labels.watch(&guest, |eyes| labelled(eyes, show)).ok()
    }
}

/// Shows these eyes; to who has the stamps already.
pub(crate) fn labelled<M: GuestPhysical>(eyes: &mut Introspection<M>, show: &mut dyn FnMut(Labelled<'_>)) {
    let mut sitting = eyes.sit();
    show(&mut |buffer, stamp, labels| sitting.labels_of(buffer.gpa, buffer.len, stamp, labels));
}
