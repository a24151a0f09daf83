//! The transfer beyond the kernel: this program drives the NIC itself and hands it the page cache's own pages.
//!
//! Operation of [`transfer`]:
//! 1. [`Card::take`] takes the NIC from the kernel; the kernel's network interface is gone until [`Card::give_back`].
//! 2. The file is mapped, and the mapping's pages, which are the page cache's, are mapped for the device, to be read only.
//! 3. Each datagram is a chain of two descriptors: headers in memory of the program's own, and the bytes in the file's pages.
//!    A full ring is waited for; nothing is dropped. No system call on the way.
//! 4. A last datagram asks the receiver for count and digest ([`vnic::record::datagram`]).
//!
//! Limits: IPv4; a datagram is what fits into 1500 bytes, in whole stamps of the file, so that who looks for the file's
//! bytes in memory finds each stamp in one datagram.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;
use sha2::{Digest, Sha256};
use vnic::record::datagram::{HEADER_LEN, Header, Kind};
use vnic::record::row;
use vnic::record::run::NicState;
use vnic::record::stamp::STAMP_BYTES;
use vnic::record::wire::{Books as BooksRecord, Event, Flow, PAGE_SIZE, Receipt, TransferSpec};

use super::books::Books;
use super::file::{TestFile, hex};
use super::init;
use super::init::modules::load_group;
use super::mapping::Mapping;
use super::nic;
use super::pages::page_runs;
use super::transfer::{Done, Unsupported, folder_of, parse_receipt};
use crate::driver::udp::{Datagram, LOOK_UP, MTU, Station, UDP_HEAD};
use crate::driver::{Nic, Options};
use crate::hazards::Stage;
use crate::vfio::{Device, DmaMap, DmaSlice, PciAddress, VfioFault, bind};

/// The row's method.
pub const METHOD: &str = row::USERSPACE;

/// Who we are on the network: as the kernel's interface was.
const ADDRESS: Ipv4Addr = init::ADDRESS;
/// The port datagrams come from.
const PORT: u16 = 40_000;
/// RFC 862.
const ECHO_PORT: u16 = 7;

/// Bytes in front of a datagram's payload.
const HEAD: usize = UDP_HEAD + HEADER_LEN;
/// A datagram's payload: what fits, in whole stamps.
const PAYLOAD: u32 = ((14 + MTU - HEAD) / STAMP_BYTES * STAMP_BYTES) as u32;
/// Datagrams that the device is shown at a time.
const BURST: u32 = 32;
/// Datagrams on their way to the echo and back, at most: it drops what finds no room.
const WINDOW: u64 = 32;

/// How long nothing may move.
const STALL: Duration = Duration::from_secs(180);
/// Turns between two looks at the clock: reading it may be a system call.
const LOOK_AT_CLOCK: u32 = 1 << 16;
/// How long an answer is waited for before asking again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How long the kernel may take to make its interface again.
const COMES_BACK: Duration = Duration::from_secs(20);

/// The NIC, in the hands of this program; given back when dropped.
#[derive(Debug)]
pub struct Card {
    address: PciAddress,
}

impl Card {
    /// Takes the NIC from the kernel.
    ///
    /// # Errors
    /// [`Unsupported`] where this guest has no IOMMU or no VFIO; else what failed.
    pub fn take() -> Result<Card> {
        // Where they are built in or missing, the next steps find out.
        let _ = load_group("vfio");
        let address = bind::find_nic()?;
        // From here on it is undone, however far it got.
        let card = Card { address };
        bind::take(&card.address).map_err(unsupported)?;
        Ok(card)
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &PciAddress {
        &self.address
    }

    /// Gives it back to the kernel, with the addresses it had.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn give_back(self) -> Result<()> {
        give_back(&self.address)
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        if self.address.driver().as_deref() != Some(bind::VIRTIO_PCI) {
            // Who wants to know why uses `give_back`; here something else has failed already.
            let _ = give_back(&self.address);
        }
    }
}

/// Gives the NIC back to the kernel, whoever left it where it is.
///
/// # Errors
/// The kernel's refusal.
pub fn undo() -> Result<PciAddress> {
    let address = bind::find_nic()?;
    give_back(&address)?;
    Ok(address)
}

