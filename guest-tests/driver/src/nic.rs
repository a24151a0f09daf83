//! The network card: VIRTIO 1.3, 5.1 Network Device.
//!
//! Operation:
//! 1. [`Nic::start`] brings the device up with one receiveq and one transmitq, the former full of buffers.
//! 2. [`Nic::send`] puts a frame into the transmitq: the first bytes are copied, with the virtio-net header in front; the
//!    payload stays where it is, the device fetches it there. [`Nic::flush`] after a burst lets the device see it.
//! 3. [`Nic::receive`] copies a frame out of where the device wrote it, and gives the buffer back: what is looked at is a copy that
//!    no device can change.
//! 4. [`Nic::wait`] between: by looking again, or by an interrupt.
//!
//! Invariants: a payload is a [`DmaSlice`] of maps that outlive the `Nic`; a `Nic` that is dropped resets its device before the
//! first byte is unmapped. So no descriptor that the device has ever points at what is gone, unless it was made by
//! [`DmaSlice::unchecked`]; then the IOMMU stops it.

use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vnic::memory::MemoryError;
use vnic::ring::{Buffer, RingError};
use vnic::spec::net::{NET_HEADER_LEN, NetHeader, RECEIVEQ0, TRANSMITQ0};
use vnic::spec::{Feature, Features};

use super::queue::{Queue, Room, Wish};
use super::virtio::Virtio;
use super::{DriverError, udp};
use crate::vfio::{Device, DmaSlice, Interrupts};

/// Bytes of the first part of a frame, with the virtio-net header in front: what [`Nic::send`] copies.
const HEAD_ROOM: u32 = 128;
/// Bytes of a receive buffer: VIRTIO 1.3, 5.1.6.3.1 asks for 1526 at least without the large receive offloads.
const RECEIVE_ROOM: u32 = 2048;
/// The virtio-net header's length, as descriptors have it.
const HEADER: u32 = NET_HEADER_LEN as u32;

/// How the rings look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RingFormat {
    /// Split virtqueues (2.7).
    #[default]
    Split,
    /// Packed virtqueues (2.8).
    Packed,
}

/// How the program learns that something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Completion {
    /// It looks, again and again: no system call, and a CPU that never rests.
    #[default]
    Polling,
    /// It sleeps until an interrupt.
    Interrupts,
}

/// What a driver may leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How the rings look.
    pub ring: RingFormat,
    /// Chains in indirect tables, where the device offers it.
    pub indirect: bool,
    /// Notifications by index, where the device offers it.
    pub event_idx: bool,
    /// Looking or sleeping.
    pub completion: Completion,
    /// Entries of a queue, at most.
    pub queue_size: u16,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            ring: RingFormat::Split,
            indirect: true,
            event_idx: true,
            completion: Completion::Polling,
            queue_size: 256,
        }
    }
}

/// A network card that is up.
#[derive(Debug)]
pub struct Nic<'v> {
    // The order of the fields is the order in which they go: the device is reset before its memory is unmapped.
    virtio: Virtio<'v>,
    receiveq: Queue<'v>,
    transmitq: Queue<'v>,
    interrupts: Option<Interrupts<'v>>,
    mac: [u8; 6],
    /// The frame that was received last.
    frame: Box<[u8; RECEIVE_ROOM as usize]>,
}

impl<'v> Nic<'v> {
    /// Brings the card up.
    ///
    /// # Errors
    /// A step of it failed.
    pub fn start(device: &'v Device, options: &Options) -> Result<Self, DriverError> {
        // Steps 1 to 3: reset, ACKNOWLEDGE, DRIVER.
        let mut virtio = Virtio::open(device)?;
        // Steps 4 to 6: features. Without ACCESS_PLATFORM the device would take our addresses for physical ones.
        let mut required = Features::of(&[Feature::Version1, Feature::AccessPlatform, Feature::Mac]);
        if options.ring == RingFormat::Packed {
            required = required.with(Feature::RingPacked);
        }
        let mut wanted = Features::NONE;
        for (feature, wish) in [(Feature::IndirectDesc, options.indirect), (Feature::EventIdx, options.event_idx)] {
            if wish {
                wanted = wanted.with(feature);
            }
        }
        virtio.negotiate(required, wanted)?;
        // Step 7: the queues; interrupts first, as the queues are told which.
        let interrupts = match options.completion {
            Completion::Polling => None,
            Completion::Interrupts => Some(device.interrupts()?),
        };
        virtio.no_config_interrupts();
        let vector = interrupts.as_ref().filter(|interrupts| interrupts.msix()).map(|_| 0);
        let wish = |room| Wish { size: options.queue_size, room, vector };
        let mut receiveq = virtio.queue(RECEIVEQ0, wish(RECEIVE_ROOM))?;
        let mut transmitq = virtio.queue(TRANSMITQ0, wish(HEAD_ROOM))?;
        receiveq.disable_interrupts();
        transmitq.disable_interrupts();
        let config = virtio.config();
        let mac = std::array::from_fn(|at| config.read8(at));
        while let Some(room) = receiveq.next_room(1) {
            receiveq.add(room, &[Buffer::writable(room.at, room.len)])?;
        }
        // Step 8: DRIVER_OK. Only now may the device be kicked.
        virtio.driver_ok();
        receiveq.publish();
        let frame = Box::new([0; RECEIVE_ROOM as usize]);
        Ok(Nic { virtio, receiveq, transmitq, interrupts, mac, frame })
    }

