//! A driver with a pair of queues at a back-end, and what it does with them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_fixture::{FrontEnd, first_base, offered};
use vnic::memory::testing::GuestRam;
use vnic::ring::{Buffer, DriverRing, PackedDriver, Placement, RingLayout, SplitDriver, Used};
use vnic::spec::net::{NET_HEADER_LEN, NetHeader};
use vnic::spec::{Feature, Features};

use crate::Format;
use crate::link::Link;
use crate::packet::Packet;
use crate::pci::Pci;

/// How long what must not happen is waited for.
pub(crate) const QUIET: Duration = Duration::from_millis(50);
/// How long what must happen may take.
const LIMIT: Duration = Duration::from_secs(10);

const RAM: u64 = 4 << 20;
/// Descriptors of a ring, if a check asks for no other number.
pub const SIZE: u16 = 128;
const RECEIVEQ: u64 = 0x1000;
const TRANSMITQ: u64 = 0x8000;
/// Tables of indirect descriptors.
pub(crate) const TABLE: u64 = 0x1_0000;
/// What is sent from here…
pub const SENT: u64 = 0x2_0000;
/// … is received here.
pub const ROOM: u64 = 0x20_0000;
/// What memory has where nobody has written.
pub(crate) const BLANK: u8 = 0xa5;

/// A device that gives back what it is sent.
#[derive(Debug, Clone)]
pub struct Target {
    place: Place,
    /// What it offers.
    pub offered: Features,
}

/// Where it is.
#[derive(Debug, Clone)]
enum Place {
    /// A vhost-user back-end's socket.
    Socket(PathBuf),
    /// In this QEMU, of which each driver starts one.
    Qemu(PathBuf),
}

impl Target {
    /// Asks what it offers.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn new(socket: &Path) -> Result<Target> {
        Ok(Target { place: Place::Socket(socket.to_owned()), offered: offered(socket)? })
    }

    /// QEMU's own virtio-net-pci in such a QEMU.
    ///
    /// # Errors
    /// It does not start, or has no such device.
    pub fn qemu(program: &Path) -> Result<Target> {
        let (pci, _) = Pci::open(program)?;
        Ok(Target { place: Place::Qemu(program.to_owned()), offered: pci.offered()? })
    }

    pub(crate) fn has_registers(&self) -> bool {
        matches!(self.place, Place::Qemu(_))
    }

    /// A device that is driven by its registers, and its memory; none over a session.
    pub(crate) fn registers(&self) -> Option<Result<(Pci, GuestRam)>> {
        match &self.place {
            Place::Socket(_) => None,
            Place::Qemu(program) => Some(Pci::open(program)),
        }
    }

    /// A driver that takes these features, with rings of this format.
    ///
    /// # Errors
    /// The session does not come up.
    pub fn start(&self, format: Format, features: &[Feature]) -> Result<Driver> {
        self.start_with(format.and(features), SIZE)
    }

    /// The same with rings of another size.
    ///
    /// # Errors
    /// The session does not come up.
    pub fn start_with(&self, features: Features, size: u16) -> Result<Driver> {
        let features = features.with(Feature::Version1);
        let (pci, ram) = match self.registers() {
            None => (None, GuestRam::new(RAM)?),
            Some(device) => device.map(|(pci, ram)| (Some(pci), ram))?,
        };
        ram.write(0, &vec![BLANK; RAM as usize])?;
        let layouts = [layout(&ram, features, RECEIVEQ, size)?, layout(&ram, features, TRANSMITQ, size)?];
        let [receive, transmit] = layouts.map(|layout| driver(layout, &ram, features));
        let (receive, transmit) = (receive?, transmit?);
        let link = match (&self.place, pci) {
            (Place::Socket(socket), _) => Link::Session(FrontEnd::start(socket, &ram, layouts, features, None)?),
            (Place::Qemu(_), None) => anyhow::bail!("no QEMU"),
            (Place::Qemu(_), Some(mut pci)) => {
                pci.start(features, layouts)?;
                Link::Registers(Box::new(pci))
            }
        };
        Ok(Driver { ram, layouts, features, link, receive, transmit, posted: 0, rooms: HashMap::new() })
    }
}

/// A ring at an address, empty: of a packed one, no descriptor is available or used.
fn layout(ram: &GuestRam, features: Features, at: u64, size: u16) -> Result<RingLayout> {
    let packed = features.has(Feature::RingPacked);
    let (layout, end) = if packed { RingLayout::packed_at(at, size)? } else { RingLayout::split_at(at, size)? };
    ram.write(at, &vec![0; (end - at) as usize])?;
    Ok(layout)
}

