//! A session: one front-end's requests, in order, turned into calls of a [`Device`].
//!
//! Place: whoever owns the poll loop waits for the session's socket and calls [`Session::handle`] once for each time it is
//! readable. The session owns the protocol's state; the device owns the queues.
//!
//! Operation ("vhost-user protocol", "Ring states" and "Communication"):
//! 1. A message is checked against its rule ([`super::message`]), then against the negotiated protocol features.
//! 2. `Session::dispatch` is the table from request to method. A method checks everything before it changes anything.
//! 3. A ring starts once it has a size, addresses and a kick file (or the word that there is none); features must have been
//!    set before. It stops at `GET_VRING_BASE`, at a reset, or with the session.
//! 4. A ring is disabled at first. `SET_VRING_ENABLE` enables it; so does a `SET_FEATURES` without `PROTOCOL_FEATURES`.
//!    QEMU sends `SET_VRING_ENABLE` before `SET_FEATURES`: the state is kept, whether the ring runs or not.
//! 5. A refused request is acknowledged with 1 if the front-end asked for an acknowledgement, and the session goes on: nothing
//!    was changed. If it did not ask, it would take the refused for done; the session ends.
//!
//! Invariants: those of [`Device`]. The addresses of a running ring never change: `SET_VRING_ADDR` with others is
//! refused (CVE-2026-5747). A memory change that moves or loses a running ring stops it first; it goes on from where it stood
//! when all of it is in memory again.
//!
//! Traps: QEMU 7.2 sends `SET_STATUS` 0 *before* `GET_VRING_BASE`, so a reset keeps where the rings stood; it sends
//! `SET_VRING_ERR` and its memory regions once for many starts, so a reset keeps those too.
//!
//! A log of dirty pages is turned on and off while rings run: see `log`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::device::Device;
use super::error::DeviceError;
use super::error::SessionError;
use super::message::{self, Answer, Reply, Request, Rule};
use super::socket::{Connection, Message, Received};
use crate::memory::{Memory, MemoryError, RegionSpec};
use crate::spec::device::status;
use crate::spec::vhost_user::{ProtocolFeature, ProtocolFeatures, RequestCode};
use crate::spec::{Feature, Features};

mod config;
mod in_flight;
mod iommu;
mod log;
mod vring;

use log::Logging;
use vring::Vring;

/// What a call of [`Session::handle`] came to.
#[derive(Debug)]
pub enum Handled {
    /// There is no whole message yet.
    Nothing,
    /// A request was done.
    Done(RequestCode),
    /// A request was refused, and the front-end knows it. The session goes on.
    Refused(SessionError),
    /// The front-end is gone; the device was reset.
    Closed,
}

/// One front-end's session. See the [module](self).
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    state: State,
}

/// What a front-end has said so far, and does to a [`Device`] with each request. Whoever answers the front-end is another's affair: the
/// session's, or that of a back-end that somebody only listens to.
#[derive(Debug)]
pub struct State {
    features: Option<Features>,
    protocol: ProtocolFeatures,
    /// Was the front-end shown `MQ` on offer, and has not chosen yet?
    queried: bool,
    memory: Arc<Memory>,
    vrings: Vec<Vring>,
    status: u8,
    /// Has the device a channel for its own requests?
    channel: bool,
    /// Has it an area for what is in flight?
    in_flight: bool,
    log: Logging,
}

type Outcome = Result<Option<Reply>, SessionError>;

impl Session {
    /// A session over a connected Unix stream socket, for `device`.
    #[must_use]
    pub fn new(socket: OwnedFd, device: &dyn Device) -> Self {
        Session { connection: Connection::new(socket), state: State::new(device) }
    }

    /// The protocol features in use.
    #[must_use]
    pub const fn protocol_features(&self) -> ProtocolFeatures {
        self.state.protocol
    }

    /// Reads what the front-end sent, at most one message, and does what it asks. Never waits.
    ///
    /// # Errors
    /// The session is over and `device` was reset: a fault that the front-end did not ask to hear of, a stream that cannot
    /// be followed, or a socket that failed.
    pub fn handle(&mut self, device: &mut dyn Device) -> Result<Handled, SessionError> {
        let handled = if self.state.memory.lost() || self.state.log.lost() {
            Err(SessionError::MemoryLost)
        } else {
            self.step(device)
        };
        if matches!(handled, Err(_) | Ok(Handled::Closed)) {
            self.end(device);
        }
        handled
    }

