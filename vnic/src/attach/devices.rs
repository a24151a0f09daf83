//! The guest's virtio devices and their virtqueues, from its kernel's own structures.
//!
//! Operation: `/sys/bus/virtio/devices` leads to the devices, each device's list to its queues, each queue to where its ring
//! lies. What leads back is checked to lead back. All of it is looked up anew for each look: devices come and go, and so do
//! their drivers.

use super::AttachError;
use super::layout::{KERNEL, Ring, Sysfs as SysfsOffsets, VIRTIO, Virtio};
use super::packed::{Books, Packed};
use super::sysfs::Sysfs;
use crate::introspect::btf::{Btf, MAGIC};
use crate::introspect::{GuestPhysical, Introspection, Reader, Stop};
use crate::ring::RingLayout;
use crate::spec::device::{BLK, NET};
use crate::spec::{Feature, Features};

/// Steps of one look at all devices.
const STEPS: u32 = 1 << 18;
/// Queues of a device that are looked at.
const MAX_QUEUES: usize = 2048;
/// Most bytes of a module's types.
const MAX_TYPES: u64 = 4 << 20;
/// Longest name of a queue, bytes.
const MAX_NAME: usize = 32;

/// How to find the devices in a kernel.
#[derive(Debug, Clone)]
pub(crate) struct Finder {
    super_block: u64,
    sysfs: SysfsOffsets,
    virtio: Virtio,
    ring: Ring,
    /// Were the ring's types there, or is its layout known by the kernel's version alone?
    has_types: bool,
}

/// A virtio device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// As the kernel calls it: `virtio0`.
    pub name: String,
    /// What it is on: `0000:00:02.0`.
    pub parent: String,
    /// Its kind, VIRTIO 1.3, 5 Device Types.
    pub kind: u32,
    /// Its driver; `None`: it has none.
    pub driver: Option<String>,
    /// The features that were negotiated.
    pub features: Features,
    /// Its queues, by index.
    pub queues: Vec<Queue>,
    /// What could not be followed.
    pub fault: Option<String>,
}

/// A virtqueue, as its driver has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// `virtio0.transmitq0`.
    pub name: String,
    /// Its number in the device.
    pub index: u32,
    /// Where its ring is, guest-physical.
    pub layout: RingLayout,
    /// Did the driver give it up?
    pub broken: bool,
    /// Descriptors that the driver has left.
    pub free: u32,
    /// Chains that it added, and did not kick for yet.
    pub added: u32,
    /// How far it has collected used chains: of a split ring, free-running; of a packed one, the slot and in bit 15 the wrap
    /// counter.
    pub last_used: u16,
    /// Of a packed ring: what it takes to find out how far the device is.
    pub packed: Option<Packed>,
    /// Does it carry frames?
    pub frames: Frames,
    /// Where `last_used` stands in the driver's books, guest-physical.
    pub last_used_at: u64,
}

/// The frames that a queue carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frames {
    /// The guest's.
    Sent,
    /// Those for the guest.
    Received,
    /// None, but a disk's requests.
    Requests,
    /// None: it is no NIC's, or the one for its commands.
    None,
}

impl Device {
    /// May its rings hold addresses that only the guest's IOMMU can translate? From outside nobody can say where they lead.
    #[must_use]
    pub fn behind_iommu(&self) -> bool {
        self.features.has(Feature::AccessPlatform)
    }
}

impl Finder {
    /// Learns where things are in this kernel.
    pub(crate) fn new<M: GuestPhysical>(eyes: &Introspection<M>) -> Result<Finder, AttachError> {
        let release = || eyes.release().to_owned();
        let unknown = |what: String| AttachError::Unknown { release: release(), what };
        let types = eyes.types().ok_or_else(|| unknown("its types are gone".to_owned()))?;
        let names: Vec<&str> = KERNEL.iter().chain(VIRTIO).copied().collect();
        let kernel = Btf::parse(&types, &names).map_err(|error| unknown(error.to_string()))?;
        let sysfs = SysfsOffsets::new(&kernel).map_err(|lacks| unknown(lacks.to_string()))?;
        let super_block = eyes.super_block().ok_or_else(|| unknown("it has no file in memory yet".to_owned()))?;
        let reader = eyes.reader(STEPS);
        let tree = Sysfs::find(&reader, &sysfs, super_block).map_err(|stop| unknown(stop.to_string()))?;
        let tree = tree.ok_or_else(|| unknown("it has no /sys mounted".to_owned()))?;
        // Where virtio is a module, so are its types.
        let module = module_types(&tree).map_err(|stop| unknown(stop.to_string()))?;
        let module = module.as_deref().map(|bytes| Btf::parse_module(&kernel, bytes, VIRTIO)).transpose();
        let module = module.map_err(|error| unknown(format!("module virtio_ring: {error}")))?;
        let types = module.as_ref().unwrap_or(&kernel);
        let virtio = Virtio::new(types).map_err(|lacks| unknown(lacks.to_string()))?;
        let has_types = types.size("vring_virtqueue").is_some();
        let ring = if has_types { Ring::new(types) } else { Ok(Ring::without_types(virtio.queue_size)) };
        let ring = ring.map_err(|lacks| unknown(lacks.to_string()))?;
        Ok(Finder { super_block, sysfs, virtio, ring, has_types })
    }

