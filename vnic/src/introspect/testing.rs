//! A guest's memory without a guest: a kernel of a few structures, with a few files, programs and pages, for tests, fuzzing
//! and benchmarks. Nothing else uses it.
//!
//! Its structures are laid out in an order of their own: what finds anything in it goes by its BTF.

use std::collections::HashMap;

use super::btf::MAGIC;
use super::space::IMAGE;

/// Virtual address of the direct map.
pub const DIRECT: u64 = 0xffff_8880_0000_0000;
/// Virtual address of the page structures.
pub const VMEMMAP: u64 = 0xffff_ea00_0000_0000;
/// Where the notes are, physical.
pub const NOTES: u64 = 0x30_0000;
/// Where the BTF is, physical.
pub const BTF: u64 = 0x60_0000;
const CODE: u64 = 0x10_0000;
const ROOT: u64 = 0x20_0000;
const PAGES: u64 = 0x40_0000;
const OBJECTS: u64 = 0x90_0000;
const PAGE_STRUCT: u64 = 64;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;

const LOCKED: u64 = 1;
/// Flags of a page that holds a file's content: `PG_uptodate | PG_lru`.
pub const UPTODATE: u64 = 1 << 2 | 1 << 4;

/// Names, each with an offset or a value.
type Members = &'static [(&'static str, u32)];

/// Structures: name, size, members with their offsets; a member of a structure's own type is `name:type`.
const STRUCTURES: &[(&str, u32, Members)] = &[
    ("rb_node", 24, &[("parent", 0), ("rb_right", 8), ("rb_left", 16)]),
    ("rb_root", 8, &[("rb_node", 0)]),
    ("rb_root_cached", 16, &[("rb_root:rb_root", 0)]),
    ("hlist_head", 8, &[("first", 0)]),
    ("hlist_bl_node", 16, &[("next", 0), ("pprev", 8)]),
    ("qstr", 16, &[("hash", 0), ("len", 4), ("name", 8)]),
    ("ns_common", 24, &[("stashed", 0), ("inum", 16)]),
    ("vfsmount", 32, &[("mnt_root", 0), ("mnt_sb", 8)]),
    (
        "page",
        PAGE_STRUCT as u32,
        &[
            ("flags", 0),
            ("compound_head", 8),
            ("mapping", 24),
            ("index", 32),
            ("private", 40),
            ("page_type", 48),
            ("_refcount", 52),
        ],
    ),
    ("folio", 128, &[("flags", 0), ("_flags_1", 64)]),
    ("slab", 64, &[("slab_cache", 8)]),
    ("kmem_cache", 64, &[("name", 16)]),
    ("address_space", 64, &[("host", 0)]),
    ("inode", 128, &[("i_mapping", 16), ("i_sb", 24), ("i_ino", 40), ("i_nlink", 52), ("i_dentry:hlist_head", 64)]),
    (
        "dentry",
        128,
        &[("d_hash:hlist_bl_node", 8), ("d_parent", 24), ("d_name:qstr", 32), ("d_inode", 48), ("d_alias", 112)],
    ),
    ("super_block", 128, &[("s_list", 0), ("s_type", 40), ("s_id", 64), ("s_mounts", 96), ("s_fs_info", 112)]),
    ("file_system_type", 32, &[("name", 0)]),
    (
        "mount",
        160,
        &[
            ("mnt_parent", 16),
            ("mnt_mountpoint", 24),
            ("mnt:vfsmount", 32),
            ("mnt_instance", 64),
            ("mnt_ns", 96),
            ("mnt_id", 108),
        ],
    ),
    ("mnt_namespace", 64, &[("ns:ns_common", 8)]),
    ("anon_vma", 64, &[("rb_root:rb_root_cached", 32)]),
    ("anon_vma_chain", 64, &[("vma", 0), ("rb:rb_node", 32)]),
    ("vm_area_struct", 64, &[("vm_start", 0), ("vm_end", 8), ("vm_mm", 16), ("vm_pgoff", 40)]),
    ("mm_struct", 64, &[("pgd", 24), ("owner", 40)]),
    ("task_struct", 128, &[("mm", 32), ("tgid", 60), ("comm", 72)]),
    ("kernfs_elem_dir", 16, &[("children:rb_root", 0)]),
    ("kernfs_elem_symlink", 8, &[("target_kn", 0)]),
    (
        "kernfs_node",
        128,
        &[
            ("name", 8),
            ("rb:rb_node", 16),
            ("dir:kernfs_elem_dir", 40),
            ("symlink:kernfs_elem_symlink", 56),
            ("priv", 64),
        ],
    ),
    ("kernfs_root", 16, &[("kn", 0)]),
    ("kernfs_super_info", 32, &[("root", 8)]),
    ("bin_attribute", 64, &[("private", 16), ("size", 24)]),
    ("btf", 32, &[("data", 0)]),
    ("kobject", 64, &[("name", 0)]),
    ("device_driver", 32, &[("name", 0)]),
    ("device", 128, &[("kobj:kobject", 0), ("parent", 64), ("driver", 72)]),
    ("virtio_device_id", 8, &[("device", 0), ("vendor", 4)]),
    ("virtio_device", 256, &[("dev:device", 16), ("id:virtio_device_id", 144), ("vqs", 160), ("features", 176)]),
    ("virtqueue", 80, &[("list", 0), ("name", 24), ("vdev", 32), ("index", 40), ("num_free", 44)]),
    ("vring", 32, &[("num", 0), ("desc", 8), ("avail", 16), ("used", 24)]),
    ("vring_packed", 32, &[("num", 0), ("desc", 8), ("driver", 16), ("device", 24)]),
    ("vring_virtqueue_split", 48, &[("vring:vring", 0), ("avail_idx_shadow", 40)]),
    (
        "vring_virtqueue_packed",
        80,
        &[("vring:vring_packed", 0), ("desc_state", 40), ("next_avail_idx", 48), ("avail_wrap_counter", 50)],
    ),
    (
        "vring_virtqueue",
        256,
        &[
            ("vq:virtqueue", 0),
            ("packed_ring", 80),
            ("broken", 82),
            ("num_added", 84),
            ("last_used_idx", 88),
            ("split:vring_virtqueue_split", 96),
            ("packed:vring_virtqueue_packed", 144),
        ],
    ),
    ("vring_desc_state_packed", 24, &[("data", 0), ("num", 16)]),
];

