//! The device half of a ring against `virtio-queue` on the same rings: look at every buffer of every chain, return, publish.
//!
//! A burst of 32 chains is made available by moving the index alone, as the ring's content repeats, so that what is
//! measured is the device. Times are per burst; the throughput column is chains. Packed rings have no such oracle: there the
//! driver half's work is in the figure.

use std::fs::File;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vnic::memory::Gpa;
use vnic::memory::testing::GuestRam;
use vnic::ring::{
    Buffer, ChainView, Device, DeviceRing, Disposition, DriverRing, PackedDriver, Placement, RingLayout, Segments,
    SingleBufferBatch, Visitor,
};
use vnic::spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT};
use vnic::spec::{Feature, Features};

const SIZE: u16 = 1024;
const BURST: u16 = 32;
const TABLES: u64 = 0x10_0000;
const BUFFERS: u64 = 0x20_0000;

/// Guest memory as a PC with 4 GiB has it: below 640 KiB, up to 3 GiB, above 4 GiB. Only touched pages cost.
fn guest_ram() -> GuestRam {
    let regions = [(Gpa(0), 0xa_0000), (Gpa(0xc_0000), 0xbff4_0000), (Gpa(1 << 32), 1 << 30)];
    GuestRam::with_regions(&regions).expect("guest memory")
}

fn write_descriptor(ram: &GuestRam, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
    let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
    ram.write(at, &[addr.to_le_bytes(), rest.to_le_bytes()].concat()).expect("descriptor");
}

/// Fills a split ring whose every available entry is a good chain of `descriptors`.
fn split_ring(ram: &GuestRam, descriptors: u16, indirect: bool) -> RingLayout {
    let (layout, _) = RingLayout::split_at(0xc_0000, SIZE).expect("layout");
    let per_chain = if indirect { 1 } else { descriptors };
    let heads = 1 << (SIZE / per_chain).ilog2();
    for n in 0..heads {
        let head = n * per_chain;
        let (table, first) = if indirect {
            let table = TABLES + 16 * u64::from(n) * u64::from(descriptors);
            let len = 16 * u32::from(descriptors);
            write_descriptor(ram, layout.desc + 16 * u64::from(head), table, len, DESC_F_INDIRECT, 0);
            (table, 0)
        } else {
            (layout.desc, head)
        };
        for at in 0..descriptors {
            let index = first + at;
            let (flags, next) = if at + 1 < descriptors { (DESC_F_NEXT, index + 1) } else { (0, 0) };
            let addr = BUFFERS + 0x800 * u64::from(head + at);
            write_descriptor(ram, table + 16 * u64::from(index), addr, 1514, flags, next);
        }
    }
    for slot in 0..SIZE {
        let head = slot % heads * per_chain;
        ram.write(layout.avail + 4 + 2 * u64::from(slot), &head.to_le_bytes()).expect("available ring");
    }
    layout
}

/// Looks at every buffer, as a link does.
struct Look(u16);

impl Visitor for Look {
    const READS: bool = false;

    fn takes_batches(&self) -> bool {
        true
    }

    #[inline(always)]
    fn visit_batch(&mut self, batch: SingleBufferBatch<'_>) -> usize {
        let mut count = 0;
        for chain in batch.views() {
            for slice in chain.readable() {
                black_box((slice.as_ptr(), slice.len()));
            }
            count += 1;
        }
        self.0 += count;
        usize::from(count)
    }

    #[inline(always)]
    fn visit(&mut self, chain: ChainView<'_>) -> Disposition {
        for slice in chain.readable() {
            black_box((slice.as_ptr(), slice.len()));
        }
        self.0 += 1;
        Disposition::Return
    }
}

fn ours(c: &mut Criterion) {
    let mut group = c.benchmark_group("split");
    group.throughput(Throughput::Elements(u64::from(BURST)));
    for (descriptors, indirect) in cases() {
        let features = Features::of(&[Feature::IndirectDesc, Feature::EventIdx]);
        let ram = guest_ram();
        let layout = split_ring(&ram, descriptors, indirect);
        let memory = Arc::clone(ram.memory());
        let mut device = Device::new(layout, Arc::clone(&memory), features, 0).expect("device");
        let mut segments = Segments::new(Arc::clone(&memory), 1024);
        let mut idx = 0_u16;
        group.bench_function(BenchmarkId::new("vnic", name(descriptors, indirect)), |b| {
            b.iter(|| {
                idx = idx.wrapping_add(BURST);
                memory.write(layout.avail + 2, &idx.to_le_bytes()).expect("index");
                let mut look = Look(0);
                device.drain(&mut segments, BURST, &mut look).expect("good chains");
                assert_eq!(look.0, BURST);
                device.publish().unwrap()
            });
        });
        group.bench_function(BenchmarkId::new("vnic, popped", name(descriptors, indirect)), |b| {
            b.iter(|| {
                idx = idx.wrapping_add(BURST);
                memory.write(layout.avail + 2, &idx.to_le_bytes()).expect("index");
                segments.clear();
                let mut chains = 0;
                while let Some(chain) = device.pop(&mut segments).expect("a good chain") {
                    for slice in segments.view(chain).readable() {
                        black_box((slice.as_ptr(), slice.len()));
                    }
                    device.push_used(&chain, 0).expect("in flight");
                    chains += 1;
                }
                assert_eq!(chains, BURST);
                device.publish().unwrap()
            });
        });
    }
    group.finish();
}

