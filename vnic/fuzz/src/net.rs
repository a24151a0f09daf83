//! A driver's transmit chain as a frame, in words, and in receive buffers.
//!
//! What must hold: no panic; a frame that is accepted has the bytes that were sent, a header whose every field is within
//! the frame and negotiated; the quick look at a frame never takes what the thorough one refuses; a received frame is
//! what the driver finds, and not a byte beside its buffers changes.

use std::cell::RefCell;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use vnic::memory::testing::GuestRam;
use vnic::net::features::OFFERED;
use vnic::net::frame::MIN_FRAME_LEN;
use vnic::net::parse::{HEAD_LEN, Packet, Summary, parse};
use vnic::net::{Frame, MAX_FRAME_LEN, ReceiveSpace, header_len};
use vnic::ring::{Buffer, Chain, DeviceRing, DriverRing, Placement, RingLayout, Segments, SplitDevice, SplitDriver};
use vnic::spec::net::{GSO_ECN, GSO_NONE, HDR_F_NEEDS_CSUM, NET_HEADER_LEN, NetHeader};
use vnic::spec::{Feature, Features};

const RAM: u64 = 1 << 20;
const RING: u64 = 0x1000;
const SIZE: u16 = 64;
const SENT: u64 = 0x1_0000;
const ROOM: u64 = 0x8_0000;
const ROOM_LEN: u64 = 0x1_8000;

/// A driver's chain, and what it has for frames.
#[derive(Debug, Arbitrary)]
struct Input<'b> {
    features: u64,
    /// The chain's bytes again and again, so that long frames need no long input.
    repeat: u8,
    header: [u8; NET_HEADER_LEN],
    cuts: [u8; 6],
    many_cuts: u8,
    room: [[u16; 3]; 5],
    chains: u8,
    frame: &'b [u8],
}

struct Bench {
    ram: GuestRam,
    segments: Segments,
}

thread_local! {
    static BENCH: RefCell<Option<Bench>> = const { RefCell::new(None) };
}

/// Plays `data`.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let mut bench = BENCH.take().unwrap_or_else(|| {
        let ram = GuestRam::new(RAM).expect("guest memory");
        let segments = Segments::new(Arc::clone(ram.memory()), 64);
        Bench { ram, segments }
    });
    bench.play(&input);
    BENCH.set(Some(bench));
}

impl Bench {
    fn rings(&self) -> (SplitDriver, SplitDevice) {
        let (layout, _) = RingLayout::split_at(RING, SIZE).expect("such a ring can be");
        let memory = || Arc::clone(self.ram.memory());
        let driver = SplitDriver::new(layout, memory(), Features::NONE).expect("the ring is guest memory");
        (driver, SplitDevice::new(layout, memory(), Features::NONE, 0).expect("the ring is guest memory"))
    }

    fn play(&mut self, input: &Input<'_>) {
        let features = OFFERED.and(Features(input.features));
        let header = header_len(features);
        let body: Vec<u8> = input
            .frame
            .repeat(1 + usize::from(input.repeat))
            .into_iter()
            .take(if input.repeat > 250 { 70_000 } else { 4000 })
            .collect();
        let bytes = [&input.header[..header], &body].concat();
        let (mut driver, mut device) = self.rings();
        let mut buffers = Vec::new();
        let (mut rest, mut addr) = (bytes.as_slice(), SENT);
        let cuts = input.cuts.iter().map(|cut| usize::from(*cut)).chain(vec![1; usize::from(input.many_cuts % 32)]);
        for cut in cuts.chain([usize::MAX]) {
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            self.ram.write(addr, piece).expect("guest memory");
            buffers.push(Buffer::readable(addr, piece.len() as u32));
            addr += piece.len() as u64 + 3;
            rest = behind;
        }
        driver.add(&buffers, Placement::Direct).expect("there is room");
        driver.publish();
        self.segments.clear();
        let chain = device.pop(&mut self.segments).expect("a good ring").expect("a chain");
        let view = self.segments.view(chain);
        let plain = Frame::plain(view);
        match Frame::new(view, features) {
            Ok(frame) => {
                check(&frame, &bytes[header..], features);
                if let Some(plain) = plain
                    && header == NET_HEADER_LEN
                {
                    assert_eq!((plain.header, plain.len), (frame.header, frame.len));
                }
                let mut copy = vec![0; frame.len as usize];
                frame.copy_to(&mut copy);
                self.receive(input, features, frame.header, &copy);
            }
            Err(_) => assert!(plain.is_none() || header != NET_HEADER_LEN),
        }
        words(&body, input);
    }