/// Enumerations: name, members with their values.
const ENUMERATIONS: &[(&str, Members)] = &[
    ("pageflags", &[("PG_locked", 0), ("PG_uptodate", 2), ("PG_lru", 4), ("PG_head", 6), ("PG_reserved", 14)]),
    ("pagetype", &[("PGTY_buddy", 0xf0), ("PGTY_table", 0xf2), ("PGTY_slab", 0xf5)]),
];

/// The memory, which begins at guest-physical address 0.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its bytes.
    pub bytes: Vec<u8>,
    next: u64,
    offsets: HashMap<(&'static str, &'static str), u64>,
}

/// A file system with a root directory.
#[derive(Debug, Clone, Copy)]
pub struct FileSystem {
    /// Its `super_block`.
    pub sb: u64,
    /// Its root's `dentry`.
    pub root: u64,
    /// Its `mount`.
    pub mount: u64,
}

/// A file.
#[derive(Debug, Clone, Copy)]
pub struct File {
    /// Its `inode`.
    pub inode: u64,
    /// Its `dentry`.
    pub dentry: u64,
    /// Its `address_space`.
    pub mapping: u64,
}

impl Image {
    /// A kernel in `size` bytes (16 MiB at least), with page tables, notes and types, and no page in use.
    #[must_use]
    pub fn new(size: usize) -> Self {
        let mut image = Image { bytes: vec![0; size.max(16 << 20)], next: OBJECTS, offsets: HashMap::new() };
        for (name, _, members) in STRUCTURES {
            for (member, offset) in *members {
                let member = member.split(':').next().unwrap_or_default();
                image.offsets.insert((name, member), u64::from(*offset));
            }
        }
        let all = image.bytes.len() as u64 >> 21;
        for (va, at, large) in [(IMAGE, 0, all), (DIRECT, 0, all), (VMEMMAP, PAGES, 1)] {
            (0..large.min(512)).for_each(|page| image.map(ROOT, va + (page << 21), (at + (page << 21)) | LARGE, 2));
        }
        let sections = image.take(16);
        image.put(sections, sections + 8);
        image.put(sections + 8, VMEMMAP | 3);
        let notes = format!(
            "OSRELEASE=6.12-test\nSYMBOL(swapper_pg_dir)={:x}\nSYMBOL(_stext)={:x}\nSYMBOL(mem_section)={sections:x}\n\
             NUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=0\nOFFSET(page.mapping)=24\n",
            IMAGE + ROOT,
            IMAGE + CODE
        );
        image.put_bytes(NOTES, notes.as_bytes());
        image.put_bytes(BTF, &types());
        image
    }

