//! The guest's initramfs as a whole.

use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::archive::{Access, Archive, Node};
use crate::host_files::HostFiles;
use crate::modules::Selection;
use anyhow::{Context, Result, ensure};

/// Folders of the image, parents first.
const FOLDERS: &[&str] =
    &["/bin", "/dev", "/etc", "/lib", "/lib/modules", "/proc", "/root", "/run", "/sbin", "/sys", "/tmp"];

/// What an initramfs is made of.
#[derive(Debug, Clone)]
pub struct Initramfs {
    /// The kernel's modules: a /lib/modules/VERSION folder.
    pub modules: PathBuf,
    /// Groups of modules that not every guest has.
    pub groups: Vec<&'static str>,
    /// The folder with the guest's programs, statically linked.
    pub programs: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
    /// Files and folders of the host's, programs with their libraries, and where the guest is to have them.
    pub with: Vec<(PathBuf, PathBuf)>,
}

impl Initramfs {
    /// Writes the archive; leaves it alone when nothing that goes into it has changed. What there is to say of it.
    ///
    /// # Errors
    /// Something of it is not there, or it cannot be written.
    pub fn write(&self, output: &Path) -> Result<Vec<String>> {
        let key_path = output.with_extension("inputs");
        let key = self.inputs()?;
        // What is deep in a folder of the host's may have changed without a trace in the key.
        let known = self.with.is_empty() && self.groups.is_empty() && output.exists();
        if known && fs::read_to_string(&key_path).is_ok_and(|old| old == key) {
            return Ok(Vec::new());
        }
        let selection = Selection::from_tree(&self.modules, &self.groups)?;
        let bytes = self.build(&selection)?.bytes().context("build the archive")?;
        // By rename: who boots from it meanwhile has either the old one or the new one.
        let unfinished = output.with_extension("unfinished");
        fs::write(&unfinished, &bytes).with_context(|| format!("write {}", unfinished.display()))?;
        fs::rename(&unfinished, output).context("put the archive in its place")?;
        fs::write(&key_path, key).with_context(|| format!("write {}", key_path.display()))?;
        let (size, modules) = (bytes.len() as f64 / f64::from(1 << 20), selection.modules.len());
        let mut said = vec![format!("{}: {size:.1} MiB, {modules} modules", output.display())];
        if !selection.missing.is_empty() {
            said.push(format!("this kernel has no {} (only needed for some methods)", selection.missing.join(", ")));
        }
        Ok(said)
    }

    fn build(&self, selection: &Selection) -> Result<Archive> {
        let program = |path: &Path| -> Result<Node> {
            Ok(Node::File(fs::read(path).with_context(|| format!("read {}", path.display()))?, Access::Program))
        };
        let text = |text: &str| Node::File(text.as_bytes().to_vec(), Access::Data);
        let mut archive = Archive::default();
        archive.folders(FOLDERS);
        archive.add("/dev/console", Node::CharacterDevice { major: 5, minor: 1 });
        archive.add("/init", program(&self.programs.join("guest-init"))?);
        archive.add("/bin/agent", program(&self.programs.join("agent"))?);
        archive.add("/bin/transfer", program(&self.programs.join("transfer"))?);
        archive.add("/bin/userspace-nic", program(&self.programs.join("userspace-nic"))?);
        archive.add("/bin/nic-queues", program(&self.programs.join("nic-queues"))?);
        archive.add("/bin/pages", program(&self.programs.join("pages"))?);
        archive.add("/bin/receiver", program(&self.programs.join("receiver"))?);
        archive.add("/bin/passthrough", program(&self.programs.join("passthrough"))?);
        archive.add("/bin/kexec", program(&self.programs.join("kexec"))?);
        archive.add("/bin/frame", program(&self.programs.join("examples/frame"))?);
        archive.add("/bin/busybox", program(&self.busybox)?);
        for applet in applets(&self.busybox)? {
            archive.add(&format!("/bin/{applet}"), Node::Link("busybox".to_owned()));
        }
        archive.add("/etc/passwd", text("root:x:0:0:root:/root:/bin/sh\n"));
        archive.add("/etc/group", text("root:x:0:\n"));
        archive.add("/etc/hosts", text("127.0.0.1 localhost\n10.0.2.15 guest\n10.0.2.2 peer\n"));
        selection.add_to(&mut archive);
        let mut files = HostFiles::into(&mut archive, FOLDERS);
        for (path, place) in &self.with {
            files.add(path, place)?;
        }
        Ok(archive)
    }

    /// What the image is made from, as text: paths, sizes and times. The module tree counts by its own time and that of
    /// its index, since a kernel's modules do not change one by one.
    fn inputs(&self) -> Result<String> {
        let mut key = format!("{:x}\n", written_by());
        let files = [
            self.programs.join("guest-init"),
            self.programs.join("agent"),
            self.programs.join("transfer"),
            self.programs.join("userspace-nic"),
            self.programs.join("nic-queues"),
            self.programs.join("pages"),
            self.programs.join("kexec"),
            self.programs.join("examples/frame"),
            self.busybox.clone(),
            self.modules.clone(),
            self.modules.join("modules.builtin"),
        ];
        for path in files {
            let about = fs::metadata(&path).with_context(|| path.display().to_string())?;
            writeln!(key, "{} {} {}.{:09}", path.display(), about.len(), about.mtime(), about.mtime_nsec())?;
        }
        Ok(key)
    }
}

/// A number for the code that wrote an image: another one's is not up to date.
fn written_by() -> u64 {
    let code = [
        include_str!("initramfs.rs"),
        include_str!("archive.rs"),
        include_str!("host_files.rs"),
        include_str!("modules.rs"),
    ];
    let mut hasher = DefaultHasher::new();
    code.hash(&mut hasher);
    hasher.finish()
}

/// The programs this busybox can be, except those that are in the image already.
fn applets(busybox: &Path) -> Result<Vec<String>> {
    let listed =
        Command::new(busybox).arg("--list").output().with_context(|| format!("run {} --list", busybox.display()))?;
    ensure!(listed.status.success(), "{} --list failed", busybox.display());
    let names = String::from_utf8(listed.stdout).context("busybox --list")?;
    let mut names: Vec<String> = names.lines().filter(|name| *name != "busybox").map(str::to_owned).collect();
    names.sort_unstable();
    Ok(names)
}
