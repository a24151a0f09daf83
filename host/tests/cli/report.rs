//! `vnic report`: the table, its exit codes, its page.

use serde_json::{Value, json};

use crate::util::Scratch;

fn row(method: &str, sg: bool, cached: u64, verdict: &str) -> Value {
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
        "memory": {"physical_instances": null},
        "cpu_copies": null, "dma_copies": 1.0, "verdict": verdict, "why": "device: figures", "expected": verdict,
        "reasons": {"cpu_copies": "not watched"}
    })
}

fn record(methods: Vec<Value>) -> Value {
    json!({"kernel": "6.1.0-test", "qemu": "7.2.22", "accel": "tcg",
           "file": {"bytes": 16u64 << 20, "filesystem": "tmpfs"}, "methods": methods})
}

fn two_rows() -> Value {
    record(vec![row("sendfile", true, 16 << 20, "zero-copy"), row("sendfile-no-sg", false, 0, "copied")])
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
         method          nic          chains  descriptors  bytes sent  from page cache  elsewhere  sha256  verdict\n\
         sendfile        sg+csum+tso     300        4 500    16.0 MiB          100.0 %      0.0 %  ok      zero-copy\n\
         sendfile-no-sg  csum            300        4 500    16.0 MiB            0.0 %    100.0 %  ok      copied\n\
         \n\
         The textbook's table, as measured:\n\
         \n\
         method          nic          mode switches  context switches  CPU copies  DMA copies         instances  CPU s/GiB  copied by  the kernel claims\n\
         sendfile        sg+csum+tso  –              –                 –           1.00 (textbook 2)  –          –          –          \n\
         sendfile-no-sg  csum         –              –                 –           1.00 (textbook 2)  –          –          –          \n\
         – sendfile, sendfile-no-sg: CPU copies: not watched\n\
         Copies are per payload byte sent. The textbook's second copy by DMA is from the disk to the page cache: a file that is there already has none. \
         CPU time is the sending thread's, waiting by polling included.\n\
         \n\
         Every digest matches and every verdict is the expected one.\n"
    );
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
        row("read-write", true, 0, "copied"),
        row("read-write-no-sg", false, 0, "copied"),
        row("mmap-write", true, 0, "copied"),
        row("sendfile", true, 16 << 20, "zero-copy"),
        row("msg-zerocopy-no-sg", false, 0, "copied"),
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
    let (_, table) = outcome.stdout.split_once("as measured:\n\n").unwrap();
    let lines: Vec<&str> = table.lines().take(6).collect();
    assert_eq!(
        lines,
        [
            "method              nic          mode switches                            context switches  CPU copies         DMA copies         instances  CPU s/GiB  copied by                                         the kernel claims",
            "read-write          sg+csum+tso  4 a chunk                                4                 2.00               1.00 (textbook 2)  3          –          _copy_from_iter + _copy_to_iter                   ",
            "read-write-no-sg    csum         4 a chunk                                4                 3.00 (textbook 2)  1.00 (textbook 2)  4          –          _copy_from_iter + _copy_to_iter + skb_copy_bits   ",
            "mmap-write          sg+csum+tso  2 a chunk (textbook 4) + 8192 by faults  4                 1.00               1.00 (textbook 2)  2          –          _copy_from_iter                                   ",
            "sendfile            sg+csum+tso  2 in all                                 4                 0.00               1.00 (textbook 2)  1          2.50                                                         ",
            "msg-zerocopy-no-sg  csum         2.34 a chunk                             4                 1.00               1.00               2          –          0.75 skb_copy_and_csum_bits + 0.25 skb_copy_bits  zero-copy 256",
        ]
    );
    let note = "read-write-no-sg, msg-zerocopy-no-sg: scatter-gather was switched off";
    assert!(table.lines().any(|line| line == note), "{table}");
    let page = std::fs::read_to_string(scratch.path("run.html")).unwrap();
    assert!(page.contains("<td class=\"word\">3.00 (textbook 2)</td>") && page.contains(note), "{page}");
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
fn a_page_that_cannot_be_written_is_refused() {
    let scratch = Scratch::new();
    scratch.file("run.json", &two_rows().to_string());
    scratch.run(&["report", "run.json", "--html", "missing/run.html"]).is_refusal(&["missing/run.html"]);
}
