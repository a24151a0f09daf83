//! Against a made kernel, whole and then with everything a guest can do to it.

use super::testing::{BTF, DIRECT, FileSystem, Image, NOTES, UPTODATE};
use super::*;

type Eyes = Introspection<Vec<u8>>;

/// A guest with a root file system, another at `/srv`, and a page of each kind.
struct Guest {
    image: Image,
    root: FileSystem,
    srv: FileSystem,
}

const FILE: u64 = 0xa00;
const OTHER: u64 = 0xa01;
const PROGRAM: u64 = 0xa10;
const SLAB: u64 = 0xa11;
const SOCKET: u64 = 0xa18;
const FREE: u64 = 0xa20;
const SPARE: u64 = 0xa40;

fn guest() -> Guest {
    let mut image = Image::new(16 << 20);
    let root = image.file_system("tmpfs", "none", None);
    let point = image.directory(root.root, "srv");
    let srv = image.file_system("ext4", "vda1", Some((root.mount, point)));
    let www = image.directory(srv.root, "www");
    let big = image.file(&srv, www, "big.bin", 12);
    let note = image.file(&root, root.root, "a note", 5);
    image.page(FILE, UPTODATE, big.mapping, 2);
    image.page(OTHER, UPTODATE, note.mapping, 0);
    image.program("nginx", 812, 0x7f00_1234_5000, PROGRAM);
    image.slab(SLAB, "kmalloc-1k");
    image.page(SOCKET, 0, 0, 0);
    image.block(SOCKET, 3);
    let free = image.typed(FREE, 0xf0, 0);
    image.set(free, "page", "private", 4);
    Guest { image, root, srv }
}

fn attach(image: &Image) -> Result<Eyes, AttachError> {
    Introspection::attach(image.bytes.clone())
}

fn label(image: &Image, page: u64) -> Label {
    attach(image).expect("a kernel").label(page << 12 | 0x123)
}

#[track_caller]
fn says(image: &Image, page: u64, words: &str) {
    assert_eq!(label(image, page).to_string(), words);
}

#[test]
fn every_kind_of_page_is_told() {
    let Guest { image, .. } = guest();
    says(&image, FILE, "/srv/www/big.bin page 2");
    says(&image, OTHER, "/a note page 0");
    says(&image, PROGRAM, "memory of nginx[812]");
    says(&image, SLAB, "slab kmalloc-1k");
    for page in [SOCKET, SOCKET + 7] {
        says(&image, page, "socket buffers");
    }
    for page in [FREE, FREE + 1, FREE + 15] {
        says(&image, page, "free");
    }
    let file = label(&image, FILE);
    assert_eq!((file.filesystem.as_deref(), file.device.as_deref()), (Some("ext4"), Some("vda1")));
    assert_eq!((file.inode, file.deleted, file.page), (Some(12), Some(false), Some(2)));
    assert_eq!(label(&image, PROGRAM).address, Some(0x7f00_1234_5000));
    assert_eq!(label(&image, 1 << 20).kind, Kind::Unknown);
}

#[test]
fn a_file_without_a_name_left_is_deleted() {
    let Guest { mut image, root, .. } = guest();
    let gone = image.file(&root, root.root, "gone", 9);
    image.set(gone.inode, "inode", "i_nlink", 0);
    image.page(SPARE, UPTODATE, gone.mapping, 1);
    says(&image, SPARE, "/gone (deleted) page 1");
    // Its entry is out of its directory, though another link may be left.
    let moved = image.file(&root, root.root, "moved", 10);
    image.put(moved.dentry + image.offset("dentry", "d_hash") + 8, 0);
    image.page(SPARE, UPTODATE, moved.mapping, 1);
    says(&image, SPARE, "/moved (deleted) page 1");
}

#[test]
fn a_page_that_is_filled_is_unsettled_and_one_cut_off_says_so() {
    let Guest { mut image, root, .. } = guest();
    let file = image.file(&root, root.root, "f", 9);
    image.page(SPARE, UPTODATE, file.mapping, 1);
    image.lock(SPARE, UPTODATE);
    assert_eq!(label(&image, SPARE).kind, Kind::Unsettled);
    image.page(SPARE, 1 << 4, file.mapping, 1);
    assert_eq!(label(&image, SPARE).kind, Kind::Unsettled);
    image.page(SPARE, UPTODATE, 0, 1);
    let cut = label(&image, SPARE);
    assert_eq!((cut.kind, cut.path), (Kind::File, None));
    assert!(cut.why.unwrap().starts_with("cut off its file"));
}

