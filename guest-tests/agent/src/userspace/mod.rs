//! The transfer beyond the kernel: this program drives the NIC itself and hands it the page cache's own pages.
//!
//! Operation of [`transfer`]:
//! 1. [`Card::take`] takes the NIC from the kernel; the kernel's network interface is gone until [`Card::give_back`].
//! 2. The file is mapped, and the mapping's pages, which are the page cache's, are mapped for the device, to be read only.
//! 3. Each datagram is a chain of two descriptors: headers in memory of the program's own, and the bytes in the file's pages.
//!    A full ring is waited for; nothing is dropped. No system call on the way.
//! 4. A last datagram asks the receiver for count and digest ([`vnic::datagram`]).
//!
//! Limits: IPv4; a datagram is what fits into 1500 bytes, in whole stamps of the file, so that who looks for the file's
//! bytes in memory finds each stamp in one datagram.

mod card;
mod sender;

use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vnic_experiment::row::{self, PathKind};
use vnic_experiment::wire::{Accounts as AccountsRecord, Event, PAGE_SIZE, TransferSpec};

use super::accounting::{self, Accounts, Subject};
use super::file::TestFile;
use super::filesystems;
use super::pages::page_runs;
use super::transfer::{Done, Unsupported};
use crate::stage::Stage;
use sender::{Halts, Sender};
use vnic_driver::Options;
use vnic_driver::mapping::Mapping;
use vnic_driver::vfio::Device;

pub use card::{Card, undo};

/// The row's method.
pub const METHOD: &str = row::USERSPACE;

/// How a transfer is done, where it is not done as usual.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// The driver's.
    pub options: Options,
    /// For tests: the program kills itself when it has sent so many bytes.
    pub die_after: Option<u64>,
}

/// The receiver, which can be one of IPv4 only.
fn receiver(spec: &TransferSpec) -> Result<SocketAddrV4> {
    match spec.to {
        SocketAddr::V4(to) => Ok(to),
        SocketAddr::V6(_) => bail!(Unsupported("the driver in user space sends over IPv4 only".to_owned())),
    }
}

/// This thread drives the card.
fn subject(made: &TestFile, bytes: u64, with_copies: bool) -> Subject<'_> {
    Subject {
        file: &made.file,
        bytes,
        path_kind: PathKind::PageCache,
        sender: accounting::Sender::ThisThread,
        // None that the kernel makes.
        datagrams: false,
        with_copies,
    }
}

/// Does a transfer, with the host told and asked as the protocol has it.
///
/// # Errors
/// [`Unsupported`] where this guest cannot do it; else what failed, the receiver's silence included.
pub fn transfer(stage: &mut dyn Stage, spec: &TransferSpec, how: &How) -> Result<Done> {
    let to = receiver(spec)?;
    if spec.cold {
        bail!(Unsupported(
            "the pages that a driver in user space maps for the NIC are in memory: never cold".to_owned()
        ));
    }
    let made = filesystems::make(&spec.filesystem, spec.offset, spec.bytes)?;
    let mapping = Mapping::of_file(&made.file, spec.offset, spec.bytes).context("map the file")?;
    // The order of these is the order of the world: what is declared later goes first.
    let card = Card::take()?;
    let device = Device::open(card.address())?;
    let map = device.map_file(&mapping)?;
    let mut sender = Sender::start(&device, &how.options, to)?;
    if spec.pause {
        sender.rehearse(&map, spec.chunk)?;
    }
    // After the map: pages that are pinned move no more.
    let pages = page_runs(&made.file)?;
    stage.tell(&Event::TransferBegin {
        flow: sender.flow(),
        nic: sender.state(),
        pages,
        sha256: made.sha256.clone(),
        stream_bytes: None,
        filesystem: spec.filesystem.clone(),
    })?;
    stage.wait_for_go()?;

    let mut accounts = Accounts::open(&subject(&made, spec.bytes, spec.accounts));
    let start = Instant::now();
    accounts.start().context("open the accounts")?;
    let mut halts = Halts { pause: spec.pause.then_some(spec.chunk), die_after: how.die_after };
    sender.send_file(&map, &mut halts, &mut |taken| {
        accounts.suspend()?;
        stage.tell(&Event::Paused { taken })?;
        stage.wait_for_go()?;
        Ok(accounts.start()?)
    })?;
    accounts.suspend().context("close the accounts")?;
    accounts.sent();
    let receipt = sender.receipt(spec.bytes)?;
    let done = Done {
        bytes_sent: spec.bytes,
        took: start.elapsed(),
        receipt,
        pages: page_runs(&made.file)?,
        accounts: accounts.close(),
        made,
    };
    // The device first, then its maps; the file when the host says the next thing.
    drop(sender);
    drop(map);
    drop(device);
    card.give_back()?;
    stage.tell(&done.told())?;
    Ok(done)
}