fn driver(layout: RingLayout, ram: &GuestRam, features: Features) -> Result<Box<dyn DriverRing>> {
    let memory = ram.memory().clone();
    Ok(if features.has(Feature::RingPacked) {
        Box::new(PackedDriver::new(layout, memory, features)?)
    } else {
        Box::new(SplitDriver::new(layout, memory, features)?)
    })
}

/// The driver, its memory and its session.
pub struct Driver {
    /// The guest's memory.
    pub ram: GuestRam,
    /// Of the receiveq, of the transmitq.
    pub layouts: [RingLayout; 2],
    /// Those it has taken.
    pub features: Features,
    /// How it reaches the device.
    pub link: Link,
    /// The receiveq.
    pub receive: Box<dyn DriverRing>,
    /// The transmitq.
    pub transmit: Box<dyn DriverRing>,
    /// Receive buffers so far.
    posted: u64,
    /// Where they are, by their heads.
    rooms: HashMap<u16, u64>,
}

/// A frame that came back.
#[derive(Debug)]
pub struct Received {
    /// What the device says of it.
    pub header: NetHeader,
    /// Its bytes.
    pub frame: Vec<u8>,
    /// Where its buffers are, and how much the device says that it wrote into each.
    pub buffers: Vec<(u64, u32)>,
}

impl Driver {
    /// Makes receive buffers of this size available.
    ///
    /// # Errors
    /// It is not so.
    pub fn post(&mut self, count: u64, len: u32) -> Result<()> {
        for _ in 0..count {
            let at = ROOM + self.posted * 0x1_0000 % ROOM;
            let head = self.receive.add(&[Buffer::writable(at, len)], Placement::Direct)?;
            self.rooms.insert(head, at);
            self.posted += 1;
        }
        self.receive.publish();
        self.link.kick(0)
    }

    /// Puts a packet into memory, cut into descriptors of these sizes; the last one has the rest.
    ///
    /// # Errors
    /// It is not so.
    pub fn cut(&self, packet: &Packet, sizes: &[u32]) -> Result<Vec<Buffer>> {
        let bytes = packet.bytes();
        self.ram.write(SENT, &bytes)?;
        let mut at = 0;
        let mut buffers = Vec::new();
        for size in sizes.iter().copied().chain([u32::MAX]) {
            let len = size.min(bytes.len() as u32 - at);
            if len > 0 {
                buffers.push(Buffer::readable(SENT + u64::from(at), len));
            }
            at += len;
        }
        Ok(buffers)
    }

    /// Sends a packet, header and frame in a buffer each.
    ///
    /// # Errors
    /// It is not so.
    pub fn send(&mut self, packet: &Packet) -> Result<u16> {
        let buffers = self.cut(packet, &[NET_HEADER_LEN as u32])?;
        let head = self.transmit.add(&buffers, Placement::Direct)?;
        self.publish()?;
        Ok(head)
    }

    /// Lets the device see what was added to the transmitq.
    ///
    /// # Errors
    /// It is not so.
    pub fn publish(&mut self) -> Result<()> {
        self.transmit.publish();
        self.link.kick(1)
    }

    /// What comes back of what was sent; and the transmitq is empty again.
    ///
    /// # Errors
    /// It is not so.
    pub fn collect(&mut self) -> Result<Received> {
        let received = self.received()?;
        while self.transmit.out() > 0 {
            sent(self.transmit.as_mut())?;
        }
        Ok(received)
    }

    /// The next frame of the receiveq. All its buffers must be there together.
    ///
    /// # Errors
    /// It is not so.
    pub fn received(&mut self) -> Result<Received> {
        let mut next = self.next_buffer()?.context("no frame came back")?;
        let first = self.at(next.head)?;
        let header = self.ram.read(first, NET_HEADER_LEN)?;
        let header = NetHeader::from_bytes(header.try_into().unwrap_or_default());
        let mut bytes = Vec::new();
        let mut buffers = Vec::new();
        // What a driver goes by: without this, a frame has one, whatever the device says (5.1.6.3.2-2 asks what it says).
        let count = if self.features.has(Feature::MrgRxbuf) { header.num_buffers.max(1) } else { 1 };
        for left in (0..count).rev() {
            let at = self.at(next.head)?;
            bytes.extend(self.ram.read(at, next.written as usize)?);
            buffers.push((at, next.written));
            if left > 0 {
                let together = self.receive.pop_used()?;
                next = together.with_context(|| format!("{left} buffers of a frame are not there with its first"))?;
            }
        }
        Ok(Received { header, frame: bytes.split_off(NET_HEADER_LEN), buffers })
    }

