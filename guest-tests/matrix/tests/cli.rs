//! The real program, as far as it goes without a guest.

use std::process::{Command, Output};

fn matrix(words: &[&str]) -> Output {
    let folder = concat!(env!("CARGO_TARGET_TMPDIR"), "/no-cells");
    Command::new(env!("CARGO_BIN_EXE_matrix")).args(["--folder", folder]).args(words).output().expect("it runs")
}

#[test]
fn what_makes_no_sense_is_refused_with_its_name() {
    let own = "mine=/dev/null,/tmp";
    for (words, named) in [
        (&["--kernels", own][..], "/dev/null"),
        (&["--kernels", "../x"], "../x"),
        (&["--size", "0"], "--size"),
        (&["--expect", "fast"], "descriptors_per_mib"),
        (&["--publish", "/tmp/nowhere"], "was anything run?"),
    ] {
        let said = matrix(words);
        let text = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(2), "{words:?}: {text}");
        assert!(text.contains(named), "{words:?}: {text}");
    }
}

#[test]
fn cells_that_are_not_there_are_listed_as_such() {
    // Any file will do for a kernel that is not booted.
    let own = format!("mine={},/tmp", env!("CARGO_BIN_EXE_matrix"));
    let said =
        matrix(&["--list", "--kernels", &own, "--filesystems", "ext4,xfs", "--rows", "sendfile*", "--size", "64K"]);
    let text = String::from_utf8_lossy(&said.stdout);
    assert_eq!(said.status.code(), Some(1), "{text}");
    assert!(text.contains("mine,ext4,sendfile-no-sg,64K,vnic-") && text.contains("  not run"), "{text}");
    assert!(text.lines().all(|line| line.contains(",sendfile")), "{text}");
}
