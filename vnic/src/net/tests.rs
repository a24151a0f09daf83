//! Chains as frames, and receive buffers as room: on real rings.

use proptest::prelude::*;

use super::features::OFFERED;
use super::testing::Nic;
use super::*;
use crate::memory::testing::GuestRam;
use crate::ring::{Buffer, DeviceRing, DriverRing, Placement, RingLayout, Segments, SplitDevice, SplitDriver};
use crate::spec::net::{HDR_F_NEEDS_CSUM, NetHeader};
use crate::spec::{Feature, Features};

const MERGEABLE: Features = OFFERED;
const ONE_BUFFER: Features = OFFERED.without(Feature::MrgRxbuf);

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn with_header(header: NetHeader, frame: &[u8]) -> Vec<u8> {
    [&header.to_bytes()[..], frame].concat()
}

#[test]
fn a_header_split_over_descriptors_in_any_way_is_read_whole() {
    let header = NetHeader { flags: HDR_F_NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..NetHeader::default() };
    let frame = pattern(200);
    let bytes = with_header(header, &frame);
    let mut nic = Nic::new(OFFERED, 0, 2048);
    for cuts in [vec![], vec![12], vec![11], vec![13], vec![1; 20], vec![5, 7], vec![0, 12, 0, 3], vec![6, 0, 6, 14]] {
        nic.with_frame(&bytes, &cuts, |made| {
            let made = made.unwrap();
            assert_eq!((made.header, made.len), (header, 200));
            let mut out = [0; 300];
            assert_eq!(made.copy_to(&mut out), 200, "{cuts:?}");
            assert_eq!(&out[..200], frame);
            assert_eq!(made.peek(&mut [0; 14]), &frame[..14]);
            assert!(made.segments().all(|slice| !slice.is_empty()), "{cuts:?}");
            assert_eq!(made.segments().map(|slice| slice.len()).sum::<usize>(), 200);
        });
    }
}

#[test]
fn a_chain_no_longer_than_the_header_is_no_frame() {
    let mut nic = Nic::new(OFFERED, 0, 2048);
    for len in 0..=12_u32 {
        let error = nic.with_frame(&pattern(len as usize), &[], |made| made.unwrap_err());
        assert_eq!(error, FrameError::NoFrame { len });
    }
    for len in 13..26_usize {
        let error = nic.with_frame(&vec![0; len], &[], |made| made.unwrap_err());
        assert_eq!((error, error.name()), (FrameError::Runt { len: len as u32 - 12 }, "runt"));
    }
    nic.with_frame(&[0; 26], &[], |made| assert_eq!(made.unwrap().len, 14));
}

#[test]
fn the_longest_frame_passes_and_one_byte_more_does_not() {
    let mut nic = Nic::new(OFFERED, 0, 2048);
    let longest = 12 + MAX_FRAME_LEN as usize;
    nic.with_frame(&vec![0; longest], &[12, 4096], |made| assert_eq!(made.unwrap().len, MAX_FRAME_LEN));
    let error = nic.with_frame(&vec![0; longest + 1], &[12, 4096], |made| made.unwrap_err());
    assert_eq!(error, FrameError::TooLong { len: MAX_FRAME_LEN + 1 });
}

#[test]
fn a_legacy_driver_has_a_header_of_10_bytes() {
    let mut nic = Nic::new(Features::NONE, 0, 2048);
    let mut bytes = vec![0; 10];
    bytes.extend(pattern(60));
    nic.with_frame(&bytes, &[4], |made| {
        let mut out = [0; 60];
        assert_eq!(made.unwrap().copy_to(&mut out), 60);
        assert_eq!(out[..], pattern(60));
    });
}

#[test]
fn a_transmit_chain_with_device_writable_buffers_is_refused() {
    let ram = GuestRam::new(1 << 20).unwrap();
    let (layout, _) = RingLayout::split_at(0x1000, 16).unwrap();
    let mut driver = SplitDriver::new(layout, ram.memory().clone(), Features::NONE).unwrap();
    let mut device = SplitDevice::new(layout, ram.memory().clone(), Features::NONE, 0).unwrap();
    let mut segments = Segments::new(ram.memory().clone(), 8);
    for buffers in [&[Buffer::readable(0x8000, 100), Buffer::writable(0x9000, 7)][..], &[Buffer::writable(0x9000, 7)]] {
        driver.add(buffers, Placement::Direct).unwrap();
        driver.publish();
        let chain = device.pop(&mut segments).unwrap().unwrap();
        assert_eq!(Frame::new(segments.view(chain), OFFERED).unwrap_err(), FrameError::Writable { len: 7 });
    }
}

