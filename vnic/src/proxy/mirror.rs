//! A session's messages, turned into the view: what a front-end asks is done to a device that only takes note of it.
//!
//! Place: the session's thread, after each message has gone out. A message that cannot be followed changes nothing here.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::view::{Eyes, Vring};
use crate::memory::{IotlbEntry, Iova, MAX_REGIONS, Memory};
use crate::ring::RingLayout;
use crate::spec::Features;
use crate::spec::vhost_user::{FLAG_REPLY, Header, MAX_PAYLOAD, ProtocolFeatures, RequestCode};
use crate::vhost_user::message::{Answer, Rule, check, parse};
use crate::vhost_user::socket::Message;
use crate::vhost_user::{Device, DeviceError, QueueSetup, SessionError, State, VringBase};

/// Vrings that a message can name: `SET_VRING_KICK` has eight bits for them.
const VRINGS: u16 = 256;
/// VIRTIO 1.3, 2.7: the largest ring.
const MAX_SIZE: u16 = 1 << 15;

/// The view of one session, as it comes about.
#[derive(Debug)]
pub(super) struct Mirror {
    eyes: Arc<Eyes>,
    state: State,
    /// Memory is not to be looked at any more.
    post_copy: bool,
}

impl Mirror {
    /// Nothing was said yet.
    pub(super) fn new(eyes: Arc<Eyes>) -> Self {
        let state = State::new(&Image(&eyes));
        Mirror { eyes, state, post_copy: false }
    }

    /// The front-end has sent this, and the back-end has it.
    pub(super) fn asked(&mut self, message: Message) {
        self.eyes.view().counts.front_end_messages += 1;
        if let Err(error) = self.follow(message) {
            self.eyes.view().counts.not_understood += 1;
            self.eyes.note(format!("passed on, but not followed: {error}"));
        }
        self.eyes.view().said.protocol = self.state.protocol_features();
    }

    /// A message of the front-end that is longer than any that is known.
    pub(super) fn asked_long(&mut self, header: Header) {
        let Header { request, size, .. } = header;
        let mut view = self.eyes.view();
        view.counts.front_end_messages += 1;
        view.counts.not_understood += 1;
        drop(view);
        let error = SessionError::PayloadTooLong { request, size, max: MAX_PAYLOAD };
        self.eyes.note(format!("passed on, but not followed: {error}"));
    }

    fn follow(&mut self, message: Message) -> Result<(), SessionError> {
        check(message.header, MAX_PAYLOAD)?;
        let rule = Rule::of(message.header.request)?;
        let image = &mut Image(&self.eyes);
        match rule.code {
            RequestCode::SetFeatures
            | RequestCode::SetOwner
            | RequestCode::ResetOwner
            | RequestCode::SetVringNum
            | RequestCode::SetVringAddr
            | RequestCode::SetVringBase
            | RequestCode::GetVringBase
            | RequestCode::SetVringKick
            | RequestCode::SetVringCall
            | RequestCode::SetProtocolFeatures
            | RequestCode::SetVringEnable
            | RequestCode::ResetDevice
            | RequestCode::IotlbMsg
            | RequestCode::SetStatus => self.state.perform(rule, message, image).map(drop),
            RequestCode::SetMemTable | RequestCode::AddMemReg | RequestCode::RemMemReg if !self.post_copy => {
                self.state.perform(rule, message, image).map(drop)
            }
            RequestCode::PostcopyAdvise | RequestCode::PostcopyListen => {
                self.post_copy = true;
                self.state.end(image);
                self.state = State::new(image);
                self.eyes.note("post-copy migration: memory is not looked at until the session ends".to_owned());
                Ok(())
            }
            RequestCode::GetConfig | RequestCode::SetConfig => {
                self.eyes.view().said.reads_config = true;
                parse(rule, &message.payload, message.fds.len()).map(drop)
            }
            // It says nothing of memory or rings.
            _ => match parse(rule, &message.payload, message.fds.len()) {
                Err(SessionError::Unsupported { .. }) => Ok(()),
                parsed => parsed.map(drop),
            },
        }
    }

