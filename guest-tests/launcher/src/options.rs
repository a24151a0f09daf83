//! What `scripts/run-qemu.sh` can be asked for.

use std::ffi::OsString;
use std::num::NonZero;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use vnic_experiment::filesystem::Filesystems;

use crate::machine::Accelerator;
use crate::repository;

const ENVIRONMENT: &str = "\
Environment:
  QEMU=PROGRAM     a QEMU of your own
  VNIC=PROGRAM     a vnic that is built already
  TOUCHES=FILE     the plugin for --touches, built already
  GUEST_PROGRAMS=DIR   the guest's own programs, built already (target/guest/build/x86_64-unknown-linux-gnu/guest)

Examples:
  scripts/run-qemu.sh                                  a shell on the guest's serial console (leave with exit, or ^A x)
  scripts/run-qemu.sh --transfer sendfile,read-write   these rows, as a table; target/run/run.json keeps them
  scripts/run-qemu.sh --transfer vfio-userspace        the row without the kernel, in a guest with an IOMMU
  scripts/run-qemu.sh --program './send --fast'        a program of your own as a row
  scripts/run-qemu.sh --command 'ping -c 3 10.0.2.2'   one command in the guest";

/// Launches a guest on our NIC: a shell in it by default. Builds what is missing, and prints the commands it runs.
///
/// Where an option stands several times, the last one counts.
#[derive(Debug, Clone, Parser)]
#[command(name = "run-qemu.sh", after_help = ENVIRONMENT, args_override_self = true)]
pub struct Options {
    /// Runs these rows, leaves run.json, prints the table; exits with 0 when every verdict is the expected one. `all`: every
    /// row. Behind a row's name: -no-sg, -no-csum (the NIC lacks it), -cold (the file is on the disk only)
    #[arg(long, value_name = "ROW,…", overrides_with = "command")]
    pub transfer: Option<String>,
    /// A program of your own as a row: the file is its standard input, the connection its standard output; with its shared
    /// libraries. Without a / in its name it is one the guest has: cat, dd bs=64k
    #[arg(long, value_name = "COMMAND", overrides_with = "command")]
    pub program: Option<String>,
    /// Shows a hazard: truncate, lease, mutate or observer; exits with 0 when it went as described
    #[arg(long, value_name = "NAME", overrides_with = "command")]
    pub hazard: Option<String>,
    /// Runs one command in the guest
    #[arg(long, allow_hyphen_values = true, overrides_with_all = ["transfer", "program", "hazard"])]
    pub command: Option<String>,
    /// The guest's agent waits for a host, which is none of ours: for the tests
    #[arg(long, hide = true, value_parser = ["agent"])]
    pub task: Option<String>,

    /// Of the file that is sent
    #[arg(long, value_name = "BYTES", default_value = "16M", value_parser = parse_size)]
    pub size: u64,
    /// Where the file is made, every row on each: tmpfs, tmpfs-huge, ext4, xfs, btrfs, btrfs-zstd, overlayfs, squashfs,
    /// erofs, fuse, nfs. A guest has one disk: those that are on it take a run each
    #[arg(long, value_name = "NAME,…", default_value = "tmpfs")]
    pub filesystem: Filesystems,
    /// A file or folder that the guest is to have, too, at the same path or another; may stand several times
    #[arg(long, value_name = "PATH[=PLACE]", action = clap::ArgAction::Append)]
    pub with: Vec<With>,
    /// A kernel module that is loaded for the rows that name it, and only then: sendfile+copy-splice, with copy-splice.ko; may
    /// stand several times
    #[arg(long, value_name = "FILE", action = clap::ArgAction::Append, value_parser = parse_module)]
    pub kernel_module: Vec<PathBuf>,
    /// Who is asked about a transfer
    #[arg(long, value_name = "NAME,…", default_value = "device,guest,memory,introspection")]
    pub witness: String,

    /// Asks the emulated CPU, too, how many bytes of the file's pages it loads and stores; under tcg, and several times slower
    #[arg(long)]
    pub touches: bool,

