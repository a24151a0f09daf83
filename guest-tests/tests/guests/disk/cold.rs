//! What is sent of a file that is on the disk only, by every way that a program has: which frames our disk's DMA filled, and whether the
//! NIC's took the payload from there. They take minutes: `scripts/disk.sh cold`.

use guest_fixture::{Folder, available, judged_run, note, skip};
use vnic_experiment::run::{DiskAccounts, Method, Run};

const BYTES: u64 = 16 << 20;

/// How much of the payload is to lie in frames that the disk filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    All,
    None,
}

/// Each row, and whether the NIC takes its payload from where the disk put it.
const ROWS: [(&str, Share); 7] = [
    ("sendfile-cold", Share::All),
    ("splice-cold", Share::All),
    ("msg-zerocopy-cold", Share::All),
    ("direct-io-zerocopy", Share::All),
    ("direct-io", Share::None),
    ("mmap-write-cold", Share::None),
    ("read-write-cold", Share::None),
];

fn disk(method: &Method) -> &DiskAccounts {
    method.dma.disk.as_ref().unwrap_or_else(|| panic!("nobody says what the disk brought: {:?}", method.reasons))
}

fn to_the_nic(method: &Method) -> u64 {
    method.device.descriptors.unwrap_or_else(|| panic!("the device saw nothing: {:?}", method.reasons))
}

/// Runs all rows, with further options of `scripts/run-qemu.sh`.
fn measured(options: &[&str]) -> Run {
    let folder = Folder::new();
    let rows = ROWS.map(|(row, _)| row).join(",");
    let run = judged_run(folder.path(), &rows, &[&["--filesystem", "ext4"], options].concat());
    assert_eq!(run.methods.len(), ROWS.len());
    for (method, (row, share)) in run.methods.iter().zip(ROWS) {
        let disk = disk(method);
        let DiskAccounts { requests, descriptors, bytes, payload_bytes_in_pages_read: payload, .. } = disk;
        note(&format!(
            "Linux {}: {row}: {requests} reads, {descriptors} descriptors, {bytes} bytes; of the payload {payload} in those frames; {} \
             descriptors to the NIC",
            run.kernel,
            to_the_nic(method)
        ));
        assert!(*requests > 0 && descriptors >= requests && *bytes >= BYTES, "{row}: {disk:?}");
        match share {
            Share::All => assert!(*payload >= BYTES * 999 / 1000, "{row}: {disk:?}"),
            Share::None => assert!(*payload <= BYTES / 1000, "{row}: {disk:?}"),
        }
    }
    run
}

#[test]
#[ignore = "dear: scripts/disk.sh"]
fn a_cold_file_leaves_by_each_way_from_where_the_disk_put_it_or_from_a_copy() {
    measured(&[]);
}

#[test]
#[ignore = "dear: scripts/disk.sh"]
fn a_cold_file_in_large_folios_leaves_from_where_the_disk_put_it_in_long_pieces() {
    const KERNEL: [&str; 2] = ["--debian-kernel", "7.3"];
    if let Err(why) = available(&KERNEL) {
        return skip(&why);
    }
    let run = measured(&KERNEL);
    let of = |row: &str| &run.methods[ROWS.iter().position(|(name, _)| *name == row).expect("a row")];
    let (read, pages) = (disk(of("sendfile-cold")).descriptors, BYTES / 4096);
    assert!(read < pages / 64, "{read} descriptors for {pages} pages: the disk did not fill large folios");
    // How large those are that zero-copy sends depends on how the guest's memory is cut up; sendfile sends page by page.
    let [sent, by_page] = ["msg-zerocopy-cold", "sendfile-cold"].map(|row| to_the_nic(of(row)));
    assert!(sent < by_page, "{sent} descriptors, and {by_page} page by page: no large folios went out");
}
