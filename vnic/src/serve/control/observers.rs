//! Who looks at what the devices do, beside the control socket's own clients.

use std::sync::Arc;

use super::{Control, status};
use crate::memory::{FilePages, Memory};
use crate::observe::observer::{DiskObserver, Observer};
use crate::{blk, nic};

impl Control {
    /// Gives every worker of a NIC an observer of its own, or none; returns those that looked so far.
    pub fn observe(&self, mut observer: impl FnMut() -> Option<Box<dyn Observer>>) -> Vec<Box<dyn Observer>> {
        self.devices.iter().flat_map(|device| nic::observe(&device.workers, &mut observer)).collect()
    }

    /// The same of the disks' workers, if there are any.
    pub fn observe_disks(
        &self,
        mut observer: impl FnMut() -> Option<Box<dyn DiskObserver>>,
    ) -> Vec<Box<dyn DiskObserver>> {
        let disks = self.devices.iter().filter(|device| device.shared.about.device == "blk");
        disks.flat_map(|device| blk::observe(&device.workers, &mut observer)).collect()
    }

    /// From now on, snapshots and traces say which of these pages an address is in.
    pub fn name_pages(&self, pages: Option<&Arc<FilePages>>) {
        self.devices.iter().for_each(|device| device.shared.view().pages = pages.cloned());
    }

    /// Guest memory as the addresses in a queue's ring have it; `None`: no driver.
    #[must_use]
    pub fn memory(&self, name: &str) -> Option<Arc<Memory>> {
        status::memory(&self.find(name)?.0.shared)
    }
}