#[test]
fn every_error_has_a_name_in_the_table() {
    let errors = [
        FrameError::NoFrame { len: 0 },
        FrameError::Runt { len: 0 },
        FrameError::TooLong { len: 0 },
        FrameError::Writable { len: 0 },
        HeaderError::CsumNotNegotiated.into(),
        HeaderError::CsumBeyondFrame { csum_start: 0, csum_offset: 0, frame_len: 0 }.into(),
        HeaderError::GsoUnknown { gso_type: 2 }.into(),
        HeaderError::GsoNotNegotiated { gso_type: 1, feature: Feature::HostTso4 }.into(),
        HeaderError::GsoSizeZero { gso_type: 1 }.into(),
        HeaderError::GsoWithoutCsum { gso_type: 1 }.into(),
    ];
    assert_eq!(errors.map(|error| error.name()), FrameError::NAMES);
}

/// A driver's receive chains of these lengths, each in one or more buffers.
struct Room {
    ram: GuestRam,
    segments: Segments,
    chains: Vec<crate::ring::Chain>,
    places: Vec<Vec<(u64, u32)>>,
}

impl Room {
    fn new(chains: &[&[u32]]) -> Self {
        let ram = GuestRam::new(4 << 20).unwrap();
        let (layout, _) = RingLayout::split_at(0x1000, 256).unwrap();
        let mut driver = SplitDriver::new(layout, ram.memory().clone(), Features::NONE).unwrap();
        let mut device = SplitDevice::new(layout, ram.memory().clone(), Features::NONE, 0).unwrap();
        let mut segments = Segments::new(ram.memory().clone(), 8);
        let mut addr = 1 << 20;
        let mut places = Vec::new();
        let mut popped = Vec::new();
        for lengths in chains {
            let mut here = Vec::new();
            for len in *lengths {
                here.push((addr, *len));
                addr += u64::from(*len) + 5;
            }
            let buffers: Vec<Buffer> = here.iter().map(|(addr, len)| Buffer::writable(*addr, *len)).collect();
            driver.add(&buffers, Placement::Direct).unwrap();
            driver.publish();
            popped.push(device.pop(&mut segments).unwrap().unwrap());
            places.push(here);
        }
        ram.write(1 << 20, &vec![0xee; (addr - (1 << 20)) as usize]).unwrap();
        Room { ram, segments, chains: popped, places }
    }

    /// What the driver finds when it trusts `written` of each chain.
    fn found(&self, written: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (places, written) in self.places.iter().zip(written) {
            let mut rest = *written;
            for (addr, len) in places {
                let here = rest.min(*len);
                bytes.extend(self.ram.read(*addr, here as usize).unwrap());
                rest -= here;
            }
        }
        bytes
    }
}

#[test]
fn a_frame_is_spread_over_mergeable_buffers_and_num_buffers_says_how_many() {
    let room = Room::new(&[&[7, 100], &[50], &[3, 3, 3, 91], &[1000]]);
    let frame = pattern(210);
    let mut space = ReceiveSpace::new(&room.segments, &room.chains, MERGEABLE);
    assert_eq!(space.room(), 107 + 50 + 100 + 1000 - 12);
    space.write(NetHeader { flags: 2, ..NetHeader::default() }, &[&frame[..100], &[], &frame[100..]]).unwrap();
    let written: Vec<u32> = space.filled().map(|(_, written)| written).collect();
    assert_eq!(written, [107, 50, 65]);
    let in_place: Vec<u8> = space
        .frame()
        .flat_map(|slice| {
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(&mut bytes);
            bytes
        })
        .collect();
    assert_eq!(in_place, frame);
    let found = room.found(&written);
    let header = NetHeader::from_bytes(*found.first_chunk().unwrap());
    assert_eq!(header, NetHeader { flags: 2, num_buffers: 3, ..NetHeader::default() });
    assert_eq!(found[12..], frame);
}

#[test]
fn without_mergeable_buffers_one_chain_must_hold_it() {
    let room = Room::new(&[&[100, 12], &[2000]]);
    let mut space = ReceiveSpace::new(&room.segments, &room.chains, ONE_BUFFER);
    assert_eq!(space.room(), 100);
    assert_eq!(space.write(NetHeader::default(), &[&[1; 101]]), Err(NoRoom { needed: 113, room: 112 }));
    assert_eq!(space.filled().count(), 0);
    assert_eq!(room.found(&[112]), [0xee; 112], "nothing was written");
    space.write(NetHeader::default(), &[&[1; 100]]).unwrap();
    assert_eq!(space.filled().map(|(_, written)| written).collect::<Vec<_>>(), [112]);
    assert_eq!(NetHeader::from_bytes(*room.found(&[112]).first_chunk().unwrap()).num_buffers, 1);
}

