//! Memory that two processes share, and hugepages.

use std::fs;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::Check;

const SHARED: &str = "shared memory";
const HUGEPAGES: &str = "hugepages";
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Can guest memory be a memfd?
pub(super) fn check_shared() -> Check {
    let made = memfd_create(c"vnic-doctor", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
        .and_then(|file| ftruncate(&file, 1 << 20));
    match made {
        Ok(()) => Check::good(SHARED, "memfd works", "QEMU can share the guest's memory with the device"),
        Err(error) => Check::missing(
            SHARED,
            format!("memfd_create: {}", error.desc()),
            "QEMU cannot share the guest's memory with the device",
            "use a Linux kernel from 3.17 on, and allow memfd_create in the container's seccomp profile",
        ),
    }
}

/// Are there any? Nothing needs them.
pub(super) fn check_hugepages() -> Check {
    let read = |name: &str| -> Option<u64> { fs::read_to_string(format!("{POOL}/{name}")).ok()?.trim().parse().ok() };
    match (read("nr_hugepages"), read("free_hugepages")) {
        (Some(all @ 1..), Some(free)) => {
            Check::good(HUGEPAGES, format!("{free} of {all} pages of 2 MiB free"), "the comparison with DPDK can run")
        }
        _ => Check::limited(
            HUGEPAGES,
            "none reserved",
            "the device needs none; only the benchmark against DPDK does",
            "as root: echo 256 > /proc/sys/vm/nr_hugepages".to_owned(),
        ),
    }
}
