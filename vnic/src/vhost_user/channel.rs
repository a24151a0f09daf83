//! The channel for requests of the back-end: what the device asks the front-end's IOMMU.
//!
//! Place: the session hands it to the device, whose workers ask from their own threads. Nothing is read from it: no
//! acknowledgement is asked for, as the answer to a miss is an `IOTLB_MSG` on the session's own socket.
//!
//! Limits: the only message is the IOTLB's; a device asks once for each miss and remembers that it did.

use std::os::fd::{AsFd, OwnedFd};

use super::error::SessionError;
use super::message::backend_iotlb;
use super::socket::send_on;
use crate::memory::{Access, Iova};
use crate::spec::vhost_user::{IOTLB_ACCESS_FAIL, IOTLB_MISS, IOTLB_READ, IOTLB_WRITE, Iotlb};

/// The sending end of the channel. See the [module](self).
#[derive(Debug)]
pub struct BackendChannel {
    socket: OwnedFd,
}

impl BackendChannel {
    /// A channel over the socket that came with `SET_BACKEND_REQ_FD`.
    #[must_use]
    pub const fn new(socket: OwnedFd) -> Self {
        BackendChannel { socket }
    }

    /// Asks for the translation of `iova`. Never waits.
    ///
    /// # Errors
    /// The front-end does not read, or is gone.
    pub fn iotlb_miss(&self, iova: Iova, access: Access) -> Result<(), SessionError> {
        self.iotlb(iova, access, IOTLB_MISS)
    }

    /// Tells that the driver's IOMMU forbids what a descriptor asked for. Never waits.
    ///
    /// # Errors
    /// The front-end does not read, or is gone.
    pub fn iotlb_access_fail(&self, iova: Iova, access: Access) -> Result<(), SessionError> {
        self.iotlb(iova, access, IOTLB_ACCESS_FAIL)
    }

    fn iotlb(&self, iova: Iova, access: Access, kind: u8) -> Result<(), SessionError> {
        let permissions = match access {
            Access::Read => IOTLB_READ,
            Access::Write => IOTLB_WRITE,
        };
        let message = Iotlb { iova: iova.0, size: 0, user_address: 0, permissions, kind };
        send_on(self.socket.as_fd(), &backend_iotlb(&message), &[])
    }
}