#[test]
fn no_chain_and_empty_chains_are_no_room() {
    let room = Room::new(&[&[0], &[4]]);
    let mut none = ReceiveSpace::new(&room.segments, &[], MERGEABLE);
    assert_eq!((none.room(), none.buffers()), (0, 0));
    assert!(none.write(NetHeader::default(), &[&[0; 14]]).is_err());
    let mut small = ReceiveSpace::new(&room.segments, &room.chains, MERGEABLE);
    assert!(small.write(NetHeader::default(), &[&[]]).is_err());
}

#[test]
fn what_is_read_from_a_file_lands_behind_its_own_header() {
    let room = Room::new(&[&[5, 6, 9], &[100]]);
    let (from, to) = nix::sys::socket::socketpair(
        nix::sys::socket::AddressFamily::Unix,
        nix::sys::socket::SockType::Datagram,
        None,
        nix::sys::socket::SockFlag::SOCK_NONBLOCK,
    )
    .unwrap();
    let mut scratch = vectored::Scratch::default();
    use std::os::fd::AsFd;
    {
        let mut space = ReceiveSpace::new(&room.segments, &room.chains, MERGEABLE);
        let empty = space.read_from(to.as_fd(), &mut scratch).unwrap_err();
        assert_eq!(empty.kind(), std::io::ErrorKind::WouldBlock);
        assert_eq!(space.filled().count(), 0);
    }
    let header =
        NetHeader { flags: 1, gso_type: 1, gso_size: 9, csum_start: 3, csum_offset: 2, ..NetHeader::default() };
    let frame = pattern(60);
    nix::unistd::write(&from, &with_header(header, &frame)).unwrap();
    let mut space = ReceiveSpace::new(&room.segments, &room.chains, MERGEABLE);
    assert_eq!(space.read_from(to.as_fd(), &mut scratch).unwrap(), Some(60));
    let written: Vec<u32> = space.filled().map(|(_, written)| written).collect();
    assert_eq!(written, [20, 52]);
    let found = room.found(&written);
    assert_eq!(NetHeader::from_bytes(*found.first_chunk().unwrap()), NetHeader { num_buffers: 2, ..header });
    assert_eq!(found[12..], frame);
    nix::unistd::write(&from, &[0; 12]).unwrap();
    let mut space = ReceiveSpace::new(&room.segments, &room.chains, MERGEABLE);
    assert_eq!(space.read_from(to.as_fd(), &mut scratch).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    // What just fits, and what does not.
    for (len, read) in [(108, Some(108)), (109, None)] {
        nix::unistd::write(&from, &with_header(header, &pattern(len))).unwrap();
        let mut space = ReceiveSpace::new(&room.segments, &room.chains, MERGEABLE);
        assert_eq!(space.read_from(to.as_fd(), &mut scratch).unwrap(), read);
        assert_eq!(space.filled().count(), if read.is_some() { 2 } else { 0 });
    }
}

proptest! {
    #[test]
    fn whatever_the_buffers_the_driver_finds_the_frame(
        lengths in proptest::collection::vec(proptest::collection::vec(0_u32..200, 1..4), 1..20),
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..5),
    ) {
        let lengths: Vec<&[u32]> = lengths.iter().map(Vec::as_slice).collect();
        let room = Room::new(&lengths);
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let frame = parts.concat();
        let total: u32 = lengths.iter().flat_map(|chain| chain.iter()).sum();
        let mut space = ReceiveSpace::new(&room.segments, &room.chains, MERGEABLE);
        let result = space.write(NetHeader::default(), &parts);
        prop_assert_eq!(result.is_ok(), frame.len() + 12 <= total as usize);
        if result.is_ok() {
            let written: Vec<u32> = space.filled().map(|(_, written)| written).collect();
            prop_assert_eq!(written.iter().sum::<u32>() as usize, frame.len() + 12);
            let found = room.found(&written);
            let header = NetHeader::from_bytes(*found.first_chunk().unwrap());
            prop_assert_eq!(usize::from(header.num_buffers), written.len());
            prop_assert_eq!(&found[12..], &frame[..]);
        }
    }
}