#[test]
fn a_page_that_no_page_table_leads_to_names_no_program() {
    let Guest { mut image, .. } = guest();
    let (tree, _) = image.program("cat", 4, 0x5000_0000, SPARE);
    image.page(SPARE + 1, UPTODATE, tree | 1, 0x5000_1000 >> 12);
    let label = label(&image, SPARE + 1);
    assert_eq!((label.kind, label.program), (Kind::Anonymous, None));
}

#[test]
fn a_name_is_remembered_until_something_of_it_changes() {
    let Guest { mut image, srv, .. } = guest();
    let mut eyes = attach(&image).unwrap();
    for _ in 0..3 {
        eyes.label(FILE << 12);
    }
    assert_eq!((eyes.statistics().named, eyes.statistics().remembered), (1, 2));
    // Renamed: its entry has another name, of the same length, and another directory above it has one, too.
    let www = image.directory(srv.root, "now");
    let file = image.file(&srv, www, "new.bin", 12);
    image.page(FILE, UPTODATE, file.mapping, 2);
    eyes.memory.clone_from(&image.bytes);
    assert_eq!(eyes.label(FILE << 12).path.as_deref(), Some("/srv/now/new.bin"));
    let name = image.take(16);
    image.put_bytes(name - DIRECT, b"xyz\0");
    image.put(www + image.offset("dentry", "d_name") + 8, name);
    eyes.memory.clone_from(&image.bytes);
    assert_eq!(eyes.label(FILE << 12).path.as_deref(), Some("/srv/xyz/new.bin"));
}

#[test]
fn a_directory_is_read_once_for_its_files_and_again_when_something_of_it_changes() {
    let Guest { mut image, root, srv } = guest();
    let www = image.directory(srv.root, "html");
    let pages: Vec<u64> = (SPARE..SPARE + 4).collect();
    for (number, page) in (20..).zip(&pages) {
        let file = image.file(&srv, www, &format!("{number}"), number);
        image.page(*page, UPTODATE, file.mapping, 0);
    }
    let mut eyes = attach(&image).unwrap();
    let look = |eyes: &mut Eyes, page: u64| {
        let before = eyes.statistics().steps;
        let path = eyes.label(page << 12).path;
        (path.unwrap().to_string(), eyes.statistics().steps - before)
    };
    let (first, second) = (look(&mut eyes, pages[0]), look(&mut eyes, pages[1]));
    assert_eq!((first.0.as_str(), second.0.as_str()), ("/srv/html/20", "/srv/html/21"));
    // What is read of the second is two looks at the page, by a walk through the page tables, and the file's own entry.
    assert!(second.1 <= 20 && first.1 >= second.1 + 20, "{first:?} {second:?}");
    // The mount is moved, and the directory above its mount point: the next file is where both are now.
    let above = image.directory(root.root, "mnt");
    let point = image.directory(above, "disk");
    image.set(srv.mount, "mount", "mnt_mountpoint", point);
    eyes.memory.clone_from(&image.bytes);
    assert_eq!(look(&mut eyes, pages[2]).0, "/mnt/disk/html/22");
    let name = image.text("media");
    image.put(above + image.offset("dentry", "d_name") + 8, name);
    image.put_bytes(above - DIRECT + image.offset("dentry", "d_name") + 4, &5_u32.to_le_bytes());
    eyes.memory.clone_from(&image.bytes);
    assert_eq!(look(&mut eyes, pages[3]).0, "/media/disk/html/23");
    // And those that were known are, too.
    assert_eq!(look(&mut eyes, pages[0]).0, "/media/disk/html/20");
}

#[test]
fn a_file_that_is_mounted_by_itself_has_its_mounts_name() {
    let Guest { mut image, root, srv } = guest();
    let file = image.file(&srv, srv.root, "inner", 30);
    image.page(SPARE, UPTODATE, file.mapping, 0);
    let mut eyes = attach(&image).unwrap();
    assert_eq!(eyes.label(SPARE << 12).path.as_deref(), Some("/srv/inner"));
    // The only mount of its file system begins at the file.
    let point = image.directory(root.root, "outer");
    image.set(srv.mount, "mount", "mnt_mountpoint", point);
    image.set(srv.mount, "mount", "mnt", file.dentry);
    eyes.memory.clone_from(&image.bytes);
    assert_eq!(eyes.label(SPARE << 12).path.as_deref(), Some("/outer"));
    // It is in no directory, and called so itself: a memfd.
    image.set(file.dentry, "dentry", "d_parent", file.dentry);
    image.set(srv.mount, "mount", "mnt", srv.root);
    eyes.memory.clone_from(&image.bytes);
    assert_eq!(eyes.label(SPARE << 12).path.as_deref(), Some("/inner"));
}

