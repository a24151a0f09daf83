//! `vnic report --html`: the page as a browser lays it out, and the page of two records.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::report::{record, row_of};
use crate::util::{self, Scratch};

const BYTES: u64 = 16 << 20;

/// Rows that between them use every way that a figure can draw.
fn every_way() -> Value {
    let mut rows = Vec::new();
    let mut row = |method: &str, sg: bool, cached: u64, disk: u64, copied: Value| {
        let verdict = if cached > 0 { "zero-copy" } else { "copied" };
        let mut row = row_of(method, sg, cached, verdict);
        let copies: u64 = copied.as_object().unwrap().values().filter_map(Value::as_u64).sum();
        row["cpu_copies"] = json!(copies as f64 / BYTES as f64);
        row["guest"]["copied_bytes"] = copied;
        row["guest"]["disk_read_bytes"] = json!(disk);
        row["guest"]["mode_switches"] = json!(1024);
        row["guest"]["context_switches"] = json!({"voluntary": 3, "involuntary": 1});
        row["guest"]["user_us"] = json!(123_456);
        row["guest"]["system_us"] = json!(123_456);
        row["memory"]["physical_instances"] = json!(3);
        row["device"]["descriptors"] = json!(1_111_541);
        row["dma"]["shapes"] = json!({
            "chains": 256, "indirect": 256, "segmented": 256, "frames": 12_000, "bytes": BYTES,
            "pieces": {"54": 256, "500": 1_111_541, "4096": 1_111_541, "32768": 512, "60000": 7},
            "chain_pieces": {"17": 256}, "frame_pieces": {"2": 256},
            "pages": {"again": {}, "new": 4096}, "huge_pages": {"again": {}, "new": 8}
        });
        rows.push(row);
    };
    let all = json!(BYTES);
    row("read-write", true, 0, 0, json!({"_copy_to_iter": all, "_copy_from_iter": all}));
    row(
        "read-write-no-sg",
        false,
        0,
        0,
        json!({"_copy_to_iter": all, "_copy_from_iter": all, "skb_copy_and_csum_bits": all}),
    );
    row("mmap-write", true, 0, 0, json!({"_copy_from_iter": all}));
    row("cow", true, 0, 0, json!({"_copy_from_iter": all}));
    row("sendfile", true, BYTES, 0, json!({}));
    row("sendfile-cold", true, BYTES, BYTES, json!({}));
    row("sendfile-no-sg", false, 0, 0, json!({"skb_copy_bits": BYTES / 2, "skb_copy_and_csum_bits": BYTES / 2}));
    row("ktls-sendfile", true, 0, 0, json!({}));
    row("direct-io", true, 0, BYTES, json!({"_copy_from_iter": all}));
    row("direct-io-zerocopy", true, 0, BYTES, json!({}));
    row("msg-zerocopy", true, BYTES / 2, 0, json!({"_copy_from_iter": BYTES / 2}));
    let mut record = record(rows);
    record["file"]["chunk"] = json!(65536);
    record
}

/// Adds up what is wrong with the layout, and leaves it in the page for `--dump-dom`.
const LOOK: &str = r"<script>
const wrong = [];
const meets = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
for (const svg of document.querySelectorAll('svg')) {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  const boxes = [...svg.querySelectorAll('rect.box')].map(box => box.getBoundingClientRect());
  texts.forEach(([words, at], index) => {
    if (at.left < frame.left - 1 || at.right > frame.right + 1 || at.top < frame.top - 2 || at.bottom > frame.bottom + 2)
      wrong.push(`${words} leaves its picture`);
    for (const [others, there] of texts.slice(index + 1))
      if (meets(at, there)) wrong.push(`${words} lies on ${others}`);
    for (const box of boxes) {
      const inside = at.left >= box.left && at.right <= box.right && at.top >= box.top && at.bottom <= box.bottom;
      if (meets(at, box) && !inside) wrong.push(`${words} lies on the edge of a box`);
    }
  });
}
if (document.documentElement.scrollWidth > innerWidth) wrong.push(`the page is ${document.documentElement.scrollWidth} wide on ${innerWidth}`);
const names = [...document.querySelectorAll('[id]')].map(each => each.id);
if (new Set(names).size != names.length) wrong.push('an id stands twice');
for (const link of document.querySelectorAll('a'))
  if (!names.includes(link.getAttribute('href').slice(1))) wrong.push(`${link.getAttribute('href')} leads nowhere`);
