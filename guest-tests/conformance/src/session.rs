//! A driver with a pair of queues at a back-end, and what it does with them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_fixture::{FrontEnd, first_base, offered};
use nix::sys::eventfd::EventFd;
use vnic::memory::testing::GuestRam;
use vnic::ring::{Buffer, DriverRing, PackedDriver, Placement, RingLayout, SplitDriver, Used};
use vnic::spec::net::{NET_HEADER_LEN, NetHeader};
use vnic::spec::{Feature, Features};

use crate::Format;
use crate::packet::Packet;

/// How long what must not happen is waited for.
pub(crate) const QUIET: Duration = Duration::from_millis(50);
/// How long what must happen may take.
const LIMIT: Duration = Duration::from_secs(10);

const RAM: u64 = 4 << 20;
/// Descriptors of a ring, if a check asks for no other number.
pub(crate) const SIZE: u16 = 128;
const RECEIVEQ: u64 = 0x1000;
const TRANSMITQ: u64 = 0x8000;
/// Tables of indirect descriptors.
pub(crate) const TABLE: u64 = 0x1_0000;
/// What is sent from here…
pub(crate) const SENT: u64 = 0x2_0000;
/// … is received here.
pub(crate) const ROOM: u64 = 0x20_0000;
/// What memory has where nobody has written.
pub(crate) const BLANK: u8 = 0xa5;

/// A back-end that gives back what it is sent.
#[derive(Debug, Clone)]
pub struct Target {
    socket: PathBuf,
    /// What it offers.
    pub offered: Features,
}

impl Target {
    /// Asks what it offers.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn new(socket: &Path) -> Result<Target> {
        Ok(Target { socket: socket.to_owned(), offered: offered(socket)? })
    }

    /// A driver that takes these features, with rings of this format.
    pub(crate) fn start(&self, format: Format, features: &[Feature]) -> Result<Driver> {
        self.start_with(format.and(features), SIZE)
    }

    pub(crate) fn start_with(&self, features: Features, size: u16) -> Result<Driver> {
        let features = features.with(Feature::Version1);
        let ram = GuestRam::new(RAM)?;
        ram.write(0, &vec![BLANK; RAM as usize])?;
        let layouts = [layout(&ram, features, RECEIVEQ, size)?, layout(&ram, features, TRANSMITQ, size)?];
        let [receive, transmit] = layouts.map(|layout| driver(layout, &ram, features));
        let (receive, transmit) = (receive?, transmit?);
        let session = FrontEnd::start(&self.socket, &ram, layouts, features, None)?;
        Ok(Driver { ram, layouts, features, session, receive, transmit, posted: 0, rooms: HashMap::new() })
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
pub(crate) struct Driver {
    pub(crate) ram: GuestRam,
    /// Of the receiveq, of the transmitq.
    pub(crate) layouts: [RingLayout; 2],
    pub(crate) features: Features,
    pub(crate) session: FrontEnd,
    pub(crate) receive: Box<dyn DriverRing>,
    pub(crate) transmit: Box<dyn DriverRing>,
    /// Receive buffers so far.
    posted: u64,
    /// Where they are, by their heads.
    rooms: HashMap<u16, u64>,
}

/// A frame that came back.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) header: NetHeader,
    pub(crate) frame: Vec<u8>,
    /// Where its buffers are, and how much the device says that it wrote into each.
    pub(crate) buffers: Vec<(u64, u32)>,
}

impl Driver {
    /// Makes receive buffers of this size available.
    pub(crate) fn post(&mut self, count: u64, len: u32) -> Result<()> {
        for _ in 0..count {
            let at = ROOM + self.posted * 0x1_0000 % ROOM;
            let head = self.receive.add(&[Buffer::writable(at, len)], Placement::Direct)?;
            self.rooms.insert(head, at);
            self.posted += 1;
        }
        self.receive.publish();
        self.session.receive_kick.write(1)?;
        Ok(())
    }

    /// Puts a packet into memory, cut into descriptors of these sizes; the last one has the rest.
    pub(crate) fn cut(&self, packet: &Packet, sizes: &[u32]) -> Result<Vec<Buffer>> {
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
    pub(crate) fn send(&mut self, packet: &Packet) -> Result<u16> {
        let buffers = self.cut(packet, &[NET_HEADER_LEN as u32])?;
        let head = self.transmit.add(&buffers, Placement::Direct)?;
        self.publish()?;
        Ok(head)
    }

    /// Lets the device see what was added to the transmitq.
    pub(crate) fn publish(&mut self) -> Result<()> {
        self.transmit.publish();
        self.session.kick.write(1)?;
        Ok(())
    }

    /// What comes back of what was sent; and the transmitq is empty again.
    pub(crate) fn collect(&mut self) -> Result<Received> {
        let received = self.received()?;
        while self.transmit.out() > 0 {
            sent(self.transmit.as_mut())?;
        }
        Ok(received)
    }

    /// The next frame of the receiveq. All its buffers must be there together.
    pub(crate) fn received(&mut self) -> Result<Received> {
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
    pub(crate) fn echo(&mut self, packet: &Packet) -> Result<Received> {
        self.post(1, 4096)?;
        self.send(packet)?;
        let received = self.collect()?;
        ensure!(received.frame == packet.frame, "another frame came back: {:02x?}", received.frame);
        Ok(received)
    }

    /// Nothing comes back, of either queue.
    pub(crate) fn is_quiet(&mut self) -> Result<()> {
        let until = Instant::now() + QUIET;
        while Instant::now() < until {
            ensure!(self.receive.pop_used()?.is_none(), "a receive buffer was used");
            ensure!(self.transmit.pop_used()?.is_none(), "a transmit buffer was used");
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Stops a queue, and starts it anew: empty, of another size.
    pub(crate) fn restart(&mut self, index: usize, size: u16) -> Result<()> {
        self.session.stop_ring(index as u32)?;
        self.set_up(index, size)
    }

    /// Starts a queue that was stopped, empty.
    pub(crate) fn set_up(&mut self, index: usize, size: u16) -> Result<()> {
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
        self.session.start_ring(index as u32, new, first_base(self.features))?;
        self.session.enable(index as u32, true)?;
        self.session.is_taken_in()
    }
}

/// The next chain of the transmitq that comes back.
pub(crate) fn sent(transmit: &mut dyn DriverRing) -> Result<Used> {
    let used = until(|| transmit.pop_used().transpose()).transpose()?;
    used.context("a chain that was sent does not come back")
}

/// A call comes.
pub(crate) fn is_called(call: &EventFd) -> Result<()> {
    until(|| call.read().ok()).map(drop).context("no notification came")
}

/// Forgets the calls that came.
pub(crate) fn forget_calls(call: &EventFd) {
    let _ = call.read();
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
