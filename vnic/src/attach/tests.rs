//! Against a made kernel's devices, whole and then with everything a guest can do to them; and against processes that are no VM.

use std::process::{Command, Stdio};

use super::testing::{Eyes, Made, SIZE, physical, vm};
use super::*;
use crate::introspect::testing::{BTF, Image};
use crate::memory::testing::GuestRam;
use crate::spec::{Feature, Features};

fn ram(image: &Image, bytes: u64) -> GuestRam {
    let ram = GuestRam::new(bytes).unwrap();
    ram.write(0, &image.bytes).unwrap();
    ram
}

fn eyes(made: &Made) -> Eyes {
    let bytes = made.image.bytes.len() as u64;
    Eyes::on(ram(&made.image, bytes).fd().try_clone_to_owned().unwrap().into(), bytes).unwrap()
}

#[track_caller]
fn nic(made: &Made) -> Device {
    eyes(made).devices().unwrap().swap_remove(0)
}

#[test]
fn devices_their_drivers_and_queues_are_found() {
    let made = vm();
    let devices = eyes(&made).devices().unwrap();
    let words = |device: &Device| (device.name.clone(), device.driver.clone(), device.parent.clone(), device.kind);
    let driver = Some("virtio_net".to_owned());
    let parent = "0000:00:02.0".to_owned();
    let expected = [("virtio0".to_owned(), driver, parent.clone(), 1), ("virtio1".to_owned(), None, parent, 1)];
    assert_eq!(devices.iter().map(words).collect::<Vec<_>>(), expected);
    let [nic, bare] = devices.as_slice() else { panic!("{devices:?}") };
    assert_eq!(nic.features, Features::of(&[Feature::Csum, Feature::IndirectDesc, Feature::Version1]));
    let names: Vec<_> = nic.queues.iter().map(|queue| queue.name.as_str()).collect();
    assert_eq!(names, ["virtio0.receiveq0", "virtio0.transmitq0", "virtio0.transmitq1"]);
    assert!(nic.queues.iter().all(|queue| u64::from(queue.layout.size) == SIZE && queue.free == SIZE as u32));
    assert!(nic.queues[2].packed.is_some() && bare.queues.is_empty() && nic.fault.is_none());
    assert_eq!(eyes(&made).look(), (2, 3));
}

/// Rings as Linux 5.10 has them, whose module `virtio_ring` brings no types.
#[test]
fn rings_without_types_are_found_where_that_kernel_has_them_and_checked_to_be_rings() {
    let mut made = vm();
    let name = b"\0vring_virtqueue\0";
    let at = made.image.bytes.windows(name.len()).position(|bytes| bytes == name).unwrap();
    made.image.put_bytes(at as u64 + 1, b"-");
    let [first, second, _] = made.queues;
    let behind = |number: u64| 80 + number;
    for (queue, packed) in [(first, 0), (second, 1_u64)] {
        let [table, avail] = [made.image.take(16 * SIZE), made.image.take(16 * SIZE)];
        let states = made.image.take(24 * SIZE);
        for word in (behind(0)..256).step_by(8) {
            made.image.put(queue + word, 0);
        }
        made.image.put(queue + behind(0), packed);
        made.image.put(queue + behind(8), 3 << 32);
        made.image.put(queue + behind(16), 5);
        for (offset, value) in [(24, SIZE), (32, table), (40, avail), (48, avail + 64), (64, states)] {
            made.image.put(queue + behind(offset), value);
        }
        // Of the driver's wrap counter and the device's, the second is 1.
        made.image.put(queue + behind(56), packed << 8 | 2 << 32);
    }
    let head = made.nic + made.image.offset("virtio_device", "vqs");
    made.image.put(second, head);
    let found = nic(&made);
    assert!(found.fault.is_none(), "{:?}", found.fault);
    let books: Vec<_> =
        found.queues.iter().map(|queue| (queue.added, queue.last_used, queue.packed.is_some())).collect();
    assert_eq!(books, [(3, 5, false), (3, 5 | 1 << 15, true)]);
    assert_eq!(eyes(&made).look(), (2, 2));
    // Of a split ring, what is available lies behind the descriptors.
    made.image.put(first + behind(40), 0);
    assert!(nic(&made).fault.is_some_and(|fault| fault.contains("nothing of the kernel's")));
}

#[test]
fn a_list_of_queues_that_never_ends_is_a_fault_and_what_was_found_is_there() {
    let mut made = vm();
    // The second leads to itself.
    made.image.put(made.queues[1], made.queues[1]);
    let found = nic(&made);
    assert!(found.queues.len() <= 2048, "{} queues", found.queues.len());
    assert!(found.fault.as_deref().is_some_and(|fault| fault.contains("run in a circle")), "{:?}", found.fault);
    assert_eq!(eyes(&made).look().0, 2);
}

#[test]
fn a_queue_that_does_not_lead_back_to_its_device_is_none() {
    let mut made = vm();
    made.image.set(made.queues[1], "virtqueue", "vdev", made.super_block);
    let found = nic(&made);
    assert_eq!(found.queues.len(), 1);
    assert!(found.fault.is_some_and(|fault| fault.contains("nothing of the kernel's")));
}