for (const svg of document.querySelectorAll('svg')) if (!svg.getAttribute('aria-label')) wrong.push('a picture without words');
const pictures = document.querySelectorAll('svg').length;
document.body.innerHTML = '<pre>LOOKED ' + pictures + ' ' + JSON.stringify(wrong) + '</pre>';
</script>";

fn browser() -> Option<&'static str> {
    let runs = |name: &&str| {
        let mut command = Command::new(name);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(runs)
}

#[test]
fn a_browser_lays_the_page_out_without_anything_on_top_of_anything() {
    let Some(browser) = browser() else {
        util::skip("the page is not laid out: there is no chromium");
        return;
    };
    let scratch = Scratch::new();
    scratch.file("run.json", &every_way().to_string());
    let mut later = every_way();
    later["methods"][4]["verdict"] = json!("copied");
    scratch.file("later.json", &later.to_string());
    for records in [&["run.json"][..], &["run.json", "later.json"]] {
        let outcome = util::outcome(scratch.vnic().arg("report").args(records).args(["--html", "page.html"]));
        assert!(outcome.code.is_some_and(|code| code <= 1), "{outcome:?}");
        let page = fs::read_to_string(scratch.path("page.html")).unwrap();
        scratch.file("look.html", &page.replace("</body>", &format!("{LOOK}</body>")));
        for width in [1600, 1100, 600] {
            let mut command = Command::new(browser);
            command.args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]);
            command.arg(format!("--window-size={width},900"));
            command.arg(format!("--user-data-dir={}", scratch.path("browser").display()));
            command.arg(format!("file://{}", scratch.path("look.html").display())).stdin(Stdio::null());
            let seen = util::outcome(&mut command).stdout;
            let (_, looked) = seen.split_once("LOOKED ").unwrap_or_else(|| panic!("the browser did not look: {seen}"));
            let (pictures, wrong) = looked.split_once("</pre>").and_then(|(looked, _)| looked.split_once(' ')).unwrap();
            assert!(pictures.parse::<usize>().unwrap() >= 22, "two pictures a row, not {pictures}");
            assert_eq!(wrong, "[]", "{records:?} on {width} pixels");
        }
    }
}

#[test]
fn what_changed_between_two_records_is_told_and_a_verdict_that_did_exits_1() {
    let scratch = Scratch::new();
    scratch.file("before.json", &every_way().to_string());
    let mut later = every_way();
    later["methods"][4]["seconds"] = json!(99.0);
    later["methods"][5]["device"]["descriptors"] = json!(1_111_000);
    scratch.file("same.json", &later.to_string());
    let outcome = scratch.run(&["report", "before.json", "same.json"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stdout.contains("Nothing changed"), "{outcome:?}");

    later["kernel"] = json!("7.3.0");
    later["methods"][4]["verdict"] = json!("copied");
    later["methods"][4]["cpu_copies"] = json!(1.0);
    later["methods"][5]["device"]["descriptors"] = json!(10_000);
    later["methods"][10]["method"] = json!("splice");
    scratch.file("after.json", &later.to_string());
    let outcome = scratch.run(&["report", "before.json", "after.json", "--html", "page.html"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let told: Vec<Vec<&str>> = outcome
        .stdout
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect())
        .collect();
    for line in [
        &["sendfile", "verdict", "zero-copy", "copied"],
        &["sendfile", "CPU copies", "0.00", "1.00 [0]"],
        &["sendfile-cold", "descriptors per MiB", "69471", "625"],
        &["msg-zerocopy", "verdict", "zero-copy", "–"],
        &["splice", "verdict", "–", "zero-copy"],
    ] {
        assert!(told.contains(&line.to_vec()), "no {line:?} in\n{}", outcome.stdout);
    }
    let page = fs::read_to_string(scratch.path("page.html")).unwrap();
    assert!(page.contains("What changed?") && page.contains("Linux 7.3.0"), "{page}");
    let json = scratch.run(&["report", "before.json", "after.json", "--json"]).json();
    assert_eq!(
        json["changes"][0],
        json!({"row": "sendfile", "figure": "verdict", "before": "zero-copy", "after": "copied"})
    );
    scratch.run(&["report", "before.json", "gone.json"]).is_refusal(&["gone.json"]);
}