    /// Ends the session from this side: stops every ring, resets the device, gives back the guest's memory and all files.
    pub fn end(&mut self, device: &mut dyn Device) {
        self.state.end(device);
    }

    fn step(&mut self, device: &mut dyn Device) -> Result<Handled, SessionError> {
        let message = match self.connection.receive()? {
            Received::Message(message) => message,
            Received::Incomplete => return Ok(Handled::Nothing),
            Received::Closed => return Ok(Handled::Closed),
        };
        let number = message.header.request;
        // `SET_PROTOCOL_FEATURES` itself can be acknowledged only if `REPLY_ACK` was negotiated before it.
        let acknowledge = message::needs_reply(&message.header) && self.state.protocol.has(ProtocolFeature::ReplyAck);
        let rule = Rule::of(number);
        let has_own_reply = matches!(rule, Ok(Rule { answer: Answer::Always, .. }));
        match rule.and_then(|rule| self.state.perform(rule, message, device).map(|reply| (rule.code, reply))) {
            Ok((code, reply)) => {
                match reply {
                    Some(reply) => {
                        let fds: Vec<BorrowedFd<'_>> = reply.fds.iter().map(AsFd::as_fd).collect();
                        self.connection.send(&reply.to_bytes(number), &fds)?;
                    }
                    None if acknowledge => self.connection.send(&Reply::number(0).to_bytes(number), &[])?,
                    None => {}
                }
                Ok(Handled::Done(code))
            }
            Err(error) if acknowledge && !has_own_reply && !error.ends_the_session() => {
                self.connection.send(&Reply::number(1).to_bytes(number), &[])?;
                Ok(Handled::Refused(error))
            }
            Err(error) => Err(error),
        }
    }
}

impl State {
    /// Nothing was said yet.
    #[must_use]
    pub fn new(device: &dyn Device) -> Self {
        State {
            features: None,
            protocol: ProtocolFeatures::NONE,
            queried: false,
            memory: Arc::new(Memory::empty()),
            vrings: (0..device.vrings()).map(|_| Vring::default()).collect(),
            status: 0,
            channel: false,
            in_flight: false,
            log: Logging::default(),
        }
    }

    /// The protocol features in use.
    #[must_use]
    pub const fn protocol_features(&self) -> ProtocolFeatures {
        self.protocol
    }

    /// Ends it: stops every ring, resets the device, gives back the guest's memory and all files.
    pub fn end(&mut self, device: &mut dyn Device) {
        // A ring that cannot be stopped is a dead worker's, and its device says so itself.
        let _ = self.reset(device);
        self.end_log(device);
        self.vrings.clear();
        self.memory = Arc::new(Memory::empty());
        if std::mem::take(&mut self.channel) {
            // Nobody is left to hear that the device cannot close a socket.
            let _ = device.set_backend_channel(None);
        }
        if std::mem::take(&mut self.in_flight) {
            let _ = device.set_in_flight_area(None);
        }
        // A device that cannot let go of memory without a queue on it has none of its own to lose.
        let _ = device.set_memory(self.memory.clone());
    }

    /// Does what a message asks, and returns what is to be answered.
    ///
    /// # Errors
    /// The message is none of this device's, or not for now: nothing was changed.
    pub fn perform(
        &mut self,
        rule: &Rule,
        message: Message,
        device: &mut dyn Device,
    ) -> Result<Option<Reply>, SessionError> {
        // "Only when MQ is set in queried protocol features": accepting them may come later.
        let offered = rule.code == RequestCode::GetQueueNum && self.queried;
        if let Some(feature) = rule.needs
            && !self.protocol.has(feature)
            && !offered
        {
            return Err(SessionError::NotNegotiated { request: rule.code, feature });
        }
        let request = message::parse(rule, &message.payload, message.fds.len())?;
        tracing::debug!(?request, fds = message.fds.len(), "asked");
        self.dispatch(request, message.fds, device)
    }