fn give_back(address: &PciAddress) -> Result<()> {
    bind::give_back(address)?;
    let interface = Path::new("/sys/class/net").join(nic::NAME);
    let start = Instant::now();
    while !interface.exists() {
        ensure!(start.elapsed() < COMES_BACK, "{address} is the kernel's again, but there is no {}", nic::NAME);
        std::thread::sleep(Duration::from_millis(10));
    }
    init::network_up().context("bring the kernel's network up again")
}

/// What this guest lacks, as such.
fn unsupported(fault: VfioFault) -> anyhow::Error {
    match fault {
        VfioFault::NoDriver | VfioFault::NoIommu(_) => Unsupported(fault.to_string()).into(),
        fault => fault.into(),
    }
}

/// How a transfer is done, where it is not done as usual.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// The driver's.
    pub options: Options,
    /// For tests: the program kills itself when it has sent so many bytes.
    pub die_after: Option<u64>,
}

/// Does a transfer, with the host told and asked as the protocol has it.
///
/// # Errors
/// [`Unsupported`] where this guest cannot do it; else what failed, the receiver's silence included.
pub fn transfer(stage: &mut dyn Stage, spec: &TransferSpec, how: &How) -> Result<Done> {
    let SocketAddr::V4(to) = spec.to else { bail!(Unsupported("it sends over IPv4 only".to_owned())) };
    let made = TestFile::create(folder_of(&spec.filesystem)?, spec.offset, spec.bytes)?;
    let mapping = Mapping::of_file(&made.file, spec.offset, spec.bytes).context("map the file")?;
    // The order of these is the order of the world: what is declared later goes first.
    let card = Card::take()?;
    let device = Device::open(card.address())?;
    let map = device.map_file(&mapping)?;
    let mut sender = Sender::start(&device, &how.options, to)?;
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

    let mut books = Books::open(spec.bytes, spec.books);
    let start = Instant::now();
    books.start().context("open the books")?;
    let mut halts = Halts { pause: spec.pause.then_some(spec.chunk), die_after: how.die_after };
    sender.send_file(&map, &mut halts, &mut |taken| {
        books.suspend()?;
        stage.tell(&Event::Paused { taken })?;
        stage.wait_for_go()?;
        Ok(books.start()?)
    })?;
    books.suspend().context("close the books")?;
    books.sent();
    let receipt = sender.receipt(spec.bytes)?;
    let done = Done {
        bytes_sent: spec.bytes,
        took: start.elapsed(),
        receipt,
        pages: page_runs(&made.file)?,
        books: books.close(),
    };
    // The device first, then its maps, then the file.
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
    let SocketAddr::V4(to) = spec.to else { bail!(Unsupported("it sends over IPv4 only".to_owned())) };
    ensure!(spec.bytes.is_multiple_of(PAGE_SIZE), "the decoy is the page behind {} bytes", spec.bytes);
    let made = TestFile::create(folder_of(&spec.filesystem)?, 0, spec.bytes + PAGE_SIZE)?;
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
    let head = sender.head(Kind::Data, spec.bytes, PAYLOAD as usize);
    ensure!(sender.nic.send(&head, Some(DmaSlice::unchecked(at, PAYLOAD)))?, "the ring is full");
    sender.nic.flush();
    posted();
    let mut waiting = Waiting::default();
    while sender.nic.unsent()? > 0 {
        sender.idle(&mut waiting, "the device to take a descriptor that points at nothing")?;
    }
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
    /// The kernel's books meanwhile.
    pub books: BooksRecord,
    /// From the first datagram to the last.
    pub took: Duration,
}

/// Sends a file to the receiver's echo port, and takes the frames that come back where the device wrote them: in buffers of this
/// program, in place, without a copy.
///
/// # Errors
/// As [`transfer`].
pub fn receive(spec: &TransferSpec, how: &How) -> Result<Received> {
    let SocketAddr::V4(to) = spec.to else { bail!(Unsupported("it sends over IPv4 only".to_owned())) };
    let made = TestFile::create(folder_of(&spec.filesystem)?, spec.offset, spec.bytes)?;
    let mapping = Mapping::of_file(&made.file, spec.offset, spec.bytes).context("map the file")?;
    let card = Card::take()?;
    let device = Device::open(card.address())?;
    let map = device.map_file(&mapping)?;
    let mut sender = Sender::start(&device, &how.options, to)?;
    let mut books = Books::open(spec.bytes, true);
    let start = Instant::now();
    books.start().context("open the books")?;
    let (digest, frames) = sender.echo_file(&map)?;
    books.suspend().context("close the books")?;
    books.sent();
    let took = start.elapsed();
    drop(sender);
    drop(map);
    drop(device);
    card.give_back()?;
    Ok(Received { bytes: spec.bytes, frames, sha256_ok: digest == made.sha256, books: books.close(), took })
}

