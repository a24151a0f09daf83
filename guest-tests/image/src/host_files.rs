//! Files of the host for the guest, programs with the shared libraries they need.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::archive::{Access, Archive, Node};

/// File systems of the guest's own are mounted there.
const THE_GUESTS: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/tmp"];

/// How a file that the kernel runs by itself begins.
const ELF: &[u8] = b"\x7fELF";

/// Files on their way into an archive.
#[derive(Debug)]
pub struct HostFiles<'a> {
    archive: &'a mut Archive,
    added: BTreeSet<PathBuf>,
}

impl<'a> HostFiles<'a> {
    /// For an archive that has these folders.
    #[must_use]
    pub fn into(archive: &'a mut Archive, folders: &[&str]) -> Self {
        HostFiles { archive, added: folders.iter().map(PathBuf::from).collect() }
    }

    /// Adds a file, or a folder with all that is in it, at the path `place` of the guest. Links become what they lead to.
    ///
    /// # Errors
    /// It cannot be read, or the place is none.
    pub fn add(&mut self, path: &Path, place: &Path) -> Result<()> {
        ensure!(place.is_absolute(), "{} is not an absolute path", place.display());
        if let Some(own) = THE_GUESTS.iter().find(|own| place.starts_with(own)) {
            bail!("the guest has a {own} of its own: say {}=/srv/… to have it elsewhere", path.display());
        }
        let about = fs::metadata(path).with_context(|| path.display().to_string())?;
        if let Some(parent) = place.parent() {
            self.folders(parent);
        }
        if about.is_dir() {
            self.folders(place);
            let mut names: Vec<OsString> = fs::read_dir(path)
                .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
                .with_context(|| path.display().to_string())?;
            names.sort_unstable();
            // A link that leads nowhere is no reason to do without the rest.
            names.retain(|name| path.join(name).exists());
            return names.iter().try_for_each(|name| self.add(&path.join(name), &place.join(name)));
        }
        if !about.is_file() || !self.added.insert(place.to_owned()) {
            return Ok(());
        }
        let content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let runs = about.permissions().mode() & 0o111 != 0;
        let libraries = if content.starts_with(ELF) { libraries_of(path) } else { Vec::new() };
        let access = if runs { Access::Program } else { Access::Data };
        self.archive.add(&place.to_string_lossy(), Node::File(content, access));
        libraries.iter().try_for_each(|library| self.add(library, library))
    }

    /// Adds a folder, and those it is in.
    fn folders(&mut self, path: &Path) {
        let mut missing: Vec<&Path> = path.ancestors().filter(|path| path.parent().is_some()).collect();
        missing.reverse();
        for folder in missing {
            if self.added.insert(folder.to_owned()) {
                self.archive.add(&folder.to_string_lossy(), Node::Folder);
            }
        }
    }
}

/// What the dynamic linker would load for it; nothing for a static program, and where there is no `ldd`.
fn libraries_of(program: &Path) -> Vec<PathBuf> {
    let Ok(listed) = Command::new("ldd").arg(program).output() else { return Vec::new() };
    String::from_utf8_lossy(&listed.stdout).lines().filter_map(library).collect()
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, or the linker's own line, `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library(line: &str) -> Option<PathBuf> {
    let path = line.split_once("=>").map_or(line, |(_, path)| path).trim();
    let (path, _) = path.rsplit_once(" (")?;
    path.starts_with('/').then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_is_understood() {
        let is = |line, path: Option<&str>| assert_eq!(library(line), path.map(PathBuf::from), "{line}");
        is("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)", Some("/lib/x86_64-linux-gnu/libc.so.6"));
        is("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)", Some("/lib64/ld-linux-x86-64.so.2"));
        is("\tlinux-vdso.so.1 (0x00007ffc)", None);
        is("\tlibgone.so.1 => not found", None);
        is("\tstatically linked", None);
    }

    #[test]
    fn a_program_comes_with_its_folders_and_libraries_once() {
        let mut archive = Archive::default();
        let mut files = HostFiles::into(&mut archive, &["/bin"]);
        for place in ["/bin/true", "/bin/true", "/program/yes"] {
            files.add(Path::new("/bin/true"), Path::new(place)).expect(place);
        }
        let paths: Vec<&str> = archive.paths().collect();
        for path in ["bin/true", "program", "program/yes"] {
            assert_eq!(paths.iter().filter(|known| **known == path).count(), 1, "{paths:?}");
        }
        for library in libraries_of(Path::new("/bin/true")) {
            let at = paths.iter().position(|path| library.ends_with(path)).expect("it is there");
            let folder = library.parent().expect("in a folder");
            assert!(
                paths[..at].iter().any(|path| folder.ends_with(path)),
                "{} comes before {paths:?}",
                folder.display()
            );
        }
        let unique: BTreeSet<&str> = paths.iter().copied().collect();
        assert_eq!(unique.len(), paths.len(), "{paths:?}");
    }

    #[test]
    fn what_cannot_be_added_says_which() {
        let mut archive = Archive::default();
        let mut files = HostFiles::into(&mut archive, &[]);
        for path in ["relative", "/nonexistent/program", "/tmp/program"] {
            let error = files.add(Path::new(path), Path::new(path)).expect_err("no file");
            assert!(format!("{error:#}").contains(path), "{error:#}");
        }
    }
}
