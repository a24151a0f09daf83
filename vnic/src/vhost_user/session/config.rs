//! The configuration space, where it is the back-end's. "Virtio device config space".

use std::ops::Range;

use super::{Outcome, done};
use crate::spec::vhost_user::RequestCode;
use crate::vhost_user::device::Device;
use crate::vhost_user::error::SessionError;
use crate::vhost_user::message::{ConfigAccess, Reply};

/// Where it lies in a space of this many bytes; `None`: not wholly in it.
fn range(access: &ConfigAccess, len: usize) -> Option<Range<usize>> {
    let first = access.offset as usize;
    let end = first.checked_add(access.bytes.len())?;
    (end <= len).then_some(first..end)
}

pub(super) fn get(access: ConfigAccess, device: &dyn Device) -> Reply {
    let space = device.config();
    let bytes = range(&access, space.len()).and_then(|range| space.get(range));
    Reply::config(bytes.map(|bytes| ConfigAccess { bytes: bytes.to_vec(), ..access }).as_ref())
}

pub(super) fn set(access: &ConfigAccess, device: &mut dyn Device) -> Outcome {
    let request = RequestCode::SetConfig;
    let Some(range) = range(access, device.config().len()) else {
        return Err(SessionError::Value { request, what: "offset", value: u64::from(access.offset) });
    };
    done(request, device.set_config(range.start, &access.bytes))
}