    /// The back-end has sent this, and the front-end has it.
    pub(super) fn answered(&self, message: &Message) {
        let Message { header, payload, .. } = message;
        let mut view = self.eyes.view();
        view.counts.back_end_messages += 1;
        let known = if header.flags & FLAG_REPLY == 0 { None } else { Rule::of(header.request).ok() };
        let Some(rule) = known else {
            view.counts.not_understood += 1;
            drop(view);
            let what =
                if header.flags & FLAG_REPLY == 0 { "what is no reply" } else { "a reply to an unknown request" };
            return self
                .eyes
                .note(format!("passed on, but not followed: the back-end sent {what} ({})", header.request));
        };
        let number = payload.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).filter(|_| payload.len() == 8);
        match (rule.code, number) {
            (RequestCode::GetFeatures, Some(features)) => view.said.offered = Features(features),
            (RequestCode::GetProtocolFeatures, Some(features)) => {
                view.said.protocol_offered = ProtocolFeatures(features);
            }
            (code, Some(number)) if rule.answer == Answer::OnDemand && number != 0 => {
                view.counts.refused += 1;
                drop(view);
                self.eyes.note(format!("the back-end refused {code} (it answered {number})"));
            }
            _ => {}
        }
    }

    /// A reply that is longer than any that is known.
    pub(super) fn answered_long(&self) {
        let mut view = self.eyes.view();
        view.counts.back_end_messages += 1;
        view.counts.not_understood += 1;
    }

    /// The session is over.
    pub(super) fn end(mut self) {
        self.state.end(&mut Image(&self.eyes));
    }
}

/// The device that only takes note. What is on offer is the back-end's affair, so it offers all there could be.
struct Image<'e>(&'e Eyes);

impl Image<'_> {
    fn with(&self, index: u16, change: impl FnOnce(&mut Vring)) {
        if let Some(vring) = self.0.view().said.vrings.get_mut(&index) {
            change(vring);
        }
    }
}

impl Device for Image<'_> {
    fn offered(&self) -> Features {
        Features(u64::MAX)
    }

    fn protocol_features(&self) -> ProtocolFeatures {
        ProtocolFeatures(u64::MAX)
    }

    fn vrings(&self) -> u16 {
        VRINGS
    }

    fn queue_num(&self) -> u64 {
        VRINGS.into()
    }

    fn max_mem_slots(&self) -> u64 {
        MAX_REGIONS as u64
    }

    fn max_queue_size(&self) -> u16 {
        MAX_SIZE
    }

    fn set_features(&mut self, features: Features) -> Result<(), DeviceError> {
        self.0.view().said.negotiated = features;
        self.0.labels.forget();
        Ok(())
    }

    fn set_memory(&mut self, memory: Arc<Memory>) -> Result<(), DeviceError> {
        let memory = Some(memory).filter(|memory| !memory.regions().is_empty());
        let before = std::mem::replace(&mut self.0.view().said.memory, memory);
        self.0.iotlb.clear();
        self.0.labels.forget();
        drop(before);
        Ok(())
    }

    fn start_queue(&mut self, index: u16, setup: QueueSetup) -> Result<(), DeviceError> {
        let QueueSetup { size, addresses, enabled, kick, call, .. } = setup;
        let layout = RingLayout { size, desc: addresses.descriptors, avail: addresses.driver, used: addresses.device };
        let vring = Vring { layout, enabled, runs: true, kick, call };
        self.0.view().said.vrings.insert(index, vring);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<VringBase, DeviceError> {
        self.with(index, |vring| *vring = Vring { runs: false, kick: None, call: None, ..vring.clone() });
        // Where it stands the back-end knows; the front-end will say it when the ring is to go on.
        Ok(VringBase::default())
    }

    fn set_enabled(&mut self, index: u16, enabled: bool) -> Result<(), DeviceError> {
        self.with(index, |vring| vring.enabled = enabled);
        Ok(())
    }

    fn set_kick(&mut self, index: u16, kick: Option<Arc<OwnedFd>>) -> Result<(), DeviceError> {
        self.with(index, |vring| vring.kick = kick);
        Ok(())
    }

    fn set_call(&mut self, index: u16, call: Option<Arc<OwnedFd>>) {
        self.with(index, |vring| vring.call = call);
    }

    fn set_err(&mut self, _index: u16, _err: Option<Arc<OwnedFd>>) {}

    fn reset(&mut self) {
        self.0.view().said.negotiated = Features::NONE;
        self.0.iotlb.clear();
        self.0.labels.forget();
    }

    fn iotlb_update(&mut self, entry: IotlbEntry) -> Result<(), DeviceError> {
        self.0.iotlb.update(&entry);
        Ok(())
    }

    fn iotlb_invalidate(&mut self, first: Iova, last: Iova) -> Result<(), DeviceError> {
        self.0.iotlb.invalidate(first.0, last.0);
        Ok(())
    }
}