#[test]
fn a_directory_in_a_circle_and_super_blocks_without_end_are_a_sentence() {
    let mut made = vm();
    let right = made.image.offset("kernfs_node", "rb") + made.image.offset("rb_node", "rb_right");
    let first = made.folder + made.image.offset("kernfs_node", "dir");
    let eyes_before = eyes(&made);
    let branch = u64::from_le_bytes(made.image.bytes[physical(first) as usize..][..8].try_into().unwrap());
    made.image.put(branch - made.image.offset("kernfs_node", "rb") + right, branch);
    assert_eq!(eyes(&made).devices().unwrap_err(), "its structures are too deep, or run in a circle");
    assert_eq!(eyes_before.look(), (2, 3));
    // A list that leads past sysfs, and never back to where it began.
    let mut made = vm();
    let (one, other) = (made.image.object("super_block"), made.image.object("super_block"));
    for sb in [made.super_block, one, other] {
        made.image.set(sb, "super_block", "s_type", 0);
    }
    made.image.set(made.super_block, "super_block", "s_list", one);
    made.image.set(one, "super_block", "s_list", other);
    made.image.set(other, "super_block", "s_list", one);
    let bytes = made.image.bytes.len() as u64;
    let file = ram(&made.image, bytes).fd().try_clone_to_owned().unwrap();
    let error = Eyes::on(file.into(), bytes).unwrap_err().to_string();
    assert!(error.contains("its devices cannot be found: it has no /sys mounted"), "{error}");
}

#[test]
fn a_ring_outside_memory_or_of_any_size_is_looked_at_and_says_so() {
    let made = vm();
    let bytes = made.image.bytes.len() as u64;
    let ram = ram(&made.image, bytes);
    let eyes = Eyes::on(ram.fd().try_clone_to_owned().unwrap().into(), bytes).unwrap();
    for (queue, part) in made.queues.iter().zip(["split", "split", "packed"]) {
        let ring = physical(queue + made.image.offset("vring_virtqueue", part));
        let before = ram.read(ring, 32).unwrap();
        for size in [0, 1, 3, 7, 256, 32_768, 65_535, 65_536, u64::from(u32::MAX)] {
            ram.write(ring, &size.to_le_bytes()).unwrap();
            assert_eq!(eyes.look().0, 2, "{part}, size {size}");
            for area in [8, 16, 24] {
                let known = ram.read(ring + area, 8).unwrap();
                // No address, the end of memory, and what is none of the kernel's.
                for at in [0, 0xffff_8880_00ff_fff0, u64::MAX - 7, 0x1234] {
                    ram.write(ring + area, &at.to_le_bytes()).unwrap();
                    assert_eq!(eyes.look().0, 2, "{part}, size {size}, area {area}, {at:#x}");
                }
                ram.write(ring + area, &known).unwrap();
            }
        }
        ram.write(ring, &before).unwrap();
    }
    assert_eq!(eyes.look(), (2, 3));
}

#[test]
fn no_word_of_a_devices_structures_can_do_more_than_be_wrong() {
    let mut made = vm();
    let bytes = made.image.bytes.len() as u64;
    let ram = ram(&made.image, bytes);
    let eyes = Eyes::on(ram.fd().try_clone_to_owned().unwrap().into(), bytes).unwrap();
    let (first, last) = (physical(made.super_block), physical(made.image.take(0)));
    let mut state = 7_u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 33) % below
    };
    for _ in 0..300 {
        let mut undo = Vec::new();
        for _ in 0..3 {
            let at = first + random((last - first) / 8) * 8;
            let value = match random(4) {
                0 => 0,
                1 => u64::MAX,
                2 => made.super_block + random((last - first) / 8) * 8,
                _ => random(u64::MAX) << 20,
            };
            undo.push((at, ram.read(at, 8).unwrap()));
            ram.write(at, &value.to_le_bytes()).unwrap();
        }
        eyes.look();
        undo.iter().rev().for_each(|(at, bytes)| ram.write(*at, bytes).unwrap());
    }
    assert_eq!(eyes.look(), (2, 3));
}

#[test]
fn a_process_that_is_no_vm_or_ends_is_a_sentence() {
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let process = Arc::new(Process::open(child.id()).unwrap());
    let error = Attached::open(child.id()).unwrap_err().to_string();
    let sentence = format!("process {} (cat) is no VM: none of its memory is large enough to be a guest's", child.id());
    assert_eq!(error, sentence);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(Attached::to(process).is_err());
    let error = Attached::open(child.id()).unwrap_err().to_string();
    assert_eq!(error, format!("there is no process {}", child.id()));
}

/// This process has the largest mapping there is here, and what stands in it is a guest's memory.
#[test]
fn a_guest_is_found_in_a_process_and_what_is_none_is_a_sentence() {
    const BYTES: u64 = 1 << 30;
    let pid = std::process::id();
    let made = vm();
    let ram = ram(&made.image, BYTES);
    // The made kernel maps its first 16 MiB only: its layout is not this mapping's.
    let error = Attached::open(pid).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "process {pid}: Linux 6.12-test is in its memory, but how that lies around the PCI hole is not known here"
        )
    );
    ram.write(BTF, &[0; 24]).unwrap();
    let error = Attached::open(pid).unwrap_err().to_string();
    assert_eq!(error, format!("process {pid}: Linux 6.12-test without BTF: files have no names"));
    // Whatever it is, it is no Linux.
    let mut state = 7_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        state.to_le_bytes()
    })
    .take(2 << 20)
    .flatten()
    .collect();
    ram.write(0, &noise).unwrap();
    let error = Attached::open(pid).unwrap_err().to_string();
    assert_eq!(error, format!("process {pid}: no Linux found in the guest's memory"));
}
