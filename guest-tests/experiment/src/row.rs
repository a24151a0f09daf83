//! The rows of the table: a transfer method and what the NIC lacks while it runs.

use std::fmt;

use super::run::Verdict;
use super::wire::{NicWish, Over};

/// The rows of the textbook's table, in its order: what `textbook` means.
pub const TEXTBOOK: &[&str] = &["read-write", "mmap-write", "sendfile", "sendfile-no-sg", "splice"];

/// Every method there is a row for, in the order of the table. `all` means each of them, without scatter-gather too and
/// without transmit checksum too, and the textbook's also with a cold file.
pub const METHODS: &[&str] = &[
    "read-write",
    "mmap-write",
    "sendfile",
    "splice",
    "vmsplice",
    "direct-io",
    "direct-io-zerocopy",
    "msg-zerocopy",
    "io-uring-send-zc",
    "cow",
    "ktls-sendfile",
];

/// What [`Row::parse_list`] takes for the table of kernels and file systems: every method, with scatter-gather and without, the textbook's
/// with a cold file too, and what another kernel would make of some.
pub const TABLE: &str = "table";

/// More rows of the table of kernels and file systems, each with scatter-gather and without; not in `all`.
pub const FURTHER: &[&str] = &[
    "sendfile-direct",
    "io-uring-splice",
    "io-uring-send-zc-fixed",
    "ktls-sendfile-ro",
    "sendfile-ipv6",
    "msg-zerocopy-ipv6",
    "read-write-mptcp",
    "sendfile-mptcp",
    "msg-zerocopy-mptcp",
    "read-write-mtu9000",
    "sendfile-mtu9000",
    "msg-zerocopy-mtu9000",
    "read-write-udp",
    "sendfile-udp",
    "msg-zerocopy-udp",
];

/// And those that never meet the NIC, whatever it can: what the socket does, and no card.
pub const HERE: &[&str] =
    &["read-write-unix", "sendfile-unix", "msg-zerocopy-unix", "read-write-mptcp-here", "sendfile-mptcp-here"];

/// The row beyond the kernel: a program drives the NIC itself, through VFIO, and hands it the file's pages. It needs an
/// IOMMU, which the other rows are measured without, and there is no kernel's NIC to switch something off in: it is not in
/// `all`.
pub const USERSPACE: &str = "vfio-userspace";

/// The row of a program that the user brings: what it does is to be found out. Not in `all`.
pub const PROGRAM: &str = "program";

/// What a NIC can lack while a row runs, as the end of its name.
const SUFFIXES: [&str; 3] = ["", "-no-sg", "-no-csum"];

/// Of a row whose file is not in memory when it starts: the disk's DMA brings it there first, as in the textbook's table.
const COLD: &str = "-cold";

/// Of a row whose connection is IPv6.
const IPV6: &str = "-ipv6";
/// Of a row with large frames (jumbo frames).
const MTU9000: (&str, u32) = ("-mtu9000", 9000);
/// Of a row with another connection than TCP. The far end does not know Multipath TCP, so TCP is what goes over the wire; the
/// guest's own kernel does (`-here`).
const OVER: [(&str, Over); 3] = [("-mptcp", Over::Mptcp), ("-mptcp-here", Over::MptcpHere), ("-unix", Over::Unix)];

/// How a method's payload gets from the file to the socket, as far as a witness must know it to read its own figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// Through the page cache, copied by the kernel's copying functions or not at all.
    PageCache,
    /// The disk's DMA puts it into the program's memory, past the page cache. Or may do so: of a program nobody knows.
    Direct,
    /// Page faults copy what the program writes to.
    CopyOnWrite,
    /// A cipher reads it and writes other bytes.
    Cipher,
}

/// Between a row's name and that of the guest's kernel module that is loaded while it runs.
const WITH: char = '+';

/// The module that makes `splice` from a file copy (`guest-tests/kernel/copy-splice.c`).
pub const COPY_SPLICE: &str = "copy-splice";

/// What the module makes another row of.
pub const WHAT_IF: &[&str] = &["sendfile+copy-splice", "splice+copy-splice", "ktls-sendfile+copy-splice"];

