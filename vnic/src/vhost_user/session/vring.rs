//! The vrings of a session: set up, started, enabled, stopped. "vhost-user protocol, Ring states".

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Outcome, State, done};
use crate::memory::{Memory, UserAddr};
use crate::ring::layout::{avail_len, desc_len, used_len};
use crate::spec::Feature;
use crate::spec::vhost_user::{RequestCode, VringAddr, VringState};
use crate::vhost_user::device::{Device, QueueSetup, RingAddresses, VringBase};
use crate::vhost_user::error::SessionError;
use crate::vhost_user::message::{Reply, VringFile};

/// What the session knows of a vring.
#[derive(Debug, Default)]
pub(super) struct Vring {
    size: Option<u16>,
    addr: Option<VringAddr>,
    base: VringBase,
    kick: Kick,
    call: Option<Arc<OwnedFd>>,
    err: Option<Arc<OwnedFd>>,
    pub(super) enabled: bool,
    /// Where the ring is, while it runs.
    pub(super) running: Option<RingAddresses>,
}

#[derive(Debug, Clone, Default)]
pub(super) enum Kick {
    #[default]
    Unset,
    /// `SET_VRING_KICK` without a file: the device polls.
    Polled,
    File(Arc<OwnedFd>),
}

impl Vring {
    /// Its size; 0 while that is unknown.
    pub(super) fn size(&self) -> u16 {
        self.size.unwrap_or(0)
    }

    pub(super) fn addr(&self) -> Option<VringAddr> {
        self.addr
    }
}

impl Kick {
    fn file(&self) -> Option<Arc<OwnedFd>> {
        match self {
            Kick::File(file) => Some(file.clone()),
            Kick::Unset | Kick::Polled => None,
        }
    }
}

impl State {
    pub(super) fn set_vring_num(&mut self, state: VringState, device: &mut dyn Device) -> Outcome {
        let request = RequestCode::SetVringNum;
        let index = self.stopped(request, state.index)?;
        let size = u16::try_from(state.num).ok().filter(|size| (1..=device.max_queue_size()).contains(size));
        let size = size.ok_or(SessionError::Value { request, what: "size", value: u64::from(state.num) })?;
        let before = self.vring_mut(request, index)?.size.replace(size);
        let started = self.start_if_complete(request, index, device);
        if started.is_err() {
            self.vring_mut(request, index)?.size = before;
        }
        started
    }

    pub(super) fn set_vring_addr(&mut self, addr: VringAddr, device: &mut dyn Device) -> Outcome {
        let request = RequestCode::SetVringAddr;
        let vring = self.vring(request, addr.index)?;
        if let (Some(_), Some(old)) = (vring.running, vring.addr)
            && (addr.descriptor, addr.used, addr.available) == (old.descriptor, old.used, old.available)
        {
            // Only the flag for the log may change while the ring runs.
            let index = self.index(request, addr.index)?;
            self.vring_mut(request, index)?.addr = Some(addr);
            self.log_ring(index, addr, device).inspect_err(|_| self.put_addr(index, Some(old)))?;
            return Ok(None);
        }
        let index = self.stopped(request, addr.index)?;
        let before = self.vring_mut(request, index)?.addr.replace(addr);
        self.log_ring(index, addr, device).inspect_err(|_| self.put_addr(index, before))?;
        let started = self.start_if_complete(request, index, device);
        if started.is_err() {
            self.put_addr(index, before);
        }
        started
    }

    fn put_addr(&mut self, index: u16, addr: Option<VringAddr>) {
        if let Some(vring) = self.vrings.get_mut(usize::from(index)) {
            vring.addr = addr;
        }
    }

    pub(super) fn set_vring_base(&mut self, state: VringState) -> Outcome {
        let request = RequestCode::SetVringBase;
        let index = self.stopped(request, state.index)?;
        // Split rings have 16 bits of base; whether the upper half must be empty is known only with the features.
        self.vring_mut(request, index)?.base = VringBase(state.num);
        Ok(None)
    }