    /// The table: each request and its method.
    fn dispatch(&mut self, request: Request, fds: Vec<OwnedFd>, device: &mut dyn Device) -> Outcome {
        let number = |number| Ok(Some(Reply::number(number)));
        match request {
            Request::GetFeatures => number(device.offered().0),
            Request::SetFeatures(features) => self.set_features(features, device),
            Request::SetOwner => Ok(None),
            Request::ResetOwner => self.reset_owner(device),
            Request::SetMemTable(regions) => self.set_mem_table(regions, fds, device),
            Request::SetVringNum(state) => self.set_vring_num(state, device),
            Request::SetVringAddr(addr) => self.set_vring_addr(addr, device),
            Request::SetVringBase(state) => self.set_vring_base(state),
            Request::GetVringBase(state) => self.get_vring_base(state, device),
            Request::SetVringKick(file) => self.set_vring_kick(file, fds, device),
            Request::SetVringCall(file) => self.set_vring_call(file, fds, device),
            Request::SetVringErr(file) => self.set_vring_err(file, fds, device),
            Request::GetProtocolFeatures => {
                self.queried = device.protocol_features().has(ProtocolFeature::Mq);
                number(device.protocol_features().0)
            }
            Request::SetProtocolFeatures(features) => self.set_protocol_features(features, device),
            Request::GetQueueNum => number(device.queue_num()),
            Request::SetVringEnable(state) => self.set_vring_enable(state, device),
            Request::SendRarp(mac) => done(RequestCode::SendRarp, device.send_rarp(mac)),
            Request::NetSetMtu(mtu) => set_mtu(mtu, device),
            Request::ResetDevice => self.reset_device(device),
            Request::GetMaxMemSlots => number(device.max_mem_slots()),
            Request::AddMemReg(region) => self.add_mem_reg(region, fds, device),
            Request::RemMemReg(region) => self.rem_mem_reg(region, device),
            Request::SetStatus(status) => self.set_status(status, device),
            Request::GetStatus => number(u64::from(self.status)),
            Request::SetBackendReqFd => self.set_backend_req_fd(fds, device),
            Request::IotlbMsg(entry) => self.iotlb(entry, device),
            Request::GetConfig(access) => Ok(Some(config::get(access, device))),
            Request::SetConfig(access) => config::set(&access, device),
            Request::GetInflightFd(asked) => Ok(Some(in_flight::get(asked, device)?)),
            Request::SetInflightFd(told) => self.set_in_flight(told, fds, device),
            Request::SetLogBase(area) => self.set_log_base(area, fds, device),
            Request::SetLogFd => self.set_log_fd(fds, device),
        }
    }

    fn set_features(&mut self, features: Features, device: &mut dyn Device) -> Outcome {
        let excess = features.minus(device.offered());
        if excess != Features::NONE {
            return Err(SessionError::FeaturesNotOffered(excess));
        }
        let before = self.features.unwrap_or_default();
        let changed = features.minus(before).0 | before.minus(features).0;
        let changed = Features(changed).without(Feature::LogAll);
        if let Some(index) = self.running().next()
            && changed != Features::NONE
        {
            return Err(SessionError::FeaturesWhileRunning { index, changed });
        }
        self.check_log_all(features)?;
        // With several queue pairs QEMU repeats the request for each of them while the first ones run.
        let negotiated = features.without(Feature::LogAll);
        if self.features != Some(negotiated) {
            done(RequestCode::SetFeatures, device.set_features(negotiated))?;
            self.features = Some(negotiated);
        }
        self.log_all(features, device)?;
        if features.has(Feature::ProtocolFeatures) {
            return Ok(None);
        }
        self.enable_all(RequestCode::SetFeatures, true, device)
    }

    fn set_protocol_features(&mut self, features: ProtocolFeatures, device: &mut dyn Device) -> Outcome {
        let excess = features.minus(device.protocol_features());
        if excess != ProtocolFeatures::NONE {
            return Err(SessionError::ProtocolFeaturesNotOffered(excess));
        }
        self.protocol = features;
        self.queried = false;
        Ok(None)
    }

    /// Deprecated. "Back-ends either ignore this message, or use it to disable all rings."
    fn reset_owner(&mut self, device: &mut dyn Device) -> Outcome {
        self.enable_all(RequestCode::ResetOwner, false, device)
    }

    /// The back-end keeps memory, protocol features and the files for calls: front-ends do not send them again.
    fn reset_device(&mut self, device: &mut dyn Device) -> Outcome {
        self.reset(device)?;
        self.status = 0;
        Ok(None)
    }

