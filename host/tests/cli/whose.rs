//! Whose memory it is, what happened to it, and from where frames come: `page`, `life`, `top`, `verdict`, `--labels`.

use serde_json::json;

use crate::looking::start;
use crate::util::Scratch;

#[test]
fn page_says_whose_memory_each_address_is() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    let page = |more: &[&str]| scratch.run(&[&["page", "--control", device.control()], more].concat());
    let outcome = page(&["0x2008", "4096"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let line = |gpa, page, offset| {
        let flags = "  flags: uptodate lru\n";
        format!("{gpa}  /var/www/big.bin page {page} (ext4 on vda1, offset {offset}, inode 12)\n{flags}")
    };
    assert_eq!(outcome.stdout, line("0x2008", 2, 8200) + &line("0x1000", 1, 4096));
    let outcome = page(&["--json", "0x2008", "4096"]);
    let objects: Vec<serde_json::Value> =
        outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 2, "{outcome:?}");
    for key in [
        "kind",
        "path",
        "filesystem",
        "page",
        "deleted",
        "program",
        "pid",
        "cache",
        "why",
        "offset",
        "flags",
        "last_use",
    ] {
        assert!(objects[0].get(key).is_some(), "no {key} in {outcome:?}");
    }
    assert_eq!(objects[0]["gpa"], json!(0x2008));
    let sent = "  last at 1.500000 s: sent by transmitq0 #14 to 10.0.2.2:51514 at seq 4711, 4096 bytes\n";
    assert!(page(&["0x2ee1000"]).stdout.ends_with(sent), "{:?}", page(&["0x2ee1000"]));
    for bad in [&["0xfog"][..], &["-1"], &[]] {
        assert_eq!(page(bad).code, Some(2), "{bad:?}");
    }
}

