//! A virtio network device of QEMU's own, driven by its registers. VIRTIO 1.3, 3.1.1 and 4.1.
//!
//! Each queue's notifications are MSI-X messages, which are stores to an address: here to a place in memory, where they can be seen.

use std::cell::RefCell;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use vnic::memory::testing::GuestRam;
use vnic::ring::RingLayout;
use vnic::spec::device::status;
use vnic::spec::{Feature, Features, pci};

use crate::qtest::Qtest;

/// Device 2 on bus 0, as configuration address.
const DEVICE: u64 = 0x8000_0000 | 2 << 11;
/// Where its registers are mapped: no memory and nothing else is there.
const BARS: [u64; 6] = [0xe000_0000, 0xe100_0000, 0xe200_0000, 0xe300_0000, 0xe400_0000, 0xe500_0000];
/// Where notifications are stored: a word for each of the two queues.
const MESSAGES: u64 = 0x9_0000;
const CALLED: u32 = 0xca11;

/// PCI configuration space.
mod config {
    pub(super) const COMMAND: u64 = 0x04;
    pub(super) const BAR0: u64 = 0x10;
    pub(super) const CAPABILITIES: u64 = 0x34;
    /// Memory space, bus master.
    pub(super) const MEMORY_AND_MASTER: u64 = 0b110;
    pub(super) const MSIX: u64 = 0x11;
    pub(super) const VENDOR: u64 = 0x09;
}

/// The device.
pub struct Pci {
    qtest: RefCell<Qtest>,
    ram: GuestRam,
    common: u64,
    /// The device type's own configuration.
    device: u64,
    notify: u64,
    multiplier: u64,
    /// Where each queue is kicked.
    kicks: [u64; 2],
}

impl Pci {
    /// A QEMU with a device, and its memory.
    pub(crate) fn open(program: &Path) -> Result<(Pci, GuestRam)> {
        let (mut qtest, file) = Qtest::start(program)?;
        let memory = || -> Result<GuestRam> { Ok(GuestRam::of_file(file.try_clone()?, crate::qtest::RAM)?) };
        let (ram, own) = (memory()?, memory()?);
        for (at, bar) in (config::BAR0..).step_by(4).zip(BARS) {
            // The upper half of a wide one takes a zero; what is no BAR takes nothing.
            let wide = at > config::BAR0 && read(&mut qtest, at - 4, 4)? & 0b111 == 0b100;
            write(&mut qtest, at, 4, if wide { 0 } else { bar })?;
        }
        write(&mut qtest, config::COMMAND, 2, config::MEMORY_AND_MASTER)?;
        let mut pci =
            Pci { qtest: RefCell::new(qtest), ram: own, common: 0, device: 0, notify: 0, multiplier: 0, kicks: [0; 2] };
        pci.find()?;
        Ok((pci, ram))
    }