    /// Writes bytes at a physical address.
    pub fn put_bytes(&mut self, at: u64, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at as usize..at as usize + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// Writes eight bytes at an address of the direct map.
    pub fn put(&mut self, va: u64, value: u64) {
        self.put_bytes(va.wrapping_sub(DIRECT), &value.to_le_bytes());
    }

    /// Writes a member of a structure: eight bytes, or four where the kernel has them.
    pub fn set(&mut self, va: u64, structure: &'static str, member: &'static str, value: u64) {
        let at = va.wrapping_add(self.offset(structure, member));
        if matches!(member, "len" | "inum" | "page_type" | "_refcount" | "i_nlink" | "mnt_id" | "tgid") {
            self.put_bytes(at.wrapping_sub(DIRECT), &(value as u32).to_le_bytes());
        } else {
            self.put(at, value);
        }
    }

    /// Where a member is in a structure.
    #[must_use]
    pub fn offset(&self, structure: &'static str, member: &'static str) -> u64 {
        self.offsets.get(&(structure, member)).copied().unwrap_or_default()
    }

    /// Room for an object: its address in the direct map.
    pub fn take(&mut self, bytes: u64) -> u64 {
        let at = self.next;
        self.next += bytes.next_multiple_of(16);
        DIRECT + at
    }

    /// Room for a structure.
    pub fn object(&mut self, structure: &'static str) -> u64 {
        let size = STRUCTURES.iter().find(|(name, ..)| *name == structure).map_or(0, |(_, size, _)| *size);
        self.take(size.into())
    }

    /// A string, with its 0.
    pub fn text(&mut self, text: &str) -> u64 {
        let at = self.take(text.len() as u64 + 1);
        self.put_bytes(at - DIRECT, text.as_bytes());
        at
    }

    /// Has page tables lead from `va` to an entry at this level (0: a page of 4 KiB).
    fn map(&mut self, root: u64, va: u64, entry: u64, last: u32) {
        let mut table = root;
        for level in (0..4).rev() {
            let slot = table + (va >> (12 + 9 * level) & 0x1ff) * 8;
            if level == last - u32::from(last == 2) {
                self.put_bytes(slot, &(entry | PRESENT).to_le_bytes());
                return;
            }
            let at = slot as usize;
            let old = self.bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes);
            table = old & !0xfff;
            if old == 0 {
                self.next = self.next.next_multiple_of(4096);
                table = self.take(4096) - DIRECT;
                self.put_bytes(slot, &(table | PRESENT).to_le_bytes());
            }
        }
    }