/// A name that is no row's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a row's name: a method in lower case, with `-cold` behind it where the file is not to be in memory, and `-no-sg` or `-no-csum` where the NIC is to lack them, `-mtu9000` before that for large frames, `-ipv6`, `-mptcp`, `-mptcp-here` or `-unix` for another connection, and `+MODULE` where the guest is to load a kernel module for it (sendfile, sendfile-cold, sendfile-no-sg, sendfile+copy-splice, …)"
)]
pub struct BadRow(pub String);

/// One row: `sendfile-no-sg` is the method `sendfile` on a NIC without scatter-gather.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The row's name as it stands in the record.
    pub name: String,
    /// The method's name, as the guest's transfer program knows it.
    pub method: String,
    /// What to switch on the NIC before it runs.
    pub nic: NicWish,
    /// Is the file's data to be on the disk only when it starts?
    pub cold: bool,
    /// Is the connection to be IPv6?
    pub ipv6: bool,
    /// What its connection is.
    pub over: Over,
    /// The kernel module that the guest loads before it, and takes out after it.
    pub module: Option<String>,
}

impl Row {
    /// Takes a row's name apart.
    ///
    /// # Errors
    /// It is empty or has characters no method has.
    pub fn parse(name: &str) -> Result<Self, BadRow> {
        let (row, module) = name.split_once(WITH).map_or((name, None), |(row, module)| (row, Some(module)));
        let (method, nic) = if let Some(method) = row.strip_suffix("-no-sg") {
            (method, NicWish { sg: Some(false), ..NicWish::default() })
        } else if let Some(method) = row.strip_suffix("-no-csum") {
            (method, NicWish { csum: Some(false), ..NicWish::default() })
        } else {
            (row, NicWish::default())
        };
        let (method, mtu) = method.strip_suffix(MTU9000.0).map_or((method, None), |method| (method, Some(MTU9000.1)));
        let nic = NicWish { mtu, ..nic };
        let (method, ipv6) = method.strip_suffix(IPV6).map_or((method, false), |method| (method, true));
        let (method, over) = OVER
            .into_iter()
            .find_map(|(suffix, over)| Some((method.strip_suffix(suffix)?, over)))
            .unwrap_or((method, Over::Tcp));
        let (method, cold) = method.strip_suffix(COLD).map_or((method, false), |method| (method, true));
        let is_word = |word: &str| {
            word.starts_with(|c: char| c.is_ascii_lowercase())
                && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        if !is_word(method) || !module.is_none_or(is_word) {
            return Err(BadRow(name.to_owned()));
        }
        Ok(Row {
            name: name.to_owned(),
            method: method.to_owned(),
            nic,
            cold,
            ipv6,
            over,
            module: module.map(str::to_owned),
        })
    }

    /// Takes a list apart: names with commas between; `all`, `table` and `textbook` stand for several.
    ///
    /// # Errors
    /// A name in it is no row's.
    pub fn parse_list(list: &str) -> Result<Vec<Self>, BadRow> {
        let mut rows = Vec::new();
        for name in list.split(',').map(str::trim) {
            match name {
                "all" | TABLE => {
                    let suffixes = if name == TABLE { &SUFFIXES[..2] } else { &SUFFIXES[..] };
                    for method in METHODS {
                        let cold = TEXTBOOK.contains(method).then_some(COLD);
                        for suffix in suffixes.iter().copied().chain(cold) {
                            rows.push(Row::parse(&format!("{method}{suffix}"))?);
                        }
                    }
                    if name != TABLE {
                        continue;
                    }
                    for method in FURTHER {
                        for suffix in suffixes {
                            rows.push(Row::parse(&format!("{method}{suffix}"))?);
                        }
                    }
                    for name in HERE.iter().chain(WHAT_IF) {
                        rows.push(Row::parse(name)?);
                    }
                }
                "textbook" => {
                    for name in TEXTBOOK {
                        rows.push(Row::parse(name)?);
                    }
                }
                name => rows.push(Row::parse(name)?),
            }
        }
        Ok(rows)
    }

    /// What a kernel that does as documented shows in this row; `None` where nothing is documented.
    ///
    /// The device that offers no `csum` leaves the guest's NIC without scatter-gather too (Linux's virtio_net sets
    /// `NETIF_F_SG` only with it), so `csum_offered` belongs to the question.
    #[must_use]
    pub fn expected(&self, csum_offered: bool) -> Option<Verdict> {
        match (self.over, self.method.as_str()) {
            // Through the program's memory is through the program's memory.
            (Over::Unix | Over::MptcpHere, "read-write") => return Some(Verdict::Copied),
            (Over::Tcp, _) => {}
            // Nobody promises anything.
            _ => return None,
        }
        match self.module.as_deref() {
            None => {}
            Some(COPY_SPLICE) if ["sendfile", "splice", "ktls-sendfile"].contains(&self.method.as_str()) => {
                return Some(Verdict::Copied);
            }
            // The others do not splice from a file.
            Some(COPY_SPLICE) => {}
            Some(_) => return None,
        }
        let gathers = csum_offered && self.nic.sg != Some(false) && self.nic.csum != Some(false);
        match self.method.as_str() {
            "read-write" | "mmap-write" | "direct-io" | "ktls-sendfile" | "ktls-sendfile-ro" | "read-write-udp" => {
                Some(Verdict::Copied)
            }
            "sendfile"
            | "splice"
            | "vmsplice"
            | "direct-io-zerocopy"
            | "msg-zerocopy"
            | "io-uring-send-zc"
            | "sendfile-direct"
            | "io-uring-splice"
            | "io-uring-send-zc-fixed"
            | "sendfile-udp"
            | "msg-zerocopy-udp" => Some(if gathers { Verdict::ZeroCopy } else { Verdict::Copied }),
            // No kernel between the page and the NIC.
            USERSPACE => Some(Verdict::ZeroCopy),
            // Half of it before the program writes to its pages, half of it after.
            "cow" => Some(if gathers { Verdict::Mixed } else { Verdict::Copied }),
            _ => None,
        }
    }

    /// How its payload gets to the socket.
    #[must_use]
    pub fn path_kind(&self) -> PathKind {
        path_kind_of(&self.method)
    }
}

/// How a method's payload gets to the socket.
#[must_use]
pub fn path_kind_of(method: &str) -> PathKind {
    match method {
        "direct-io" | "direct-io-zerocopy" | "sendfile-direct" | PROGRAM => PathKind::Direct,
        "cow" => PathKind::CopyOnWrite,
        "ktls-sendfile" | "ktls-sendfile-ro" => PathKind::Cipher,
        _ => PathKind::PageCache,
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_is_a_wish_for_the_nic() {
        let row = Row::parse("sendfile-no-sg").unwrap();
        assert_eq!((row.method.as_str(), row.nic.sg, row.nic.csum), ("sendfile", Some(false), None));
        let row = Row::parse("msg-zerocopy-no-csum").unwrap();
        assert_eq!((row.method.as_str(), row.nic.sg, row.nic.csum), ("msg-zerocopy", None, Some(false)));
        assert_eq!(Row::parse("io-uring-send-zc").unwrap().nic, NicWish::default());
        let row = Row::parse("splice-cold-no-sg").unwrap();
        assert_eq!((row.method.as_str(), row.nic.sg, row.cold), ("splice", Some(false), true));
        assert!(!Row::parse("splice").unwrap().cold);
        let row = Row::parse("sendfile-cold-no-sg+copy-splice").unwrap();
        assert_eq!((row.method.as_str(), row.cold, row.module.as_deref()), ("sendfile", true, Some("copy-splice")));
        assert_eq!(row.nic.sg, Some(false));
        let row = Row::parse("msg-zerocopy-ipv6-no-sg").unwrap();
        assert_eq!(
            (row.method.as_str(), row.ipv6, row.over, row.nic.sg),
            ("msg-zerocopy", true, Over::Tcp, Some(false))
        );
        let over = |name: &str| Row::parse(name).map(|row| (row.method, row.over)).unwrap();
        assert_eq!(over("sendfile-mptcp"), ("sendfile".to_owned(), Over::Mptcp));
        assert_eq!(over("sendfile-mptcp-here"), ("sendfile".to_owned(), Over::MptcpHere));
        assert_eq!(over("splice-unix"), ("splice".to_owned(), Over::Unix));
        // Datagrams are a method's own.
        assert_eq!(over("sendfile-udp"), ("sendfile-udp".to_owned(), Over::Tcp));
        let row = Row::parse("sendfile-mtu9000-no-sg").unwrap();
        assert_eq!((row.method.as_str(), row.nic.mtu, row.nic.sg), ("sendfile", Some(9000), Some(false)));
    }

    #[test]
    fn textbook_is_its_rows_in_order_and_all_is_every_method_on_every_nic() {
        let names = |list| -> Vec<String> { Row::parse_list(list).unwrap().into_iter().map(|row| row.name).collect() };
        assert_eq!(names("textbook"), TEXTBOOK);
        let all = names("all");
        let first = ["read-write", "read-write-no-sg", "read-write-no-csum", "read-write-cold", "mmap-write"];
        assert_eq!(all[..5], first);
        let cold = ["read-write-cold", "mmap-write-cold", "sendfile-cold", "splice-cold"];
        assert_eq!(all.iter().filter(|row| row.ends_with(COLD)).collect::<Vec<_>>(), cold.iter().collect::<Vec<_>>());
        assert_eq!(all.len(), 3 * METHODS.len() + cold.len());
        for name in TEXTBOOK {
            assert!(all.iter().any(|row| row == name), "{name}");
        }
    }

    #[test]
    fn something_is_expected_of_every_row() {
        for row in Row::parse_list("all").unwrap() {
            assert!(row.expected(true).is_some() && row.expected(false).is_some(), "{row}");
        }
    }

    #[test]
    fn the_row_beyond_the_kernel_copies_nothing_whatever_the_kernels_nic_lacks() {
        for csum_offered in [true, false] {
            let row = Row::parse(USERSPACE).unwrap();
            assert_eq!((row.expected(csum_offered), row.nic), (Some(Verdict::ZeroCopy), NicWish::default()));
        }
        assert!(!Row::parse_list("all").unwrap().iter().any(|row| row.method == USERSPACE));
    }

    #[test]
    fn a_name_with_foreign_characters_is_rejected() {
        for name in
            ["", "-no-sg", "-cold", "-cold-no-sg", "send file", "Sendfile", "../x", "1", "sendfile+", "sendfile+../x"]
        {
            assert_eq!(Row::parse(name), Err(BadRow(name.to_owned())), "{name}");
        }
        assert_eq!(Row::parse_list("sendfile,,splice"), Err(BadRow(String::new())));
    }

    #[test]
    fn without_scatter_gather_or_checksum_every_method_copies() {
        for name in ["sendfile", "splice", "vmsplice", "direct-io-zerocopy", "msg-zerocopy", "io-uring-send-zc"] {
            assert_eq!(Row::parse(name).unwrap().expected(true), Some(Verdict::ZeroCopy), "{name}");
            assert_eq!(Row::parse(name).unwrap().expected(false), Some(Verdict::Copied), "{name}, csum withheld");
            for suffix in ["-no-sg", "-no-csum"] {
                let row = Row::parse(&format!("{name}{suffix}")).unwrap();
                assert_eq!(row.expected(true), Some(Verdict::Copied), "{row}");
            }
        }
        assert_eq!(Row::parse("read-write").unwrap().expected(true), Some(Verdict::Copied));
        assert_eq!(Row::parse("mmap-write").unwrap().expected(true), Some(Verdict::Copied));
        assert_eq!(Row::parse("cow").unwrap().expected(true), Some(Verdict::Mixed));
        assert_eq!(Row::parse("cow-no-sg").unwrap().expected(true), Some(Verdict::Copied));
        for name in WHAT_IF {
            let row = Row::parse(name).unwrap();
            assert_eq!(
                (row.expected(true), row.module.as_deref()),
                (Some(Verdict::Copied), Some(COPY_SPLICE)),
                "{name}"
            );
        }
        assert_eq!(Row::parse("msg-zerocopy+copy-splice").unwrap().expected(true), Some(Verdict::ZeroCopy));
        assert_eq!(Row::parse("sendfile+my-own").unwrap().expected(true), None);
        assert_eq!(Row::parse("carrier-pigeon").unwrap().expected(true), None);
    }
}