    /// Goes through the capabilities: where its structures are; its messages are stored where we look.
    fn find(&mut self) -> Result<()> {
        let qtest = self.qtest.get_mut();
        let mut at = read(qtest, config::CAPABILITIES, 1)?;
        let place = |qtest: &mut Qtest, bar: u64, offset: u64| -> Result<u64> {
            Ok((read(qtest, config::BAR0 + 4 * bar, 4)? & !0xf) + offset)
        };
        while at != 0 {
            match read(qtest, at, 1)? {
                config::MSIX => {
                    let table = read(qtest, at + 4, 4)?;
                    let table = place(qtest, table & 7, table & !7)?;
                    for vector in 0..2 {
                        let words = [MESSAGES + 4 * vector, 0, u64::from(CALLED), 0];
                        for (word, value) in (0..).step_by(4).zip(words) {
                            qtest.write("writel", table + 16 * vector + word, value)?;
                        }
                    }
                    let control = read(qtest, at + 2, 2)?;
                    write(qtest, at + 2, 2, control | 1 << 15)?;
                }
                config::VENDOR => {
                    let (kind, bar, offset) =
                        (read(qtest, at + 3, 1)?, read(qtest, at + 4, 1)?, read(qtest, at + 8, 4)?);
                    match kind {
                        1 => self.common = place(qtest, bar, offset)?,
                        4 => self.device = place(qtest, bar, offset)?,
                        2 => {
                            self.notify = place(qtest, bar, offset)?;
                            self.multiplier = read(qtest, at + 16, 4)?;
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
            at = read(qtest, at + 1, 1)?;
        }
        ensure!(self.common != 0 && self.notify != 0, "the device has no virtio structures");
        Ok(())
    }

    fn get(&self, width: &str, at: usize) -> Result<u64> {
        self.qtest.borrow_mut().read(&format!("read{width}"), self.common + at as u64)
    }

    fn set(&self, width: &str, at: usize, value: u64) -> Result<()> {
        self.qtest.borrow_mut().write(&format!("write{width}"), self.common + at as u64, value)
    }

    /// Step 1.
    pub(crate) fn reset(&self) -> Result<()> {
        self.set("b", pci::DEVICE_STATUS, 0)?;
        crate::session::until(|| self.status().map(|status| (status == 0).then_some(())).transpose())
            .context("the device does not reset itself")?
    }

    fn add_status(&self, bits: u8) -> Result<()> {
        let now = self.status()?;
        self.set("b", pci::DEVICE_STATUS, (now | bits).into())
    }

    pub(crate) fn offered(&self) -> Result<Features> {
        let mut all = 0;
        for half in 0..2 {
            self.set("l", pci::DEVICE_FEATURE_SELECT, half)?;
            all |= self.get("l", pci::DEVICE_FEATURE)? << (32 * half);
        }
        Ok(Features(all))
    }

    /// Steps 4 to 6. A queue can be reset, too.
    pub(crate) fn negotiate(&self, features: Features) -> Result<()> {
        let features = features.with(Feature::RingReset);
        let missing = features.minus(self.offered()?);
        ensure!(missing == Features::NONE, "the device does not offer {}", missing.names().join(", "));
        for half in 0..2 {
            self.set("l", pci::DRIVER_FEATURE_SELECT, half)?;
            self.set("l", pci::DRIVER_FEATURE, features.0 >> (32 * half) & 0xffff_ffff)?;
        }
        self.add_status(status::FEATURES_OK)?;
        let now = self.status()?;
        ensure!(now & status::FEATURES_OK != 0, "the device does not take {}", features.names().join(", "));
        Ok(())
    }

    /// Steps 1 to 3.
    pub(crate) fn begin(&self) -> Result<()> {
        self.reset()?;
        self.add_status(status::ACKNOWLEDGE | status::DRIVER)
    }

    pub(crate) fn status(&self) -> Result<u8> {
        Ok(self.get("b", pci::DEVICE_STATUS)? as u8)
    }

    /// From the device's own configuration.
    pub(crate) fn mac(&self) -> Result<[u8; 6]> {
        let mut mac = [0; 6];
        for (at, byte) in (self.device..).zip(&mut mac) {
            *byte = self.qtest.borrow_mut().read("readb", at)? as u8;
        }
        Ok(mac)
    }

    /// Steps 1 to 8, with both queues.
    pub(crate) fn start(&mut self, features: Features, rings: [RingLayout; 2]) -> Result<()> {
        self.begin()?;
        self.negotiate(features)?;
        for (index, ring) in (0..).zip(rings) {
            self.start_ring(index, ring)?;
        }
        self.add_status(status::DRIVER_OK)
    }

    /// Step 7, for one queue.
    pub(crate) fn start_ring(&mut self, index: u64, ring: RingLayout) -> Result<()> {
        self.set("w", pci::QUEUE_SELECT, index)?;
        self.set("w", pci::QUEUE_SIZE, ring.size.into())?;
        self.set("w", pci::QUEUE_MSIX_VECTOR, index)?;
        for (at, value) in
            [(pci::QUEUE_DESC, ring.desc), (pci::QUEUE_DRIVER, ring.avail), (pci::QUEUE_DEVICE, ring.used)]
        {
            self.set("l", at, value & 0xffff_ffff)?;
            self.set("l", at + 4, value >> 32)?;
        }
        let kick = self.notify + self.multiplier * self.get("w", pci::QUEUE_NOTIFY_OFF)?;
        if let Some(place) = self.kicks.get_mut(index as usize) {
            *place = kick;
        }
        self.set("w", pci::QUEUE_ENABLE, 1)
    }

    /// VIRTIO 1.3, 2.6.1 and 4.1.4.3.1: the queue is reset.
    pub(crate) fn stop_ring(&self, index: u64) -> Result<()> {
        self.set("w", pci::QUEUE_SELECT, index)?;
        self.set("w", pci::QUEUE_RESET, 1)?;
        crate::session::until(|| self.get("w", pci::QUEUE_RESET).map(|reset| (reset == 0).then_some(())).transpose())
            .context("the queue does not reset itself")?
    }

    pub(crate) fn kick(&self, index: u64) -> Result<()> {
        let at = self.kicks.get(index as usize).copied().unwrap_or_default();
        self.qtest.borrow_mut().write("writew", at, index)
    }

    /// Takes the notifications that came of a queue; were there any?
    pub(crate) fn called(&self, index: u64) -> Result<bool> {
        let at = MESSAGES + 4 * index;
        let called = self.ram.read(at, 4)? == CALLED.to_le_bytes();
        // Only then: one that comes in between would be lost.
        if called {
            self.ram.write(at, &[0; 4])?;
        }
        Ok(called)
    }
}

fn select(qtest: &mut Qtest, at: u64) -> Result<u64> {
    qtest.write("outl", 0xcf8, DEVICE | at & !3)?;
    Ok(0xcfc + (at & 3))
}

fn command(verb: &str, bytes: u64) -> String {
    let width = match bytes {
        1 => 'b',
        2 => 'w',
        _ => 'l',
    };
    format!("{verb}{width}")
}

/// Reads so many bytes of configuration space.
fn read(qtest: &mut Qtest, at: u64, bytes: u64) -> Result<u64> {
    let port = select(qtest, at)?;
    qtest.read(&command("in", bytes), port)
}

fn write(qtest: &mut Qtest, at: u64, bytes: u64, value: u64) -> Result<()> {
    let port = select(qtest, at)?;
    qtest.write(&command("out", bytes), port, value)
}