#[test]
fn circles_end_with_the_budget_and_are_unsettled() {
    let Guest { image, root, srv } = guest();
    let check = |spoil: &dyn Fn(&mut Image)| {
        let mut image = image.clone();
        spoil(&mut image);
        let mut eyes = attach(&image).expect("one file's inode still leads back");
        let label = eyes.label(SPARE << 12);
        assert_eq!(label.kind, Kind::Unsettled, "{label}");
        assert!((1..=MAX_STEPS).contains(&eyes.statistics().most_steps), "{:?}", eyes.statistics());
    };
    // A directory below itself.
    check(&|image| {
        let one = image.directory(root.root, "one");
        let two = image.directory(one, "two");
        image.set(one, "dentry", "d_parent", two);
        let file = image.file(&root, two, "f", 9);
        image.page(SPARE, UPTODATE, file.mapping, 0);
    });
    // A mount in itself.
    check(&|image| {
        let point = image.directory(srv.root, "deep");
        let deep = image.file_system("xfs", "vdb", Some((srv.mount, point)));
        image.set(srv.mount, "mount", "mnt_parent", deep.mount);
        let file = image.file(&deep, deep.root, "f", 9);
        image.page(SPARE, UPTODATE, file.mapping, 0);
    });
    // A tree of mappings that grows into its root.
    check(&|image| {
        let (_, node) = image.program("loop", 3, 0x6000_0000, SPARE);
        let at = image.page(SPARE, UPTODATE, 0, 77);
        let (tree, other) = image.program("loop", 3, 0x6100_0000, SPARE + 1);
        for side in ["rb_left", "rb_right"] {
            image.set(node, "rb_node", side, other);
            image.set(other, "rb_node", side, node);
        }
        image.set(at, "page", "mapping", tree | 1);
    });
}

#[test]
fn a_name_list_in_a_circle_ends() {
    let Guest { mut image, root, .. } = guest();
    let file = image.file(&root, root.root, "f", 9);
    let alias = file.dentry + image.offset("dentry", "d_alias");
    image.put(alias, alias);
    image.put(file.dentry + image.offset("dentry", "d_hash") + 8, 0);
    image.page(SPARE, UPTODATE, file.mapping, 0);
    says(&image, SPARE, "/f (deleted) page 0");
    // And one of mounts: the first of them is as good as any.
    let link = root.mount + image.offset("mount", "mnt_instance");
    image.put(link, link);
    says(&image, SPARE, "/f (deleted) page 0");
}

#[test]
fn memory_without_linux_is_a_sentence() {
    let mut state = 1_u64;
    let mut random: Vec<u8> = Vec::new();
    while random.len() < 8 << 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        random.extend((state >> 7).to_le_bytes());
    }
    for memory in [random, vec![0; 8 << 20], Vec::new()] {
        let error = Introspection::attach(memory).unwrap_err();
        assert_eq!(error.to_string(), "no Linux found in the guest's memory");
    }
}

#[test]
fn a_kernel_without_types_is_a_sentence() {
    let Guest { mut image, .. } = guest();
    image.put_bytes(BTF, &[0; 8]);
    assert_eq!(attach(&image).unwrap_err().to_string(), "Linux 6.12-test without BTF: files have no names");
}

#[test]
fn a_dead_kernel_is_refused() {
    let Guest { mut image, root, .. } = guest();
    // Everything is still there, but the memory of its inodes is somebody else's.
    for (page, number) in (SPARE..).zip(0..20) {
        let file = image.file(&root, root.root, "f", number);
        image.page(page, UPTODATE, file.mapping, 0);
        image.set(file.inode, "inode", "i_mapping", 0x1234_5678);
    }
    let error = attach(&image).unwrap_err();
    assert!(matches!(error, AttachError::Dead { bad: 20, .. }), "{error}");
    image.put_bytes(0x20_0000 + 511 * 8, &[0; 8]);
    assert!(matches!(attach(&image).unwrap_err(), AttachError::NoTables { .. }));
}

#[test]
fn flags_have_the_kernels_names() {
    let Guest { image, .. } = guest();
    let mut eyes = attach(&image).unwrap();
    assert_eq!(eyes.flags(FILE << 12), ["uptodate", "lru"]);
    assert_eq!(eyes.flags(u64::MAX), [""; 0]);
}

