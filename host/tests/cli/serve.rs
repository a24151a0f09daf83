//! `vnic serve`: bad input, and a device nobody drives yet.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::json;

use crate::util::{Outcome, Scratch, outcome, wait_for};

/// A running `vnic serve`; killed with the test.
pub(crate) struct Serve(Child);

impl Serve {
    /// Starts one and waits until it can be looked at.
    pub(crate) fn start(scratch: &Scratch, socket: &str, options: &[&str]) -> Self {
        let child = scratch
            .vnic()
            .args(["serve", "--link", "sink", "--socket-path", socket])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut serve = Serve(child);
        let control = format!("{socket}.control");
        wait_for("vnic serve to come up", || {
            if serve.0.try_wait().unwrap().is_some() {
                panic!("vnic serve ended: {:?}", serve.end());
            }
            (scratch.run(&["status", "--control", &control]).code == Some(0)).then_some(())
        });
        serve
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }

    /// What it did, once it has ended.
    fn end(&mut self) -> Outcome {
        let status = wait_for("vnic serve to end", || self.0.try_wait().unwrap());
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.0.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        Outcome { code: status.code(), stdout, stderr }
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_wrong_with_the_options_is_said_in_a_sentence() {
    let scratch = Scratch::new();
    let serve = |options: &[&str]| scratch.run(&[&["serve", "--socket-path", "vnic.sock"], options].concat());
    serve(&["--withhold", "csum,warp_drive"]).is_refusal(&["--withhold", "warp_drive", "host_tso4"]);
    serve(&["--queue-size", "0"]).is_refusal(&["--queue-size", "0", "power of two"]);
    serve(&["--queue-size", "300"]).is_refusal(&["--queue-size", "300", "power of two"]);
    serve(&["--queue-size", "65536"]).is_refusal(&["--queue-size", "65536", "power of two"]);
    for pairs in ["0", "129", "-1", "two"] {
        serve(&[&format!("--queue-pairs={pairs}")]).is_refusal(&["--queue-pairs", pairs, "1 to 128"]);
    }
    serve(&["--link", "carrier-pigeon"]).is_refusal(&["--link", "carrier-pigeon", "peer", "tap:NAME"]);
    serve(&["--device", "toaster"]).is_refusal(&["--device", "toaster", "net, rng"]);
    for option in [&["--link", "sink"][..], &["--queue-pairs", "2"], &["--withhold", "csum"], &["--capture", "f"]] {
        serve(&[&["--device", "rng"], option].concat()).is_refusal(&[option[0], "--device rng", "network card"]);
    }
    serve(&["--device", "rng", "--cpu", "0,1"]).is_refusal(&["one worker", "--cpu"]);
    serve(&["--poll", "sometimes"]).is_refusal(&["--poll", "sometimes", "adaptive"]);
    serve(&["--link", "sink", "--cpu", "0,1"]).is_refusal(&["names 2 CPUs, and only 1", "--queue-pairs"]);
    serve(&["--control", "missing/control"]).is_refusal(&["--control", "folder missing does not exist"]);
    serve(&["--capture", "missing/run.pcapng"]).is_refusal(&["--capture", "folder missing does not exist"]);
    scratch.run(&["serve", "--socket-path", "missing/vnic.sock"]).is_refusal(&["folder missing does not exist"]);
    assert_eq!(std::fs::read_dir(scratch.path("")).unwrap().count(), 0, "something was left behind");
}

#[test]
fn a_disk_that_cannot_be_one_is_refused_in_a_sentence() {
    let scratch = Scratch::new();
    let disk = |disk: &str| scratch.run(&["serve", "--blk", disk]);
    disk("d.sock").is_refusal(&["--blk", "d.sock,file=IMAGE"]);
    disk("d.sock,file=x,colour=red").is_refusal(&["--blk", "`colour=red`", "readonly"]);
    disk("missing/d.sock,file=x").is_refusal(&["--blk", "folder missing does not exist"]);
    disk("d.sock,file=x").is_refusal(&["disk image x cannot be opened", "truncate"]);
    disk("d.sock,file=.").is_refusal(&["disk image . is a directory"]);
    let image = std::fs::File::create_new(scratch.path("image")).unwrap();
    disk("d.sock,file=image").is_refusal(&["disk image image is empty"]);
    image.set_len(1000).unwrap();
    disk("d.sock,file=image").is_refusal(&["1000 bytes", "make it 1024 with truncate"]);
    assert!(!scratch.path("d.sock").exists(), "nothing is left behind");
}

#[test]
fn a_disk_is_served_without_a_network_card_and_its_image_by_one_process_at_a_time() {
    let scratch = Scratch::new();
    std::fs::File::create_new(scratch.path("image")).unwrap().set_len(1 << 20).unwrap();
    let mut command = scratch.vnic();
    command.args(["serve", "--blk", "d.sock,file=image,serial=S-1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut serve = Serve(command.spawn().unwrap());
    let status = wait_for("the disk to come up", || {
        let status = scratch.run(&["status", "--control", "d.sock.control"]);
        (status.code == Some(0)).then_some(status.stdout)
    });
    assert!(status.contains("blk, ") && status.contains("image image (") && status.contains("requestq0"), "{status}");
    // It says that it waits, and then why it does not any more.
    let refused = scratch.run(&["serve", "--blk", "e.sock,file=image,readonly"]);
    let last = refused.stderr.lines().last().unwrap_or_default();
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(last.starts_with("vnic: the disk image image is locked by another program"), "{refused:?}");
    serve.signal(Signal::SIGTERM);
    assert_eq!(serve.end().code, Some(0));
    assert!(!scratch.path("d.sock").exists() && !scratch.path("d.sock.control").exists());
}

#[test]
fn a_log_in_a_file_has_no_colours() {
    let scratch = Scratch::new();
    let mut serve = Serve::start(&scratch, "vnic.sock", &[]);
    drop(UnixStream::connect(scratch.path("vnic.sock")).unwrap());
    wait_for("the front-end to be gone", || {
        let status = scratch.run(&["status", "--json", "--control", "vnic.sock.control"]).json();
        (status["sessions"] == 1 && status["connected"] == false).then_some(())
    });
    serve.signal(Signal::SIGTERM);
    let outcome = serve.end();
    assert!(outcome.stderr.contains("front-end gone") && !outcome.stderr.contains('\x1b'), "{:?}", outcome.stderr);
}

#[test]
fn an_endpoint_must_be_named_and_only_one() {
    let scratch = Scratch::new();
    for args in [&["serve"][..], &["serve", "--socket-path", "a", "--fd", "3"], &["serve", "--fd", "3", "--client"]] {
        let outcome = scratch.run(args);
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(outcome.stderr.starts_with("error: the "), "{outcome:?}");
    }
}

#[test]
fn an_fd_that_is_no_socket_is_refused() {
    let scratch = Scratch::new();
    scratch.run(&["serve", "--link", "sink", "--fd", "0"]).is_refusal(&["0 is no socket but /dev/null"]);
    scratch.run(&["serve", "--link", "sink", "--fd", "3"]).is_refusal(&["no file descriptor 3"]);
}

#[test]
fn a_tap_without_rights_is_refused() {
    let scratch = Scratch::new();
    std::fs::set_permissions(scratch.path(""), std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = scratch.vnic();
    command.args(["serve", "--socket-path", "vnic.sock", "--link", "tap:vnic-test"]);
    if geteuid().is_root() {
        if !reachable_by_all(Path::new(env!("CARGO_BIN_EXE_vnic"))) {
            // Not by a macro: the harness would keep it for itself.
            writeln!(
                std::io::stderr(),
                "SKIP: no tap without rights: another user than root cannot run the binary here"
            )
            .unwrap();
            return;
        }
        command.uid(65534).gid(65534);
    }
    outcome(&mut command).is_refusal(&["tap", "vnic-test"]);
}

fn reachable_by_all(path: &Path) -> bool {
    path.ancestors().all(|part| std::fs::metadata(part).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0))
}

#[test]
fn capabilities_are_the_vhost_user_specifications_json() {
    let scratch = Scratch::new();
    let outcome = scratch.run(&["serve", "--print-capabilities", "--queue-size", "256"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let document = outcome.json();
    assert_eq!(document["type"], "net");
    assert!(document["features"].as_array().unwrap().contains(&json!("csum")), "{document}");
    // The smallest size of a queue is 1.
    assert_eq!(scratch.run(&["serve", "--print-capabilities", "--queue-size", "1"]).code, Some(0));
}

#[test]
fn a_device_nobody_drives_can_be_looked_at() {
    let scratch = Scratch::new();
    let _serve = Serve::start(&scratch, "vnic.sock", &["--withhold", "csum"]);
    // Found without being named: it has published itself.
    let status = scratch.run(&["status", "--json"]).json();
    assert_eq!((&status["connected"], &status["link"]), (&json!(false), &json!("sink")));
    let withheld = status["features"]["withheld"].as_array().unwrap();
    assert!(withheld.contains(&json!("csum")), "{status}");
    // What needs csum goes with it.
    assert!(!status["features"]["offered"].as_array().unwrap().contains(&json!("host_tso4")), "{status}");
    let rings = scratch.run(&["rings"]);
    assert_eq!(
        (rings.code, rings.stdout.as_str()),
        (Some(0), "no queue is set up yet: no driver has started the device\n")
    );
    scratch.run(&["rings", "--queue", "transmitq7"]).is_refusal(&["transmitq7"]);
}

#[test]
fn a_signal_ends_serve_cleanly() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let scratch = Scratch::new();
        let mut serve = Serve::start(&scratch, "vnic.sock", &[]);
        serve.signal(signal);
        let end = serve.end();
        assert_eq!((end.code, end.stdout.as_str()), (Some(0), ""), "{signal}: {end:?}");
        for name in ["vnic.sock", "vnic.sock.control"] {
            assert!(!scratch.path(name).exists(), "{signal} left {name}");
        }
        let links = std::fs::read_dir(scratch.path("vnic")).unwrap().count();
        assert_eq!(links, 0, "{signal} left its publication");
    }
}

#[test]
fn a_socket_that_is_served_already_is_not_taken_away() {
    let scratch = Scratch::new();
    let _first = Serve::start(&scratch, "vnic.sock", &[]);
    scratch.run(&["serve", "--link", "sink", "--socket-path", "vnic.sock"]).is_refusal(&["vnic.sock"]);
    assert_eq!(scratch.run(&["status", "--control", "vnic.sock.control"]).code, Some(0));
}

#[test]
fn what_a_killed_serve_left_is_taken_over() {
    let scratch = Scratch::new();
    let mut first = Serve::start(&scratch, "vnic.sock", &[]);
    first.signal(Signal::SIGKILL);
    first.end();
    assert!(scratch.path("vnic.sock").exists());
    let _second = Serve::start(&scratch, "vnic.sock", &[]);
}

#[test]
fn a_file_in_the_sockets_place_is_left_alone() {
    let scratch = Scratch::new();
    scratch.file("precious", "data");
    scratch.run(&["serve", "--link", "sink", "--socket-path", "precious"]).is_refusal(&["precious"]);
    let args = ["serve", "--link", "sink", "--socket-path", "vnic.sock", "--control", "precious"];
    scratch.run(&args).is_refusal(&["precious"]);
    assert_eq!(std::fs::read_to_string(scratch.path("precious")).unwrap(), "data");
}

#[test]
fn every_metric_says_what_it_counts_and_the_dashboard_asks_for_none_that_is_not_there() {
    let scratch = Scratch::new();
    let _serve = Serve::start(&scratch, "vnic.sock", &[]);
    let mut stream = UnixStream::connect(scratch.path("vnic.sock.control")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: vnic\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("Content-Type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for family in families {
        let help = format!("# HELP {family} ");
        let said = text.lines().find_map(|line| line.strip_prefix(&help)).unwrap_or_else(|| panic!("{family}: {text}"));
        assert!(said.len() > 5 && !said.ends_with('.'), "{family}: {said}");
    }
    let dashboard = std::fs::read_to_string(crate::util::root().join("contrib/grafana/vnic.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
    let mut asked = 0;
    for metric in dashboard.split("vnic_").skip(1).map(|rest| rest.split(['{', ',']).next().unwrap()) {
        assert!(text.contains(&format!("\nvnic_{metric}{{")), "vnic_{metric} is not in\n{text}");
        asked += 1;
    }
    assert!(asked > 10, "{asked}");
}
