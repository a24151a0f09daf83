//! A guest's memory with virtio devices in it, without a guest: a made kernel's `/sys`, devices, queues and rings. For tests and
//! fuzzing.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use super::devices::Finder;
use super::process::Process;
use super::ram::Ram;
use super::trace::{Sight, Wanted, Watched};
use super::{AttachError, Attached, rings};
use crate::backend::QueueShared;
use crate::introspect::testing::{DIRECT, FileSystem, Image, UPTODATE};
use crate::introspect::{GuestPhysical, Introspection};
use crate::memory::testing::GuestRam;
use crate::spec::{Feature, Features};

/// A page of a file.
pub const FILE: u64 = 0xa00;
/// Entries of the rings.
pub const SIZE: u64 = 8;

/// The memory, and where things are in it: addresses of the direct map.
#[derive(Debug, Clone)]
pub struct Made {
    /// The memory.
    pub image: Image,
    /// Of sysfs.
    pub super_block: u64,
    /// The node of `/sys/bus/virtio/devices`.
    pub folder: u64,
    /// The NIC's `virtio_device`.
    pub nic: u64,
    /// Its queues' `vring_virtqueue`: two split ones, a packed one.
    pub queues: [u64; 3],
}

/// A kernel with a NIC of three queues and a device without a driver.
#[must_use]
pub fn vm() -> Made {
    let mut image = Image::new(16 << 20);
    let root = image.file_system("tmpfs", "none", None);
    let file = image.file(&root, root.root, "big.bin", 12);
    image.page(FILE, UPTODATE, file.mapping, 2);
    let point = image.directory(root.root, "sys");
    let FileSystem { sb: super_block, .. } = image.file_system("sysfs", "sysfs", Some((root.mount, point)));
    image.set(root.sb, "super_block", "s_list", super_block);
    image.set(super_block, "super_block", "s_list", root.sb);
    let (info, tree) = (image.object("kernfs_super_info"), image.object("kernfs_root"));
    image.set(super_block, "super_block", "s_fs_info", info);
    image.set(info, "kernfs_super_info", "root", tree);
    let mut folder = node(&mut image, "");
    image.set(tree, "kernfs_root", "kn", folder);
    for name in ["bus", "virtio", "devices"] {
        let below = node(&mut image, name);
        add(&mut image, folder, &[below]);
        folder = below;
    }
    let features = Features::of(&[Feature::Csum, Feature::IndirectDesc, Feature::Version1]);
    let (nic, link) = device(&mut image, "virtio0", Some("virtio_net"), features);
    let (_, other) = device(&mut image, "virtio1", None, Features::default());
    add(&mut image, folder, &[link, other]);
    let queues = [("input.0", 0, false), ("output.0", 1, false), ("output.1", 3, true)];
    let queues = queues.map(|(name, index, packed)| queue(&mut image, nic, name, index, packed));
    let head = nic + image.offset("virtio_device", "vqs");
    let [first, second, third] = queues;
    for (at, next) in [(head, first), (first, second), (second, third), (third, head)] {
        image.put(at, next);
    }
    Made { image, super_block, folder, nic, queues }
}

fn node(image: &mut Image, name: &str) -> u64 {
    let (at, name) = (image.object("kernfs_node"), image.text(name));
    image.set(at, "kernfs_node", "name", name);
    at
}

/// Puts nodes into a directory: each to the right of the one before.
fn add(image: &mut Image, directory: u64, nodes: &[u64]) {
    let mut slot = directory + image.offset("kernfs_node", "dir");
    for node in nodes {
        let branch = node + image.offset("kernfs_node", "rb");
        image.put(slot, branch);
        slot = branch + image.offset("rb_node", "rb_right");
    }
}

/// Returns the device, and the link to it.
fn device(image: &mut Image, name: &str, driver: Option<&str>, features: Features) -> (u64, u64) {
    let (at, parent) = (image.object("virtio_device"), image.object("device"));
    let own = at + image.offset("virtio_device", "dev");
    for (device, name) in [(own, name), (parent, "0000:00:02.0")] {
        let name = image.text(name);
        image.put(device, name);
    }
    image.set(own, "device", "parent", parent);
    if let Some(driver) = driver {
        let (of, name) = (image.object("device_driver"), image.text(driver));
        image.set(of, "device_driver", "name", name);
        image.set(own, "device", "driver", of);
    }
    image.put(at + image.offset("virtio_device", "id"), 1);
    image.set(at, "virtio_device", "features", features.0);
    let vqs = at + image.offset("virtio_device", "vqs");
    image.put(vqs, vqs);
    let (link, target) = (node(image, name), node(image, name));
    image.put(link + image.offset("kernfs_node", "symlink"), target);
    image.set(target, "kernfs_node", "priv", own);
    (at, link)
}

