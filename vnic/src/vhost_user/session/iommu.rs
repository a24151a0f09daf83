//! The guest's IOMMU: whom to ask for translations, and those that come. "IOMMU support".

use std::os::fd::OwnedFd;

use super::{Outcome, State, done};
use crate::memory::{IotlbEntry, Iova, UserAddr};
use crate::spec::Feature;
use crate::spec::vhost_user::{IOTLB_INVALIDATE, IOTLB_READ, IOTLB_UPDATE, IOTLB_WRITE, Iotlb, RequestCode};
use crate::vhost_user::channel::BackendChannel;
use crate::vhost_user::device::Device;
use crate::vhost_user::error::SessionError;

impl State {
    /// The channel is the device's: it may ask from any thread.
    pub(super) fn set_backend_req_fd(&mut self, fds: Vec<OwnedFd>, device: &mut dyn Device) -> Outcome {
        let request = RequestCode::SetBackendReqFd;
        let socket = fds.into_iter().next().ok_or(SessionError::Fds { request, fds: 0, expected: 1 })?;
        done(request, device.set_backend_channel(Some(BackendChannel::new(socket))))?;
        self.channel = true;
        Ok(None)
    }

    /// "IOMMU support". An update leads into one memory region; an invalidation of no bytes is one of all that follow, which is
    /// how the size of a whole address space comes out in 64 bits.
    pub(super) fn iotlb(&mut self, message: Iotlb, device: &mut dyn Device) -> Outcome {
        let request = RequestCode::IotlbMsg;
        let refused = |what, value| Err(SessionError::Value { request, what, value });
        if !self.features.unwrap_or_default().has(Feature::AccessPlatform) {
            return Err(SessionError::Unsupported { request });
        }
        let Iotlb { iova, size, user_address, permissions, kind } = message;
        if iova.checked_add(size.saturating_sub(1)).is_none() {
            return refused("size", size);
        }
        match kind {
            IOTLB_UPDATE if size == 0 => refused("size", size),
            IOTLB_UPDATE if !(1..=IOTLB_READ | IOTLB_WRITE).contains(&permissions) => {
                refused("permissions", u64::from(permissions))
            }
            IOTLB_UPDATE => {
                let gpa = self.memory.gpa_of(UserAddr(user_address), size);
                let gpa = gpa.map_err(|source| SessionError::Memory { request, source })?;
                let (read, write) = (permissions & IOTLB_READ != 0, permissions & IOTLB_WRITE != 0);
                done(request, device.iotlb_update(IotlbEntry { iova: Iova(iova), size, gpa, read, write }))
            }
            IOTLB_INVALIDATE => {
                let last = if size == 0 { u64::MAX } else { iova.saturating_add(size - 1) };
                done(request, device.iotlb_invalidate(Iova(iova), Iova(last)))
            }
            kind => refused("type", u64::from(kind)),
        }
    }
}