/// Which memory that was never mapped the device is pointed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoy {
    /// What follows the mapped part of the file, where the driver maps it.
    Behind,
    /// The same page by its physical address: what a device would fetch that goes past the IOMMU.
    Physical,
}

/// Sends the file but for its last page, which is never mapped; then points a descriptor at that page, says so by `posted`,
/// and waits for it, which should be in vain: for tests.
///
/// # Errors
/// As [`transfer`]; the device took the descriptor or wants to be reset.
pub fn send_decoy(spec: &TransferSpec, how: &How, decoy: Decoy, posted: &mut dyn FnMut()) -> Result<()> {
    let to = receiver(spec)?;
    ensure!(spec.bytes.is_multiple_of(PAGE_SIZE), "the decoy is the page behind {} bytes", spec.bytes);
    let made = filesystems::make(&spec.filesystem, 0, spec.bytes + PAGE_SIZE)?;
    let mapping = Mapping::of_file(&made.file, 0, spec.bytes).context("map the file")?;
    let card = Card::take()?;
    let device = Device::open(card.address())?;
    let map = device.map_file(&mapping)?;
    let mut sender = Sender::start(&device, &how.options, to)?;
    sender.send_file(&map, &mut Halts::default(), &mut |_| Ok(()))?;
    let at = match decoy {
        Decoy::Behind => map.iova() + map.len(),
        Decoy::Physical => {
            let pages = page_runs(&made.file)?;
            let last = pages.last().context("the file has pages")?;
            last.gpa + (last.count - 1) * PAGE_SIZE
        }
    };
    sender.send_from(at, spec.bytes)?;
    posted();
    sender.drain()?;
    bail!("the device took a descriptor that points at nothing")
}

/// A receiving transfer: what came back, and what it cost.
#[derive(Debug)]
pub struct Received {
    /// Bytes of the file that came back.
    pub bytes: u64,
    /// Frames they came in.
    pub frames: u64,
    /// Are they the file's?
    pub sha256_ok: bool,
    /// The kernel's accounts meanwhile.
    pub accounts: AccountsRecord,
    /// From the first datagram to the last.
    pub took: Duration,
}

/// Sends a file to the receiver's echo port, and takes the frames that come back where the device wrote them: in buffers of this
/// program, in place, without a copy.
///
/// # Errors
/// As [`transfer`].
pub fn receive(spec: &TransferSpec, how: &How) -> Result<Received> {
    let to = receiver(spec)?;
    let made = filesystems::make(&spec.filesystem, spec.offset, spec.bytes)?;
    let mapping = Mapping::of_file(&made.file, spec.offset, spec.bytes).context("map the file")?;
    let card = Card::take()?;
    let device = Device::open(card.address())?;
    let map = device.map_file(&mapping)?;
    let mut sender = Sender::start(&device, &how.options, to)?;
    let mut accounts = Accounts::open(&subject(&made, spec.bytes, true));
    let start = Instant::now();
    accounts.start().context("open the accounts")?;
    let (digest, frames) = sender.echo_file(&map)?;
    accounts.suspend().context("close the accounts")?;
    accounts.sent();
    let took = start.elapsed();
    drop(sender);
    drop(map);
    drop(device);
    card.give_back()?;
    Ok(Received { bytes: spec.bytes, frames, sha256_ok: digest == made.sha256, accounts: accounts.close(), took })
}
