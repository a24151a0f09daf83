//! `vnic doctor`.

use std::os::unix::fs::PermissionsExt;

use crate::util::{Scratch, outcome};

/// A PATH with nothing in it but what the test puts there.
fn empty_path(scratch: &Scratch) -> std::path::PathBuf {
    let folder = scratch.path("bin");
    std::fs::create_dir(&folder).unwrap();
    folder
}

fn check(document: &serde_json::Value, name: &str) -> serde_json::Value {
    let checks = document["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {document}")).clone()
}

#[test]
fn without_qemu_and_without_apt_the_demo_cannot_run() {
    let scratch = Scratch::new();
    let path = empty_path(&scratch);
    let outcome = outcome(scratch.vnic().args(["doctor", "--json"]).env("PATH", &path).env_remove("QEMU"));
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let document = outcome.json();
    assert_eq!(document["demo_can_run"], false);
    for name in ["qemu", "guest kernel"] {
        let check = check(&document, name);
        assert_eq!(check["state"], "missing");
        assert!(check["fix"].is_string(), "{check}");
    }
}

#[test]
fn the_qemu_that_is_named_is_the_one_that_is_looked_at() {
    let scratch = Scratch::new();
    let path = empty_path(&scratch);
    let qemu = scratch.file("my-qemu", "#!/bin/sh\necho 'QEMU emulator version 7.2.22 (Debian)'\n");
    std::fs::set_permissions(&qemu, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = scratch.vnic();
    command.args(["doctor", "--json"]).env("PATH", &path).env("QEMU", &qemu);
    let document = outcome(&mut command).json();
    let check = check(&document, "qemu");
    assert!(check["found"].as_str().unwrap().contains("7.2.22"), "{check}");
    assert!(check["follows"].as_str().unwrap().contains("MSI-X"), "{check}");
}

#[test]
fn each_line_says_what_was_found_and_what_follows() {
    let scratch = Scratch::new();
    let path = empty_path(&scratch);
    let outcome = outcome(scratch.vnic().arg("doctor").env("PATH", &path).env_remove("QEMU"));
    for name in ["qemu", "guest kernel", "kvm", "shared memory", "hugepages", "tap", "migration", "sandbox"] {
        assert!(outcome.stdout.contains(name), "no {name} in\n{}", outcome.stdout);
    }
    assert!(outcome.stdout.contains("NO  qemu           no qemu-system-x86_64 in PATH\n"), "{}", outcome.stdout);
    assert!(outcome.stdout.ends_with("The demo cannot run here yet: see the lines marked NO.\n"), "{}", outcome.stdout);
}