    /// The card's own address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// What was negotiated.
    #[must_use]
    pub fn features(&self) -> Features {
        self.virtio.features()
    }

    /// Puts a frame into the transmitq: `head` is copied, `payload` follows from where it is. Returns whether there was room;
    /// without, [`Nic::flush`], [`Nic::wait`] and try again.
    ///
    /// # Errors
    /// `head` is too long, or the device broke the rules.
    pub fn send(&mut self, head: &[u8], payload: Option<DmaSlice<'v>>) -> Result<bool, DriverError> {
        let mut room = self.transmitq.next_room(2);
        if room.is_none() {
            self.reclaim()?;
            room = self.transmitq.next_room(2);
        }
        let Some(room) = room else { return Ok(false) };
        let space = (room.len - HEADER) as usize;
        if head.len() > space {
            return Err(DriverError::FrameTooLong { len: head.len(), room: space });
        }
        // One descriptor for both headers: VIRTIO 1.3, 2.7.4 lets the driver cut as it likes.
        let mut bytes = [0; HEAD_ROOM as usize];
        bytes[..NET_HEADER_LEN].copy_from_slice(&NetHeader::default().to_bytes());
        bytes[NET_HEADER_LEN..][..head.len()].copy_from_slice(head);
        let len = NET_HEADER_LEN + head.len();
        self.transmitq.memory().write(room.at, &bytes[..len]).map_err(|error| not_ours(TRANSMITQ0, error))?;
        let first = Buffer::readable(room.at, len as u32);
        match payload {
            Some(payload) => self.transmitq.add(room, &[first, Buffer::readable(payload.iova(), payload.len())])?,
            None => self.transmitq.add(room, &[first])?,
        }
        Ok(true)
    }

    /// Lets the device see what was sent, and kicks it if it sleeps.
    pub fn flush(&mut self) {
        self.transmitq.publish();
    }

    /// Takes back the buffers of frames that are sent.
    ///
    /// # Errors
    /// The device broke the rules.
    pub fn reclaim(&mut self) -> Result<(), DriverError> {
        while self.transmitq.pop_used()?.is_some() {}
        Ok(())
    }

    /// Frames that the device has not sent yet.
    ///
    /// # Errors
    /// The device broke the rules.
    pub fn unsent(&mut self) -> Result<u16, DriverError> {
        self.reclaim()?;
        Ok(self.transmitq.out())
    }

    /// The next frame that arrived.
    ///
    /// # Errors
    /// The device broke the rules.
    pub fn receive(&mut self) -> Result<Option<&[u8]>, DriverError> {
        loop {
            let Some((room, written)) = self.receiveq.pop_used()? else { return Ok(None) };
            // Less than a header is no frame. The ring has seen to it that there was room for `written`.
            let len = written.saturating_sub(HEADER) as usize;
            if let Some(frame) = self.frame.get_mut(..len) {
                let place = room.at + u64::from(HEADER);
                self.receiveq.memory().read(place, frame).map_err(|error| not_ours(RECEIVEQ0, error))?;
            }
            post(&mut self.receiveq, room)?;
            if len > 0 {
                return Ok(self.frame.get(..len));
            }
        }
    }

    /// Waits until something may have happened, at most this long. While polling it returns at once.
    ///
    /// # Errors
    /// The wait failed, or the device wants to be reset.
    pub fn wait(&mut self, most: Duration) -> Result<(), DriverError> {
        let Some(interrupts) = &self.interrupts else {
            std::hint::spin_loop();
            return Ok(());
        };
        // Both must be asked, whatever the first says.
        let frames = self.receiveq.enable_interrupts();
        let sent = self.transmitq.out() > 0 && self.transmitq.enable_interrupts();
        if !frames && !sent {
            let mut fds = [PollFd::new(interrupts.fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX)) {
                Ok(0) => self.virtio.check()?,
                // Reading the status has the device let go of its pin.
                Ok(_) => {
                    if !interrupts.msix() {
                        let _ = self.virtio.interrupt_status();
                    }
                    interrupts.take();
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(DriverError::Wait(error.into())),
            }
        }
        self.receiveq.disable_interrupts();
        self.transmitq.disable_interrupts();
        Ok(())
    }

    /// Does the device still work? For who has waited for long.
    ///
    /// # Errors
    /// It wants to be reset.
    pub fn check(&self) -> Result<(), DriverError> {
        self.virtio.check()
    }

    /// A station on this card's network.
    #[must_use]
    pub fn station(&self, address: std::net::Ipv4Addr) -> udp::Station {
        udp::Station { mac: self.mac, address }
    }
}

/// Gives a receive buffer to the device.
fn post(receiveq: &mut Queue<'_>, room: Room) -> Result<(), DriverError> {
    receiveq.add(room, &[Buffer::writable(room.at, room.len)])?;
    receiveq.publish();
    Ok(())
}

/// An address of our own memory that is not in it: a mistake of ours.
fn not_ours(index: u16, source: MemoryError) -> DriverError {
    DriverError::Ring { index, source: RingError::RingUnmapped { part: "buffer", source } }
}
