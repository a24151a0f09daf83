//! A record of what is in flight, as a front-end hands it over, beside a ring that says whatever it says.
//!
//! What must hold: no panic; what is to be taken again fits into the ring and is taken once; the record says of the ring's other queues
//! nothing: not a byte beside this queue's part is written; and a record that this back-end has gone on with is one that the next can read.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use vnic::backend::record::{Record, Records, Resumed};
use vnic::memory::SharedArea;
use vnic::memory::testing::GuestRam;
use vnic::ring::{Chain, Device, DeviceRing, RingLayout, Segments};
use vnic::spec::vhost_user::Inflight;
use vnic::spec::{Feature, Features};

const RAM: u64 = 1 << 16;
/// Of three queues' parts the one in the middle is this queue's.
const QUEUES: u16 = 3;
const ROOM: u16 = 16;

/// An area's bytes, a ring's, and what is done then.
#[derive(Debug, Arbitrary)]
struct Input<'b> {
    packed: bool,
    size: u8,
    base: u32,
    /// The area's first fields as they should be, in place of the bytes.
    sound: bool,
    steps: [u8; 24],
    area: &'b [u8],
    ring: &'b [u8],
}

thread_local! {
    static SCENE: RefCell<Option<(GuestRam, OwnedFd)>> = const { RefCell::new(None) };
}

/// Plays `data`.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let new = || (GuestRam::new(RAM).expect("guest memory"), SharedArea::file(area_len(true)).expect("an area"));
    let scene = SCENE.take().unwrap_or_else(new);
    play(&scene.0, &scene.1, &input);
    SCENE.set(Some(scene));
}

fn features(packed: bool) -> Features {
    if packed { Features::of(&[Feature::RingPacked, Feature::Version1]) } else { Features::of(&[Feature::Version1]) }
}

fn area_len(packed: bool) -> u64 {
    Records::len_for(QUEUES, ROOM, features(packed))
}

fn play(ram: &GuestRam, file: &OwnedFd, input: &Input<'_>) {
    let features = features(input.packed);
    let size = if input.packed { 1 + u16::from(input.size) % ROOM } else { 1 << (input.size % 5) };
    let layout = match input.packed {
        true => RingLayout::packed_at(0x1000, size),
        false => RingLayout::split_at(0x1000, size),
    };
    let (layout, _) = layout.expect("such a ring can be");
    let mut bytes = vec![0; 0x2000];
    bytes.iter_mut().zip(input.ring).for_each(|(to, from)| *to = *from);
    ram.write(0x1000, &bytes).expect("guest memory");

    let len = area_len(input.packed) as usize;
    let part = len / usize::from(QUEUES);
    let mut area: Vec<u8> =
        input.area.iter().copied().cycle().take(if input.area.is_empty() { 0 } else { len }).collect();
    area.resize(len, 0);
    if input.sound {
        // Version and number of descriptors of each.
        for at in (0..len).step_by(part) {
            area[at + 8..at + 12].copy_from_slice(&[1, 0, ROOM as u8, 0]);
        }
    }
    let shared = File::from(file.try_clone().expect("a file"));
    shared.write_all_at(&area, 0).expect("a file");

    let beside = |shared: &File| {
        let mut now = vec![0; len];
        shared.read_exact_at(&mut now, 0).expect("a file");
        [now[..part].to_vec(), now[2 * part..].to_vec()]
    };
    let before = beside(&shared);
    for again in [false, true] {
        let told = Inflight { mmap_size: len as u64, mmap_offset: 0, num_queues: QUEUES, queue_size: ROOM };
        let records = Records::open(file.try_clone().expect("a file"), &told).expect("it is long enough");
        let record = records.of(1, size, features).expect("there is room").expect("not in order");
        let went_on = go_on(ram, layout, features, input, record);
        assert_eq!(beside(&shared), before, "another queue's part was written");
        if !went_on && again {
            return;
        }
    }
}

/// A back-end's life with this record. False: it could not be used.
fn go_on(ram: &GuestRam, layout: RingLayout, features: Features, input: &Input<'_>, mut record: Record) -> bool {
    let memory = || Arc::clone(ram.memory());
    let size = layout.size;
    let Ok(mut ring) = Device::new(layout, memory(), features, input.base) else { return false };
    let Ok(Resumed { used, taken }) = record.recover(&ring) else { return false };
    assert!(taken.len() <= usize::from(size), "{} chains in a ring of {size}", taken.len());
    let slots: usize = taken.iter().map(|taken| taken.descriptors.len()).sum();
    assert!(slots <= usize::from(size), "{slots} slots in a ring of {size}");
    if ring.resume(used, &taken).is_err() {
        return false;
    }
    let mut segments = Segments::new(memory(), 64);
    let (mut had, mut heads): (Vec<Chain>, BTreeSet<u16>) = (Vec::new(), BTreeSet::new());
    for taken in &taken {
        // What is wrong with one stops the queue, as with any chain.
        let Ok(chain) = ring.retake(&mut segments, taken) else { return false };
        assert!(heads.insert(chain.head), "{} twice", chain.head);
        had.push(chain);
    }
    assert_eq!(usize::from(ring.in_flight()), had.len());
    for step in input.steps {
        segments.clear();
        match step % 4 {
            0 => match ring.pop(&mut segments) {
                Ok(Some(chain)) if record.take(&chain, &ring).is_ok() => had.push(chain),
                Ok(Some(_)) | Err(_) => return false,
                Ok(None) => {}
            },
            1 => {
                if let Some(chain) = had.pop() {
                    if ring.unpop(&[chain]).is_ok() {
                        record.untake(&chain);
                    } else {
                        had.push(chain);
                    }
                }
            }
            2 if !had.is_empty() => {
                let chain = had.swap_remove(usize::from(step / 4) % had.len());
                record.use_up(&chain);
                ring.push_used(&chain, 0).expect("it is in flight");
            }
            _ => {
                record.publishing();
                if ring.publish().is_err() {
                    return false;
                }
                record.published();
            }
        }
    }
    true
}
