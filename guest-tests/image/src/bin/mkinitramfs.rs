//! Writes the guest's initramfs; leaves it alone when nothing that goes into it has changed.

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use guest_image::archive::{Access, Archive, Node};
use guest_image::host_files::HostFiles;
use guest_image::modules::Selection;

/// Folders of the image, parents first.
const FOLDERS: &[&str] =
    &["/bin", "/dev", "/etc", "/lib", "/lib/modules", "/proc", "/root", "/run", "/sbin", "/sys", "/tmp"];

/// Writes the guest's initramfs.
#[derive(Debug, Parser)]
struct Arguments {
    /// The kernel's modules: a /lib/modules/VERSION folder.
    #[arg(long)]
    modules: PathBuf,
    /// The folder with the guest's programs, statically linked.
    #[arg(long)]
    programs: PathBuf,
    /// A static busybox.
    #[arg(long)]
    busybox: PathBuf,
    /// A file or folder of the host's that the guest is to have at the same path or at another place, a program with its
    /// libraries.
    #[arg(long = "with", value_name = "PATH[=PLACE]")]
    with: Vec<String>,
    /// The archive to write.
    #[arg(long)]
    output: PathBuf,
}

impl Arguments {
    fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let key_path = arguments.output.with_extension("inputs");
    let key = inputs(&arguments)?;
    // What is deep in a folder of the host's may have changed without a trace in the key.
    let known = arguments.with.is_empty() && arguments.output.exists();
    if known && fs::read_to_string(&key_path).is_ok_and(|old| old == key) {
        return Ok(());
    }
    let selection = Selection::from_tree(&arguments.modules)?;
    let archive = build(&arguments, &selection)?;
    let bytes = archive.bytes().context("build the archive")?;
    // By rename: who boots from it meanwhile has either the old one or the new one.
    let unfinished = arguments.output.with_extension("unfinished");
    fs::write(&unfinished, &bytes).with_context(|| format!("write {}", unfinished.display()))?;
    fs::rename(&unfinished, &arguments.output).context("put the archive in its place")?;
    fs::write(&key_path, key).with_context(|| format!("write {}", key_path.display()))?;
    println!(
        "{}: {:.1} MiB, {} modules",
        arguments.output.display(),
        bytes.len() as f64 / f64::from(1 << 20),
        selection.modules.len()
    );
    if !selection.missing.is_empty() {
        println!("this kernel has no {} (only needed for some methods)", selection.missing.join(", "));
    }
    Ok(())
}

fn build(arguments: &Arguments, selection: &Selection) -> Result<Archive> {
    let program = |path: &Path| -> Result<Node> {
        Ok(Node::File(fs::read(path).with_context(|| format!("read {}", path.display()))?, Access::Program))
    };
    let text = |text: &str| Node::File(text.as_bytes().to_vec(), Access::Data);
    let mut archive = Archive::default();
    archive.folders(FOLDERS);
    archive.add("/dev/console", Node::CharacterDevice { major: 5, minor: 1 });
    archive.add("/init", program(&arguments.program("guest-init"))?);
    archive.add("/bin/agent", program(&arguments.program("agent"))?);
    archive.add("/bin/transfer", program(&arguments.program("transfer"))?);
    archive.add("/bin/userspace-nic", program(&arguments.program("userspace-nic"))?);
    archive.add("/bin/nic-queues", program(&arguments.program("nic-queues"))?);
    archive.add("/bin/frame", program(&arguments.program("examples/frame"))?);
    archive.add("/bin/busybox", program(&arguments.busybox)?);
    for applet in applets(&arguments.busybox)? {
        archive.add(&format!("/bin/{applet}"), Node::Link("busybox".to_owned()));
    }
    archive.add("/etc/passwd", text("root:x:0:0:root:/root:/bin/sh\n"));
    archive.add("/etc/group", text("root:x:0:\n"));
    archive.add("/etc/hosts", text("127.0.0.1 localhost\n10.0.2.15 guest\n10.0.2.2 peer\n"));
    selection.add_to(&mut archive);
    let mut files = HostFiles::into(&mut archive, FOLDERS);
    for with in &arguments.with {
        let (path, place) = with.split_once('=').unwrap_or((with, with));
        files.add(Path::new(path), Path::new(place))?;
    }
    Ok(archive)
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

/// What the image is made from, as text: paths, sizes and times. The module tree counts by its own time and that of
/// its index, since a kernel's modules do not change one by one.
fn inputs(arguments: &Arguments) -> Result<String> {
    let mut key = String::new();
    let files = [
        std::env::current_exe().context("this program's own path")?,
        arguments.program("guest-init"),
        arguments.program("agent"),
        arguments.program("transfer"),
        arguments.program("userspace-nic"),
        arguments.program("nic-queues"),
        arguments.program("examples/frame"),
        arguments.busybox.clone(),
        arguments.modules.clone(),
        arguments.modules.join("modules.builtin"),
    ];
    for path in files {
        let about = fs::metadata(&path).with_context(|| path.display().to_string())?;
        writeln!(key, "{} {} {}.{:09}", path.display(), about.len(), about.mtime(), about.mtime_nsec())?;
    }
    Ok(key)
}