#[test]
fn life_says_what_happened_to_a_page_and_to_a_file() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    let life = |more: &[&str]| scratch.run(&[&["life", "--control", device.control()], more].concat());
    let outcome = life(&["/var/www/big.bin"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(
        outcome.stdout,
        "A device has had the pages of /var/www/big.bin 2 times:\n \
         seconds  address    bytes  what                                             whose\n\
         1.000000  0x2ee1000   4096  filled from sector 2048 by disk0.requestq0 #12\n\
         1.500000  0x2ee1000   4096  sent by transmitq0 #14 to 10.0.2.2:51514 at seq  /var/www/big.bin page 0\n\
         \x20                           4711\n\
         1.500000  0x2ee1000   4096  held by transmitq0 #14 for 1.25 ms\n\
         1.501250  0x2ee1000   4096  completed by transmitq0 #14\n\
         1 234 chains went by unseen: they came faster than they are recorded\n"
    );
    let outcome = life(&["0x2ee1000", "--json"]);
    assert_eq!(outcome.json()["steps"][1]["segment"]["seq"], json!(4711), "{outcome:?}");
    let outcome = life(&["0x1000"]);
    assert_eq!(outcome.stdout, "No device has had the page at 0x1000 since this is recorded.\n");
    for bad in [&["big.bin"][..], &["0xfog"], &[]] {
        assert_eq!(life(bad).code, Some(2), "{bad:?}");
    }
}

#[test]
fn top_says_by_flow_and_by_file_from_where_the_bytes_come() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    let top = |more: &[&str]| scratch.run(&[&["top", "--control", device.control()], more].concat());
    let outcome = top(&["--once"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(
        outcome.stdout,
        "Linux 6.1.0-56-cloud-amd64  sent 95.4 MiB in 1.0 s, 80.0 % of it seen: the figures are of that\n\n\
         flow                               bytes  zero-copy  from\n\
         10.0.2.15:80 > 10.0.2.2:51514   63.9 MiB     99.9 %  99.9 % /var/www/html/big.bin (ext4 on vda1),\n\
         \x20                                                    0.1 % socket buffers (copied)\n\
         10.0.2.15:443 > 10.0.2.2:51600  11.4 MiB      0.0 %  socket buffers (copied)\n\n\
         from                                     bytes   share\n\
         /var/www/html/big.bin (ext4 on vda1)  63.9 MiB  84.8 %\n\
         socket buffers (copied)               11.4 MiB  15.2 %\n\n\
         /var/www/html/big.bin page 0, at 0x2ee1000, was sent last:\n \
         seconds  bytes  what\n\
         1.000000   4096  filled from sector 2048 by disk0.requestq0 #12\n\
         1.500000   4096  sent by transmitq0 #14 to 10.0.2.2:51514 at seq 4711\n\
         1.500000   4096  held by transmitq0 #14 for 1.25 ms\n\
         1.501250   4096  completed by transmitq0 #14\n"
    );
    let outcome = top(&["--once", "--for", "2", "--json"]);
    let report = outcome.json();
    for key in ["seconds", "seen_share", "kernel", "why", "flows", "files", "elsewhere", "others"] {
        assert!(report.get(key).is_some(), "no {key} in {outcome:?}");
    }
    assert_eq!(report["seconds"], json!(2.0));
    for key in ["flow", "bytes", "zero_copy_bytes", "sources"] {
        assert!(report["flows"][0].get(key).is_some(), "no {key} in {outcome:?}");
    }
    for key in ["kind", "path", "program", "bytes"] {
        assert!(report["flows"][0]["sources"][0].get(key).is_some(), "no {key} in {outcome:?}");
    }
    assert_eq!(top(&["--json", "--for", "2"]).stdout.lines().count(), 2);
    for bad in [&[][..], &["--for", "0"], &["--for", "never"], &["--by", "night"]] {
        assert_eq!(top(bad).code, Some(2), "{bad:?}");
    }
}

#[test]
fn verdict_judges_flows_and_leaves_a_record_that_report_shows() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    let record = scratch.path("run.json");
    let verdict = |more: &[&str]| {
        let words = ["verdict", "--for", "1", "--control", device.control()];
        scratch.run(&[&words, more].concat())
    };
    let outcome = verdict(&["--output", record.to_str().unwrap()]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(
        outcome.stdout,
        "Linux 6.1.0-56-cloud-amd64, watched for 1.0 s: 95.4 MiB sent, 80.0 % of it seen: the figures are of\n\
         that\n\n\
         flow                            verdict       bytes  from files  descriptors/MiB\n\
         10.0.2.15:80 > 10.0.2.2:51514   zero-copy  63.9 MiB      99.9 %             26.6\n\
         10.0.2.15:443 > 10.0.2.2:51600  copied     11.4 MiB       0.0 %            148.7\n\n\
         files whose own pages were sent          bytes\n\
         /var/www/html/big.bin (ext4 on vda1)  63.9 MiB\n\n\
         10.0.2.15:80 > 10.0.2.2:51514: of 67010000 payload bytes seen, 67000000 bytes from\n\
         /var/www/html/big.bin (ext4 on vda1), 10000 bytes from socket buffers (copied); 26.6 descriptors per\n\
         MiB, 100 frames\n\
         10.0.2.15:443 > 10.0.2.2:51600: of 11990000 payload bytes seen, 11990000 bytes from socket buffers\n\
         (copied); 148.7 descriptors per MiB, 100 frames\n"
    );
    let report = |more: &[&str]| scratch.run(&[&["report", record.to_str().unwrap()], more].concat());
    assert_eq!(report(&[]).stdout, outcome.stdout);
    let page = scratch.path("page.html");
    let json = report(&["--json", "--html", page.to_str().unwrap()]).json();
    assert_eq!(json["run"]["methods"][0]["verdict"], "zero-copy", "{json:#}");
    assert_eq!(json["run"]["methods"][1]["verdict"], "copied", "{json:#}");
    assert!(std::fs::read_to_string(page).unwrap().contains("/var/www/html/big.bin"));
    assert_eq!(verdict(&["--json"]).json(), json["run"]);
}

#[test]
fn rings_say_whose_memory_a_buffer_is_when_asked() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    let rings = |more: &[&str]| scratch.run(&[&["rings", "--control", device.control()], more].concat());
    let labelled = rings(&["--labels"]);
    assert!(labelled.stdout.contains("(/var/www/big.bin page "), "{labelled:?}");
    assert!(!rings(&[]).stdout.contains("/var/www"));
    let json = rings(&["--labels", "--json"]).stdout;
    assert!(json.contains("\"label\": \"/var/www/big.bin page "), "{json}");
}
