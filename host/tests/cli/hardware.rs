//! `--hardware`: what `serve` refuses, and what `status` and `judge` show of it.

use vnic::hardware::{Direction, Figures, Fold, Kind, Model};
use vnic::observe::protocol::{HardwareStatus, QueueCost};

use crate::device::{self, Device};
use crate::guest::Manner;
use crate::judge::{self, BYTES};
use crate::util::Scratch;

fn cost(model: &str, direction: Direction, chains: u64) -> Figures {
    let mut fold = Fold::default();
    (0..chains).for_each(|at| fold.add(Kind::default(), [(at << 12, 1500)].into_iter()));
    let model: Model = model.parse().unwrap();
    Figures::new(&model, &model.account(direction, &fold.shapes()))
}

#[test]
fn serve_refuses_a_model_that_contradicts_itself_or_has_no_card() {
    let scratch = Scratch::new();
    let socket = scratch.path("socket").display().to_string();
    let serve = |hardware: &str, more: &[&str]| {
        scratch.run(&[&["serve", "--socket-path", &socket, "--hardware", hardware], more].concat())
    };
    serve("82599,mps=128,rcb=256", &[]).is_refusal(&["--hardware", "completions cannot be cut every 256 bytes"]);
    serve("82600", &[]).is_refusal(&["`82600` is no card", "82599, e810-like, simple, ideal"]);
    serve("82599:slowly", &[]).is_refusal(&["`slowly`", "account or pace"]);
    serve("82599:pace", &["--queue-pairs", "2", "--cpu", "0,1"]).is_refusal(&["82599:pace", "one engine", "--cpu"]);
    serve("82599", &["--device", "rng"]).is_refusal(&["--hardware is for a network card"]);
}

#[test]
fn status_shows_what_the_chains_would_cost() {
    let scratch = Scratch::new();
    let mut script = device::busy();
    let queue = |name: &str, direction, looked_at, chains| QueueCost {
        queue: name.to_owned(),
        chains,
        cost: cost("82599,pcie=gen1x1", direction, looked_at),
    };
    script.status.hardware = Some(HardwareStatus {
        model: "82599,pcie=gen1x1".to_owned(),
        paced: true,
        queues: vec![
            queue("receiveq0", Direction::Receive, 160, 160),
            queue("transmitq0", Direction::Transmit, 1600, 3200),
        ],
    });
    let device = Device::start(&scratch.path("control"), script.clone());
    let outcome = scratch.run(&["status", "--control", device.control()]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let (_, shown) = outcome.stdout.split_once("\nhardware").unwrap();
    let (shown, _) = shown.split_once("\n\n").unwrap();
    assert_eq!(
        shown,
        "  82599,pcie=gen1x1  paced as this card would be\n\
         queue       looked at  descriptors  round trips  bus bytes   bus time  limit      at most\n\
         receiveq0     100.0 %          160          180  273.7 KiB   1.143 ms  bus up    1.7 Gb/s\n\
         transmitq0     50.0 %        1 600        3 240    2.8 MiB  11.276 ms  bus down  1.7 Gb/s"
    );
    let json = scratch.run(&["status", "--json", "--control", device.control()]).json();
    assert_eq!(json["hardware"]["queues"][1]["cost"]["descriptors"], 1600);
    assert_eq!(json, serde_json::to_value(script.status).unwrap());
}

#[test]
fn the_record_of_a_judged_run_has_the_cost_on_the_card_that_the_device_was_told() {
    let scratch = Scratch::new();
    let mut script = device::busy();
    let mut fold = Fold::default();
    (0..4).for_each(|page| fold.add(Kind::default(), [(page << 12, 4096)].into_iter()));
    let mut accounts = judge::accounts(BYTES);
    accounts.shapes = fold.shapes();
    script.accounts = vec![accounts];
    script.status.hardware = Some(HardwareStatus { model: "simple".to_owned(), paced: false, queues: Vec::new() });
    let args = ["--transfer", "sendfile", "--witness", "device"];
    let run = judge::run_with(&scratch, Manner::Right, &args, script);
    let row = &run.record()["methods"][0];
    assert_eq!(row["dma"]["hardware"]["model"], "simple", "{row:#}");
    assert_eq!(row["dma"]["hardware"]["descriptors"], 4);
    assert_eq!(row["dma"]["shapes"]["pieces"]["4096"], 4);
    assert!(row["reasons"].get("dma.hardware").is_none());
    // A report shows that card without being asked.
    assert!(run.outcome.code == Some(0), "{:?}", run.outcome);
}
