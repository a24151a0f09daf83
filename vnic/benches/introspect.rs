//! What it costs to look into a guest's kernel: to find it in 1 GiB, and to go from a page to its file's path.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use vnic::introspect::Introspection;
use vnic::introspect::testing::{Image, UPTODATE};
use vnic::memory::Onlooker;
use vnic::memory::testing::GuestRam;

const RAM: u64 = 1 << 30;
const PAGE: u64 = 0xa00;
/// More files than names are remembered.
const FILES: u64 = 4096;
/// More directories than are remembered.
const FOLDERS: u64 = 4096;

fn guest() -> GuestRam {
    let mut image = Image::new(32 << 20);
    let root = image.file_system("tmpfs", "none", None);
    let point = image.directory(root.root, "srv");
    let srv = image.file_system("ext4", "vda1", Some((root.mount, point)));
    let www = image.directory(srv.root, "www");
    let html = image.directory(www, "html");
    for number in 0..FILES {
        let file = image.file(&srv, html, &format!("file {number}.bin"), 100 + number);
        image.page(PAGE + number, UPTODATE, file.mapping, 2);
    }
    for number in 0..FOLDERS {
        let folder = image.directory(html, &format!("folder {number}"));
        let file = image.file(&srv, folder, "index.html", 10_000 + number);
        image.page(PAGE + FILES + 1 + number, UPTODATE, file.mapping, 0);
    }
    image.program("nginx", 812, 0x7f00_1234_5000, PAGE + FILES);
    let ram = GuestRam::new(RAM).expect("memory");
    // All of it exists.
    for at in (0..RAM).step_by(4096) {
        ram.write(at, &[7]).expect("memory");
    }
    ram.write(0, &image.bytes).expect("it fits");
    ram
}

fn introspect(c: &mut Criterion) {
    let ram = guest();
    let eyes = || Introspection::attach(Onlooker::new(ram.memory()).expect("what exists")).expect("a kernel");
    let mut group = c.benchmark_group("introspect");
    group.sample_size(10).bench_function("attach to 1 GiB", |b| b.iter(|| black_box(eyes())));
    let mut eyes = eyes();
    group.sample_size(100);
    group.bench_function("page of a file whose name is known", |b| b.iter(|| black_box(eyes.label(PAGE << 12))));
    let mut number = 0;
    group.bench_function("page of a file whose name is not", |b| {
        b.iter(|| {
            number = (number + 1) % FILES;
            black_box(eyes.label((PAGE + number) << 12))
        });
    });
    let mut number = 0;
    group.bench_function("page of a file whose directory is not known", |b| {
        b.iter(|| {
            number = (number + 1) % FOLDERS;
            black_box(eyes.label((PAGE + FILES + 1 + number) << 12))
        });
    });
    group.bench_function("page of a program", |b| b.iter(|| black_box(eyes.label((PAGE + FILES) << 12))));
    group.finish();
}

criterion_group!(benches, introspect);
criterion_main!(benches);
