//! Four cells in two guests: two measured by the program, and two by Snakemake, which finds the others; held against an expectation,
//! published, asked by SQL.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use guest_fixture::{note, repository, skip, vnic};

const FOLDER: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/matrix");
/// One that this kernel can, and one that it cannot.
const FIRST: &str = "sendfile-mptcp,sendfile+copy-splice";
/// Those, and two that it can.
const ALL: &str = "sendfile,sendfile-no-sg,sendfile-mptcp,sendfile+copy-splice";

/// What it said, with its exit code.
fn matrix(rows: &str, words: &[&str]) -> (Option<i32>, String) {
    let cells = ["--kernels", "stable", "--filesystems", "overlayfs", "--size", "256K", "--folder", FOLDER];
    let mut command = Command::new(env!("CARGO_BIN_EXE_matrix"));
    said(command.args(cells).args(["--rows", rows]).args(words))
}

fn said(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = command.output().expect("it runs");
    (status.code(), String::from_utf8_lossy(&[stderr, stdout].concat()).into_owned())
}

/// The Python of `scripts/test.sh`, if it has this module.
fn python(module: &str) -> Option<Command> {
    let program = repository().join("target/python/bin/python");
    let has = Command::new(&program).args(["-c", &format!("import {module}")]).output();
    has.is_ok_and(|end| end.status.success()).then(|| Command::new(program))
}

/// The workflow, here, with the program of this test.
fn snakemake(mut python: Command) -> (Option<i32>, String) {
    python.current_dir(repository()).args([
        "-m",
        "snakemake",
        "--snakefile",
        "contrib/snakemake/Snakefile",
        "--cores",
        "2",
    ]);
    python.args(["--config", "kernels=stable", "filesystems=overlayfs", "size=256K"]);
    python.args([format!("rows={ALL}"), format!("folder={FOLDER}")]);
    said(python.env("MATRIX", env!("CARGO_BIN_EXE_matrix")).env("VNIC", vnic()))
}

#[test]
fn four_cells_are_measured_once_and_stand_in_the_table() {
    if !Command::new("qemu-system-x86_64").arg("--version").output().is_ok_and(|qemu| qemu.status.success()) {
        return skip("cells of the matrix: QEMU is not installed");
    }
    let folder = Path::new(FOLDER);
    // There is one from an earlier run, or none.
    let _ = fs::remove_dir_all(folder);
    note("two cells");
    let (code, text) = matrix(FIRST, &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("2 cells: 1 measured, 1 that this kernel or file system cannot do"), "{text}");

    note("two more, by Snakemake");
    if let Some(python) = python("snakemake") {
        let (code, text) = snakemake(python);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("overlayfs: 2 cells in "), "the others are there: {text}");
        assert!(text.contains("matrix.parquet: 4 rows of 4 records"), "{text}");
    } else {
        skip("the matrix is not run by Snakemake: target/python has none (scripts/test.sh installs it)");
        assert_eq!(matrix(ALL, &[]).0, Some(0));
    }
    let (code, text) = matrix(ALL, &[]);
    assert!(code == Some(0) && !text.contains("guests,"), "nothing is left to be run: {text}");
    assert!(text.contains("4 cells: 3 measured, 1 that this kernel or file system cannot do"), "{text}");

    for (row, expected, code) in
        [("sendfile", "zero-copy", 0), ("sendfile", "copied", 1), ("sendfile+copy-splice", "copied", 125)]
    {
        let said = matrix(row, &["--expect", expected]);
        assert_eq!(said.0, Some(code), "{row} {expected}: {}", said.1);
    }
    let published = folder.join("published");
    let (code, text) = matrix("*", &["--publish", &published.display().to_string()]);
    assert_eq!(code, Some(0), "{text}");
    let table = fs::read_to_string(published.join("zero-copy-table.md")).expect("the table");
    assert!(table.contains("| `sendfile` | **0.00** |"), "{table}");
    assert!(table.contains("copy_splice_read"), "{table}");

    let parquet = published.join("zero-copy-table.parquet");
    let Some(mut python) = python("duckdb") else {
        return skip("nobody asks the matrix' Parquet file: target/python has no duckdb (scripts/test.sh installs it)");
    };
    let (code, text) = said(python.arg(repository().join("scripts/matrix-rows.py")).arg(parquet));
    assert_eq!(code, Some(0), "{text}");
    let row = |method: &str, verdict: &str| {
        let is = |line: &str| line.split('\t').collect::<Vec<_>>()[1..4] == ["overlayfs", method, verdict];
        assert!(text.lines().skip(1).any(is), "{method}: {text}");
    };
    row("sendfile", "zero-copy");
    row("sendfile-no-sg", "copied");
    row("sendfile-mptcp", "copied");
}