fn theirs(c: &mut Criterion) {
    let mut group = c.benchmark_group("split");
    group.throughput(Throughput::Elements(u64::from(BURST)));
    for (descriptors, indirect) in cases() {
        let ram = guest_ram();
        let layout = split_ring(&ram, descriptors, indirect);
        let regions = ram.specs().iter().map(|spec| {
            let file = File::from(ram.fd().try_clone_to_owned().expect("fd"));
            (GuestAddress(spec.gpa.0), spec.size as usize, Some(FileOffset::new(file, spec.mmap_offset)))
        });
        let memory: GuestMemoryMmap<()> =
            GuestMemoryMmap::from_ranges_with_files(regions.collect::<Vec<_>>()).expect("mapping");
        let mut queue = Queue::new(32768).expect("queue");
        queue.set_size(SIZE);
        queue.set_desc_table_address(Some(layout.desc as u32), Some(0));
        queue.set_avail_ring_address(Some(layout.avail as u32), Some(0));
        queue.set_used_ring_address(Some(layout.used as u32), Some(0));
        queue.set_event_idx(true);
        queue.set_ready(true);
        let mut idx = 0_u16;
        let mut heads = Vec::with_capacity(usize::from(BURST));
        group.bench_function(BenchmarkId::new("virtio-queue", name(descriptors, indirect)), |b| {
            b.iter(|| {
                idx = idx.wrapping_add(BURST);
                memory.write_obj(idx, GuestAddress(layout.avail).unchecked_add(2)).expect("index");
                heads.clear();
                for chain in queue.iter(&memory).expect("chains") {
                    heads.push(chain.head_index());
                    for descriptor in chain {
                        let slice = memory.get_slice(descriptor.addr(), descriptor.len() as usize).expect("mapped");
                        black_box((slice.ptr_guard().as_ptr(), slice.len()));
                    }
                }
                for head in &heads {
                    queue.add_used(&memory, *head, 0).expect("used");
                }
                assert_eq!(heads.len(), usize::from(BURST));
                queue.needs_notification(&memory).expect("event")
            });
        });
    }
    group.finish();
}

/// A packed ring whose chains are written anew for every burst, as used descriptors stand over them: the driver half
/// does that, so its time is in these figures.
fn packed(c: &mut Criterion) {
    let mut group = c.benchmark_group("packed, with its driver");
    group.throughput(Throughput::Elements(u64::from(BURST)));
    for (descriptors, indirect) in cases() {
        let features = Features::of(&[Feature::IndirectDesc, Feature::EventIdx, Feature::RingPacked]);
        let ram = guest_ram();
        let (layout, _) = RingLayout::packed_at(0xc_0000, SIZE).expect("layout");
        let memory = Arc::clone(ram.memory());
        let mut driver = PackedDriver::new(layout, Arc::clone(&memory), features).expect("driver");
        let mut device = Device::new(layout, Arc::clone(&memory), features, 0x8000).expect("device");
        let mut segments = Segments::new(Arc::clone(&memory), 1024);
        let buffers: Vec<Buffer> =
            (0..u64::from(descriptors)).map(|n| Buffer::readable(BUFFERS + 0x800 * n, 1514)).collect();
        group.bench_function(BenchmarkId::new("vnic", name(descriptors, indirect)), |b| {
            b.iter(|| {
                for n in 0..BURST {
                    let table = TABLES + 0x200 * u64::from(n);
                    let placement = if indirect { Placement::Indirect(table) } else { Placement::Direct };
                    driver.add(&buffers, placement).expect("room");
                }
                driver.publish();
                segments.clear();
                while let Some(chain) = device.pop(&mut segments).expect("a good chain") {
                    for slice in segments.view(chain).readable() {
                        black_box((slice.as_ptr(), slice.len()));
                    }
                    device.push_used(&chain, 0).expect("in flight");
                }
                device.publish().unwrap();
                let mut back = 0;
                while driver.pop_used().expect("a good device").is_some() {
                    back += 1;
                }
                assert_eq!(back, BURST);
            });
        });
    }
    group.finish();
}

fn cases() -> impl Iterator<Item = (u16, bool)> {
    [1, 2, 4, 17].into_iter().flat_map(|descriptors| [(descriptors, false), (descriptors, true)])
}

fn name(descriptors: u16, indirect: bool) -> String {
    format!("{descriptors} {}", if indirect { "indirect" } else { "direct" })
}

criterion_group!(benches, ours, theirs, packed);
criterion_main!(benches);