    /// A kernel of your own
    #[arg(long, value_name = "FILE", requires = "modules")]
    pub kernel: Option<PathBuf>,
    /// Its modules: /lib/modules/VERSION
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub modules: Option<PathBuf>,
    /// The newest kernel of this version that a suite of Debian's has (5.10, 7.3), or that of a suite (sid)
    #[arg(long, value_name = "VERSION|SUITE", conflicts_with = "kernel")]
    pub debian_kernel: Option<String>,
    /// The kernel of Debian's backports
    #[arg(long, conflicts_with_all = ["kernel", "debian_kernel"])]
    pub newer_kernel: bool,
    /// The QEMU of Debian's backports
    #[arg(long)]
    pub newer_qemu: bool,

    /// Where the NIC's frames go: peer, tap:NAME, …; tap needs rights for the device
    #[arg(long, value_name = "LINK", default_value = "peer")]
    pub link: String,
    /// A model of a card of hardware (82599, e810-like, …), for the record; with :pace behind it, the NIC is as slow as that card
    #[arg(long, value_name = "MODEL[:account|:pace]")]
    pub hardware: Option<String>,
    /// QEMU listens and vnic serve connects, again and again if it must
    #[arg(long)]
    pub client: bool,
    /// vhost is our NIC; user, tap:NAME and stream:PATH are QEMU's own, to compare with. The receiver for user: 127.0.0.1:9000
    #[arg(long, default_value = "vhost")]
    pub netdev: Netdev,
    /// Who serves the guest's disk: vhost is vnic serve, qemu is QEMU itself, to compare with [default: vhost beside our NIC]
    #[arg(long, value_name = "vhost|qemu")]
    pub disk: Option<DiskServer>,
    /// kvm or tcg, in place of: kvm if a guest really boots with it, else tcg
    #[arg(long)]
    pub accel: Option<Accelerator>,
    /// Several queue pairs, one for each of the guest's --cpus say
    #[arg(long, value_name = "N", default_value = "1")]
    pub queue_pairs: NonZero<u16>,
    /// An IOMMU between the NIC and the guest's memory; by itself where a row needs it (vfio-userspace)
    #[arg(long)]
    pub iommu: bool,
    /// More options for the NIC: packed=on
    #[arg(long, value_name = "LIST")]
    pub nic_options: Option<String>,
    /// MSI-X interrupts in the NIC (off where this QEMU crashes with them)
    #[arg(long, value_name = "on|off", value_parser = parse_switch)]
    pub msix: Option<bool>,
    /// Of the guest
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub memory: String,
    /// Of the guest
    #[arg(long, value_name = "N", default_value = "1")]
    pub cpus: String,
    /// For sockets, logs and the record (target/run)
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// More words for the kernel's command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub append: Option<String>,
    /// More options for vnic serve
    #[arg(long, value_name = "WORDS", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub serve_options: String,
    /// Only prints QEMU's command line, one argument per line
    #[arg(long)]
    pub print_command: bool,
}

/// The guest's NIC is ours, or one of QEMU's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Netdev {
    /// Ours.
    Vhost,
    /// QEMU's network without privileges.
    User,
    /// QEMU's own on this tap device.
    Tap(String),
    /// QEMU's own, to the program that listens at this socket: passt.
    Stream(PathBuf),
}

impl FromStr for Netdev {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Netdev, Self::Err> {
        match text.split_once(':') {
            None if text == "vhost" => Ok(Netdev::Vhost),
            None if text == "user" => Ok(Netdev::User),
            Some(("tap", name)) if !name.is_empty() => Ok(Netdev::Tap(name.to_owned())),
            Some(("stream", path)) if !path.is_empty() => Ok(Netdev::Stream(path.into())),
            _ => Err("there is vhost (ours), user, tap:NAME and stream:PATH (QEMU's)"),
        }
    }
}

/// Who serves the guest's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskServer {
    /// `vnic serve`.
    Vhost,
    /// QEMU.
    Qemu,
}

impl FromStr for DiskServer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<DiskServer, Self::Err> {
        match text {
            "vhost" => Ok(DiskServer::Vhost),
            "qemu" => Ok(DiskServer::Qemu),
            _ => Err("there is vhost (vnic serve) and qemu (QEMU itself)"),
        }
    }
}

/// A file or folder of the host's for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct With {
    /// On the host, absolute.
    pub path: PathBuf,
    /// In the guest.
    pub place: PathBuf,
}

