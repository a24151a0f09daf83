//! A guest's memory with a kernel in it, some of whose notes, types and structures say something else.
//!
//! What must hold: no panic, and no look-up takes more steps than its budget.

use std::cell::RefCell;

use arbitrary::{Arbitrary, Unstructured};
use vnic::introspect::testing::{BTF, DIRECT, Image, NOTES, UPTODATE};
use vnic::introspect::{Introspection, MAX_STEPS};
use vnic::memory::Onlooker;
use vnic::memory::testing::GuestRam;

const RAM: u64 = 16 << 20;
/// Pages in use, and their page structures.
const PAGES: [u64; 4] = [0xa00, 0xa01, 0xa10, 0xa18];
const STRUCTURES: u64 = 0x40_0000 + 0xa00 * 64;
const OBJECTS: u64 = 0x90_0000;
/// The kernel is looked for anew in one of so many runs that ask for it: that takes a hundred times as long as all the look-ups.
const LOOKED_FOR: u32 = 256;

/// Bytes of a structure that are others than the kernel's.
#[derive(Debug, Arbitrary)]
struct Spoilt<'b> {
    place: u16,
    value: Value<'b>,
}

#[derive(Debug, Arbitrary)]
enum Value<'b> {
    /// A pointer to some object.
    Object(u16),
    /// Any bytes.
    Bytes(&'b [u8]),
}

/// What is spoilt.
#[derive(Debug, Arbitrary)]
struct Input<'b> {
    /// Before the kernel is looked for: that takes longer, and is rarely asked for.
    notes: Option<&'b [u8]>,
    types: Option<(u32, &'b [u8])>,
    pages: [Option<Spoilt<'b>>; 2],
    objects: [Option<Spoilt<'b>>; 4],
}

struct Guest {
    ram: GuestRam,
    eyes: Introspection<Onlooker>,
    objects: u64,
    /// How often the kernel's notes or types were spoilt. The first time counts, so that a finding alone is the same again.
    spoilt: u32,
}

thread_local!(static GUEST: RefCell<Guest> = RefCell::new(guest()));

fn guest() -> Guest {
    let mut image = Image::new(RAM as usize);
    let root = image.file_system("tmpfs", "none", None);
    let point = image.directory(root.root, "srv");
    let srv = image.file_system("ext4", "vda1", Some((root.mount, point)));
    let www = image.directory(srv.root, "www");
    let big = image.file(&srv, www, "big.bin", 12);
    let [file, slab, program, socket] = PAGES;
    image.page(file, UPTODATE, big.mapping, 2);
    image.slab(slab, "kmalloc-1k");
    image.program("nginx", 812, 0x7f00_1234_5000, program);
    image.page(socket, 0, 0, 0);
    image.block(socket, 3);
    let ram = GuestRam::new(RAM).expect("memory");
    ram.write(0, &image.bytes).expect("it fits");
    let objects = (image.take(0) - DIRECT - OBJECTS) / 8;
    let eyes = attach(&ram).expect("a kernel");
    Guest { ram, eyes, objects, spoilt: 0 }
}

fn attach(ram: &GuestRam) -> Option<Introspection<Onlooker>> {
    Introspection::attach(Onlooker::new(ram.memory()).expect("what exists")).ok()
}

/// One input.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(data)) else { return };
    GUEST.with_borrow_mut(|Guest { ram, eyes, objects, spoilt }| {
        let mut undo = Vec::new();
        let mut put = |at: u64, bytes: &[u8]| {
            let bytes = &bytes[..bytes.len().min((RAM - at) as usize)];
            undo.push((at, ram.read(at, bytes.len()).expect("memory")));
            ram.write(at, bytes).expect("memory");
        };
        let places = input.pages.iter().flatten().map(|one| (STRUCTURES, 0x41 * 8, one));
        for (from, words, one) in places.chain(input.objects.iter().flatten().map(|one| (OBJECTS, *objects, one))) {
            let at = from + u64::from(one.place) % words * 8;
            match one.value {
                Value::Object(other) => put(at, &(DIRECT + OBJECTS + u64::from(other) % *objects * 8).to_le_bytes()),
                Value::Bytes(bytes) => put(at, bytes),
            }
        }
        if let Some(notes) = input.notes {
            put(NOTES + 10, notes);
        }
        if let Some((at, types)) = input.types {
            // Where the types are that somebody asks for.
            put(BTF + u64::from(at) % 8192, types);
        }
        look(eyes);
        if input.notes.is_some() || input.types.is_some() {
            if spoilt.is_multiple_of(LOOKED_FOR) {
                attach(ram).iter_mut().for_each(look);
            }
            *spoilt = spoilt.wrapping_add(1);
        }
        for (at, bytes) in undo.iter().rev() {
            ram.write(*at, bytes).expect("memory");
        }
    });
}

fn look(eyes: &mut Introspection<Onlooker>) {
    for page in PAGES.into_iter().flat_map(|page| [page, page + 7]) {
        eyes.label(page << 12);
    }
    let most = eyes.statistics().most_steps;
    assert!(most <= MAX_STEPS, "{most} steps in one look-up");
}
