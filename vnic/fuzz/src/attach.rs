//! Virtio devices of a made kernel, some of whose structures, rings and books say something else.
//!
//! What must hold: no panic, and every look ends: lists and trees in circles, counts that lie, rings outside memory.

use std::cell::RefCell;

use arbitrary::{Arbitrary, Unstructured};
use vnic::attach::testing::{Eyes, physical, vm};
use vnic::memory::Onlooker;
use vnic::memory::testing::GuestRam;

const RAM: u64 = 16 << 20;

/// Bytes that are others than the kernel's.
#[derive(Debug, Arbitrary)]
struct Spoilt<'b> {
    place: u16,
    value: Value<'b>,
}

#[derive(Debug, Arbitrary)]
enum Value<'b> {
    /// A pointer to some object.
    Object(u16),
    /// A small number.
    Number(u16),
    /// Any bytes.
    Bytes(&'b [u8]),
}

struct Guest {
    ram: GuestRam,
    eyes: Eyes,
    /// The structures' first address, of the direct map, and how many words there are.
    first: u64,
    words: u64,
}

thread_local!(static GUEST: RefCell<Guest> = RefCell::new(guest()));

fn guest() -> Guest {
    let mut made = vm();
    let ram = GuestRam::new(RAM).expect("memory");
    ram.write(0, &made.image.bytes).expect("it fits");
    let (first, last) = (made.super_block, made.image.take(0));
    let file = ram.fd().try_clone_to_owned().expect("the same file");
    let mapped = Onlooker::new(ram.memory()).expect("what exists");
    let eyes = Eyes::on_mapped(file.into(), RAM, mapped).expect("a kernel");
    assert_eq!(eyes.look(), (2, 3));
    Guest { ram, eyes, first, words: (last - first) / 8 }
}

/// One input.
pub fn run(data: &[u8]) {
    let Ok(spoilt) = <[Option<Spoilt<'_>>; 6]>::arbitrary(&mut Unstructured::new(data)) else { return };
    GUEST.with_borrow_mut(|Guest { ram, eyes, first, words }| {
        let mut undo = Vec::new();
        for spoilt in spoilt.iter().flatten() {
            let place = |number: u16| *first + u64::from(number) % *words * 8;
            let at = physical(place(spoilt.place));
            let word = match spoilt.value {
                Value::Object(other) => place(other).to_le_bytes(),
                Value::Number(number) => u64::from(number).to_le_bytes(),
                Value::Bytes(_) => [0; 8],
            };
            let bytes = if let Value::Bytes(bytes) = spoilt.value { bytes } else { &word };
            let bytes = &bytes[..bytes.len().min(64)];
            undo.push((at, ram.read(at, bytes.len()).expect("memory")));
            ram.write(at, bytes).expect("memory");
        }
        let (devices, queues) = eyes.look();
        assert!(devices <= 4096 && queues <= devices * 2048, "{devices} devices, {queues} queues");
        for (at, bytes) in undo.iter().rev() {
            ram.write(*at, bytes).expect("memory");
        }
    });
}
