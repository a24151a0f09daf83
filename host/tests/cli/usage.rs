//! Usage texts and exit codes of bad usage.

use std::fs;
use std::path::{Path, PathBuf};

use crate::util::{Scratch, root};

const COMMANDS: &[&str] = &[
    "serve",
    "attach",
    "proxy",
    "status",
    "rings",
    "watch",
    "trace",
    "top",
    "page",
    "life",
    "hold",
    "release",
    "scan",
    "judge",
    "verdict",
    "report",
    "doctor",
    "qemu-args",
    "completions",
];

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
fn every_command_has_a_manual_page_and_is_completed() {
    let scratch = Scratch::new();
    let folder = scratch.path("man1");
    let written = scratch.run(&["man", folder.to_str().unwrap()]);
    assert_eq!(written.code, Some(0), "{written:?}");
    let shells = ["bash", "zsh", "fish"].map(|shell| scratch.run(&["completions", shell]).stdout);
    for command in COMMANDS {
        let page = fs::read_to_string(folder.join(format!("vnic-{command}.1"))).unwrap();
        assert!(page.starts_with(".ie") && page.contains(".SH SYNOPSIS"), "{page}");
        assert!(shells.iter().all(|script| script.contains(command)), "{command} is not completed");
    }
    assert_eq!(scratch.run(&["completions", "csh"]).code, Some(2));
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
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, usage) = readme.split_once("<!-- vnic --help -->\n```\n").expect("README.md has no `vnic --help` block");
    let (usage, _) = usage.split_once("```").unwrap();
    assert_eq!(usage, scratch.run(&["--help"]).stdout, "README.md's usage is not what `vnic --help` prints");
}

/// The README, the changelog and each page of the book, from the repository's root.
fn pages() -> Vec<PathBuf> {
    let pages = fs::read_dir(root().join("docs")).unwrap().map(|page| page.unwrap().path());
    let mut pages: Vec<_> = pages.filter(|page| page.extension() == Some("md".as_ref())).collect();
    pages.extend([root().join("README.md"), root().join("CHANGELOG.md")]);
    pages
}

/// What a page links to within the repository.
fn links(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).filter(|target| !target.starts_with("http")).collect()
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    heading.chars().filter(|c| c.is_alphanumeric() || *c == '-').collect()
}

#[test]
fn every_link_of_the_readme_and_the_book_leads_somewhere() {
    let mut seen = 0;
    for page in pages() {
        for link in links(&page) {
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{} links to {link}, which is not there", page.display());
            if !heading.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let found = text.lines().any(|line| line.starts_with('#') && anchor(line) == heading);
                assert!(found, "{} links to {link}, but there is no such heading", page.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "only {seen} links found");
}

#[test]
fn the_book_has_every_page() {
    let listed = links(&root().join("docs/SUMMARY.md"));
    for page in pages().iter().filter(|page| page.parent().unwrap().ends_with("docs")) {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(name == "SUMMARY.md" || listed.iter().any(|link| link == name), "docs/SUMMARY.md does not list {name}");
    }
}

#[test]
fn the_readme_is_read_in_one_go() {
    let lines = fs::read_to_string(root().join("README.md")).unwrap().lines().count();
    assert!(lines <= 200, "README.md has {lines} lines; what goes on belongs to docs/");
}
