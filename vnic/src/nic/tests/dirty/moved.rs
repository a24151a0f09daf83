//! A guest that is copied elsewhere while it runs, as a front-end does it: all pages once, then those that are marked, again and again;
//! the last of them once the rings have stopped. What the copy is then must be what the guest has.

use super::*;

/// Rounds of copying while frames go through.
const ROUNDS: u64 = 150;

struct Copy {
    bytes: Vec<u8>,
    copied: u64,
}

impl Copy {
    fn take(&mut self, ram: &GuestRam, pages: impl IntoIterator<Item = u64>) {
        for page in pages {
            let at = page * LOG_PAGE;
            let bytes = ram.read(at, LOG_PAGE as usize).unwrap();
            self.bytes[at as usize..][..bytes.len()].copy_from_slice(&bytes);
            self.copied += 1;
        }
    }
}

/// The driver's own writes, which the front-end sees by other means.
fn drivers(rig: &Rig, features: spec::Features) -> BTreeSet<u64> {
    let parts = [&rig.rx, &rig.tx].into_iter().flat_map(|queue| queue.layout.parts(features));
    // Of a split ring the device's part is the device's alone; the parts of these lie in pages of their own.
    let own = parts.filter(|(_, _, access)| features.has(Feature::RingPacked) || *access == Access::Read);
    own.flat_map(|(addr, len, _)| pages_of(addr, len)).chain(pages_of(HEADER, RECEIVE - HEADER)).collect()
}

#[test]
fn a_guest_that_is_copied_while_frames_go_through_arrives_whole() {
    for features in formats() {
        let served = serve(vec![link::open(&LinkKind::Loopback, 1).unwrap()], 1);
        let mut rig = rig(served, features);
        rig.device.start_queue(RX, rig.rx.setup_at(start_of(features))).unwrap();
        rig.device.start_queue(TX, rig.tx.setup_at(start_of(features))).unwrap();

        let pages = Pages::new();
        let mut copy = Copy { bytes: vec![0xee; RAM as usize], copied: 0 };
        let (mut posted, mut sent, mut back) = (0_u64, 0_u64, 0_u64);
        for round in 0..ROUNDS {
            if round == ROUNDS / 5 {
                rig.device.set_log(pages.log()).unwrap();
                copy.take(&rig.ram, 0..RAM / LOG_PAGE);
            }
            for _ in 0..16 {
                rig.rx.add(&[Buffer::writable(RECEIVE + STRIDE * (posted % 300), BUFFER)]);
                posted += 1;
            }
            for _ in 0..16 {
                let at = PAYLOAD + 0x800 * (sent % 256);
                rig.ram.write(at, &[sent as u8; 1400]).unwrap();
                rig.tx.add(&[Buffer::readable(HEADER, 12), Buffer::readable(at, 1400)]);
                sent += 1;
            }
            // While the device writes.
            copy.take(&rig.ram, pages.take());
            // Some of the chains stay with the device from round to round.
            while back + 8 < sent {
                rig.rx.used();
                rig.tx.used();
                back += 1;
            }
        }
        let now_copied = copy.copied;
        rig.device.stop_queue(RX).unwrap();
        rig.device.stop_queue(TX).unwrap();
        copy.take(&rig.ram, pages.take());
        let last = copy.copied - now_copied;
        copy.take(&rig.ram, drivers(&rig, features));
        let lost = changed(&copy.bytes, &rig.ram.read(0, RAM as usize).unwrap());
        assert!(lost.is_empty(), "pages {lost:x?} were lost on the way {features:?}");
        assert!(now_copied > RAM / LOG_PAGE && last < RAM / LOG_PAGE / 4, "{now_copied} and {last} pages");
    }
}
