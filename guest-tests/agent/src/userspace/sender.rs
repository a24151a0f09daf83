//! A file as datagrams to one receiver: headers in memory of the program's own, bytes in the file's pages.
//!
//! Operation: datagrams go into the ring in order, shown to the device in bursts. When the ring is full the program waits for the
//! device, and answers what the network asks meanwhile. Nothing here makes a system call per datagram, or reads a byte of
//! the file.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;
use sha2::{Digest, Sha256};
use vnic::datagram::{HEADER_LEN, Header, Kind};
use vnic_experiment::run::NicState;
use vnic_experiment::stamp::STAMP_BYTES;
use vnic_experiment::wire::{Flow, Receipt, hex};

use crate::connection::parse_receipt;
use crate::file::fresh_id;
use crate::network;
use vnic_driver::udp::{Datagram, LOOK_UP, MTU, Station, UDP_HEAD};
use vnic_driver::vfio::{Device, DmaMap, DmaSlice};
use vnic_driver::{Completion, Nic, Options};

/// Who we are on the network: as the kernel's interface was.
const ADDRESS: Ipv4Addr = network::ADDRESS;
/// The port datagrams come from.
const PORT: u16 = 40_000;

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
/// Turns of polling between two looks at the clock: reading it may be a system call.
const LOOK_AT_CLOCK: u32 = 1 << 16;
/// How long an answer is waited for before asking again.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Where a transfer does not simply go on.
#[derive(Debug, Default)]
pub(super) struct Halts {
    /// It pauses once, when so many bytes are in the ring, or when no more fit.
    pub(super) pause: Option<u64>,
    /// The program kills itself when so many are.
    pub(super) die_after: Option<u64>,
}

/// Sends datagrams to one receiver.
#[derive(Debug)]
pub(super) struct Sender<'v> {
    nic: Nic<'v>,
    station: Station,
    to: ([u8; 6], SocketAddrV4),
    transfer: u64,
    /// The headers of a datagram of [`PAYLOAD`] bytes.
    full: [u8; HEAD],
    /// Turns between two looks at the clock.
    look_at_clock: u32,
}

/// The same headers with another offset.
fn with_offset(mut head: [u8; HEAD], offset: u64) -> [u8; HEAD] {
    head[HEAD - 8..].copy_from_slice(&offset.to_le_bytes());
    head
}

impl<'v> Sender<'v> {
    /// Brings the card up, and finds the receiver.
    pub(super) fn start(device: &'v Device, options: &Options, to: SocketAddrV4) -> Result<Self> {
        let mut nic = Nic::start(device, options)?;
        let station = nic.station(ADDRESS);
        let mac = station.resolve(&mut nic, *to.ip())?;
        // Another transfer's datagrams are never taken for this one's.
        let transfer = fresh_id();
        let look_at_clock = if options.completion == Completion::Polling { LOOK_AT_CLOCK } else { 1 };
        let mut sender = Sender { nic, station, to: (mac, to), transfer, full: [0; HEAD], look_at_clock };
        sender.full = sender.head(Kind::Data, 0, PAYLOAD as usize);
        Ok(sender)
    }

    pub(super) fn flow(&self) -> Flow {
        let local = SocketAddr::new(IpAddr::V4(self.station.address), PORT);
        Flow { protocol: 17, local, remote: SocketAddr::V4(self.to.1) }
    }

