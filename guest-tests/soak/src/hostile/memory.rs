//! Memory that comes, goes, and is cut short under the device.

use conformance::session::SENT;
use conformance::{Driver, Packet};
use nix::unistd::ftruncate;
use vnic::memory::testing::{GuestRam, USER_BASE};
use vnic::memory::{Gpa, RegionSpec, UserAddr};
use vnic::ring::{Buffer, Placement};
use vnic::spec::vhost_user::{ProtocolFeature, ProtocolFeatures};
use vnic::vhost_user::message::Request;

use super::Hostile;

/// Where regions come and go, and how large they are.
const FIRST: u64 = 1 << 30;
const SIZE: u64 = 1 << 20;

impl Hostile {
    /// Regions come while frames pass, a frame is sent out of each, and they go again.
    pub(super) fn hot_plug(&mut self) {
        let mut driver = self.session();
        let taken = ProtocolFeatures::of(&[ProtocolFeature::Mq, ProtocolFeature::ConfigureMemSlots]);
        say(&mut driver, &Request::SetProtocolFeatures(taken), None);
        let count = self.rng.u64(1..6);
        let mut plugged = Vec::new();
        for number in 0..count {
            let gpa = FIRST + number * 2 * SIZE;
            let spec = RegionSpec { gpa: Gpa(gpa), size: SIZE, user_addr: UserAddr(USER_BASE + gpa), mmap_offset: 0 };
            // Mapped at 0 here: only the device has it where it is plugged in.
            let ram = GuestRam::new(SIZE).expect("memory");
            say(&mut driver, &Request::AddMemReg(spec), Some(&ram));
            driver.link.session().expect("a session").is_taken_in().expect("the device takes a region more");
            let packet = Packet::plain(600, self.rng.u8(..));
            ram.write(0, &packet.bytes()).expect("memory");
            driver.post(1, 4096).expect("a receive buffer");
            let buffer = Buffer::readable(gpa, packet.bytes().len() as u32);
            driver.transmit.add(&[buffer], Placement::Direct).expect("there is room");
            driver.publish().expect("the device is kicked");
            let received = driver.collect().expect("a frame out of memory that was plugged in");
            assert_eq!(received.frame, packet.frame, "another frame came back");
            plugged.push(spec);
        }
        self.rng.shuffle(&mut plugged);
        for spec in plugged {
            self.some(&mut driver, 1);
            say(&mut driver, &Request::RemMemReg(spec), None);
            driver.link.session().expect("a session").is_taken_in().expect("the device lets go of a region");
        }
        self.some(&mut driver, 4);
        self.run.did("memory regions added, and removed", count);
    }

    /// The file ends before a frame that is under way: the session ends, and nothing else.
    pub(super) fn cut_short(&mut self) {
        let mut driver = self.session();
        self.some(&mut driver, 2);
        driver.post(1, 4096).expect("a receive buffer");
        // The rings stay; what is sent and received does not.
        ftruncate(driver.ram.fd(), SENT as i64).expect("the file can be cut");
        driver.transmit.add(&[Buffer::readable(SENT, 600)], Placement::Direct).expect("there is room");
        driver.publish().expect("the device is kicked");
        driver.link.session().expect("a session").is_ended().expect("a session without memory ends");
    }
}

fn say(driver: &mut Driver, request: &Request, memory: Option<&GuestRam>) {
    let files: Vec<_> = memory.into_iter().map(GuestRam::fd).collect();
    driver.link.session().and_then(|session| session.say(request, &files)).expect("the session goes on");
}
