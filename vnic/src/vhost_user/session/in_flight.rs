//! The area where a device records what is in flight, for the back-end that comes after it. "Inflight I/O tracking".

use std::os::fd::OwnedFd;

use super::{Outcome, State, done};
use crate::spec::vhost_user::{Inflight, RequestCode};
use crate::vhost_user::device::Device;
use crate::vhost_user::error::SessionError;
use crate::vhost_user::message::{InflightArea, Reply};

/// Makes an area. For queues that the device does not have there is none: a size of 0 says so.
pub(super) fn get(asked: InflightArea, device: &mut dyn Device) -> Result<Reply, SessionError> {
    let request = RequestCode::GetInflightFd;
    let Inflight { num_queues, queue_size, .. } = asked.told;
    if !fits(num_queues, queue_size, device) {
        return Ok(Reply::in_flight(InflightArea { told: Inflight::default(), ..asked }, None));
    }
    let area = device.in_flight_area(num_queues, queue_size);
    let (file, mmap_size) = area.map_err(|source| SessionError::Device { request, source })?;
    let told = Inflight { mmap_size, mmap_offset: 0, num_queues, queue_size };
    Ok(Reply::in_flight(InflightArea { told, ..asked }, Some(file)))
}

fn fits(queues: u16, size: u16, device: &dyn Device) -> bool {
    (1..=device.vrings()).contains(&queues) && (1..=device.max_queue_size()).contains(&size)
}

impl State {
    pub(super) fn set_in_flight(&mut self, area: InflightArea, fds: Vec<OwnedFd>, device: &mut dyn Device) -> Outcome {
        let (request, told) = (RequestCode::SetInflightFd, area.told);
        if !fits(told.num_queues, told.queue_size, device) {
            let value = u64::from(told.num_queues) << 16 | u64::from(told.queue_size);
            return Err(SessionError::Value { request, what: "queues and size", value });
        }
        if let Some(index) = self.running().next() {
            return Err(SessionError::VringRuns { request, index });
        }
        let file = fds.into_iter().next().ok_or(SessionError::Fds { request, fds: 0, expected: 1 })?;
        done(request, device.set_in_flight_area(Some((file, told))))?;
        self.in_flight = true;
        Ok(None)
    }
}
