//! A driver's two queues and the memory behind them, for tests of ports.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Frame, FrameError, ReceiveSpace, header};
use crate::link::{LinkError, Port, Received, Transmitted};
use crate::memory::testing::GuestRam;
use crate::ring::{Buffer, Chain, DeviceRing, DriverRing, Placement, RingLayout, Segments, SplitDevice, SplitDriver};
use crate::spec::net::{NET_HEADER_LEN, NetHeader};
use crate::spec::{Feature, Features};

const RAM: u64 = 32 << 20;
const TRANSMIT_RING: u64 = 0x1000;
const RECEIVE_RING: u64 = 0x1_0000;
const TRANSMIT_BUFFERS: u64 = 1 << 20;
const RECEIVE_BUFFERS: u64 = 8 << 20;

/// What a driver would have: a transmitq, a receiveq filled with buffers.
pub(crate) struct Nic {
    pub(crate) ram: GuestRam,
    features: Features,
    transmit: Transmitq,
    receive: Receiveq,
}

struct Transmitq {
    driver: SplitDriver,
    device: SplitDevice,
    segments: Segments,
}

struct Receiveq {
    driver: SplitDriver,
    device: SplitDevice,
    segments: Segments,
    /// Where the buffer of each head is.
    buffers: HashMap<u16, u64>,
    buffer_len: u32,
}

impl Nic {
    /// A NIC whose driver posts `count` receive buffers of `buffer_len` bytes.
    pub(crate) fn new(features: Features, count: u16, buffer_len: u32) -> Self {
        let ram = GuestRam::new(RAM).unwrap();
        let ring = |at| {
            let (layout, _) = RingLayout::split_at(at, 2048).unwrap();
            let memory = || Arc::clone(ram.memory());
            let driver = SplitDriver::new(layout, memory(), Features::NONE).unwrap();
            let device = SplitDevice::new(layout, memory(), Features::NONE, 0).unwrap();
            (driver, device, Segments::new(memory(), 64))
        };
        let (driver, device, segments) = ring(TRANSMIT_RING);
        let transmit = Transmitq { driver, device, segments };
        let (driver, device, segments) = ring(RECEIVE_RING);
        let mut receive = Receiveq { driver, device, segments, buffers: HashMap::new(), buffer_len };
        for at in 0..u64::from(count) {
            receive.post(RECEIVE_BUFFERS + at * u64::from(buffer_len));
        }
        Nic { ram, features, transmit, receive }
    }

    /// Makes a chain of `bytes` cut into buffers of these lengths (the last takes the rest), and gives its frame to `f`.
    pub(crate) fn with_frame<R>(
        &mut self,
        bytes: &[u8],
        cuts: &[usize],
        f: impl FnOnce(Result<Frame<'_>, FrameError>) -> R,
    ) -> R {
        self.transmit.with_frame(&self.ram, self.features, bytes, cuts, f)
    }

    /// Sends a frame as Linux does: header and protocol headers in the first buffer, payload in pages.
    pub(crate) fn transmit<P: Port>(
        &mut self,
        port: &mut P,
        header: NetHeader,
        frame: &[u8],
    ) -> Result<Transmitted, LinkError> {
        let (bytes, cuts) = as_linux_does(self.features, header, frame);
        self.with_frame(&bytes, &cuts, |frame| offer(port, &frame.unwrap()))
    }

    /// Receives the next frame; `None`: there is none.
    pub(crate) fn receive<P: Port>(&mut self, port: &mut P) -> Option<Result<(NetHeader, Vec<u8>), LinkError>> {
        let room = usize::from(self.receive.driver.out()) * self.receive.buffer_len as usize;
        let mut needed = port.pending(0)? + header::header_len(self.features);
        if needed > room && port.measure(0) {
            needed = port.pending(0)? + header::header_len(self.features);
        }
        self.receive.fill(&self.ram, self.features, needed, |space| port.receive(0, space))
    }

    /// Sends a frame, as [`transmit`](Nic::transmit) does, and receives it.
    pub(crate) fn hairpin<P: Port>(
        &mut self,
        port: &mut P,
        header: NetHeader,
        frame: &[u8],
    ) -> Result<(NetHeader, Vec<u8>), LinkError> {
        let (bytes, cuts) = as_linux_does(self.features, header, frame);
        let Nic { ram, features, transmit, receive } = self;
        let needed = frame.len() + header::header_len(*features);
        let turned = transmit.with_frame(ram, *features, &bytes, &cuts, |frame| {
            let frame = frame.unwrap();
            receive.fill(ram, *features, needed, |space| {
                port.hairpin(&frame, space).map(|()| Received::Frame { bytes: frame.len })
            })
        });
        turned.unwrap()
    }
}

/// Offers a frame to a port; one that it keeps is waited for.
pub(crate) fn offer<P: Port>(port: &mut P, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
    let transmitted = port.transmit(0, frame)?;
    let Transmitted::Kept { ticket } = transmitted else { return Ok(transmitted) };
    port.flush();
    let done = port.completed().or_else(|| {
        port.quiesce(0);
        port.completed()
    });
    let done = done.expect("quiesced, so it is done with");
    assert_eq!((done.pair, done.ticket), (0, ticket));
    let lost = LinkError::Refused { bytes: frame.len, reason: "counted by the port" };
    done.read.map(|read| Transmitted::Taken { read, copied: 0 }).ok_or(lost)
}

/// The bytes of a frame with its header, and where they are cut.
fn as_linux_does(features: Features, header: NetHeader, frame: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let len = header::header_len(features);
    let pages = frame.len().saturating_sub(66).div_ceil(4096);
    let cuts = [len + 66].into_iter().chain((0..pages).map(|_| 4096)).collect();
    ([&header.to_bytes()[..len], frame].concat(), cuts)
}

impl Transmitq {
    fn with_frame<R>(
        &mut self,
        ram: &GuestRam,
        features: Features,
        bytes: &[u8],
        cuts: &[usize],
        f: impl FnOnce(Result<Frame<'_>, FrameError>) -> R,
    ) -> R {
        let mut rest = bytes;
        let mut buffers = Vec::new();
        let mut addr = TRANSMIT_BUFFERS + 3;
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            if cut == usize::MAX && rest.is_empty() && !buffers.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            ram.write(addr, piece).unwrap();
            buffers.push(Buffer::readable(addr, piece.len() as u32));
            // Never adjacent, never aligned.
            addr += piece.len() as u64 + 13;
            rest = behind;
        }
        let Transmitq { driver, device, segments } = self;
        driver.add(&buffers, Placement::Direct).unwrap();
        driver.publish();
        segments.clear();
        let chain = device.pop(segments).unwrap().unwrap();
        let result = f(Frame::new(segments.view(chain), features));
        device.push_used(&chain, 0).unwrap();
        device.publish().unwrap();
        assert_eq!(driver.pop_used().unwrap().unwrap().written, 0);
        result
    }
}

impl Receiveq {
    fn post(&mut self, addr: u64) {
        let head = self.driver.add(&[Buffer::writable(addr, self.buffer_len)], Placement::Direct).unwrap();
        self.driver.publish();
        self.buffers.insert(head, addr);
    }