    /// The devices there are now.
    pub(crate) fn devices<M: GuestPhysical>(&self, eyes: &Introspection<M>) -> Result<Vec<Device>, Stop> {
        let reader = eyes.reader(STEPS);
        let Some(tree) = Sysfs::find(&reader, &self.sysfs, self.super_block)? else { return Ok(Vec::new()) };
        let Some(folder) = tree.node(&["bus", "virtio", "devices"])? else { return Ok(Vec::new()) };
        let mut links = tree.entries(folder)?;
        links.sort_by_key(|(name, _)| (name.len(), name.clone()));
        links.iter().map(|(name, link)| self.device(&tree, name, *link)).collect()
    }

    fn device<M: GuestPhysical>(&self, tree: &Sysfs<'_, '_, M>, name: &[u8], link: u64) -> Result<Device, Stop> {
        let (reader, at) = (tree.reader, &self.virtio);
        let device = tree.device(link)?;
        if tree.name(device)? != name {
            return Err(Stop::Pointer(device));
        }
        let virtio = device.wrapping_sub(at.device);
        let parent = reader.word(device.wrapping_add(tree.at.device_parent))?;
        let name = plain(name);
        let mut found = Device {
            parent: plain(&tree.name(parent)?),
            kind: reader.half(virtio.wrapping_add(at.id + at.id_device))?,
            driver: tree.driver(device)?.map(|driver| plain(&driver)),
            features: Features(reader.word(virtio.wrapping_add(at.features))?),
            queues: Vec::new(),
            fault: None,
            name,
        };
        if let Err(stop) = self.queues(reader, virtio, &mut found) {
            found.fault = Some(format!("its queues: {stop}"));
        }
        found.queues.sort_by_key(|queue| queue.index);
        // Ports of a console, say, have queues of the same names.
        for later in 1..found.queues.len() {
            let (earlier, rest) = found.queues.split_at_mut(later);
            if let Some(queue) = rest.first_mut()
                && earlier.iter().any(|other| other.name == queue.name)
            {
                queue.name = format!("{}#{}", queue.name, queue.index);
            }
        }
        Ok(found)
    }

    fn queues<M: GuestPhysical>(&self, reader: &Reader<'_, M>, virtio: u64, found: &mut Device) -> Result<(), Stop> {
        let at = &self.virtio;
        let head = virtio.wrapping_add(at.queues);
        let mut link = reader.word(head)?;
        while link != head {
            let queue = link.wrapping_sub(at.queue_list);
            if reader.word(queue.wrapping_add(at.queue_device))? != virtio {
                return Err(Stop::Pointer(queue));
            }
            if found.queues.len() == MAX_QUEUES {
                return Err(Stop::Steps);
            }
            let queue = self.queue(reader, queue, found)?;
            found.queues.push(queue);
            link = reader.word(link)?;
        }
        Ok(())
    }