/// Where a transfer does not simply go on.
#[derive(Debug, Default)]
struct Halts {
    /// It pauses once, when so many bytes are in the ring, or when no more fit.
    pause: Option<u64>,
    die_after: Option<u64>,
}

/// Sends datagrams to one receiver.
#[derive(Debug)]
struct Sender<'v> {
    nic: Nic<'v>,
    station: Station,
    to: ([u8; 6], SocketAddrV4),
    transfer: u64,
}

impl<'v> Sender<'v> {
    /// Brings the card up, and finds the receiver.
    fn start(device: &'v Device, options: &Options, to: SocketAddrV4) -> Result<Self> {
        let mut nic = Nic::start(device, options)?;
        let station = nic.station(ADDRESS);
        let mac = station.resolve(&mut nic, *to.ip())?;
        // Another transfer's datagrams are never taken for this one's.
        let transfer = super::file::fresh_id();
        Ok(Sender { nic, station, to: (mac, to), transfer })
    }

    fn flow(&self) -> Flow {
        let local = SocketAddr::new(IpAddr::V4(self.station.address), PORT);
        Flow { protocol: 17, local, remote: SocketAddr::V4(self.to.1) }
    }

    /// Of this driver: descriptors gather; no offload is negotiated.
    fn state(&self) -> NicState {
        NicState { csum: false, sg: true, tso: false }
    }