    /// The frame in whatever receive buffers the driver has.
    fn receive(&mut self, input: &Input<'_>, features: Features, header: NetHeader, frame: &[u8]) {
        let (mut driver, mut device) = self.rings();
        let mut segments = Segments::new(Arc::clone(self.ram.memory()), 64);
        let (mut chains, mut places): (Vec<Chain>, Vec<Vec<(u64, u32)>>) = Default::default();
        let mut addr = ROOM;
        for lengths in input.room.iter().take(usize::from(input.chains % 6)) {
            let mut here = Vec::new();
            for len in lengths {
                here.push((addr, u32::from(len % 0x1800)));
                addr += u64::from(len % 0x1800) + 5;
            }
            let buffers: Vec<Buffer> = here.iter().map(|(addr, len)| Buffer::writable(*addr, *len)).collect();
            driver.add(&buffers, Placement::Direct).expect("there is room");
            driver.publish();
            chains.push(device.pop(&mut segments).expect("a good ring").expect("a chain"));
            places.push(here);
        }
        self.ram.write(ROOM, &[0xee; ROOM_LEN as usize]).expect("guest memory");
        let mut space = ReceiveSpace::new(&segments, &chains, features);
        let (first, second) = frame.split_at(frame.len() / 3);
        let fits = frame.len() <= space.room() && !chains.is_empty();
        assert_eq!(space.write(header, &[first, &[], second]).is_ok(), fits);
        let written: Vec<u32> = space.filled().map(|(_, written)| written).collect();
        let mut found = Vec::new();
        let mut after = self.ram.read(ROOM, ROOM_LEN as usize).expect("guest memory");
        for (places, written) in places.iter().zip(&written) {
            let mut rest = *written;
            for (addr, len) in places {
                let here = rest.min(*len);
                let at = (*addr - ROOM) as usize..(*addr - ROOM) as usize + here as usize;
                found.extend_from_slice(&after[at.clone()]);
                after[at].fill(0xee);
                rest -= here;
            }
            assert_eq!(rest, 0, "more was written than there is room");
        }
        assert!(after == [0xee; ROOM_LEN as usize], "written beside the buffers");
        if fits {
            let (head, body) = found.split_at(header_len(features));
            assert_eq!(body, frame);
            let mut bytes = [0; NET_HEADER_LEN];
            bytes[..head.len()].copy_from_slice(head);
            let count = if head.len() == NET_HEADER_LEN { written.len() as u16 } else { 0 };
            assert_eq!(NetHeader::from_bytes(bytes), NetHeader { num_buffers: count, ..header });
        }
    }
}

/// What must be true of every frame that is accepted.
fn check(frame: &Frame<'_>, sent: &[u8], features: Features) {
    assert!((MIN_FRAME_LEN..=MAX_FRAME_LEN).contains(&frame.len));
    let mut copy = vec![0; frame.len as usize + 1];
    assert_eq!(frame.copy_to(&mut copy), sent.len());
    assert_eq!(&copy[..sent.len()], sent);
    assert!(frame.segments().all(|slice| !slice.is_empty()));
    let NetHeader { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers } = frame.header;
    assert!(flags & !HDR_F_NEEDS_CSUM == 0 && num_buffers == 0);
    if flags & HDR_F_NEEDS_CSUM != 0 {
        assert!(features.has(Feature::Csum) && u32::from(csum_start) + u32::from(csum_offset) + 2 <= frame.len);
    } else {
        assert_eq!((csum_start, csum_offset, gso_type), (0, 0, GSO_NONE));
    }
    if gso_type == GSO_NONE {
        assert_eq!((hdr_len, gso_size), (0, 0));
    } else {
        assert!(gso_size > 0 && u32::from(hdr_len) <= frame.len);
        let tso = [Feature::HostTso4, Feature::HostTso6, Feature::HostUfo, Feature::HostUso];
        assert!(tso.iter().any(|feature| features.has(*feature)));
        assert!(gso_type & GSO_ECN == 0 || features.has(Feature::HostEcn));
    }
    let packet = parse(frame.peek(&mut [0; HEAD_LEN]), frame.len);
    if let Packet::Transport(transport) = packet {
        assert!(u64::from(transport.header_len) + u64::from(transport.payload_len) <= u64::from(frame.len));
    }
}

/// Any bytes in words, with any length beside them.
fn words(bytes: &[u8], input: &Input<'_>) {
    let head = &bytes[..bytes.len().min(HEAD_LEN)];
    for len in [bytes.len() as u32, u32::from(input.room[0][0]), u32::MAX] {
        assert!(!Summary::new(head, len, input.room[0][1]).to_string().is_empty());
    }
}