    /// VIRTIO 1.3, 2.1 Device Status Field. Writing 0 resets the device; `FEATURES_OK` does not stick without features.
    fn set_status(&mut self, status: u64, device: &mut dyn Device) -> Outcome {
        let refused = SessionError::Value { request: RequestCode::SetStatus, what: "status", value: status };
        let mut status = u8::try_from(status).map_err(|_| refused)?;
        if status == 0 {
            self.reset(device)?;
        }
        if self.features.is_none() {
            status &= !status::FEATURES_OK;
        }
        self.status = status;
        device.set_status(status);
        Ok(None)
    }

    fn set_mem_table(&mut self, regions: Vec<RegionSpec>, fds: Vec<OwnedFd>, device: &mut dyn Device) -> Outcome {
        let memory = Memory::map(regions.into_iter().zip(fds).collect());
        self.set_memory(RequestCode::SetMemTable, memory, device)
    }

    fn add_mem_reg(&mut self, region: RegionSpec, fds: Vec<OwnedFd>, device: &mut dyn Device) -> Outcome {
        let request = RequestCode::AddMemReg;
        if fds.first().is_some_and(|fd| self.memory.has(region, fd)) {
            // QEMU 7.2 says so once for each queue pair that the guest uses.
            return Ok(None);
        }
        let count = self.memory.regions().len();
        let max = usize::try_from(device.max_mem_slots()).unwrap_or(usize::MAX);
        if count >= max {
            let source = MemoryError::TooManyRegions { count: count.saturating_add(1), max };
            return Err(SessionError::Memory { request, source });
        }
        let fd = fds.into_iter().next().ok_or(SessionError::Fds { request, fds: 0, expected: 1 })?;
        self.set_memory(request, self.memory.with_region(region, fd), device)
    }

    fn rem_mem_reg(&mut self, region: RegionSpec, device: &mut dyn Device) -> Outcome {
        let memory = self.memory.without_region(region.gpa, region.user_addr, region.size);
        self.set_memory(RequestCode::RemMemReg, memory, device)
    }

    /// Takes new memory into use. A running ring that is elsewhere in it, or not at all, is stopped first; it goes on from
    /// where it stood as soon as all of it is in memory again.
    fn set_memory(
        &mut self,
        request: RequestCode,
        memory: Result<Memory, MemoryError>,
        device: &mut dyn Device,
    ) -> Outcome {
        let memory = Arc::new(memory.map_err(|source| SessionError::Memory { request, source })?);
        self.check_logged(request, &memory)?;
        for index in self.indices() {
            let vring = self.vring(request, u32::from(index))?;
            if vring.running.is_some() && self.locate(request, index, vring, &memory).ok().flatten() != vring.running {
                self.halt(index, device)?;
            }
        }
        let outcome = done(request, device.set_memory(memory.clone()));
        if outcome.is_ok() {
            self.memory = memory;
        }
        for index in self.indices() {
            match self.vring(request, u32::from(index))?.running {
                Some(_) => {}
                None => match self.start_if_complete(request, index, device) {
                    Ok(_) => {}
                    Err(error @ SessionError::Ring { .. }) => tracing::warn!(%error, "the ring waits for its memory"),
                    // The memory has changed already: there is no way back to what the front-end knows.
                    Err(error) => return Err(SessionError::Restart { index, source: Box::new(error) }),
                },
            }
        }
        outcome
    }

    /// Stops every ring, keeping where each stood, then resets the device.
    fn reset(&mut self, device: &mut dyn Device) -> Result<(), SessionError> {
        let mut outcome = Ok(());
        for index in self.indices() {
            outcome = outcome.and(self.stop(index, device));
            if let Some(vring) = self.vrings.get_mut(usize::from(index)) {
                vring.enabled = false;
            }
        }
        self.features = None;
        device.reset();
        outcome.and(self.log_all(Features::NONE, device))
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// VIRTIO 1.3, 5.1.4 Device configuration layout: an MTU is at least 68.
fn set_mtu(mtu: u64, device: &mut dyn Device) -> Outcome {
    let request = RequestCode::NetSetMtu;
    let known = u16::try_from(mtu).ok().filter(|mtu| *mtu >= 68);
    let mtu = known.ok_or(SessionError::Value { request, what: "MTU", value: mtu })?;
    done(request, device.set_mtu(mtu))
}

fn done(request: RequestCode, result: Result<(), DeviceError>) -> Outcome {
    result.map(|()| None).map_err(|source| SessionError::Device { request, source })
}
