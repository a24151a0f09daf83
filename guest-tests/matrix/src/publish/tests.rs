use std::collections::BTreeMap;

use vnic_experiment::run::{DeviceAccounts, FileInfo, GuestAccounts};

use super::*;

fn filled(
    kernel: &str,
    filesystem: &str,
    row: &str,
    verdict: Option<Verdict>,
    copies: f64,
    descriptors: u64,
) -> Filled {
    let device =
        DeviceAccounts { descriptors: Some(descriptors), payload_bytes: Some(1 << 20), ..DeviceAccounts::default() };
    let why = "because, \"it\" <says> so".to_owned();
    let method = Method {
        method: row.to_owned(),
        verdict,
        expected: verdict,
        sha256_ok: Some(true),
        cpu_copies: verdict.map(|_| copies),
        device,
        why,
        ..Method::default()
    };
    let origin = Origin {
        kernel: kernel.to_owned(),
        filesystem: filesystem.to_owned(),
        row: row.to_owned(),
        bytes: 1 << 20,
        vnic: "0".to_owned(),
        date: 0,
        command: String::new(),
    };
    let file = FileInfo { bytes: 1 << 20, filesystem: filesystem.to_owned(), chunk: None };
    let run = Run {
        kernel: kernel.to_owned(),
        qemu: Some("9".to_owned()),
        accel: Some("tcg".to_owned()),
        file,
        kernel_modules: Vec::new(),
        methods: vec![method],
        watched: None,
        reasons: BTreeMap::new(),
    };
    Filled { origin, run }
}

fn table() -> Table {
    let (zero, copied) = (Some(Verdict::ZeroCopy), Some(Verdict::Copied));
    Table {
        cells: vec![
            filled("6.1.0", "ext4", "sendfile", zero, 0.0, 256),
            filled("10.2.0", "ext4", "sendfile", copied, 1.0, 256),
            filled("6.1.0", "tmpfs", "sendfile", zero, 0.0, 256),
            filled("10.2.0", "tmpfs", "sendfile", zero, 0.0, 20),
            filled("10.2.0", "tmpfs", "sendfile-no-sg", copied, 1.0, 20),
            filled("10.2.0", "ext4", "splice", None, 0.0, 0),
        ],
        rounds: Vec::new(),
        kernels: vec!["6.1.0".to_owned(), "10.2.0".to_owned()],
        filesystems: vec!["tmpfs".to_owned(), "ext4".to_owned()],
        rows: vec!["sendfile".to_owned(), "splice".to_owned()],
    }
}

#[test]
fn the_grid_has_every_cell_and_says_what_changed_and_why_not() {
    let text = markdown::page(&table());
    for part in [
        "## Linux 10.2.0",
        "| `sendfile` | **0.00** | 1.00 |",
        "| `splice` | not run | – |",
        "Without scatter-gather:",
        "- `sendfile`: zero-copy → copied (ext4)",
        "- `sendfile`: 256 → 20 descriptors per MiB (tmpfs)",
        "because, \"it\" <says> so: `splice` (ext4); on 10.2.0",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let lines = csv::lines(&table());
    assert_eq!(lines.lines().count(), 7, "{lines}");
    assert!(lines.contains("\"because, \"\"it\"\" <says> so\""), "{lines}");
}

#[test]
fn the_page_marks_what_changed_and_escapes_what_it_shows() {
    let page = html::page(&table());
    assert!(page.contains("copied changed") && page.contains("before: zero-copy → copied"), "{page}");
    assert!(page.contains("&lt;says&gt;") && !page.contains("<says>"));
}

#[test]
fn ratios_are_those_of_each_round() {
    let mut table = table();
    for (row, times) in
        [("sendfile", [10, 10, 20]), ("sendfile+copy-splice", [20, 40, 40]), ("read-write", [60, 40, 80])]
    {
        let mut cell = filled("6.1.0", "ext4", row, Some(Verdict::Copied), 1.0, 1);
        let methods = times.map(|time| Method {
            guest: GuestAccounts { user_us: Some(0), system_us: Some(time), ..GuestAccounts::default() },
            ..cell.run.methods[0].clone()
        });
        cell.run.methods = methods.to_vec();
        table.rounds.push(cell);
    }
    let lines = what_if::lines(&table);
    assert_eq!(lines.len(), 1);
    let shown = |ratio: what_if::Ratio| (ratio.least, ratio.median, ratio.most);
    assert_eq!(shown(lines[0].copy), (2.0, 2.0, 4.0));
    assert_eq!(shown(lines[0].buffer), (1.0, 2.0, 3.0));
    assert_eq!(shown(lines[0].both), (4.0, 4.0, 6.0));
    assert!(markdown::page(&table).contains("| 6.1.0 | ext4 | tcg | 3 | 2.0 (2.0–4.0) |"));
}