fn queue(image: &mut Image, device: u64, name: &str, index: u64, packed: bool) -> u64 {
    let (at, name) = (image.object("vring_virtqueue"), image.text(name));
    image.set(at, "virtqueue", "name", name);
    image.set(at, "virtqueue", "vdev", device);
    image.put(at + image.offset("virtqueue", "index"), index | SIZE << 32);
    image.put(at + image.offset("vring_virtqueue", "packed_ring"), packed.into());
    let part = if packed { "packed" } else { "split" };
    let ring = at + image.offset("vring_virtqueue", part);
    image.put(ring, SIZE);
    for offset in [8, 16, 24] {
        let area = image.take(16 * SIZE);
        image.put(ring + offset, area);
    }
    if packed {
        let states = image.take(SIZE * 24);
        image.put(ring + image.offset("vring_virtqueue_packed", "desc_state"), states);
        image.put(ring + image.offset("vring_virtqueue_packed", "next_avail_idx"), 1 << 16);
        image.put(at + image.offset("vring_virtqueue", "last_used_idx"), 1 << 15);
    }
    at
}

/// Where an address of the direct map is in the image.
#[must_use]
pub fn physical(at: u64) -> u64 {
    at - DIRECT
}

/// Eyes on such a memory.
#[derive(Debug)]
pub struct Eyes {
    attached: Attached,
    /// What is copied of the rings.
    shadow: GuestRam,
    /// What queues that are watched have in common with who reads of them: megabytes, and so the same for each look.
    shared: Vec<Arc<QueueShared>>,
}

/// A thousand queues are looked at like a few.
const WATCHED: usize = 8;

impl Eyes {
    /// Finds kernel and devices in a file.
    ///
    /// # Errors
    /// They are not there.
    pub fn on(memory: File, bytes: u64) -> Result<Eyes, AttachError> {
        Eyes::through(Ram::of_file(memory, bytes))
    }

    /// The same through a mapping: without a call of the kernel's for each read.
    ///
    /// # Errors
    /// They are not there.
    #[cfg(fuzzing)]
    pub fn on_mapped(memory: File, bytes: u64, mapped: crate::memory::Onlooker) -> Result<Eyes, AttachError> {
        Eyes::through(Ram::mapped(memory, bytes, mapped))
    }

    fn through(ram: Ram) -> Result<Eyes, AttachError> {
        let process = Arc::new(Process::open(std::process::id())?);
        let pid = process.pid();
        let ram = Arc::new(ram);
        let eyes = Introspection::attach(ram.clone()).map_err(|error| AttachError::Guest { pid, error })?;
        let finder = Finder::new(&eyes)?;
        let shared = (0..WATCHED).map(|_| Arc::new(QueueShared::new(String::new(), 1))).collect::<Vec<_>>();
        shared.iter().for_each(|shared| shared.events.make_room());
        let shadow = rings::shadow(&ram).map_err(AttachError::Host)?;
        Ok(Eyes { attached: Attached { ram, process, eyes, finder }, shadow, shared })
    }

    /// Looks at all devices, and at their rings in every way there is. Returns how many devices and queues there are.
    pub fn look(&self) -> (usize, usize) {
        let Attached { ram, eyes, finder, .. } = &self.attached;
        let Ok(devices) = finder.devices(eyes) else { return (0, 0) };
        let mut queues = 0;
        for device in &devices {
            for queue in &device.queues {
                queues += 1;
                let Some(shared) = self.shared.get(queues - 1) else { continue };
                let seen = rings::look(ram, &self.shadow, queue, device.features, self.attached.position(queue));
                assert!(seen.is_ok(), "the host has no memory: {seen:?}");
                if let Some(mut watched) = Watched::new(ram, queue, device.features, shared.clone()) {
                    watched.believe(Duration::MAX);
                    let any = ram.has(queue.layout.desc);
                    let mut sight = Sight::alone(eyes.more());
                    for _ in 0..2 {
                        watched.look(ram.as_ref(), Wanted { at_ns: 0, all: any }, Some(&mut sight));
                        sight.name(ram.as_ref(), false);
                    }
                }
            }
        }
        (devices.len(), queues)
    }

    /// The devices.
    ///
    /// # Errors
    /// They lead nowhere.
    pub fn devices(&self) -> Result<Vec<super::devices::Device>, String> {
        self.attached.finder.devices(&self.attached.eyes).map_err(|stop| stop.to_string())
    }
}