    pub(super) fn get_vring_base(&mut self, state: VringState, device: &mut dyn Device) -> Outcome {
        let request = RequestCode::GetVringBase;
        let index = self.index(request, state.index)?;
        self.stop(index, device)?;
        let base = self.vring_mut(request, index)?.base;
        Ok(Some(Reply::state(VringState { index: state.index, num: base.0 })))
    }

    pub(super) fn set_vring_kick(&mut self, file: VringFile, fds: Vec<OwnedFd>, device: &mut dyn Device) -> Outcome {
        let request = RequestCode::SetVringKick;
        let index = self.index(request, file.index)?;
        if self.features.is_none() {
            return Err(SessionError::NoFeatures { request, index });
        }
        let kick = only(fds).map_or(Kick::Polled, Kick::File);
        let vring = self.vring_mut(request, index)?;
        if vring.running.is_some() {
            done(request, device.set_kick(index, kick.file()))?;
            vring.kick = kick;
            return Ok(None);
        }
        vring.kick = kick;
        let started = self.start_if_complete(request, index, device);
        if started.is_err() {
            self.vring_mut(request, index)?.kick = Kick::Unset;
        }
        started
    }

    pub(super) fn set_vring_call(&mut self, file: VringFile, fds: Vec<OwnedFd>, device: &mut dyn Device) -> Outcome {
        let request = RequestCode::SetVringCall;
        let index = self.index(request, file.index)?;
        let vring = self.vring_mut(request, index)?;
        vring.call = only(fds);
        if vring.running.is_some() {
            device.set_call(index, vring.call.clone());
        }
        Ok(None)
    }

    pub(super) fn set_vring_err(&mut self, file: VringFile, fds: Vec<OwnedFd>, device: &mut dyn Device) -> Outcome {
        let request = RequestCode::SetVringErr;
        let index = self.index(request, file.index)?;
        let vring = self.vring_mut(request, index)?;
        vring.err = only(fds);
        if vring.running.is_some() {
            device.set_err(index, vring.err.clone());
        }
        Ok(None)
    }

    pub(super) fn set_vring_enable(&mut self, state: VringState, device: &mut dyn Device) -> Outcome {
        let request = RequestCode::SetVringEnable;
        let index = self.index(request, state.index)?;
        let enabled = match state.num {
            0 => false,
            1 => true,
            value => return Err(SessionError::Value { request, what: "state", value: u64::from(value) }),
        };
        self.enable(request, index, enabled, device)
    }

    pub(super) fn enable(
        &mut self,
        request: RequestCode,
        index: u16,
        enabled: bool,
        device: &mut dyn Device,
    ) -> Outcome {
        let vring = self.vring_mut(request, index)?;
        if vring.enabled != enabled {
            if vring.running.is_some() {
                done(request, device.set_enabled(index, enabled))?;
            }
            vring.enabled = enabled;
        }
        Ok(None)
    }

    pub(super) fn enable_all(&mut self, request: RequestCode, enabled: bool, device: &mut dyn Device) -> Outcome {
        self.indices().try_for_each(|index| self.enable(request, index, enabled, device).map(drop))?;
        Ok(None)
    }

