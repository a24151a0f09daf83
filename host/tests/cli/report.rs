//! `vnic report`: the table, its exit codes, its page.

use serde_json::{Value, json};
use vnic_experiment::row::Row;

use crate::util::{self, Scratch};

pub(crate) fn row_of(method: &str, sg: bool, cached: u64, verdict: &str) -> Value {
    let bytes = 16u64 << 20;
    json!({
        "method": method, "nic": {"csum": true, "sg": sg, "tso": sg},
        "bytes_sent": bytes, "sha256_ok": true, "seconds": 0.5,
        "guest": {"syscalls": null, "mode_switches": null, "page_faults": null, "kernel_page_faults": null, "disk_read_bytes": null,
                  "context_switches": {"voluntary": null, "involuntary": null},
                  "copied_bytes": {}, "user_us": null, "system_us": null},
        "device": {"chains": 300, "descriptors": 4500, "payload_bytes": bytes, "retransmitted_bytes": 0,
                   "from_page_cache_bytes": cached, "from_elsewhere_bytes": bytes - cached,
                   "dma_read_bytes": bytes, "device_copied_bytes": 0},
        "memory": {"physical_instances": null}, "introspection": null, "touches": null,
        "dma": {"disk": null, "shapes": null, "hardware": null},
        "cpu_copies": null, "dma_copies": 1.0, "verdict": verdict, "why": "device: figures", "expected": verdict,
        "reasons": {"cpu_copies": "not watched"}
    })
}

pub(crate) fn record(methods: Vec<Value>) -> Value {
    json!({"kernel": "6.1.0-test", "qemu": "7.2.22", "accel": "tcg",
           "file": {"bytes": 16u64 << 20, "filesystem": "tmpfs"}, "methods": methods})
}

fn two_rows() -> Value {
    record(vec![row_of("sendfile", true, 16 << 20, "zero-copy"), row_of("sendfile-no-sg", false, 0, "copied")])
}

