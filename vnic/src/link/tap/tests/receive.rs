//! Frames from the kernel into the driver's buffers, whatever their size.

use super::*;

#[test]
fn without_guest_offloads_the_kernel_segments_and_finishes_checksums() {
    in_namespace(|| {
        let mut tap = tap();
        let features = OFFERED.without(Feature::GuestCsum);
        tap.negotiated(features).unwrap();
        assert_eq!(tap.pending(0), Some(1518));
        assert_eq!(tap.pending(1), None);
        let mut nic = Nic::new(features, 100, 1526);
        ip("neigh add 10.0.2.15 lladdr 52:54:00:12:34:56 dev vnic0");
        let socket = UdpSocket::bind(("10.0.2.2", 0)).unwrap();
        socket.send_to(b"hello", ("10.0.2.15", 7)).unwrap();
        let (header, frame) = udp_frame(&mut nic, &mut tap);
        assert_eq!(header, NetHeader { num_buffers: 1, ..NetHeader::default() });
        assert!(frame.ends_with(b"hello"));
        let body = smoltcp::wire::Ipv4Packet::new_checked(&frame[14..]).unwrap();
        let udp = smoltcp::wire::UdpPacket::new_checked(body.payload()).unwrap();
        assert!(udp.verify_checksum(&body.src_addr().into(), &body.dst_addr().into()));
    });
}

#[test]
fn a_driver_with_few_buffers_still_gets_what_fits() {
    in_namespace(|| {
        let mut tap = tap();
        tap.negotiated(OFFERED).unwrap();
        assert_eq!(tap.pending(0), Some(MAX_RECEIVE));
        let mut nic = Nic::new(OFFERED, 3, 600);
        ip("neigh add 10.0.2.15 lladdr 52:54:00:12:34:56 dev vnic0");
        let socket = UdpSocket::bind(("10.0.2.2", 0)).unwrap();
        for len in [10, 1400] {
            socket.send_to(&vec![7; len], ("10.0.2.15", 7)).unwrap();
            let (header, frame) = udp_frame(&mut nic, &mut tap);
            assert_eq!(header.num_buffers, if len == 10 { 1 } else { 3 });
            assert!(frame.ends_with(&vec![7; len]));
        }
        assert_eq!(tap.counters.get("dropped_no_room"), 0);
    });
}

/// Receives until so many frames, or more, were longer than the driver's buffers; those are all that fail.
fn until_dropped(nic: &mut Nic, tap: &mut Tap, frames: u64) {
    let dropped = |tap: &Tap| tap.counters.get("dropped_no_room");
    for _ in 0..50 {
        tap.poll(Instant::now());
        let before = dropped(tap);
        let failed = std::iter::from_fn(|| nic.receive(tap)).filter(Result::is_err).count();
        assert_eq!(dropped(tap), before + failed as u64);
        if dropped(tap) >= frames {
            return;
        }
        let mut fds = [nix::poll::PollFd::new(tap.readable_fds()[0], nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, 100_u16).unwrap();
    }
    panic!("{} of {frames} frames were dropped", dropped(tap));
}

#[test]
fn a_frame_that_may_have_been_cut_off_is_not_given_to_the_driver() {
    in_namespace(|| {
        let mut tap = tap();
        let features = OFFERED.without(Feature::MrgRxbuf);
        tap.negotiated(features).unwrap();
        let mut nic = Nic::new(features, 8, 62);
        ip("neigh add 10.0.2.15 lladdr 52:54:00:12:34:56 dev vnic0");
        let socket = UdpSocket::bind(("10.0.2.2", 0)).unwrap();
        socket.send_to(&[1; 900], ("10.0.2.15", 7)).unwrap();
        until_dropped(&mut nic, &mut tap, 1);
    });
}

#[test]
fn a_frame_that_just_fills_the_buffers_arrives_and_a_byte_more_is_dropped_and_counted() {
    // The least that a driver may post without MRG_RXBUF (VIRTIO 1.3, 5.1.6.3.1); and the most that the tap asks for.
    for (mergeable, buffers, buffer_len) in [(false, 2, 1526), (true, 1, 1530)] {
        in_namespace(move || just_fills(mergeable, buffers, buffer_len));
    }
}

fn just_fills(mergeable: bool, buffers: u16, buffer_len: u32) {
    let mut tap = tap();
    let features = OFFERED.without(Feature::GuestCsum);
    let features = if mergeable { features } else { features.without(Feature::MrgRxbuf) };
    tap.negotiated(features).unwrap();
    assert_eq!(tap.pending(0), Some(1518));
    let mut nic = Nic::new(features, buffers, buffer_len);
    ip("neigh add 10.0.2.15 lladdr 52:54:00:12:34:56 dev vnic0");
    // So that the kernel sends more than the driver expects.
    ip("link set vnic0 mtu 1600");
    let socket = UdpSocket::bind(("10.0.2.2", 0)).unwrap();
    let frame_len = buffer_len as usize - 12;
    let headers = 14 + 20 + 8;
    for (dropped, longer) in [1, 0, 1].into_iter().enumerate() {
        socket.send_to(&pattern(frame_len + longer - headers), ("10.0.2.15", 7)).unwrap();
        if longer == 0 {
            let (_, frame) = udp_frame(&mut nic, &mut tap);
            assert_eq!(frame.len(), frame_len);
            assert!(frame[headers..] == pattern(frame_len - headers));
        } else {
            let expected = 1 + dropped as u64 / 2;
            until_dropped(&mut nic, &mut tap, expected);
            // What else the kernel says is short.
            assert_eq!(tap.counters.get("dropped_no_room"), expected);
        }
    }
}