    /// What a page's structure says: flags, `mapping`, `index`. It is in use, and has no type.
    pub fn page(&mut self, number: u64, flags: u64, mapping: u64, index: u64) -> u64 {
        let at = DIRECT + PAGES + number * PAGE_STRUCT;
        self.set(at, "page", "flags", flags);
        self.set(at, "page", "mapping", mapping);
        self.set(at, "page", "index", index);
        self.set(at, "page", "page_type", u64::from(u32::MAX));
        self.set(at, "page", "_refcount", 1);
        at
    }

    fn dentry(&mut self, parent: Option<u64>, name: &str, inode: u64) -> u64 {
        let at = self.object("dentry");
        let name_at = self.text(name);
        self.set(at, "dentry", "d_parent", parent.unwrap_or(at));
        self.put(at + self.offset("dentry", "d_name") + self.offset("qstr", "name"), name_at);
        self.put_bytes(at - DIRECT + self.offset("dentry", "d_name") + 4, &(name.len() as u32).to_le_bytes());
        self.set(at, "dentry", "d_inode", inode);
        // In its directory's hash.
        self.put(at + self.offset("dentry", "d_hash") + 8, at);
        at
    }

    /// A directory.
    pub fn directory(&mut self, parent: u64, name: &str) -> u64 {
        self.dentry(Some(parent), name, 0)
    }

    /// A file system, mounted at `place` (a mount and a directory in it), or as the root.
    pub fn file_system(&mut self, kind: &str, device: &str, place: Option<(u64, u64)>) -> FileSystem {
        let (sb, type_at, mount) = (self.object("super_block"), self.object("file_system_type"), self.object("mount"));
        let (namespace, name) = (self.object("mnt_namespace"), self.text(kind));
        self.put(type_at, name);
        self.set(sb, "super_block", "s_type", type_at);
        self.put_bytes(sb - DIRECT + self.offset("super_block", "s_id"), device.as_bytes());
        let root = self.dentry(None, "/", 0);
        let (list, link) = (sb + self.offset("super_block", "s_mounts"), mount + self.offset("mount", "mnt_instance"));
        self.put(list, link);
        self.put(link, list);
        let (above, point) = place.unwrap_or((mount, root));
        self.set(mount, "mount", "mnt_parent", above);
        self.set(mount, "mount", "mnt_mountpoint", point);
        self.set(mount, "mount", "mnt", root);
        self.put(mount + self.offset("mount", "mnt") + 8, sb);
        self.set(mount, "mount", "mnt_ns", namespace);
        self.set(mount, "mount", "mnt_id", 21);
        self.put_bytes(namespace - DIRECT + 8 + 16, &7_u32.to_le_bytes());
        FileSystem { sb, root, mount }
    }

    /// A file in a directory.
    pub fn file(&mut self, on: &FileSystem, parent: u64, name: &str, number: u64) -> File {
        let (inode, mapping) = (self.object("inode"), self.object("address_space"));
        let dentry = self.dentry(Some(parent), name, inode);
        self.set(mapping, "address_space", "host", inode);
        self.set(inode, "inode", "i_mapping", mapping);
        self.set(inode, "inode", "i_sb", on.sb);
        self.set(inode, "inode", "i_ino", number);
        self.set(inode, "inode", "i_nlink", 1);
        self.set(inode, "inode", "i_dentry", dentry + self.offset("dentry", "d_alias"));
        File { inode, dentry, mapping }
    }

