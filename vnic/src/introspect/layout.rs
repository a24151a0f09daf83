//! Where the members of the kernel's structures are, by name, in this very kernel.
//!
//! Names that changed over the releases are given with the older or newer ones behind a `|`.

use super::btf::Btf;
use super::vmcoreinfo::VmCoreInfo;

/// Page flags with a name, at most.
const MAX_FLAGS: u32 = 64;

/// The structures and enumerations that [`Layout::new`] asks for.
pub(super) const NAMES: &[&str] = &[
    "page",
    "folio",
    "slab",
    "pageflags",
    "pagetype",
    "address_space",
    "inode",
    "dentry",
    "qstr",
    "super_block",
    "file_system_type",
    "mount",
    "vfsmount",
    "mnt_namespace",
    "kmem_cache",
    "anon_vma",
    "anon_vma_chain",
    "rb_node",
    "vm_area_struct",
    "mm_struct",
    "task_struct",
    "ksm_stable_node",
    "stable_node",
    "ksm_rmap_item",
    "rmap_item",
];

/// A structure without this member: the kernel is none that is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its type {structure} has no {member}")]
pub struct Missing {
    /// The structure.
    pub(super) structure: &'static str,
    /// The member.
    pub member: &'static str,
}

/// How the page's order is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// A byte at this offset from the first page structure.
    Byte(u64),
    /// The low byte of the word there.
    Flags(u64),
}

/// How a tail page leads to its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// The head's address, plus one.
    Pointer,
    /// A mask that makes the head's address of the tail's own, plus one.
    Mask,
}

/// How a page that is a slab's is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlabMark {
    /// This flag.
    Flag(u64),
    /// The page type of this value.
    Type(u32),
}

/// How a file system's mounts are chained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MountChain {
    /// A list through `mnt_instance` at this offset.
    List(u64),
    /// Each points to the next, from this offset.
    Next(u64),
}

macro_rules! layout {
    ($($(#[$doc:meta])* $name:ident = $structure:ident: $members:literal;)*) => {
        /// Offsets in bytes. Fields are called after the structure and the member.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub(super) struct Layout {
            $($(#[$doc])* pub $name: u64,)*
            /// Bytes of a page structure.
            pub page_size: u64,
            pub order: Order,
            pub head: Head,
            pub slab: SlabMark,
            pub mounts: MountChain,
            pub flags: Flags,
            /// Each flag's name, by its bit.
            pub flag_names: Vec<(u32, String)>,
            /// Page types that have a name, from 6.11 on.
            pub types: Types,
            /// Is a page's type the top byte of `page_type`? Else each type is a bit.
            pub types_by_byte: bool,
            /// `page_type` of a free block.
            pub buddy: Option<u32>,
            /// Where an anonymous mapping's index is apart from a file's: low and high half.
            pub vma_anon_pgoff: Option<(u64, u64)>,
            /// What the kernel knows of pages that it merged.
            pub ksm: Option<Ksm>,
        }

        impl Layout {
            /// From a kernel's types, parsed for [`NAMES`].
            ///
            /// # Errors
            /// One of them lacks a member.
            pub(super) fn new(btf: &Btf<'_>, notes: &VmCoreInfo) -> Result<Self, Missing> {
                let missing = |structure, member| Missing { structure, member };
                let kinds = (Order::find(btf), Head::find(btf), SlabMark::find(btf, notes), MountChain::find(btf));
                let (Some(order), Some(head), Some(slab), Some(mounts)) = kinds else {
                    let (structure, member) = match kinds {
                        (None, ..) => ("folio", "_flags_1"),
                        (_, None, ..) => ("page", "compound_head"),
                        (_, _, None, _) => ("pageflags", "PG_slab"),
                        _ => ("mount", "mnt_instance"),
                    };
                    return Err(missing(structure, member));
                };
                let page_size = btf.size("page").filter(|size| size.is_multiple_of(8) && (40..=256).contains(size));
                Ok(Layout {
                    $($name: one(btf, stringify!($structure), $members)?,)*
                    page_size: page_size.ok_or(missing("page", "size"))?.into(),
                    order,
                    head,
                    slab,
                    mounts,
                    flags: Flags::new(btf)?,
                    flag_names: flag_names(btf),
                    types: Types::new(btf),
                    types_by_byte: btf.value("pagetype", "PGTY_buddy").is_some(),
                    buddy: notes.buddy.or_else(|| Some(btf.value("pagetype", "PGTY_buddy")? << 24)),
                    vma_anon_pgoff: first(btf, "vm_area_struct", "__vm_anon_pgoff_lo")
                        .zip(first(btf, "vm_area_struct", "__vm_anon_pgoff_hi")),
                    ksm: Ksm::find(btf),
                })
            }
        }
    };
}

layout! {
    page_flags = page: "flags";
    page_compound = page: "compound_head|compound_info";
    page_mapping = page: "mapping";
    page_index = page: "index|__folio_index";
    page_private = page: "private";
    page_type = page: "page_type";
    page_refcount = page: "_refcount";
    slab_cache = slab: "slab_cache|page.slab_cache";
    cache_name = kmem_cache: "name";
    mapping_host = address_space: "host";
    inode_mapping = inode: "i_mapping";
    inode_sb = inode: "i_sb";
    inode_ino = inode: "i_ino";
    inode_nlink = inode: "i_nlink";
    inode_aliases = inode: "i_dentry.first";
    dentry_parent = dentry: "d_parent";
    dentry_name = dentry: "d_name.name";
    dentry_name_len = dentry: "d_name.len";
    dentry_inode = dentry: "d_inode";
    dentry_hashed = dentry: "d_hash.pprev";
    dentry_alias = dentry: "d_u.d_alias|d_alias";
    sb_type = super_block: "s_type";
    sb_id = super_block: "s_id";
    sb_mounts = super_block: "s_mounts";
    type_name = file_system_type: "name";
    mount_root = mount: "mnt.mnt_root";
    mount_sb = mount: "mnt.mnt_sb";
    mount_parent = mount: "mnt_parent";
    mount_point = mount: "mnt_mountpoint";
    mount_ns = mount: "mnt_ns";
    mount_id = mount: "mnt_id";
    ns_number = mnt_namespace: "ns.inum";
    anon_root = anon_vma: "rb_root.rb_root.rb_node";
    chain_node = anon_vma_chain: "rb";
    chain_vma = anon_vma_chain: "vma";
    node_left = rb_node: "rb_left";
    node_right = rb_node: "rb_right";
    vma_start = vm_area_struct: "vm_start";
    vma_end = vm_area_struct: "vm_end";
    vma_pgoff = vm_area_struct: "vm_pgoff";
    vma_mm = vm_area_struct: "vm_mm";
    mm_pgd = mm_struct: "pgd";
    mm_owner = mm_struct: "owner";
    task_mm = task_struct: "mm";
    task_comm = task_struct: "comm";
    task_tgid = task_struct: "tgid";
}

/// The flags' own names, as in `/proc/kpageflags`' documentation: `uptodate`. Behind their number there are only other names for some of
/// them.
fn flag_names(btf: &Btf<'_>) -> Vec<(u32, String)> {
    let members = btf.members("pageflags", MAX_FLAGS);
    let own = members.iter().take_while(|(name, _)| *name != b"__NR_PAGEFLAGS").filter(|(_, bit)| *bit < 64);
    own.map(|(name, bit)| (*bit, String::from_utf8_lossy(name.strip_prefix(b"PG_").unwrap_or(name)).into_owned()))
        .collect()
}

/// Page flags, as masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flags {
    pub locked: u64,
    pub uptodate: u64,
    pub lru: u64,
    pub head: u64,
    pub reserved: u64,
}

impl Flags {
    fn new(btf: &Btf<'_>) -> Result<Self, Missing> {
        let mask = |member| {
            let bit = btf.value("pageflags", member).filter(|bit| *bit < 64);
            bit.map(|bit| 1 << bit).ok_or(Missing { structure: "pageflags", member })
        };
        Ok(Flags {
            locked: mask("PG_locked")?,
            uptodate: mask("PG_uptodate")?,
            lru: mask("PG_lru")?,
            head: mask("PG_head")?,
            reserved: mask("PG_reserved")?,
        })
    }
}

/// Page types by their top byte, where the kernel's types say them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Types {
    pub table: Option<u32>,
    pub hugetlb: Option<u32>,
    pub large_kmalloc: Option<u32>,
}

impl Types {
    fn new(btf: &Btf<'_>) -> Self {
        let value = |name| btf.value("pagetype", name);
        let (table, hugetlb) = (value("PGTY_table"), value("PGTY_hugetlb"));
        Types { table, hugetlb, large_kmalloc: value("PGTY_large_kmalloc") }
    }
}

/// Offsets for pages that the kernel merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ksm {
    pub node_first: u64,
    pub item_hlist: u64,
    pub item_mm: u64,
    pub item_address: u64,
}

