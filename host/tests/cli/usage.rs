//! Usage texts and exit codes of bad usage.

use crate::util::{Scratch, root};

const COMMANDS: &[&str] =
    &["serve", "status", "rings", "watch", "trace", "hold", "release", "scan", "judge", "report", "doctor"];

#[test]
fn every_command_has_help() {
    let scratch = Scratch::new();
    let top = scratch.run(&["--help"]);
    assert_eq!(top.code, Some(0), "{top:?}");
    for command in COMMANDS {
        assert!(top.stdout.contains(&format!("\n  {command}")), "{command} is not in\n{}", top.stdout);
        let help = scratch.run(&[command, "--help"]);
        assert_eq!(help.code, Some(0), "{help:?}");
        assert!(help.stdout.contains("Usage: vnic "), "{help:?}");
    }
}

#[test]
fn bad_usage_exits_2() {
    let scratch = Scratch::new();
    for args in [&["fly"][..], &["serve", "status", "--fast"], &["hold"], &["report"], &["rings", "--queue"], &[]] {
        let outcome = scratch.run(args);
        assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
        assert_eq!(outcome.stdout, "", "{args:?}: {outcome:?}");
    }
}

#[test]
fn the_readmes_usage_is_the_commands_own() {
    let scratch = Scratch::new();
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, usage) = readme.split_once("<!-- vnic --help -->\n```\n").expect("README.md has no `vnic --help` block");
    let (usage, _) = usage.split_once("```").unwrap();
    assert_eq!(usage, scratch.run(&["--help"]).stdout, "README.md's usage is not what `vnic --help` prints");
}

#[test]
fn the_readmes_links_lead_somewhere() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let targets: Vec<&str> =
        readme.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(to, _)| to).collect();
    assert!(targets.len() > 10, "{targets:?}");
    for target in targets.into_iter().filter(|target| !target.starts_with("http")) {
        assert!(root().join(target).exists(), "README.md links to {target}, which is not there");
    }
}
