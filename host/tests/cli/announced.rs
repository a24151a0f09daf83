//! A guest that has moved here is announced on the link by its device, where the front-end asks for it.

use guest_fixture::{Announcement, Namespace, Wire, is_root};
use vnic::spec::vhost_user::{ProtocolFeature, ProtocolFeatures};
use vnic::vhost_user::message::Request;

use crate::front_end::{FrontEnd, Process};
use crate::util::{Scratch, skip, wait_for};

const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x4d, 0x6f, 0x76];

#[test]
fn after_send_rarp_the_tap_has_carried_a_rarp_request_with_the_guests_address() {
    if !is_root() {
        return skip("a tap in a network namespace needs root");
    }
    let namespace = match Namespace::new().and_then(|made| made.add_tap("vnicrarp0").map(|()| made)) {
        Ok(namespace) => namespace,
        Err(error) => return skip(&format!("{error:#}")),
    };
    let wire = Wire::listen(&namespace, "vnicrarp0").unwrap();
    let scratch = Scratch::new();
    let options = ["serve", "--link", "tap:vnicrarp0", "--socket-path", "front.sock"];
    let _serve = namespace.enter(|| Process::start(&scratch, &options, "front.sock"));
    let mut front_end = FrontEnd::start(&scratch, 1);
    let offered = ProtocolFeatures(front_end.ask(&Request::GetProtocolFeatures));
    assert!(offered.has(ProtocolFeature::Rarp), "{offered:?}");
    let rarp = ProtocolFeatures::of(&[ProtocolFeature::Mq, ProtocolFeature::Rarp]);
    front_end.say(&Request::SetProtocolFeatures(rarp), &[]);
    assert!(wire.announced(MAC).is_empty());
    front_end.say(&Request::SendRarp(MAC), &[]);
    let frames =
        wait_for("a frame that announces the guest", || Some(wire.announced(MAC)).filter(|frames| !frames.is_empty()));
    for (who, frame) in frames {
        assert_eq!((who, frame.len()), (Announcement::Device, 60));
        // To everybody; "request reverse"; of the guest's address, for it.
        assert_eq!((&frame[..6], &frame[14..22]), (&[0xff; 6][..], &[0, 1, 8, 0, 6, 4, 0, 3][..]));
        assert_eq!((&frame[22..28], &frame[32..38]), (&MAC[..], &MAC[..]));
    }
}
