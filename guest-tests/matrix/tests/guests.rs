//! Four cells in one guest: measured, found again, held against an expectation, published.

#![expect(clippy::print_stdout, reason = "what is skipped is said")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Three that this kernel can, and one that it cannot.
const ROWS: &str = "sendfile,sendfile-no-sg,sendfile-mptcp,sendfile+copy-splice";

fn matrix(words: &[&str]) -> Output {
    let cells = ["--kernels", "stable", "--filesystems", "overlayfs", "--rows", ROWS, "--size", "256K"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_matrix"));
    // One of them is asked for less, by what comes last.
    command.args(["--folder", concat!(env!("CARGO_TARGET_TMPDIR"), "/matrix")]);
    if !words.contains(&"--rows") {
        command.args(cells);
    } else {
        command.args([&cells[..4], &cells[6..]].concat());
    }
    command.args(words).output().expect("it runs")
}

#[test]
fn four_cells_are_measured_once_and_stand_in_the_table() {
    if !Command::new("qemu-system-x86_64").arg("--version").output().is_ok_and(|qemu| qemu.status.success()) {
        println!("SKIP: QEMU is not installed");
        return;
    }
    let folder = Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/matrix"));
    // There is one from an earlier run, or none.
    let _ = fs::remove_dir_all(folder);
    let first = matrix(&[]);
    let text = String::from_utf8_lossy(&first.stderr);
    assert_eq!(first.status.code(), Some(0), "{text}");
    assert!(text.contains("4 cells: 3 measured, 1 that this kernel or file system cannot do"), "{text}");
    let second = matrix(&[]);
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(second.status.success() && !text.contains("guests,"), "nothing is left to be run: {text}");
    for (row, expected, code) in
        [("sendfile", "zero-copy", 0), ("sendfile", "copied", 1), ("sendfile+copy-splice", "copied", 125)]
    {
        let said = matrix(&["--rows", row, "--expect", expected]);
        assert_eq!(said.status.code(), Some(code), "{row} {expected}: {}", String::from_utf8_lossy(&said.stderr));
    }
    let published = folder.join("published");
    let said = matrix(&["--publish", &published.display().to_string()]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let table = fs::read_to_string(published.join("zero-copy-table.md")).expect("the table");
    assert!(table.contains("| `sendfile` | **0.00** |"), "{table}");
    assert!(table.contains("copy_splice_read") && published.join("zero-copy-table.parquet").exists(), "{table}");
}
