//! `vnic qemu-args`: what a VM needs on its command line, or in its libvirt domain, to use what `vnic serve` serves.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::serve::queue_pairs;
use crate::{Finding, doctor, views};

/// From this version on QEMU counts the time between two attempts in milliseconds.
const RECONNECT_MS_SINCE: u32 = 10;

/// Options of `vnic qemu-args`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The socket of `vnic serve --socket-path`
    #[arg(long, value_name = "PATH", required_unless_present = "blk")]
    socket_path: Option<PathBuf>,
    /// The socket of a disk (`vnic serve --blk PATH,…`). May stand several times
    #[arg(long, value_name = "PATH")]
    blk: Vec<PathBuf>,
    /// The guest's memory, as for QEMU's -m
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = memory)]
    memory: String,
    /// Queue pairs of the NIC, at most what `vnic serve --queue-pairs` offers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = queue_pairs)]
    queue_pairs: u16,
    /// For `vnic serve --client`: the VMM listens
    #[arg(long)]
    listen: bool,
    /// Behind the guest's IOMMU
    #[arg(long)]
    iommu: bool,
    /// With packed rings
    #[arg(long)]
    packed: bool,
    /// The elements of a libvirt domain instead
    #[arg(long, conflicts_with_all = ["json", "iommu", "packed"])]
    libvirt: bool,
    /// The options as one JSON array of words
    #[arg(long)]
    json: bool,
}

fn memory(text: &str) -> Result<String, String> {
    let unit = text.ends_with(['K', 'M', 'G', 'T']);
    match text[..text.len() - usize::from(unit)].parse::<u64>() {
        Ok(1..) if unit => Ok(text.to_owned()),
        // Mebibytes for -m, but bytes for a memory backend.
        Ok(1..) => Ok(format!("{text}M")),
        _ => Err(format!("{text} is no size; QEMU takes mebibytes, or a number with K, M, G or T, such as 512M")),
    }
}

/// Prints them; nothing is looked up but the version of the QEMU that is installed.
pub(super) fn run(args: &Args) -> Result<Finding> {
    for socket in args.socket_path.iter().chain(&args.blk) {
        if socket.to_str().is_none() {
            bail!("{} is not UTF-8, as a command line for QEMU should be", socket.display());
        }
    }
    if args.libvirt {
        views::put(libvirt(args))?;
        return Ok(Finding::Fine);
    }
    let options = options(args, doctor::qemu_major());
    if args.json {
        let words: Vec<&str> = options.iter().flat_map(|(option, value)| [*option, value]).collect();
        views::json(&words)?;
    } else {
        let lines: Vec<_> = options.iter().map(|(option, value)| format!("{option} {}", quoted(value))).collect();
        views::sentence(&lines.join(" \\\n"))?;
    }
    Ok(Finding::Fine)
}

/// The options in QEMU's order of reading them; `major` is the version, the newest if none is known.
fn options(args: &Args, major: Option<u32>) -> Vec<(&'static str, String)> {
    let mut options = vec![
        ("-m", args.memory.clone()),
        ("-object", format!("memory-backend-memfd,id=vnic-ram,size={},share=on", args.memory)),
        ("-numa", "node,memdev=vnic-ram".to_owned()),
    ];
    let role = match (args.listen, major) {
        (true, _) => "server=on",
        (false, Some(..RECONNECT_MS_SINCE)) => "reconnect=1",
        (false, _) => "reconnect-ms=1000",
    };
    let mut transport = String::new();
    if args.iommu {
        options.push(("-device", "intel-iommu,intremap=on,device-iotlb=on,caching-mode=on".to_owned()));
        // A vhost device learns by ATS what is unmapped.
        transport += ",iommu_platform=on,ats=on,disable-legacy=on";
    }
    if args.packed {
        transport += ",packed=on";
    }
    if let Some(socket) = &args.socket_path {
        let pairs = args.queue_pairs;
        // A vector for each queue, one for the control queue, one for changes of the configuration.
        let queues = if pairs == 1 { String::new() } else { format!(",mq=on,vectors={}", 2 * u32::from(pairs) + 2) };
        options.push(("-chardev", format!("socket,id=vnic-net,path={},{role}", escaped(socket))));
        options.push(("-netdev", format!("vhost-user,id=net-vnic,chardev=vnic-net,queues={pairs}")));
        options.push(("-device", format!("virtio-net-pci,netdev=net-vnic{queues}{transport}")));
    }
    for (number, socket) in args.blk.iter().enumerate() {
        options.push(("-chardev", format!("socket,id=vnic-blk{number},path={},{role}", escaped(socket))));
        // Without a number QEMU wants a queue for each of the guest's CPUs; a disk has one unless it was told otherwise.
        options.push(("-device", format!("vhost-user-blk-pci,chardev=vnic-blk{number},num-queues=1{transport}")));
    }
    options
}

/// A path within a QEMU option, where a comma is written twice.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A word for a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=.,/:+@%".contains(&byte);
    if word.bytes().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// The elements of a domain: shared memory, and within `<devices>` the NIC and the disks.