    /// Makes room for `needed` bytes, as far as there are buffers, lets `f` fill it, and looks at it as a driver does.
    fn fill(
        &mut self,
        ram: &GuestRam,
        features: Features,
        needed: usize,
        f: impl FnOnce(&mut ReceiveSpace<'_>) -> Result<Received, LinkError>,
    ) -> Option<Result<(NetHeader, Vec<u8>), LinkError>> {
        let mergeable = features.has(Feature::MrgRxbuf);
        let Receiveq { driver, device, segments, buffers, .. } = self;
        segments.clear();
        let mut chains: Vec<Chain> = Vec::new();
        while chains.iter().map(|chain| chain.writable_len as usize).sum::<usize>() < needed {
            match device.pop(segments).unwrap() {
                Some(chain) if mergeable || chains.is_empty() => chains.push(chain),
                Some(chain) => {
                    device.unpop(&[chain]).unwrap();
                    break;
                }
                None => break,
            }
        }
        let mut space = ReceiveSpace::new(segments, &chains, features);
        let received = f(&mut space);
        let filled: Vec<(Chain, u32)> = space.filled().map(|(chain, written)| (*chain, written)).collect();
        device.unpop(&chains[filled.len()..]).unwrap();
        for (chain, written) in &filled {
            device.push_used(chain, *written).unwrap();
        }
        device.publish().unwrap();
        let mut bytes = Vec::new();
        let mut used_count = 0;
        let mut again = Vec::new();
        while let Some(used) = driver.pop_used().unwrap() {
            let addr = buffers.remove(&used.head).unwrap();
            bytes.extend(ram.read(addr, used.written as usize).unwrap());
            used_count += 1;
            again.push(addr);
        }
        for addr in again {
            self.post(addr);
        }
        match received {
            Ok(Received::Nothing) => {
                assert_eq!(used_count, 0, "buffers used for no frame");
                None
            }
            Ok(Received::Frame { bytes: len }) => {
                let header_len = header::header_len(features);
                let mut header = [0; NET_HEADER_LEN];
                header[..header_len].copy_from_slice(&bytes[..header_len]);
                let header = NetHeader::from_bytes(header);
                if header_len == NET_HEADER_LEN {
                    assert_eq!(header.num_buffers, used_count, "num_buffers");
                }
                assert_eq!(bytes.len() - header_len, len as usize);
                Some(Ok((header, bytes.split_off(header_len))))
            }
            Err(error) => {
                assert_eq!(used_count, 0, "buffers used for a lost frame");
                Some(Err(error))
            }
        }
    }
}