#[test]
fn a_kernel_that_is_gone_is_not_alive() {
    let Guest { image, .. } = guest();
    let mut eyes = attach(&image).unwrap();
    assert!(eyes.is_alive());
    // Not one page that looks like a file's.
    eyes.memory.fill(0);
    assert!(!eyes.is_alive());
}

#[test]
fn a_kernel_with_few_files_is_not_given_up_for_one_page_that_changes() {
    let Guest { mut image, root, .. } = guest();
    // Of those that a small sample has, every eighth here, only one is a file's, and it leads nowhere at the moment.
    for page in [FILE, OTHER] {
        image.page(page, 0, 0, 0);
    }
    let changing = image.file(&root, root.root, "changing", 6);
    image.page(SPARE, UPTODATE, changing.mapping, 0);
    for number in 0..60 {
        let file = image.file(&root, root.root, "still", 100 + number);
        image.page(SPARE + 2 * number + 1, UPTODATE, file.mapping, 0);
    }
    let mut eyes = attach(&image).unwrap();
    assert!(eyes.is_alive());
    image.set(changing.inode, "inode", "i_mapping", 0);
    eyes.memory.clone_from(&image.bytes);
    let (pages, bad) = eyes.kernel.sample(&eyes.memory, ALIVE_SAMPLE, &mut Work::default()).unwrap();
    assert!(attach::is_dead(pages, bad), "{bad} of {pages}: the small sample tells nothing");
    assert!(eyes.is_alive());
}

#[test]
fn a_kernel_that_is_dead_beside_one_that_runs_is_not_taken_for_it() {
    let Guest { mut image, .. } = guest();
    let notes: Vec<u8> = image.bytes[NOTES as usize..][..512].to_vec();
    let text =
        String::from_utf8_lossy(&notes).replace("6.12-test", "6.11-dead").replace("phys_base)=0", "phys_base)=65536");
    image.put_bytes(0xf0_0000, text.as_bytes());
    let eyes = attach(&image).unwrap();
    assert_eq!((eyes.release(), eyes.work().kernels), ("6.12-test", 2));
}

#[test]
fn memory_full_of_forged_notes_and_types_costs_a_bounded_number_of_steps() {
    let Guest { mut image, .. } = guest();
    let notes: Vec<u8> = image.bytes[NOTES as usize..][..512].to_vec();
    let header: Vec<u8> = image.bytes[BTF as usize..][..24].to_vec();
    image.put_bytes(NOTES, &[0; 512]);
    // Each begins as a kernel's types do, and none is.
    (0x10_0000..0x20_0000).step_by(24).for_each(|at| image.put_bytes(at, &header));
    image.put_bytes(BTF, &[0; 24]);
    for (number, page) in (0xb0_0000..0xff_0000).step_by(4096).enumerate() {
        let text = String::from_utf8_lossy(&notes).replace("6.12-test", &format!("6.12-{number}"));
        image.put_bytes(page, text.as_bytes());
    }
    let (found, mut work) = (vmcoreinfo::find(&image.bytes).unwrap(), Work::default());
    let error = Introspection::attach_by(&image.bytes, &found, &mut work).unwrap_err();
    assert!(matches!(error, AttachError::Btf { .. }), "{error}");
    assert_eq!((work.pages, work.kernels), (4096, vmcoreinfo::MAX_TEXTS as u64));
    assert!(work.bytes <= attach::MAX_BYTES + (btf::MAX_BYTES as u64), "{work:?}");
}

