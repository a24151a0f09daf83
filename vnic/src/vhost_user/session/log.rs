//! The log of dirty pages: what a front-end needs to copy the guest elsewhere while it runs. "Migration".
//!
//! Operation, as QEMU does it: `SET_LOG_BASE` hands over the file, `SET_FEATURES` with `LOG_ALL` turns the log on, `SET_VRING_ADDR`
//! with `VHOST_VRING_F_LOG` says where each used ring is to be logged. In a session that begins while the guest is on its way,
//! `LOG_ALL` comes first, then the rings, then the log.
//!
//! Turning it on or off reaches the device as [`Device::set_log`], and never as a change of features: no link negotiates anew.
//! What a queue writes is logged as a whole where either flag asks for it: a page too many is copied once more, one too few is lost.
//!
//! Invariant: while the log is on it reaches to the end of the guest's memory. Where rings may have run with the log on, and without
//! one that the front-end reads, all memory is marked in the next.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Outcome, State, done};
use crate::memory::{DirtyLog, Memory};
use crate::ring::layout::used_len;
use crate::spec::vhost_user::{LogArea, RequestCode, VRING_ADDR_F_LOG, VringAddr};
use crate::spec::{Feature, Features};
use crate::vhost_user::device::{Device, Log};
use crate::vhost_user::error::SessionError;
use crate::vhost_user::message::Reply;

/// What the session knows of the log.
#[derive(Debug, Default)]
pub(super) struct Logging {
    pages: Option<Arc<DirtyLog>>,
    told: Option<Arc<OwnedFd>>,
    /// `LOG_ALL` is negotiated.
    all: bool,
    /// A ring was started with the log on, and no log has come since.
    unsure: bool,
    /// The device has it.
    given: bool,
}

impl Logging {
    /// Has the file shrunk under it?
    pub(super) fn lost(&self) -> bool {
        self.given && self.pages.as_ref().is_some_and(|pages| pages.lost())
    }

    /// A ring starts.
    pub(super) fn started(&mut self) {
        self.unsure |= self.all;
    }
}

impl State {
    pub(super) fn set_log_base(&mut self, area: LogArea, fds: Vec<OwnedFd>, device: &mut dyn Device) -> Outcome {
        let request = RequestCode::SetLogBase;
        let file = fds.into_iter().next().ok_or(SessionError::Fds { request, fds: 0, expected: 1 })?;
        let pages = DirtyLog::open(file, area.mmap_offset, area.mmap_size);
        let pages = Arc::new(pages.map_err(|source| SessionError::Memory { request, source })?);
        if self.is_logged() {
            self.check_log(request, &pages, &self.memory)?;
        }
        let before = self.log.pages.replace(Arc::clone(&pages));
        if let Err(error) = self.give_log_anew(request, device) {
            self.log.pages = before;
            return Err(error);
        }
        if std::mem::take(&mut self.log.unsure) && self.vrings.iter().any(|vring| vring.enabled) {
            pages.mark_all(&self.memory);
        }
        Ok(Some(Reply::number(0)))
    }

    pub(super) fn set_log_fd(&mut self, fds: Vec<OwnedFd>, device: &mut dyn Device) -> Outcome {
        let before = std::mem::replace(&mut self.log.told, fds.into_iter().next().map(Arc::new));
        let given = self.give_log_anew(RequestCode::SetLogFd, device);
        if given.is_err() {
            self.log.told = before;
        }
        given.map(|()| None)
    }

    /// Can `LOG_ALL` be negotiated, if it is to be?
    pub(super) fn check_log_all(&self, features: Features) -> Result<(), SessionError> {
        match &self.log.pages {
            Some(pages) if features.has(Feature::LogAll) => {
                self.check_log(RequestCode::SetFeatures, pages, &self.memory)
            }
            _ => Ok(()),
        }
    }

    /// It is, or not.
    pub(super) fn log_all(&mut self, features: Features, device: &mut dyn Device) -> Result<(), SessionError> {
        let request = RequestCode::SetFeatures;
        let all = features.has(Feature::LogAll);
        let before = std::mem::replace(&mut self.log.all, all);
        self.give_log(request, device).inspect_err(|_| self.log.all = before)
    }

    /// Where a ring is to be logged changes with its addresses.
    pub(super) fn log_ring(
        &mut self,
        index: u16,
        addr: VringAddr,
        device: &mut dyn Device,
    ) -> Result<(), SessionError> {
        let request = RequestCode::SetVringAddr;
        let at = (addr.flags & VRING_ADDR_F_LOG != 0).then_some(addr.log);
        if let (Some(at), Some(pages)) = (at, &self.log.pages) {
            let vring = self.vring(request, addr.index)?;
            let features = self.features.unwrap_or_default();
            if !features.has(Feature::AccessPlatform) {
                let len = if features.has(Feature::RingPacked) { 4 } else { used_len(vring.size(), features) };
                let end = at.saturating_add(len);
                pages.reaches(end).map_err(|source| SessionError::Memory { request, source })?;
            }
            self.check_log(request, pages, &self.memory)?;
        }
        done(request, device.set_ring_log(index, at))?;
        self.give_log(request, device)
    }

    /// With a log that is on, memory may not grow beyond it.
    pub(super) fn check_logged(&self, request: RequestCode, memory: &Memory) -> Result<(), SessionError> {
        match &self.log.pages {
            Some(pages) if self.is_logged() => self.check_log(request, pages, memory),
            _ => Ok(()),
        }
    }

    /// The session ends.
    pub(super) fn end_log(&mut self, device: &mut dyn Device) {
        let given = std::mem::take(&mut self.log).given;
        if given {
            // A worker that has died writes nothing any more.
            let _ = device.set_log(None);
        }
    }

    fn is_logged(&self) -> bool {
        let logs = |addr: VringAddr| addr.flags & VRING_ADDR_F_LOG != 0;
        self.log.all || self.vrings.iter().any(|vring| vring.addr().is_some_and(logs))
    }

    fn check_log(&self, request: RequestCode, pages: &DirtyLog, memory: &Memory) -> Result<(), SessionError> {
        pages.covers(memory).map_err(|source| SessionError::Memory { request, source })
    }

    /// The device has the log while it is on.
    fn give_log(&mut self, request: RequestCode, device: &mut dyn Device) -> Result<(), SessionError> {
        let wanted = self.log.pages.is_some() && self.is_logged();
        if wanted == self.log.given { Ok(()) } else { self.give_log_anew(request, device) }
    }

    /// The same where the log is another.
    fn give_log_anew(&mut self, request: RequestCode, device: &mut dyn Device) -> Result<(), SessionError> {
        let pages = self.log.pages.clone().filter(|_| self.is_logged());
        let log = pages.map(|pages| Log { pages, told: self.log.told.clone() });
        if log.is_none() && !self.log.given {
            return Ok(());
        }
        let given = log.is_some();
        done(request, device.set_log(log))?;
        self.log.given = given;
        Ok(())
    }
}