    /// The headers of a datagram.
    fn head(&self, kind: Kind, offset: u64, len: usize) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..UDP_HEAD].copy_from_slice(&self.station.udp_head(self.to, PORT, HEADER_LEN + len));
        head[UDP_HEAD..].copy_from_slice(&Header { kind, transfer: self.transfer, offset }.to_bytes());
        head
    }

    /// Puts the file into the ring, datagram by datagram, and waits until the device has taken all of it.
    fn send_file(
        &mut self,
        map: &'v DmaMap<'v>,
        halts: &mut Halts,
        pause: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let mut sent = 0;
        let mut waiting = Waiting::default();
        let mut burst = 0;
        while sent < map.len() {
            let full = !self.send_piece(map, sent)?;
            if !full {
                sent = (sent + u64::from(PAYLOAD)).min(map.len());
                burst += 1;
                waiting = Waiting::default();
            }
            if full || burst == BURST || sent == map.len() || halts.pause.is_some_and(|at| sent >= at) {
                self.nic.flush();
                burst = 0;
            }
            if halts.pause.is_some_and(|at| full || sent >= at) {
                halts.pause = None;
                pause(sent)?;
            }
            if halts.die_after.is_some_and(|at| sent >= at) {
                kill(getpid(), Signal::SIGKILL)?;
            }
            if full {
                self.idle(&mut waiting, "the device to take a datagram")?;
            }
        }
        let mut waiting = Waiting::default();
        while self.nic.unsent()? > 0 {
            self.idle(&mut waiting, "the device to take the last datagrams")?;
        }
        Ok(())
    }

    /// Puts the datagram at `offset` into the ring. Returns whether there was room.
    fn send_piece(&mut self, map: &'v DmaMap<'v>, offset: u64) -> Result<bool> {
        // No more than PAYLOAD, which is small.
        let len = (map.len() - offset).min(u64::from(PAYLOAD)) as u32;
        let head = self.head(Kind::Data, offset, len as usize);
        let payload = map.slice(offset, len).context("a piece of the file beyond its map")?;
        Ok(self.nic.send(&head, Some(payload))?)
    }

    /// Waits a moment; meanwhile the network's questions are answered.
    fn idle(&mut self, waiting: &mut Waiting, what: &'static str) -> Result<()> {
        if waiting.too_long() {
            self.nic.check()?;
            bail!("waited {} s in vain for {what}", STALL.as_secs());
        }
        while self.hear(|_| None::<()>)?.is_some() {}
        Ok(self.nic.wait(LOOK_UP)?)
    }

    /// Takes one frame. A datagram goes to `take`, in place; what the network asks is answered.
    fn hear<T>(&mut self, take: impl FnOnce(Datagram<'_>) -> Option<T>) -> Result<Option<Option<T>>> {
        let Some(frame) = self.nic.receive()? else { return Ok(None) };
        if let Some(datagram) = self.station.datagram(&frame) {
            return Ok(Some(if datagram.port == PORT { take(datagram) } else { None }));
        }
        let answer = self.station.answer(&frame);
        drop(frame);
        if let Some(answer) = answer {
            // A full ring loses an answer: it is asked again.
            self.nic.send(&answer, None)?;
            self.nic.flush();
        }
        Ok(Some(None))
    }

    /// Asks for the receiver's count and digest of `bytes` bytes.
    fn receipt(&mut self, bytes: u64) -> Result<Receipt> {
        let question = self.head(Kind::End, bytes, 0);
        let ours = self.transfer;
        let start = Instant::now();
        let mut asked = None;
        while start.elapsed() < STALL {
            if asked.is_none_or(|asked: Instant| asked.elapsed() > ASK_AGAIN) && self.nic.send(&question, None)? {
                self.nic.flush();
                asked = Some(Instant::now());
            }
            while let Some(heard) = self.hear(|datagram| match Header::read(datagram.payload) {
                Some((Header { kind: Kind::Receipt, transfer, .. }, line)) if transfer == ours => {
                    Some(String::from_utf8_lossy(line).into_owned())
                }
                _ => None,
            })? {
                let Some(line) = heard else { continue };
                return parse_receipt(&line)
                    .with_context(|| format!("the receiver answered {line:?}, not `bytes N sha256 HEX`"));
            }
            self.nic.wait(LOOK_UP)?;
        }
        self.nic.check()?;
        bail!("waited {} s in vain for the receiver's receipt", STALL.as_secs())
    }

    /// Sends the file to the echo, and digests what comes back, in place. Also returns how many frames came.
    fn echo_file(&mut self, map: &'v DmaMap<'v>) -> Result<(String, u64)> {
        self.to.1.set_port(if self.to.1.port() == vnic::record::datagram::PORT { ECHO_PORT } else { self.to.1.port() });
        let mut digest = Sha256::new();
        let (mut sent, mut back, mut frames) = (0, 0, 0);
        let ours = self.transfer;
        let mut waiting = Waiting::default();
        while back < map.len() {
            let mut moved = false;
            while sent < map.len() && sent - back < WINDOW * u64::from(PAYLOAD) && self.send_piece(map, sent)? {
                sent = (sent + u64::from(PAYLOAD)).min(map.len());
                moved = true;
            }
            self.nic.flush();
            while let Some(heard) = self.hear(|datagram| match Header::read(datagram.payload) {
                Some((Header { kind: Kind::Data, transfer, offset }, bytes)) if transfer == ours => {
                    digest.update(bytes);
                    Some((offset, bytes.len() as u64))
                }
                _ => None,
            })? {
                let Some((offset, len)) = heard else { continue };
                ensure!(offset == back, "a datagram was lost: byte {offset} came back in place of {back}");
                back += len;
                frames += 1;
                moved = true;
            }
            if moved {
                waiting = Waiting::default();
            } else {
                self.idle_for_echo(&mut waiting)?;
            }
        }
        Ok((hex(&digest.finalize()), frames))
    }

    fn idle_for_echo(&mut self, waiting: &mut Waiting) -> Result<()> {
        if waiting.too_long() {
            self.nic.check()?;
            bail!("waited {} s in vain for a datagram to come back", STALL.as_secs());
        }
        Ok(self.nic.wait(LOOK_UP)?)
    }
}

/// How long nothing has moved. The clock is looked at now and then only.
#[derive(Debug, Default)]
struct Waiting {
    turns: u32,
    since: Option<Instant>,
}

impl Waiting {
    fn too_long(&mut self) -> bool {
        self.turns = self.turns.wrapping_add(1);
        self.turns.is_multiple_of(LOOK_AT_CLOCK) && self.since.get_or_insert_with(Instant::now).elapsed() > STALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_fits_into_a_frame_in_whole_stamps() {
        assert_eq!((HEAD, PAYLOAD), (66, 1408));
        const { assert!(HEAD + PAYLOAD as usize <= 14 + MTU) };
    }
}