#[test]
fn the_table_is_the_issues() {
    let scratch = Scratch::new();
    scratch.file("run.json", &two_rows().to_string());
    let outcome = scratch.run(&["report", "run.json"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(
        outcome.stdout,
        "Linux 6.1.0-test under QEMU 7.2.22 (tcg), a file of 16.0 MiB on tmpfs\n\
         \n\
         method          nic          chains  descriptors  bytes sent  from page cache  sha256  verdict\n\
         sendfile        sg+csum+tso     300        4 500    16.0 MiB          100.0 %  ok      zero-copy\n\
         sendfile-no-sg  csum            300        4 500    16.0 MiB            0.0 %  ok      copied\n\
         \n\
         The textbook's table, as measured [and what the textbook says where it differs]:\n\
         \n\
         method          CPU copies  DMA copies  mode      by faults  context switches   instances  CPU s/GiB\n\
         \x20                                       switches\n\
         sendfile        –           1.00 [2]    –         –          –                  –          –\n\
         sendfile-no-sg  –           1.00 [2]    –         –          –                  –          –\n\
         – sendfile, sendfile-no-sg: CPU copies: not watched\n\
         Copies are per payload byte sent. The textbook's second copy by DMA is from the disk to the page\n\
         cache: a file that is there already has none. Mode switches by page faults stand apart, since the\n\
         textbook leaves them out. CPU time is the sending thread's, waiting by polling included.\n\
         \n\
         Every digest matches and every verdict is the expected one.\n"
    );
}

#[test]
fn no_line_is_wider_than_the_screen_whatever_the_record_has() {
    let rows = Row::parse_list("all,vfio-userspace,program-cold-no-csum").unwrap();
    let row = |row: &Row, filesystem: &str| {
        let mut row = row_of(&row.name, row.nic.sg.is_none(), 16 << 20, "witnesses disagree");
        let bytes = 16u64 << 20;
        row["filesystem"] = json!(filesystem);
        row["expected"] = json!("copied");
        row["device"]["chains"] = json!(1_111_541);
        row["device"]["descriptors"] = json!(1_111_541);
        row["dma_copies"] = json!(2.5);
        row["cpu_copies"] = json!(1.25);
        row["memory"]["physical_instances"] = json!(12);
        row["guest"]["mode_switches"] = json!(123_456);
        row["guest"]["page_faults"] = json!(8192);
        row["guest"]["disk_read_bytes"] = json!(bytes);
        row["guest"]["context_switches"] = json!({"voluntary": 12_345, "involuntary": 1});
        row["guest"]["copied_bytes"] = json!({"skb_copy_and_csum_bits": bytes, "skb_copy_ubufs": bytes / 4});
        row["guest"]["claims"] = json!({"zero-copy": 256, "copied": 1});
        row["guest"]["user_us"] = json!(7_654_321);
        row["guest"]["system_us"] = json!(7_654_321);
        row["notes"] = json!(["a note that takes up as much room as it takes to say what is to be known of this row"]);
        row
    };
    let methods = ["tmpfs", "ext4"].iter().flat_map(|filesystem| rows.iter().map(|each| row(each, filesystem)));
    let mut record = record(methods.collect());
    record["methods"][3]["verdict"] = Value::Null;
    record["methods"][3]["reasons"] = json!({"verdict": "nobody knows, for a reason ".repeat(12)});
    let scratch = Scratch::new();
    scratch.file("run.json", &record.to_string());
    for (columns, told) in [(100, None), (100, Some("100")), (160, Some("160"))] {
        let mut command = scratch.vnic();
        command.args(["report", "run.json"]);
        let outcome = util::outcome(command.envs(told.map(|columns| ("COLUMNS", columns))));
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        let wide: Vec<&str> = outcome.stdout.lines().filter(|line| line.chars().count() > columns).collect();
        assert!(wide.is_empty(), "wider than {columns}:\n{}", wide.join("\n"));
        // Wrapped, not cut off, and between words only.
        let words: Vec<&str> = outcome.stdout.split_whitespace().collect();
        let longest = ["io-uring-send-zc", "direct-io-zerocopy", "descriptors", "instances", "sg+csum+tso"];
        for word in longest.into_iter().chain(["skb_copy_and_csum_bits", "[2],", "1 111 541"]) {
            let found = if word.contains(' ') { outcome.stdout.contains(word) } else { words.contains(&word) };
            assert!(found, "{word:?} is broken in\n{}", outcome.stdout);
        }
    }
}

#[test]
fn what_the_disk_filled_and_the_nic_sent_stands_under_the_table_with_the_life_of_a_page() {
    let scratch = Scratch::new();
    let mut record = record(vec![row_of("sendfile-cold", true, 16 << 20, "zero-copy")]);
    let row = &mut record["methods"][0];
    row["dma"]["disk"] = json!({
        "requests": 128, "descriptors": 240, "bytes": 16 << 20,
        "bytes_in_pages_sent": 16 << 20, "payload_bytes_in_pages_read": 16 << 20
    });
    row["page_life"] = json!({"page": 0, "gpa": 0x3f6_5000, "missed_chains": 7, "steps": [
        {"seconds": 8.5, "bytes": 4096, "what": "filled from sector 270336 by requestq0 #32"},
        {"seconds": 8.75, "bytes": 4096, "what": "sent by transmitq0 #24 to 10.0.2.2:9000 at seq 1"},
    ]});
    scratch.file("run.json", &record.to_string());
    let outcome = scratch.run(&["report", "run.json", "--html", "page.html"]);
    let evidence =
        "sendfile-cold: 100.0 % of the payload lay in frames that the disk had filled: 16.0 MiB by 240 descriptors of";
    let life = "sendfile-cold: what happened to page 0 of its file, at 0x3f65000:\n \
                seconds  bytes  what\n\
                8.500000   4096  filled from sector 270336 by requestq0 #32\n\
                8.750000   4096  sent by transmitq0 #24 to 10.0.2.2:9000 at seq 1\n\
                7 chains went by unseen: they came faster than they are recorded\n";
    assert!(outcome.stdout.split_whitespace().collect::<Vec<_>>().join(" ").contains(evidence), "{outcome:?}");
    assert!(outcome.stdout.contains(life), "{outcome:?}");
    let page = std::fs::read_to_string(scratch.path("page.html")).unwrap();
    assert!(page.contains("<b>8.750000 s</b> sent by transmitq0 #24"), "{page}");
}

#[test]
fn a_figure_that_is_missing_is_a_dash_with_its_reason_below() {
    let scratch = Scratch::new();
    let mut record = two_rows();
    let row = &mut record["methods"][1];
    row["bytes_sent"] = Value::Null;
    row["verdict"] = Value::Null;
    row["expected"] = Value::Null;
    row["reasons"]["bytes_sent"] = json!("the guest did not say");
    row["reasons"]["verdict"] = json!("nobody knows");
    scratch.file("run.json", &record.to_string());
    let outcome = scratch.run(&["report", "run.json"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    for line in ["– sendfile-no-sg: bytes sent: the guest did not say", "– sendfile-no-sg: verdict: nobody knows"] {
        assert!(outcome.stdout.lines().any(|printed| printed == line), "no {line:?} in\n{}", outcome.stdout);
    }
}

#[test]
fn the_textbooks_figures_stand_beside_the_measured_ones_where_they_differ() {
    let scratch = Scratch::new();
    let mut record = record(vec![
        row_of("read-write", true, 0, "copied"),
        row_of("read-write-no-sg", false, 0, "copied"),
        row_of("mmap-write", true, 0, "copied"),
        row_of("sendfile", true, 16 << 20, "zero-copy"),
        row_of("msg-zerocopy-no-sg", false, 0, "copied"),
    ]);
    record["file"]["chunk"] = json!(65536);
    let figures = [(1024, 2.0, 3), (1024, 3.0, 4), (8704, 1.0, 2), (2, 0.0, 1), (600, 1.0, 2)];
    for (at, (switches, copies, instances)) in figures.into_iter().enumerate() {
        let row = &mut record["methods"][at];
        row["guest"]["mode_switches"] = json!(switches);
        row["guest"]["context_switches"] = json!({"voluntary": 3, "involuntary": 1});
        row["cpu_copies"] = json!(copies);
        row["memory"]["physical_instances"] = json!(instances);
    }
    let bytes = 16u64 << 20;
    for (at, copied) in [
        (0, json!({"_copy_to_iter": bytes, "_copy_from_iter": bytes, "skb_copy_bits": 0})),
        (1, json!({"_copy_to_iter": bytes, "_copy_from_iter": bytes, "skb_copy_bits": bytes})),
        (2, json!({"_copy_to_iter": 90, "_copy_from_iter": bytes, "skb_copy_bits": null})),
        (3, json!({"_copy_to_iter": 90})),
        (4, json!({"skb_copy_bits": bytes / 4, "skb_copy_and_csum_bits": bytes / 4 * 3})),
    ] {
        record["methods"][at]["guest"]["copied_bytes"] = copied;
    }
    record["methods"][2]["guest"]["page_faults"] = json!(4096);
    record["methods"][3]["guest"]["user_us"] = json!(1000);
    record["methods"][3]["guest"]["system_us"] = json!(38_062);
    record["methods"][4]["guest"]["claims"] = json!({"zero-copy": 256});
    for at in [1, 4] {
        record["methods"][at]["notes"] = json!(["scatter-gather was switched off"]);
    }
    scratch.file("run.json", &record.to_string());
    let outcome = scratch.run(&["report", "run.json", "--html", "run.html"]);
    let (_, table) = outcome.stdout.split_once("where it differs]:\n\n").unwrap();
    let lines: Vec<&str> = table.lines().take(13).collect();
    assert_eq!(
        lines,
        [
            "method              CPU       DMA       mode switches  by faults  context   instances  CPU s/GiB",
            "                    copies    copies                              switches",
            "read-write          2.00      1.00 [2]  4 a chunk      –          4         3          –",
            "read-write-no-sg    3.00 [2]  1.00 [2]  4 a chunk      –          4         4          –",
            "mmap-write          1.00      1.00 [2]  2 a chunk [4]  8192       4         2          –",
            "sendfile            0.00      1.00 [2]  2 in all       –          4         1          2.50",
            "msg-zerocopy-no-sg  1.00      1.00      2.34 a chunk   –          4         2          –",
            "read-write: copied by _copy_from_iter + _copy_to_iter",
            "read-write-no-sg: copied by _copy_from_iter + _copy_to_iter + skb_copy_bits",
            "read-write-no-sg, msg-zerocopy-no-sg: scatter-gather was switched off",
            "mmap-write: copied by _copy_from_iter",
            "msg-zerocopy-no-sg: copied by 0.75 skb_copy_and_csum_bits + 0.25 skb_copy_bits",
            "msg-zerocopy-no-sg: the kernel claims zero-copy 256",
        ]
    );
    let page = std::fs::read_to_string(scratch.path("run.html")).unwrap();
    let note = "read-write-no-sg, msg-zerocopy-no-sg: scatter-gather was switched off";
    assert!(page.contains("<td class=\"word\">3.00 [2]</td>") && page.contains(note), "{page}");
    let json = scratch.run(&["report", "run.json", "--json"]).json();
    assert_eq!(json["classic"][2]["mode_switches"], 34.0, "{json}");
    assert_eq!(json["classic"][2]["textbook"], json!({"mode_switches": 4, "cpu_copies": 1, "dma_copies": 2}));
    assert_eq!(json["classic"][4]["copied_by"], json!({"skb_copy_and_csum_bits": 0.75, "skb_copy_bits": 0.25}));
    assert_eq!(json["classic"][4]["cpu_seconds_per_gib"], Value::Null);
    assert_eq!(json["classic"][4]["kernel_claims"], json!({"zero-copy": 256}));
}

#[test]
fn another_verdict_than_expected_exits_1_and_says_which() {
    let scratch = Scratch::new();
    let mut record = two_rows();
    record["methods"][0]["verdict"] = json!("copied");
    scratch.file("run.json", &record.to_string());
    let outcome = scratch.run(&["report", "run.json"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stdout.contains("sendfile: copied, but zero-copy was expected (device: figures)"), "{outcome:?}");
}

#[test]
fn a_wrong_digest_exits_1() {
    let scratch = Scratch::new();
    let mut record = two_rows();
    record["methods"][0]["sha256_ok"] = json!(false);
    scratch.file("run.json", &record.to_string());
    let outcome = scratch.run(&["report", "run.json"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stdout.contains("WRONG"), "{outcome:?}");
}

#[test]
fn json_is_the_run_and_what_is_surprising_about_it() {
    let scratch = Scratch::new();
    scratch.file("run.json", &two_rows().to_string());
    let outcome = scratch.run(&["report", "run.json", "--json"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let document = outcome.json();
    assert_eq!((&document["as_expected"], &document["surprises"]), (&json!(true), &json!([])));
    assert_eq!(document["run"], two_rows());
}

#[test]
fn a_record_that_is_cut_off_missing_or_another_thing_is_refused() {
    let scratch = Scratch::new();
    let whole = serde_json::to_string_pretty(&two_rows()).unwrap();
    scratch.file("cut.json", &whole[..whole.len() / 2]);
    scratch.file("empty.json", "");
    scratch.file("other.json", "{\"name\": \"vnic\"}");
    scratch.file("none.json", &record(Vec::new()).to_string());
    scratch.run(&["report", "cut.json"]).is_refusal(&["cut.json", "cut off at line", "scripts/run-qemu.sh"]);
    scratch.run(&["report", "empty.json"]).is_refusal(&["empty.json", "cut off"]);
    scratch.run(&["report", "other.json"]).is_refusal(&["other.json", "not a run's record"]);
    scratch.run(&["report", "none.json"]).is_refusal(&["none.json", "no transfer"]);
    scratch.run(&["report", "missing.json"]).is_refusal(&["missing.json", "scripts/run-qemu.sh"]);
}

#[test]
fn the_page_stands_alone_and_draws_each_row() {
    let scratch = Scratch::new();
    let mut record = two_rows();
    record["methods"][1]["why"] = json!("<script>alert(1)</script>");
    scratch.file("run.json", &record.to_string());
    let outcome = scratch.run(&["report", "run.json", "--html", "run.html"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let page = std::fs::read_to_string(scratch.path("run.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 2, "{page}");
    assert_eq!(page.matches("<g class=\"zero\"").count(), 1, "one way straight from the page cache");
    assert_eq!(page.matches("class=\"copy\"").count(), 1, "one way through copies");
    for outside in ["<script", "http:", "https:", "src=", "<link", "@import", "url("] {
        assert!(!page.contains(outside), "{outside:?} in the page");
    }
}

#[test]
fn the_grid_has_the_verdicts_of_several_records_side_by_side() {
    let scratch = Scratch::new();
    scratch.file("run.json", &two_rows().to_string());
    let mut later = two_rows();
    later["kernel"] = json!("7.3.0-test");
    for (row, filesystem) in later["methods"].as_array_mut().unwrap().iter_mut().zip(["ext4", "xfs"]) {
        row["filesystem"] = json!(filesystem);
    }
    scratch.file("later.json", &later.to_string());
    let page = |others: &[&str]| {
        let outcome = scratch.run(&[&["report", "run.json", "--html", "run.html"], others].concat());
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let page = std::fs::read_to_string(scratch.path("run.html")).unwrap();
        let (_, grid) = page.split_once("<table class=\"grid\">").unwrap();
        grid.split_once("</table>").unwrap().0.to_owned()
    };
    let alone = page(&[]);
    assert_eq!((alone.matches("scope=\"col\"").count(), alone.matches("not run").count()), (3, 0), "{alone}");
    let grid = page(&["--and", "later.json"]);
    for column in ["6.1.0-test: ", "7.3.0-test: ext4, ", "7.3.0-test: xfs, "] {
        assert!(grid.contains(column), "{column} in {grid}");
    }
    // A column for each kernel, file system and NIC; only this record's have figures to lead to.
    assert_eq!((grid.matches("scope=\"col\"").count(), grid.matches("not run").count()), (5, 0), "{grid}");
    assert_eq!((grid.matches("zero-copy").count(), grid.matches("<a ").count()), (2, 2), "{grid}");
    // Of one kernel, the files tell them apart.
    assert!(page(&["--and", "run.json"]).contains("run.json: "));
    scratch.run(&["report", "run.json", "--html", "run.html", "--and", "none.json"]).is_refusal(&["none.json"]);
}

#[test]
fn a_page_that_cannot_be_written_is_refused() {
    let scratch = Scratch::new();
    scratch.file("run.json", &two_rows().to_string());
    scratch.run(&["report", "run.json", "--html", "missing/run.html"]).is_refusal(&["missing/run.html"]);
}

/// Chains of headers and pages, or of headers and long pieces.
fn shapes(piece: u64) -> Value {
    let (chains, bytes) = (256_u64, 16_u64 << 20);
    let each = bytes / piece / chains;
    json!({
        "chains": chains, "indirect": chains, "segmented": chains, "frames": bytes.div_ceil(1448), "bytes": bytes + 66 * chains,
        "pieces": {"66": chains, piece.to_string(): bytes / piece},
        "chain_pieces": {(each + 1).to_string(): chains}, "frame_pieces": {"3": chains},
        "pages": {"again": {"0": 10, "70": 90}, "new": 4096}, "huge_pages": {"again": {"0": 4188}, "new": 8}
    })
}

pub(crate) fn with_shapes() -> Value {
    let mut record = record(vec![
        row_of("sendfile", true, 16 << 20, "zero-copy"),
        row_of("read-write", true, 0, "copied"),
        row_of("splice", true, 16 << 20, "zero-copy"),
    ]);
    record["methods"][0]["dma"] = json!({"shapes": shapes(4096), "hardware": null});
    record["methods"][1]["dma"] = json!({"shapes": shapes(32 << 10), "hardware": null});
    record
}

#[test]
fn what_the_chains_would_cost_other_cards_stands_below_zero_copy_beside_copied() {
    let scratch = Scratch::new();
    scratch.file("run.json", &with_shapes().to_string());
    let outcome = scratch.run(&["report", "run.json", "--hardware", "82599,iotlb=64,ideal"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let (_, tables) = outcome.stdout.split_once("included.\n\n").unwrap();
    assert_eq!(
        tables,
        "On a 82599,iotlb=64: PCIe gen3 x8, MPS 256, MRRS 512, 57.88 Gb/s in either direction:\n\
         \n\
         method      verdict    descriptors  round trips  bus bytes  bus time  limit       at most\n\
         sendfile    zero-copy        4 608        4 724   18.2 MiB  2.516 ms  bus down  53.4 Gb/s\n\
         read-write  copied           1 536        1 063   18.1 MiB  2.508 ms  bus down  53.6 Gb/s\n\
         splice      zero-copy            –            –          –         –  –                 –\n\
         sendfile beside read-write: 3.00 × the descriptors, 4.44 × the round trips, 1.003 × the bus's time.\n\
         Pieces longer than this card takes, each split into several descriptors: read-write 512\n\
         Pages whose translation the IO-TLB does not remember: sendfile 4 186, read-write 4 186\n\
         – splice: the record does not have the shapes of these chains\n\
         \n\
         On a card that costs nothing (ideal):\n\
         \n\
         method      verdict    descriptors  round trips  bus bytes  bus time  limit  at most\n\
         sendfile    zero-copy        4 352            0        0 B  0.000 ms  none         –\n\
         read-write  copied             768            0        0 B  0.000 ms  none         –\n\
         splice      zero-copy            –            –          –         –  –            –\n\
         – splice: the record does not have the shapes of these chains\n\
         \n\
         Every digest matches and every verdict is the expected one.\n"
    );
}

#[test]
fn a_card_that_contradicts_itself_is_refused_and_so_is_a_record_without_shapes() {
    let scratch = Scratch::new();
    scratch.file("run.json", &with_shapes().to_string());
    scratch.file("old.json", &two_rows().to_string());
    let report = |file: &str, models: &str| scratch.run(&["report", file, "--hardware", models]);
    report("run.json", "82599,mps=128,rcb=256").is_refusal(&["completions cannot be cut every 256 bytes"]);
    report("run.json", "82598").is_refusal(&["`82598` is no card", "e810-like"]);
    report("old.json", "82599").is_refusal(&[
        "old.json",
        "does not have the shapes of its chains",
        "run the transfers again",
    ]);
}

#[test]
fn the_page_has_a_picture_of_the_buss_time_and_the_document_the_figures() {
    let scratch = Scratch::new();
    scratch.file("run.json", &with_shapes().to_string());
    let outcome = scratch.run(&["report", "run.json", "--json", "--html", "run.html", "--hardware", "82599,ideal"]);
    let what_if = outcome.json();
    let rows = &what_if["hardware"][0]["rows"];
    assert_eq!((&what_if["hardware"][0]["model"], &rows[0]["method"]), (&json!("82599"), &json!("sendfile")));
    // Gathered by pages: as many as there are, the headers, and a context descriptor for each chain.
    assert_eq!(rows[0]["cost"]["descriptors"], json!(4096 + 256 + 256));
    assert_eq!(rows[0]["cost"]["limit"], json!("bus down"));
    assert_eq!(rows[1]["cost"]["too_long"], json!(512));
    assert!(rows[2]["cost"].is_null());
    assert!(what_if["hardware"][1]["rows"][0]["cost"]["gbit_per_s"].is_null(), "nothing limits an ideal card");
    let page = std::fs::read_to_string(scratch.path("run.html")).unwrap();
    let (_, picture) = page.split_once("What zero copy costs the bus").unwrap();
    let (picture, _) = picture.split_once("</svg>").unwrap();
    let bar = |class: &str| picture.matches(&format!("<rect class=\"{class}\"")).count();
    assert_eq!(
        ["zero", "copy", "descriptors", "rest"].map(bar),
        [2, 2, 3, 3],
        "a bar for each row, and the legend: {picture}"
    );
}
