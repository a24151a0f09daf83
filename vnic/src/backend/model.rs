//! What a device is, as its driver finds it: features, queues, configuration space.
//!
//! Place: lives with the session; [`Backend`](super::Backend) joins it with the workers. Nothing here is on the data path.

use crate::spec::Features;
use crate::vhost_user::DeviceError;

/// A kind of device. How to write one: [`crate::rng`].
pub trait DeviceModel: Send {
    /// Its name: `net`, `rng`. The vhost-user specification's "Backend program conventions" have the list.
    fn name(&self) -> &'static str;

    /// Its device id. VIRTIO 1.3, 5 Device Types.
    fn device_id(&self) -> u32;

    /// The features on offer, `PROTOCOL_FEATURES` among them.
    fn offered(&self) -> Features;

    /// How many virtqueues it has.
    fn queues(&self) -> u16;

    /// The name of a queue, as the specification has it.
    fn queue_name(&self, index: u16) -> String;

    /// The largest ring that a driver may set up.
    fn max_queue_size(&self) -> u16;

    /// The answer to `GET_QUEUE_NUM`, in the unit of the device type.
    fn queue_num(&self) -> u64 {
        u64::from(self.queues())
    }

    /// Is what is in flight recorded for a back-end that comes after this one? Its data path then takes all chains by
    /// [`Queue::pop`](super::Queue::pop), and returns them by the queue.
    fn records_in_flight(&self) -> bool {
        false
    }

    /// Does it tell whoever is behind it where a guest is that has moved here ([`DataPath::announce`](super::DataPath::announce))?
    fn announces(&self) -> bool {
        false
    }

    /// Its configuration space; none: the front-end has it.
    fn config(&self) -> Option<Vec<u8>> {
        None
    }

    /// The driver writes into the configuration space; the bytes lie within it.
    ///
    /// # Errors
    /// They are not the driver's to write, or make no sense.
    fn set_config(&mut self, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        Err(format!("nothing can be set at {offset}, {} bytes", bytes.len()).into())
    }
}