fn libvirt(args: &Args) -> String {
    let mode = if args.listen { "server" } else { "client" };
    let attribute = |path: &Path| {
        let text = path.display().to_string();
        text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
    };
    let reconnect = if args.listen { "" } else { "\n      <reconnect enabled='yes' timeout='1'/>\n    " };
    let mut text = String::from(
        "<memoryBacking>\n  <source type='memfd'/>\n  <access mode='shared'/>\n</memoryBacking>\n<devices>\n",
    );
    if let Some(socket) = &args.socket_path {
        let (path, pairs) = (attribute(socket), args.queue_pairs);
        let _ = write!(
            text,
            "  <interface type='vhostuser'>\n    <source type='unix' path='{path}' mode='{mode}'>{reconnect}</source>\n    \
             <model type='virtio'/>\n    <driver queues='{pairs}'/>\n  </interface>\n"
        );
    }
    for (number, socket) in args.blk.iter().enumerate() {
        let path = attribute(socket);
        let letter = disk_letters(number);
        let _ = write!(
            text,
            "  <disk type='vhostuser' device='disk'>\n    <driver name='qemu' type='raw'/>\n    \
             <source type='unix' path='{path}'>{reconnect}</source>\n    <target dev='vd{letter}' bus='virtio'/>\n  </disk>\n"
        );
    }
    text + "</devices>\n"
}

/// 0 → a, 25 → z, 26 → aa: as Linux counts disks.
fn disk_letters(mut number: usize) -> String {
    let mut letters = Vec::new();
    loop {
        letters.push(b"abcdefghijklmnopqrstuvwxyz"[number % 26]);
        if number < 26 {
            break;
        }
        number = number / 26 - 1;
    }
    letters.iter().rev().map(|&letter| char::from(letter)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(sockets: &[&str]) -> Args {
        let (net, disks) = sockets.split_first().unwrap();
        Args {
            socket_path: Some(PathBuf::from(net)),
            blk: disks.iter().map(PathBuf::from).collect(),
            memory: "1G".to_owned(),
            queue_pairs: 1,
            listen: false,
            iommu: false,
            packed: false,
            libvirt: false,
            json: false,
        }
    }

    fn value(options: &[(&str, String)], option: &str, start: &str) -> String {
        let found = options.iter().find(|(name, value)| *name == option && value.starts_with(start));
        found.unwrap_or_else(|| panic!("{option} {start}… in {options:?}")).1.clone()
    }

    #[test]
    fn each_version_reconnects_in_its_own_words() {
        for (major, words) in [(Some(7), "reconnect=1"), (Some(10), "reconnect-ms=1000"), (None, "reconnect-ms=1000")] {
            let chardev = value(&options(&args(&["/s"]), major), "-chardev", "socket");
            assert_eq!(chardev, format!("socket,id=vnic-net,path=/s,{words}"));
        }
        let listening = Args { listen: true, ..args(&["/s"]) };
        assert!(value(&options(&listening, Some(7)), "-chardev", "socket").ends_with(",server=on"));
    }

    #[test]
    fn several_pairs_have_their_vectors_and_disks_their_numbers() {
        let four = Args { queue_pairs: 4, packed: true, ..args(&["/n", "/a", "/b,c"]) };
        let options = options(&four, None);
        assert_eq!(value(&options, "-netdev", "vhost-user"), "vhost-user,id=net-vnic,chardev=vnic-net,queues=4");
        let nic = value(&options, "-device", "virtio-net-pci");
        assert_eq!(nic, "virtio-net-pci,netdev=net-vnic,mq=on,vectors=10,packed=on");
        let second = value(&options, "-chardev", "socket,id=vnic-blk1");
        assert_eq!(second, "socket,id=vnic-blk1,path=/b,,c,reconnect-ms=1000");
    }

    #[test]
    fn words_are_quoted_for_the_shell_and_for_xml() {
        assert_eq!(quoted("a=b,c"), "a=b,c");
        assert_eq!(quoted("/it's here"), r"'/it'\''s here'");
        let text = libvirt(&args(&["/a&'b", "/d"]));
        assert!(text.contains("path='/a&amp;&apos;b' mode='client'"), "{text}");
        assert!(text.contains("<target dev='vda' bus='virtio'/>"), "{text}");
    }

    #[test]
    fn disks_are_counted_as_linux_counts_them() {
        let names: Vec<_> = [0, 25, 26, 51, 52, 701, 702].map(disk_letters).to_vec();
        assert_eq!(names, ["a", "z", "aa", "az", "ba", "zz", "aaa"]);
    }

    #[test]
    fn a_size_is_a_number_with_a_unit_of_qemus() {
        assert_eq!(["512M", "2048"].map(|text| memory(text).unwrap()), ["512M", "2048M"]);
        for wrong in ["", "M", "0", "512MiB", "1,5G", "x"] {
            assert!(memory(wrong).unwrap_err().contains("512M"), "{wrong}");
        }
    }
}
