//! Where the members of the kernel's structures are that lead to virtio devices.

use std::fmt;

use crate::introspect::btf::Btf;
use crate::introspect::offset;

/// The kernel's own structures that are asked for.
pub(super) const KERNEL: &[&str] = &[
    "super_block",
    "file_system_type",
    "kernfs_super_info",
    "kernfs_root",
    "kernfs_node",
    "rb_node",
    "bin_attribute",
    "btf",
    "device",
    "device_driver",
    "kobject",
];
/// Those of virtio: the kernel's own, or a module's.
pub(super) const VIRTIO: &[&str] = &[
    "virtio_device",
    "virtio_device_id",
    "virtqueue",
    "vring_virtqueue",
    "vring_virtqueue_split",
    "vring_virtqueue_packed",
    "vring_desc_state_packed",
];

/// A structure without a member that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lacks {
    structure: &'static str,
    member: &'static str,
}

impl fmt::Display for Lacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its type {} has no {}", self.structure, self.member)
    }
}

macro_rules! offsets {
    ($(#[$doc:meta])* $type:ident { $($name:ident = $structure:ident: $members:literal;)* }
        sizes { $($size:ident = $of:ident;)* } may { $($may:ident = $within:ident: $member:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) struct $type {
            $(pub(super) $name: u64,)*
            $(pub(super) $size: u64,)*
            $(pub(super) $may: Option<u64>,)*
        }

        impl $type {
            /// # Errors
            /// One is not there.
            pub(super) fn new(btf: &Btf<'_>) -> Result<Self, Lacks> {
                Ok($type {
                    $($name: offset(btf, stringify!($structure), $members)
                        .ok_or(Lacks { structure: stringify!($structure), member: $members })?,)*
                    $($size: btf.size(stringify!($of))
                        .ok_or(Lacks { structure: stringify!($of), member: "size" })?.into(),)*
                    $($may: offset(btf, stringify!($within), $member),)*
                })
            }
        }
    };
}

offsets! {
    /// From a super block through sysfs to devices.
    Sysfs {
        sb_list = super_block: "s_list";
        sb_type = super_block: "s_type";
        sb_info = super_block: "s_fs_info";
        type_name = file_system_type: "name";
        info_root = kernfs_super_info: "root";
        root_node = kernfs_root: "kn";
        node_name = kernfs_node: "name";
        node_rb = kernfs_node: "rb";
        node_children = kernfs_node: "dir.children.rb_node";
        node_target = kernfs_node: "symlink.target_kn";
        node_object = kernfs_node: "priv";
        rb_left = rb_node: "rb_left";
        rb_right = rb_node: "rb_right";
        file_private = bin_attribute: "private";
        file_size = bin_attribute: "size";
        btf_data = btf: "data";
        device_kobj = device: "kobj";
        device_parent = device: "parent";
        device_driver = device: "driver";
        driver_name = device_driver: "name";
        kobj_name = kobject: "name";
    }
    sizes {} may {}
}

offsets! {
    /// Virtio devices and their queues.
    Virtio {
        device = virtio_device: "dev";
        id = virtio_device: "id";
        id_device = virtio_device_id: "device";
        features = virtio_device: "features";
        queues = virtio_device: "vqs";
        queue_list = virtqueue: "list";
        queue_name = virtqueue: "name";
        queue_device = virtqueue: "vdev";
        queue_index = virtqueue: "index";
        queue_free = virtqueue: "num_free";
    }
    sizes { queue_size = virtqueue; } may {}
}

offsets! {
    /// A queue's ring, whatever its format: types of the ring's own module.
    Ring {
        ring_queue = vring_virtqueue: "vq";
        // Its least bit says so, whether it is a `bool` or, in newer kernels (7.3), the number of a format: the odd ones are packed.
        is_packed = vring_virtqueue: "packed_ring|layout";
        is_broken = vring_virtqueue: "broken";
        added = vring_virtqueue: "num_added";
        last_used = vring_virtqueue: "last_used_idx";
        split_size = vring_virtqueue: "split.vring.num";
        split_desc = vring_virtqueue: "split.vring.desc";
        split_avail = vring_virtqueue: "split.vring.avail";
        split_used = vring_virtqueue: "split.vring.used";
        packed_size = vring_virtqueue: "packed.vring.num";
        packed_desc = vring_virtqueue: "packed.vring.desc";
        packed_driver = vring_virtqueue: "packed.vring.driver";
        packed_device = vring_virtqueue: "packed.vring.device";
        packed_state = vring_virtqueue: "packed.desc_state";
        packed_next = vring_virtqueue: "packed.next_avail_idx";
        packed_wrap = vring_virtqueue: "packed.avail_wrap_counter";
        state_slots = vring_desc_state_packed: "num";
    }
    sizes { state_size = vring_desc_state_packed; }
    // Before 6.0; then it became the highest bit of `last_used_idx`.
    may { packed_used_wrap = vring_virtqueue: "packed.used_wrap_counter"; }
}

impl Ring {
    /// As the kernels from 5.0 to 5.10 have it, whose modules bring no types: behind the `virtqueue`, which has so many bytes.
    /// Who goes by this checks that it leads to rings.
    pub(super) fn without_types(virtqueue: u64) -> Self {
        let at = |offset: u64| virtqueue + offset;
        // Both formats are in one union.
        let [num, first, second, third] = [24, 32, 40, 48].map(at);
        Ring {
            ring_queue: 0,
            is_packed: at(0),
            is_broken: at(3),
            added: at(12),
            last_used: at(16),
            split_size: num,
            split_desc: first,
            split_avail: second,
            split_used: third,
            packed_size: num,
            packed_desc: first,
            packed_driver: second,
            packed_device: third,
            packed_wrap: at(56),
            packed_used_wrap: Some(at(57)),
            packed_next: at(60),
            packed_state: at(64),
            state_slots: 16,
            state_size: 24,
        }
    }
}