    /// Stops a ring if it runs. The next `SET_VRING_KICK` starts it again.
    pub(super) fn stop(&mut self, index: u16, device: &mut dyn Device) -> Result<(), SessionError> {
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return Ok(()) };
        vring.kick = Kick::Unset;
        self.halt(index, device)
    }

    /// Stops a ring if it runs, and keeps all that it needs to go on.
    pub(super) fn halt(&mut self, index: u16, device: &mut dyn Device) -> Result<(), SessionError> {
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return Ok(()) };
        if vring.running.take().is_some() {
            vring.base = device.stop_queue(index).map_err(|source| SessionError::Stop { index, source })?;
        }
        Ok(())
    }

    /// Starts a stopped ring if nothing is missing any more. Changes nothing if it cannot be started.
    pub(super) fn start_if_complete(&mut self, request: RequestCode, index: u16, device: &mut dyn Device) -> Outcome {
        let vring = self.vring(request, u32::from(index))?;
        let (Some(size), false) = (vring.size, matches!(vring.kick, Kick::Unset)) else { return Ok(None) };
        let Some(addresses) = self.locate(request, index, vring, &self.memory)? else { return Ok(None) };
        let setup = QueueSetup {
            size,
            addresses,
            base: vring.base,
            enabled: vring.enabled,
            kick: vring.kick.file(),
            call: vring.call.clone(),
            err: vring.err.clone(),
        };
        let packed = self.features.unwrap_or_default().has(Feature::RingPacked);
        if !packed && vring.base.0 > u32::from(u16::MAX) {
            return Err(SessionError::Value { request, what: "base", value: u64::from(vring.base.0) });
        }
        if !packed && !size.is_power_of_two() {
            return Err(SessionError::Value { request, what: "size", value: u64::from(size) });
        }
        done(request, device.start_queue(index, setup))?;
        self.log.started();
        self.vring_mut(request, index)?.running = Some(addresses);
        Ok(None)
    }

    /// Where a ring lies in `memory`; `None` while its size or addresses are unknown. VIRTIO 1.3, 2.7 and 2.8.
    /// With `ACCESS_PLATFORM` the addresses are IOVAs: only the device, which has the IOTLB, can say where they lead.
    pub(super) fn locate(
        &self,
        request: RequestCode,
        index: u16,
        vring: &Vring,
        memory: &Memory,
    ) -> Result<Option<RingAddresses>, SessionError> {
        let (Some(size), Some(addr)) = (vring.size, vring.addr) else { return Ok(None) };
        let features = self.features.unwrap_or_default();
        if features.has(Feature::AccessPlatform) {
            let (descriptors, driver, device) = (addr.descriptor, addr.available, addr.used);
            return Ok(Some(RingAddresses { descriptors, driver, device }));
        }
        let (driver_len, device_len) = match features.has(Feature::RingPacked) {
            true => (4, 4),
            false => (avail_len(size, features), used_len(size, features)),
        };
        let find = |part, user, len| -> Result<u64, SessionError> {
            let gpa = memory.gpa_of(UserAddr(user), len);
            gpa.map(|gpa| gpa.0).map_err(|source| SessionError::Ring { request, index, part, source })
        };
        Ok(Some(RingAddresses {
            descriptors: find("descriptor area", addr.descriptor, desc_len(size))?,
            driver: find("driver area", addr.available, driver_len)?,
            device: find("device area", addr.used, device_len)?,
        }))
    }

    pub(super) fn indices(&self) -> std::ops::Range<u16> {
        // There were as many as a u16 can say.
        0..self.vrings.len() as u16
    }

    pub(super) fn running(&self) -> impl Iterator<Item = u16> {
        self.indices().zip(&self.vrings).filter(|(_, vring)| vring.running.is_some()).map(|(index, _)| index)
    }

    /// The index as the device knows it; nothing is cut off before it is checked (CVE-2020-10723).
    pub(super) fn index(&self, request: RequestCode, index: u32) -> Result<u16, SessionError> {
        let vrings = self.vrings.len();
        let known = u16::try_from(index).ok().filter(|known| usize::from(*known) < vrings);
        known.ok_or(SessionError::NoSuchVring { request, index, vrings })
    }

    pub(super) fn vring(&self, request: RequestCode, index: u32) -> Result<&Vring, SessionError> {
        let known = self.index(request, index)?;
        let vrings = self.vrings.len();
        self.vrings.get(usize::from(known)).ok_or(SessionError::NoSuchVring { request, index, vrings })
    }

    pub(super) fn vring_mut(&mut self, request: RequestCode, index: u16) -> Result<&mut Vring, SessionError> {
        let vrings = self.vrings.len();
        let unknown = SessionError::NoSuchVring { request, index: u32::from(index), vrings };
        self.vrings.get_mut(usize::from(index)).ok_or(unknown)
    }

    pub(super) fn stopped(&self, request: RequestCode, index: u32) -> Result<u16, SessionError> {
        let known = self.index(request, index)?;
        match self.vring(request, index)?.running {
            Some(_) => Err(SessionError::VringRuns { request, index: known }),
            None => Ok(known),
        }
    }
}

/// The file of a message that has at most one: the message was checked.
fn only(fds: Vec<OwnedFd>) -> Option<Arc<OwnedFd>> {
    fds.into_iter().next().map(Arc::new)
}