impl FromStr for With {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<With, Self::Err> {
        let (path, place) = text.split_once('=').map_or((text, None), |(path, place)| (path, Some(place)));
        let path = absolute(path).filter(|path| path.exists()).ok_or("there is no such file")?;
        Ok(With { place: place.map_or_else(|| path.clone(), PathBuf::from), path })
    }
}

/// With `..` taken out as it is written: links stay, since the guest is to have the file where it is looked for.
fn absolute(path: &str) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    Some(path.components().fold(PathBuf::new(), |mut whole, component| {
        match component {
            Component::ParentDir => drop(whole.pop()),
            component => whole.push(component),
        }
        whole
    }))
}

fn parse_size(text: &str) -> Result<u64, &'static str> {
    let size = parse_size::Config::new().with_binary();
    size.parse_size(text).map_err(|_| "this is no size: write 4096, 64K or 16M")
}

fn parse_module(text: &str) -> Result<PathBuf, &'static str> {
    let path = absolute(text).filter(|path| path.is_file()).ok_or("there is no such file")?;
    if path.extension().is_some_and(|ending| ending == "ko") {
        Ok(path)
    } else {
        Err("a kernel module is called NAME.ko")
    }
}

fn parse_switch(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is on or off"),
    }
}

impl Options {
    /// From the words behind the program's name.
    ///
    /// # Errors
    /// What is wrong with them; a wish for help is one, too.
    pub fn read(words: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Options, clap::Error> {
        let program = std::iter::once(OsString::from("run-qemu.sh"));
        let mut options = Options::try_parse_from(program.chain(words.into_iter().map(Into::into)))?;
        options.complete().map_err(|why| Options::command().error(ErrorKind::ValueValidation, why))?;
        Ok(options)
    }

    /// Where sockets, logs and the record go: absolute.
    ///
    /// # Errors
    /// There is no current folder.
    pub fn folder(&self) -> anyhow::Result<PathBuf> {
        let folder = self.run_dir.clone().unwrap_or_else(|| repository().join("target/run"));
        Ok(std::path::absolute(folder)?)
    }

    /// Who serves the guest's disk.
    #[must_use]
    pub fn disk_server(&self) -> DiskServer {
        let beside = if self.netdev == Netdev::Vhost { DiskServer::Vhost } else { DiskServer::Qemu };
        self.disk.unwrap_or(beside)
    }

    /// Rows to be judged, or a hazard to be shown?
    #[must_use]
    pub fn is_judged(&self) -> bool {
        self.transfer.is_some() || self.hazard.is_some()
    }

    /// What follows from one option for others.
    fn complete(&mut self) -> Result<(), String> {
        if let Some(command) = &mut self.program {
            self.transfer.get_or_insert_with(|| "program".to_owned());
            let words = command.trim_start_matches(' ');
            let (name, arguments) = words.split_at(words.find(' ').unwrap_or(words.len()));
            if name.contains('/') {
                let mut program: With = name.parse().map_err(|why| format!("--program {name}: {why}"))?;
                // Where the guest has a file system of its own.
                if ["/tmp", "/run", "/dev"].iter().any(|own| program.path.starts_with(own)) {
                    program.place = Path::new("/program").join(program.path.file_name().unwrap_or_default());
                }
                *command = format!("{}{arguments}", program.place.display());
                self.with.push(program);
            }
        }
        self.filesystem.disk()?;
        let rows = self.transfer.iter().flat_map(|rows| rows.split(','));
        self.iommu |= rows.into_iter().any(|row| row == "vfio-userspace");
        if self.touches && self.transfer.is_none() {
            return Err("--touches is asked about a transfer: with --transfer ROW".to_owned());
        }
        if self.touches && *self.accel.get_or_insert(Accelerator::Tcg) != Accelerator::Tcg {
            return Err("--touches asks QEMU's emulated CPU: with --accel tcg".to_owned());
        }
        if self.netdev != Netdev::Vhost && self.queue_pairs.get() != 1 {
            return Err("--queue-pairs goes with our NIC: not with another --netdev".to_owned());
        }
        if self.netdev != Netdev::Vhost && self.disk == Some(DiskServer::Vhost) {
            return Err("--disk vhost is served beside our NIC: not with another --netdev".to_owned());
        }
        if self.netdev != Netdev::Vhost && self.is_judged() {
            return Err("--transfer is judged by our NIC: not with another --netdev".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Options {
        Options::read(words.iter().copied()).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    #[test]
    fn the_options_are_sound() {
        Options::command().debug_assert();
    }

    #[test]
    fn the_last_one_counts() {
        let options =
            read(&["--transfer", "all", "--size", "16M", "--size", "64K", "--with", "/usr", "--with", "/etc"]);
        assert_eq!((options.size, options.with.len()), (65536, 2));
        let options = read(&["--transfer", "all", "--command", "-x"]);
        assert_eq!((options.transfer, options.command.as_deref()), (None, Some("-x")));
        assert!(read(&["--command", "x", "--hazard", "lease"]).command.is_none());
    }

    #[test]
    fn a_row_that_needs_an_iommu_brings_it() {
        assert!(read(&["--transfer", "sendfile,vfio-userspace"]).iommu);
        assert!(!read(&["--transfer", "sendfile"]).iommu);
    }

    #[test]
    fn the_disk_is_ours_wherever_the_nic_is_unless_it_is_asked_otherwise() {
        let server = |words: &[&str]| read(words).disk_server();
        assert_eq!(server(&[]), DiskServer::Vhost);
        assert_eq!(server(&["--netdev", "user"]), DiskServer::Qemu);
        assert_eq!(server(&["--disk", "qemu"]), DiskServer::Qemu);
        let refused = Options::read(["--netdev", "user", "--disk", "vhost"]).expect_err("no serve").to_string();
        assert!(refused.contains("--disk vhost"), "{refused}");
    }

    #[test]
    fn a_program_is_taken_along_to_where_the_guest_has_no_file_system_of_its_own() {
        let options = read(&["--program", "  /bin/../bin/sh -c x"]);
        assert_eq!((options.transfer.as_deref(), options.program.as_deref()), (Some("program"), Some("/bin/sh -c x")));
        assert_eq!(options.with, ["/bin/sh".parse().expect("it is there")]);
        let options = read(&["--program", "/dev/null a", "--transfer", "program-cold"]);
        assert_eq!(options.program.as_deref(), Some("/program/null a"));
        assert_eq!(options.transfer.as_deref(), Some("program-cold"));
        let options = read(&["--program", "dd bs=64k"]);
        assert_eq!((options.program.as_deref(), options.with.len()), (Some("dd bs=64k"), 0));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_name() {
        for (words, named) in [
            (&["--size", "16X"][..], "--size"),
            (&["--size"], "--size"),
            (&["--netdev", "tap:"], "--netdev"),
            (&["--netdev", "stream:"], "--netdev"),
            (&["--disk", "scsi"], "--disk"),
            (&["--netdev", "user", "--queue-pairs", "2"], "--queue-pairs"),
            (&["--netdev", "user", "--transfer", "all"], "--transfer"),
            (&["--queue-pairs", "0"], "--queue-pairs"),
            (&["--filesystem", "ext5"], "--filesystem"),
            (&["--filesystem", "ext4,xfs"], "one disk"),
            (&["--touches"], "--transfer"),
            (&["--touches", "--transfer", "all", "--accel", "kvm"], "--accel tcg"),
            (&["--msix", "maybe"], "--msix"),
            (&["--accel", "hvf"], "--accel"),
            (&["--kernel", "/vmlinuz"], "--modules"),
            (&["--kernel", "/k", "--modules", "/m", "--debian-kernel", "7.3"], "--debian-kernel"),
            (&["--with", "/nonexistent"], "--with"),
            (&["--program", "/nonexistent x"], "--program"),
            (&["--kernel-module", "/nonexistent.ko"], "--kernel-module"),
            (&["--kernel-module", "/bin/sh"], "NAME.ko"),
            (&["--no-such-option"], "--no-such-option"),
            (&["word"], "word"),
        ] {
            let error = Options::read(words.iter().copied()).expect_err("it is refused").to_string();
            assert!(error.contains(named), "{words:?}: {error}");
        }
    }
}
