//! A payload's fields.

use super::{ConfigAccess, INFLIGHT_LEN, InflightArea, VringFile};
use crate::memory::{Gpa, RegionSpec, UserAddr};
use crate::spec::vhost_user::{Inflight, Iotlb, RequestCode, VRING_FD_INDEX_MASK, VRING_FD_NOFD, VringState};
use crate::vhost_user::error::SessionError;

/// The fields of a payload in order. Its length has been checked; past its end there are zeroes.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let (now, later) = self.0.split_at(self.0.len().min(N));
        for (to, from) in bytes.iter_mut().zip(now) {
            *to = *from;
        }
        self.0 = later;
        bytes
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub(super) fn state(&mut self) -> VringState {
        VringState { index: self.u32(), num: self.u32() }
    }

    pub(super) fn iotlb(&mut self) -> Iotlb {
        let (iova, size, user_address) = (self.u64(), self.u64(), self.u64());
        let [permissions, kind] = self.array();
        Iotlb { iova, size, user_address, permissions, kind }
    }

    pub(super) fn config(&mut self) -> ConfigAccess {
        let (offset, _size, flags) = (self.u32(), self.u32(), self.u32());
        ConfigAccess { offset, flags, bytes: std::mem::take(&mut self.0).to_vec() }
    }

    pub(super) fn in_flight(&mut self, size: usize) -> InflightArea {
        let (mmap_size, mmap_offset, counts) = (self.u64(), self.u64(), self.u32());
        let (num_queues, queue_size) = (counts as u16, (counts >> 16) as u16);
        let told = Inflight { mmap_size, mmap_offset, num_queues, queue_size };
        InflightArea { told, padded: size > INFLIGHT_LEN }
    }

    pub(super) fn region(&mut self) -> RegionSpec {
        RegionSpec { gpa: Gpa(self.u64()), size: self.u64(), user_addr: UserAddr(self.u64()), mmap_offset: self.u64() }
    }

    /// The index has eight bits; what stands above them and the flag must not be cut off silently.
    pub(super) fn vring_file(&mut self, request: RequestCode) -> Result<VringFile, SessionError> {
        let value = self.u64();
        if value & !(VRING_FD_INDEX_MASK | VRING_FD_NOFD) != 0 {
            return Err(SessionError::Value { request, what: "vring index", value });
        }
        Ok(VringFile { index: (value & VRING_FD_INDEX_MASK) as u32, present: value & VRING_FD_NOFD == 0 })
    }
}