    /// A page of a program's own memory, mapped at `address`. Returns the `anon_vma` and its tree's node.
    pub fn program(&mut self, name: &str, pid: u64, address: u64, number: u64) -> (u64, u64) {
        let (tree, chain, vma) =
            (self.object("anon_vma"), self.object("anon_vma_chain"), self.object("vm_area_struct"));
        let (mm, task) = (self.object("mm_struct"), self.object("task_struct"));
        self.next = self.next.next_multiple_of(4096);
        let root = self.take(4096);
        self.map(root - DIRECT, address, number << 12, 0);
        self.set(tree, "anon_vma", "rb_root", chain + self.offset("anon_vma_chain", "rb"));
        self.set(chain, "anon_vma_chain", "vma", vma);
        let (start, pages) = (address & !0xffff, 64);
        self.set(vma, "vm_area_struct", "vm_start", start);
        self.set(vma, "vm_area_struct", "vm_end", start + (pages << 12));
        self.set(vma, "vm_area_struct", "vm_pgoff", start >> 12);
        self.set(vma, "vm_area_struct", "vm_mm", mm);
        self.set(mm, "mm_struct", "pgd", root);
        self.set(mm, "mm_struct", "owner", task);
        self.set(task, "task_struct", "mm", mm);
        self.set(task, "task_struct", "tgid", pid);
        self.put_bytes(task - DIRECT + self.offset("task_struct", "comm"), name.as_bytes());
        self.page(number, UPTODATE, tree | 1, address >> 12);
        (tree, chain + self.offset("anon_vma_chain", "rb"))
    }

    /// A page that is just being written by whoever has locked it.
    pub fn lock(&mut self, number: u64, flags: u64) {
        self.set(DIRECT + PAGES + number * PAGE_STRUCT, "page", "flags", flags | LOCKED);
    }

    /// A page of a type, in use or not.
    pub fn typed(&mut self, number: u64, kind: u64, references: u64) -> u64 {
        let at = self.page(number, 0, 0, 0);
        self.set(at, "page", "page_type", kind << 24);
        self.set(at, "page", "_refcount", references);
        at
    }

    /// A slab of the cache of this name.
    pub fn slab(&mut self, number: u64, name: &str) {
        let (cache, name) = (self.object("kmem_cache"), self.text(name));
        self.set(cache, "kmem_cache", "name", name);
        let at = self.typed(number, 0xf5, 1);
        self.set(at, "slab", "slab_cache", cache);
    }

    /// Makes a block of pages of `first`, which has been set: the others lead to it.
    pub fn block(&mut self, first: u64, order: u32) {
        let head = VMEMMAP + first * PAGE_STRUCT;
        let at = DIRECT + PAGES + first * PAGE_STRUCT;
        let flags = self.bytes.get((at - DIRECT) as usize).copied().unwrap_or_default();
        self.set(at, "page", "flags", u64::from(flags) | 1 << 6);
        for tail in 1..1 << order {
            self.put(at + tail * PAGE_STRUCT + 8, head | 1);
        }
        self.put(at + PAGE_STRUCT, order.into());
    }
}

/// The types of the structures above, as BTF, among as many others as a kernel's own have.
#[must_use]
pub fn types() -> Vec<u8> {
    let mut strings = vec![0_u8];
    let mut types: Vec<u8> = Vec::new();
    let mut name = |text: &str| {
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        (strings.len() - text.len() - 1) as u32
    };
    let mut ids: HashMap<&str, u32> = HashMap::new();
    let mut put = |numbers: &[u32]| numbers.iter().for_each(|number| types.extend(number.to_le_bytes()));
    // Type 1: an integer of 64 bits.
    put(&[name("long"), 1 << 24, 8, 64]);
    for (at, (structure, size, members)) in STRUCTURES.iter().enumerate() {
        ids.insert(structure, at as u32 + 2);
        put(&[name(structure), 4 << 24 | members.len() as u32, *size]);
        for (member, offset) in *members {
            let (member, kind) = member.split_once(':').unwrap_or((member, ""));
            put(&[name(member), ids.get(kind).copied().unwrap_or(1), offset * 8]);
        }
    }
    for (enumeration, members) in ENUMERATIONS {
        put(&[name(enumeration), 6 << 24 | members.len() as u32, 4]);
        members.iter().for_each(|(member, value)| put(&[name(member), *value]));
    }
    // Forward declarations.
    (0..90_000).for_each(|_| put(&[0, 7 << 24, 0]));
    strings.resize(300 << 10, 0);
    let mut bytes = MAGIC.to_vec();
    for number in [0, types.len(), types.len(), strings.len()] {
        bytes.extend((number as u32).to_le_bytes());
    }
    [bytes, types, strings].concat()
}