    fn queue<M: GuestPhysical>(&self, reader: &Reader<'_, M>, queue: u64, device: &Device) -> Result<Queue, Stop> {
        let at = &self.ring;
        let ring = queue.wrapping_sub(at.ring_queue);
        let in_ring = |offset: u64| ring.wrapping_add(offset);
        let index = reader.half(queue.wrapping_add(self.virtio.queue_index))?;
        let is_packed = byte(reader, in_ring(at.is_packed))? & 1 == 1;
        let (size, parts) = if is_packed {
            (at.packed_size, [at.packed_desc, at.packed_driver, at.packed_device])
        } else {
            (at.split_size, [at.split_desc, at.split_avail, at.split_used])
        };
        let size = u16::try_from(reader.half(in_ring(size))?).map_err(|_| Stop::Pointer(ring))?;
        let [desc, avail, used] = parts.map(|part| reader.word(in_ring(part)));
        let (desc, avail, used) = (desc?, avail?, used?);
        if !self.has_types && !is_packed && desc.checked_add(16 * u64::from(size)) != Some(avail) {
            return Err(Stop::Pointer(ring));
        }
        // The descriptors are the longest part, and lie before the others in the same block.
        let desc = contiguous(reader, desc, 16 * u64::from(size))?;
        let last_used = in_ring(at.last_used);
        let packed = is_packed.then(|| {
            let states = contiguous(reader, reader.word(in_ring(at.packed_state))?, at.state_size * u64::from(size))?;
            let [next, wrap] = [at.packed_next, at.packed_wrap].map(|offset| reader.physical(in_ring(offset)));
            let used_wrap = at.packed_used_wrap.map(|offset| reader.physical(in_ring(offset))).transpose()?;
            Ok(Books::new(states, at, (next?, wrap?), used_wrap))
        });
        let packed = packed.transpose()?;
        let last_used_at = reader.physical(last_used)?;
        let (name, frames) = self.queue_name(reader, queue, index, device)?;
        let layout = RingLayout { size, desc, avail: reader.physical(avail)?, used: reader.physical(used)? };
        let packed = packed.map(Packed::Books);
        let collected = packed.and_then(|books| books.collected(reader.memory, &layout, last_used_at));
        Ok(Queue {
            name: format!("{}.{name}", device.name),
            frames,
            last_used_at,
            index,
            layout,
            broken: byte(reader, in_ring(at.is_broken))? != 0,
            free: reader.half(queue.wrapping_add(self.virtio.queue_free))?,
            added: reader.half(in_ring(at.added))?,
            last_used: collected.map_or_else(|| short(reader, last_used), Ok)?,
            packed,
        })
    }

    /// By the specification where it is a NIC's; else as the driver calls it.
    fn queue_name<M: GuestPhysical>(
        &self,
        reader: &Reader<'_, M>,
        queue: u64,
        index: u32,
        device: &Device,
    ) -> Result<(String, Frames), Stop> {
        let name = plain(&reader.text(reader.word(queue.wrapping_add(self.virtio.queue_name))?, MAX_NAME)?);
        Ok(match (device.kind, index % 2) {
            (NET, _) if device.features.has(Feature::CtrlVq) && name == "control" => {
                ("controlq".to_owned(), Frames::None)
            }
            (NET, 0) => (format!("receiveq{}", index / 2), Frames::Received),
            (NET, _) => (format!("transmitq{}", index / 2), Frames::Sent),
            (BLK, _) => (name, Frames::Requests),
            _ => (name, Frames::None),
        })
    }
}

/// The types that the module `virtio_ring` brought; `None`: virtio is part of the kernel.
fn module_types<M: GuestPhysical>(tree: &Sysfs<'_, '_, M>) -> Result<Option<Vec<u8>>, Stop> {
    let (reader, at) = (tree.reader, tree.at);
    let Some(node) = tree.node(&["kernel", "btf", "virtio_ring"])? else { return Ok(None) };
    let file = reader.word(node.wrapping_add(at.node_object))?;
    let size = reader.word(file.wrapping_add(at.file_size))?;
    let mut data = reader.word(file.wrapping_add(at.file_private))?;
    // Newer kernels have the bytes there, older ones what describes them.
    if reader.word(data)? != u64::from_le_bytes(MAGIC) {
        data = reader.word(data.wrapping_add(at.btf_data))?;
    }
    if size > MAX_TYPES {
        return Err(Stop::Steps);
    }
    let mut bytes = vec![0; size as usize];
    reader.copy(data, &mut bytes)?;
    Ok(Some(bytes))
}

/// Where these bytes are in physical memory, if they are one piece there.
fn contiguous<M: GuestPhysical>(reader: &Reader<'_, M>, va: u64, len: u64) -> Result<u64, Stop> {
    let start = reader.physical(va)?;
    for page in (0..len).step_by(4096).skip(1) {
        let at = va.checked_add(page).ok_or(Stop::Pointer(va))?;
        if reader.physical(at)? != start + page {
            return Err(Stop::Pointer(at));
        }
    }
    Ok(start)
}

fn short<M: GuestPhysical>(reader: &Reader<'_, M>, va: u64) -> Result<u16, Stop> {
    if va & 1 == 1 {
        return Err(Stop::Pointer(va));
    }
    Ok((reader.word(va & !7)? >> (8 * (va & 7))) as u16)
}

fn byte<M: GuestPhysical>(reader: &Reader<'_, M>, va: u64) -> Result<u8, Stop> {
    Ok((reader.word(va & !7)? >> (8 * (va & 7))) as u8)
}

/// A name that the guest wrote, for people: nothing in it commands a terminal.
fn plain(name: &[u8]) -> String {
    name.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' }).collect()
}
