//! The file system, but for what the process removes at its end, and what it can only read by a path: Landlock.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, Scope,
};

use super::SandboxError;

/// What Landlock is asked for. Later versions ask about paths of sockets as well, which `--client` connects to.
const VERSION: ABI = ABI::V7;

/// The version that this kernel has, as far as it is asked for.
pub(super) fn version() -> Option<u8> {
    let versions = [ABI::V7, ABI::V6, ABI::V5, ABI::V4, ABI::V3, ABI::V2, ABI::V1];
    versions
        .into_iter()
        .find(|version| rules(*version, CompatLevel::HardRequirement).is_ok())
        .map(|version| version as u8)
}

/// A set of rules that forbids all that this version knows of.
fn rules(version: ABI, needed: CompatLevel) -> Result<RulesetCreated, RulesetError> {
    let rules = Ruleset::default().set_compatibility(needed).handle_access(AccessFs::from_all(version))?;
    let (network, scopes) = (AccessNet::from_all(version), Scope::from_all(version));
    let rules = if network.is_empty() { rules } else { rules.handle_access(network)? };
    let rules = if scopes.is_empty() { rules } else { rules.scope(scopes)? };
    rules.create()
}

/// What is left of the file system.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    /// Folders in which files may be removed: its sockets.
    removes: BTreeSet<PathBuf>,
    /// Folders in which files may be read.
    reads: BTreeSet<PathBuf>,
}

impl Paths {
    /// It may remove this file.
    pub fn remove(&mut self, file: &Path) {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        self.removes.insert(folder.unwrap_or(Path::new(".")).to_owned());
    }

    /// It may read the files of this folder.
    pub fn read(&mut self, folder: &Path) {
        self.reads.insert(folder.to_owned());
    }
}

/// Gives up every other path, TCP, and signals and abstract sockets beyond this process. What this kernel cannot do is left out.
pub(super) fn give_up(paths: &Paths) -> Result<(), SandboxError> {
    restrict(paths).map_err(|error| SandboxError::new("give up the file system")(Box::new(error)))
}

fn restrict(paths: &Paths) -> Result<(), RulesetError> {
    let mut rules = rules(VERSION, CompatLevel::BestEffort)?;
    let removed = paths.removes.iter().map(|folder| (folder, AccessFs::RemoveFile));
    let read = paths.reads.iter().map(|folder| (folder, AccessFs::ReadFile));
    for (folder, access) in removed.chain(read) {
        // A folder that is gone needs no rule.
        if let Ok(folder) = PathFd::new(folder) {
            rules = rules.add_rule(PathBeneath::new(folder, access))?;
        }
    }
    rules.restrict_self().map(drop)
}