impl Ksm {
    fn find(btf: &Btf<'_>) -> Option<Self> {
        let either = |new, old, member| first(btf, new, member).or_else(|| first(btf, old, member));
        let item = |member| either("ksm_rmap_item", "rmap_item", member);
        Some(Ksm {
            node_first: either("ksm_stable_node", "stable_node", "hlist.first")?,
            item_hlist: item("hlist")?,
            item_mm: item("mm")?,
            item_address: item("address")?,
        })
    }
}

impl Order {
    fn find(btf: &Btf<'_>) -> Option<Self> {
        let second = u64::from(btf.size("page")?);
        first(btf, "folio", "_folio_order")
            .map(Order::Byte)
            .or_else(|| first(btf, "page", "compound_order").map(|offset| Order::Byte(second + offset)))
            .or_else(|| first(btf, "folio", "_flags_1").map(Order::Flags))
    }
}

impl Head {
    fn find(btf: &Btf<'_>) -> Option<Self> {
        let pointer = first(btf, "page", "compound_head").map(|_| Head::Pointer);
        pointer.or_else(|| first(btf, "page", "compound_info").map(|_| Head::Mask))
    }
}

impl SlabMark {
    fn find(btf: &Btf<'_>, notes: &VmCoreInfo) -> Option<Self> {
        let by_type = btf.value("pagetype", "PGTY_slab").map(|byte| byte << 24).or(notes.slab);
        let flag = || btf.value("pageflags", "PG_slab").filter(|bit| *bit < 64).map(|bit| SlabMark::Flag(1 << bit));
        by_type.map(SlabMark::Type).or_else(flag)
    }
}

impl MountChain {
    fn find(btf: &Btf<'_>) -> Option<Self> {
        let list = first(btf, "mount", "mnt_instance").map(MountChain::List);
        list.or_else(|| first(btf, "mount", "mnt_next_for_sb").map(MountChain::Next))
    }
}

/// The first of the members that there is, each in `structure` or, with two names and a dot between them, in the one named.
fn one(btf: &Btf<'_>, structure: &'static str, members: &'static str) -> Result<u64, Missing> {
    let mut each = members.split('|');
    let found = each.find_map(|member| {
        first(btf, structure, member).or_else(|| member.split_once('.').and_then(|(other, own)| first(btf, other, own)))
    });
    found.ok_or(Missing { structure, member: members })
}

fn first(btf: &Btf<'_>, structure: &str, member: &str) -> Option<u64> {
    btf.offset(structure, member).map(u64::from)
}