    /// Of this driver: descriptors gather; no offload is negotiated.
    pub(super) fn state(&self) -> NicState {
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
    pub(super) fn send_file(
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
                self.answer_questions()?;
                self.idle(&mut waiting, "the device to take a datagram")?;
            }
        }
        self.drain()
    }

    /// Waits until the device has taken all that is in the ring.
    pub(super) fn drain(&mut self) -> Result<()> {
        let mut waiting = Waiting::default();
        while self.nic.unsent()? > 0 {
            self.answer_questions()?;
            self.idle(&mut waiting, "the device to take the last datagrams")?;
        }
        Ok(())
    }

    /// Sends a datagram whose payload is anywhere.
    pub(super) fn send_from(&mut self, iova: u64, offset: u64) -> Result<()> {
        let payload = DmaSlice::unchecked(iova, PAYLOAD);
        ensure!(self.nic.send(&with_offset(self.full, offset), Some(payload))?, "the ring is full");
        self.nic.flush();
        Ok(())
    }

    /// Sends the first `bytes` bytes as another transfer, of which nobody asks. A device learns where an address leads when it
    /// follows a descriptor there: who is to look into the ring while the device holds it must find addresses that the device
    /// knows.
    pub(super) fn rehearse(&mut self, map: &'v DmaMap<'v>, bytes: u64) -> Result<()> {
        let real = std::mem::replace(&mut self.transfer, fresh_id());
        self.full = self.head(Kind::Data, 0, PAYLOAD as usize);
        let mut sent = 0;
        let mut waiting = Waiting::default();
        while sent < bytes.min(map.len()) {
            if self.send_piece(map, sent)? {
                sent += u64::from(PAYLOAD);
            } else {
                self.nic.flush();
                self.idle(&mut waiting, "the device to take a datagram")?;
            }
        }
        self.nic.flush();
        self.drain()?;
        self.transfer = real;
        self.full = self.head(Kind::Data, 0, PAYLOAD as usize);
        Ok(())
    }

    /// Puts the datagram at `offset` into the ring. Returns whether there was room.
    fn send_piece(&mut self, map: &'v DmaMap<'v>, offset: u64) -> Result<bool> {
        // No more than PAYLOAD, which is small.
        let len = (map.len() - offset).min(u64::from(PAYLOAD)) as u32;
        // All but the last have the same headers, except for the offset, which stands at their end.
        let head = if len == PAYLOAD { self.full } else { self.head(Kind::Data, 0, len as usize) };
        let head = with_offset(head, offset);
        let payload = map.slice(offset, len).context("a piece of the file beyond its map")?;
        Ok(self.nic.send(&head, Some(payload))?)
    }

    /// Waits a moment.
    fn idle(&mut self, waiting: &mut Waiting, what: &'static str) -> Result<()> {
        if waiting.too_long(self.look_at_clock) {
            self.nic.check()?;
            bail!("waited {} s in vain for {what}", STALL.as_secs());
        }
        Ok(self.nic.wait(LOOK_UP)?)
    }

    /// Takes what has arrived, where nothing is expected but what the network asks.
    fn answer_questions(&mut self) -> Result<()> {
        while self.hear(|_| None::<()>)?.is_some() {}
        Ok(())
    }

    /// Takes one frame. A datagram goes to `take`; what the network asks is answered.
    fn hear<T>(&mut self, take: impl FnOnce(Datagram<'_>) -> Option<T>) -> Result<Option<Option<T>>> {
        let Some(frame) = self.nic.receive()? else { return Ok(None) };
        if let Some(datagram) = self.station.datagram(frame) {
            return Ok(Some(if datagram.port == PORT { take(datagram) } else { None }));
        }
        let answer = self.station.answer(frame);
        if let Some(answer) = answer {
            // A full ring loses an answer: it is asked again.
            self.nic.send(&answer, None)?;
            self.nic.flush();
        }
        Ok(Some(None))
    }

    /// Asks for the receiver's count and digest of `bytes` bytes.
    pub(super) fn receipt(&mut self, bytes: u64) -> Result<Receipt> {
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
    pub(super) fn echo_file(&mut self, map: &'v DmaMap<'v>) -> Result<(String, u64)> {
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
                self.idle(&mut waiting, "a datagram to come back")?;
            }
        }
        Ok((hex(&digest.finalize()), frames))
    }
}

/// How long nothing has moved. The clock is looked at now and then only.
#[derive(Debug, Default)]
struct Waiting {
    turns: u32,
    since: Option<Instant>,
}

impl Waiting {
    fn too_long(&mut self, look_at_clock: u32) -> bool {
        self.turns = self.turns.wrapping_add(1);
        self.turns.is_multiple_of(look_at_clock) && self.since.get_or_insert_with(Instant::now).elapsed() > STALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_stands_at_the_headers_end() {
        let header = |offset| Header { kind: Kind::Data, transfer: 5, offset };
        let mut head = [7; HEAD];
        head[UDP_HEAD..].copy_from_slice(&header(0).to_bytes());
        let changed = with_offset(head, 1408);
        let (read, _) = Header::read(&changed[UDP_HEAD..]).expect("a header");
        assert_eq!(read, header(1408));
        assert_eq!(changed[..UDP_HEAD], [7; UDP_HEAD]);
    }

    #[test]
    fn a_datagram_fits_into_a_frame_in_whole_stamps() {
        assert_eq!((HEAD, PAYLOAD), (66, 1408));
        const { assert!(HEAD + PAYLOAD as usize <= 14 + MTU) };
    }
}
