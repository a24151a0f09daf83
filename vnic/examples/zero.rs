//! A virtio device on this crate: all it gives is zeroes. To a guest it is an entropy device, with the dullest entropy.
//!
//! ```text
//! cargo run -p vnic --example zero -- /tmp/zero.sock
//! qemu-system-x86_64 … -chardev socket,id=zero,path=/tmp/zero.sock -device vhost-user-rng-pci,chardev=zero
//! vnic status --control /tmp/zero.sock.control
//! ```

use std::time::Instant;

use vnic::backend::{BURST, DataPath, DeviceModel, PollMode, Progress, Queue, Queues};
use vnic::ring::DeviceRing;
use vnic::serve::{Endpoint, Options, Process, ServeError};
use vnic::spec::{Feature, Features};

/// What the device is. VIRTIO 1.3, 5.4 Entropy Device.
struct Zero;

impl DeviceModel for Zero {
    fn name(&self) -> &'static str {
        "zero"
    }

    fn device_id(&self) -> u32 {
        4
    }

    fn offered(&self) -> Features {
        Features::of(&[Feature::ProtocolFeatures, Feature::Version1])
    }

    fn queues(&self) -> u16 {
        1
    }

    fn queue_name(&self, _index: u16) -> String {
        "requestq".to_owned()
    }

    fn max_queue_size(&self) -> u16 {
        256
    }
}

/// What it does with its chains.
struct Zeroes;

impl DataPath for Zeroes {
    fn pass(&mut self, queues: &mut Queues, _now: Instant) -> Progress {
        queues.values_mut().filter(|queue| queue.is_live()).map(|queue| burst(queue)).max().unwrap_or(Progress::Idle)
    }
}

fn burst(queue: &mut Queue) -> Progress {
    queue.ring.disable_notifications();
    for count in 0..BURST {
        queue.segments.clear();
        let chain = match queue.ring.pop(&mut queue.segments) {
            Ok(Some(chain)) => chain,
            Ok(None) if count == 0 => return Progress::Idle,
            Ok(None) => {
                queue.publish();
                return Progress::Some;
            }
            // The driver broke the ring: it stops, by name, until the driver resets it.
            Err(error) => {
                queue.stop_ring(&error);
                return Progress::Idle;
            }
        };
        // A request for more than this comes back short: no driver can keep a worker busy for long.
        let buffer = queue.segments.view(chain).writable().next();
        let written = buffer.map_or(0, |buffer| buffer.copy_from(&[0; 4096]));
        queue.complete(&chain, written as u32);
    }
    queue.publish();
    Progress::More
}

fn main() -> Result<(), ServeError> {
    let path = std::env::args_os().nth(1).expect("where is the front-end to connect? Name a socket");
    let endpoint = Endpoint::Listen(path.into());
    let options = Options::new(endpoint.clone());
    let mut process = Process::prepare(PollMode::Adaptive, &[])?;
    process.add(&endpoint, Zero, Zeroes)?;
    process.listen(&options.control_path().expect("a path has a control socket beside it"), None)?;
    process.run()
}