#[test]
fn no_word_of_memory_can_do_more_than_be_wrong() {
    let Guest { mut image, .. } = guest();
    let mut state = 7_u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut eyes = attach(&image).unwrap();
    // The words of the page structures and of the objects that say something.
    let objects = (image.take(0) - DIRECT - 0x90_0000) / 8;
    let ranges = [0x42_8000..0x42_9040, 0x90_0000..0x90_0000 + objects * 8];
    let says = |at: &u64| image.bytes[*at as usize..][..8] != [0; 8];
    let words: Vec<u64> = ranges.into_iter().flat_map(|range| range.step_by(8)).filter(says).collect();
    for _ in 0..3000 {
        let mut undo = Vec::new();
        for _ in 0..1 + random(3) {
            // Made a pointer to some other of the objects, or nonsense.
            let at = words[random(words.len() as u64) as usize];
            let value = match random(4) {
                0 => DIRECT + 0x90_0000 + random(objects) * 8,
                1 => u64::MAX - random(4096),
                2 => random(256),
                _ => random(u64::MAX) << random(40),
            };
            let place = &mut eyes.memory[at as usize..][..8];
            undo.push((at, <[u8; 8]>::try_from(&*place).unwrap()));
            place.copy_from_slice(&value.to_le_bytes());
        }
        for page in [FILE, OTHER, PROGRAM, SLAB, SOCKET, SOCKET + 7, FREE, FREE + 15] {
            eyes.label(page << 12);
        }
        for (at, old) in undo.into_iter().rev() {
            eyes.memory[at as usize..][..8].copy_from_slice(&old);
        }
    }
    assert!(eyes.statistics().most_steps <= MAX_STEPS, "{:?}", eyes.statistics());
    assert!(eyes.statistics().unsettled > 100, "nothing was spoilt: {:?}", eyes.statistics());
}

/// What is said of a page that was sent as `before` has it, once memory is as `after`.
fn sent(before: &Image, after: &Image, page: u64) -> Label {
    let mut eyes = attach(before).unwrap();
    let stamp = eyes.stamper().stamp(page << 12, 4096);
    assert_ne!(stamp, 0);
    eyes.memory.clone_from(&after.bytes);
    let mut labels = Vec::new();
    eyes.labels_of(page << 12, 4096, stamp, &mut labels);
    assert_eq!(labels.len(), 1);
    labels.remove(0)
}

#[test]
fn what_was_sent_is_told_by_what_its_page_was_then() {
    let Guest { image, root, .. } = guest();
    for (page, words) in
        [(FILE, "/srv/www/big.bin page 2"), (PROGRAM, "memory of nginx[812]"), (SLAB, "slab kmalloc-1k")]
    {
        assert_eq!(sent(&image, &image, page).to_string(), words);
    }
    // The next owner has the page by now, whoever it is: of the one before, the kind is left.
    let mut after = image.clone();
    let note = after.file(&root, root.root, "another", 6);
    for page in [FILE, PROGRAM, SLAB, SOCKET] {
        after.page(page, UPTODATE, note.mapping, 0);
    }
    for (page, kind) in [(FILE, Kind::File), (PROGRAM, Kind::Anonymous), (SLAB, Kind::Slab), (SOCKET, Kind::Socket)] {
        let label = sent(&image, &after, page);
        assert_eq!((label.kind, &label.path, &label.program, &label.cache), (kind, &None, &None, &None), "{label:?}");
        assert_eq!(label.why.as_deref(), Some("it has changed hands since it was sent"));
    }
    // The same file, but another page of it.
    let mut after = image.clone();
    after.set(DIRECT + 0x40_0000 + FILE * 64, "page", "index", 3);
    assert_eq!(sent(&image, &after, FILE).page, None);
    // A lock for a moment, on its way to the disk, changes nothing.
    let mut after = image.clone();
    after.lock(FILE, UPTODATE);
    assert_eq!(sent(&image, &after, FILE).kind, Kind::File);
}

#[test]
fn a_buffer_over_several_pages_has_a_label_for_each_and_one_kind_if_they_agree() {
    let Guest { image, .. } = guest();
    let mut eyes = attach(&image).unwrap();
    let stamper = eyes.stamper();
    let mut labels = Vec::new();
    eyes.labels_of(FILE << 12 | 0x800, 4096, stamper.stamp(FILE << 12 | 0x800, 4096), &mut labels);
    assert_eq!(labels.iter().map(Label::to_string).collect::<Vec<_>>(), ["/srv/www/big.bin page 2", "/a note page 0"]);
    let kind_of = |eyes: &mut Eyes, stamp| {
        let mut labels = Vec::new();
        eyes.labels_of(FILE << 12, 4096, stamp, &mut labels);
        labels[0].kind
    };
    assert_eq!(kind_of(&mut eyes, stamper.stamp(FILE << 12, 8192)), Kind::File);
    assert_eq!(kind_of(&mut eyes, stamper.stamp(PROGRAM << 12, 8192)), Kind::Unsettled);
    assert_eq!(kind_of(&mut eyes, 0), Kind::Unsettled);
    for (gpa, len) in [(u64::MAX, 1), (u64::MAX - 1, 8), (0, 0), (FILE << 12, u32::MAX)] {
        assert_eq!(stamper.stamp(gpa, len), 0, "{gpa:#x}+{len}");
    }
}