    fn next_buffer(&mut self) -> Result<Option<Used>> {
        let receive = self.receive.as_mut();
        until(|| receive.pop_used().transpose()).transpose().map_err(Into::into)
    }

    /// Where the receive buffer of this head is.
    fn at(&self, head: u16) -> Result<u64> {
        self.rooms.get(&head).copied().with_context(|| format!("buffer {head} was used and never made available"))
    }

    /// Two bytes of memory, as a number.
    pub(crate) fn half(&self, at: u64) -> Result<u16> {
        let bytes = self.ram.read(at, 2)?;
        Ok(u16::from_le_bytes(bytes.try_into().unwrap_or_default()))
    }

    /// Sends a packet that way, and expects the frame back as it was.
    ///
    /// # Errors
    /// It is not so.
    pub fn echo(&mut self, packet: &Packet) -> Result<Received> {
        self.post(1, 4096)?;
        self.send(packet)?;
        let received = self.collect()?;
        ensure!(received.frame == packet.frame, "another frame came back: {:02x?}", received.frame);
        Ok(received)
    }

    /// A notification of the transmitq comes.
    pub(crate) fn is_called(&self) -> Result<()> {
        until(|| self.link.called(1).map(|called| called.then_some(())).transpose()).context("no notification came")?
    }

    /// None has come since it was asked last.
    pub(crate) fn is_not_called(&self) -> Result<()> {
        ensure!(!self.link.called(1)?, "a notification came");
        Ok(())
    }

    /// Forgets the notifications that came of the transmitq.
    pub(crate) fn forget_calls(&self) -> Result<()> {
        self.link.called(1).map(drop)
    }

    /// Stops both queues. Where each goes on; after a reset, none does.
    pub(crate) fn stop(&mut self) -> Result<Option<[u32; 2]>> {
        if self.link.goes_on() {
            let features = self.features;
            return Ok(Some([self.link.stop_ring(0, features)?, self.link.stop_ring(1, features)?]));
        }
        self.link.reset()?;
        Ok(None)
    }

    /// Starts them again, where they were; or the device anew, with rings that are empty.
    pub(crate) fn go_on(&mut self, bases: Option<[u32; 2]>) -> Result<()> {
        let Some(bases) = bases else {
            for index in 0..2 {
                self.empty(index, SIZE)?;
            }
            return self.link.start_anew(self.features, self.layouts);
        };
        for (index, (layout, base)) in self.layouts.into_iter().zip(bases).enumerate() {
            self.link.start_ring(index, layout, base)?;
            self.link.kick(index)?;
        }
        Ok(())
    }

    /// Nothing comes back, of either queue.
    ///
    /// # Errors
    /// It is not so.
    pub fn is_quiet(&mut self) -> Result<()> {
        let until = Instant::now() + QUIET;
        while Instant::now() < until {
            ensure!(self.receive.pop_used()?.is_none(), "a receive buffer was used");
            ensure!(self.transmit.pop_used()?.is_none(), "a transmit buffer was used");
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Stops a queue, and starts it anew: empty, of another size.
    ///
    /// # Errors
    /// It is not so.
    pub fn restart(&mut self, index: usize, size: u16) -> Result<()> {
        self.link.stop_ring(index, self.features)?;
        self.set_up(index, size)
    }

    /// Starts a queue that was stopped, empty.
    pub(crate) fn set_up(&mut self, index: usize, size: u16) -> Result<()> {
        let new = self.empty(index, size)?;
        self.link.start_ring(index, new, first_base(self.features))
    }

    /// An empty ring in a queue's place.
    fn empty(&mut self, index: usize, size: u16) -> Result<RingLayout> {
        let at = if index == 0 { RECEIVEQ } else { TRANSMITQ };
        let new = layout(&self.ram, self.features, at, size)?;
        let ring = driver(new, &self.ram, self.features)?;
        if index == 0 {
            self.posted = 0;
            self.rooms.clear();
            self.receive = ring;
        } else {
            self.transmit = ring;
        }
        if let Some(layout) = self.layouts.get_mut(index) {
            *layout = new;
        }
        Ok(new)
    }
}

/// The next chain of the transmitq that comes back.
pub(crate) fn sent(transmit: &mut dyn DriverRing) -> Result<Used> {
    let used = until(|| transmit.pop_used().transpose()).transpose()?;
    used.context("a chain that was sent does not come back")
}

/// What a condition gives, once it does.
pub(crate) fn until<T>(mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = condition() {
            return Some(found);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::yield_now();
    }
}
