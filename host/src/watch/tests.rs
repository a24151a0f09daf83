//! Pictures of what a real device has answered, at two sizes; `recorded/` has the answers and the pictures. The answers were taken
//! in the middle of a guest's `sendfile`, with its transmitq held; but for the names of the socket and of the file, which are shortened.
//!
//! Where a picture is to be another one, `UPDATE_PICTURES=1 cargo test -p vnic-host pictures` makes it anew, to be looked at.

use std::path::PathBuf;
use std::time::Instant;
use std::{env, fs};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::layout::Rect;
use serde::de::DeserializeOwned;
use vnic::observe::protocol::{Life, LifeOf, Reply, RingSnapshot, Status, TraceEvent};

use super::draw;
use super::feed::{Known, News};
use super::input;
use super::model::{Model, Tab};
use crate::screen::{Input, Key};

const SIZES: [(u16, u16); 2] = [(80, 24), (200, 60)];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/watch/recorded")
}

fn recorded<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&fs::read_to_string(folder().join(name)).unwrap()).unwrap()
}

fn state(at: Instant, status: Status) -> News {
    let rings: Vec<RingSnapshot> = recorded("rings.json");
    News::State { at, status: Box::new(status), rings, unlabelled: None }
}

/// After one look at a guest that sends a file, which tells no rates, and all that the other connections have brought.
fn model(tab: Tab) -> Model {
    let mut model = Model::new(tab, true);
    model.take(state(Instant::now(), recorded("status.json")));
    let trace = fs::read_to_string(folder().join("trace.jsonl")).unwrap();
    let events: Vec<TraceEvent> = trace.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    model.take(News::Chains(events));
    model.take(News::Report(Box::new(recorded("top.json"))));
    model
}

fn picture(model: &Model, (width, height): (u16, u16)) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::draw(frame, model)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |row: u16| (0..width).map(|column| buffer[(column, row)].symbol()).collect::<String>();
    (0..height).map(|row| line(row).trim_end().to_owned() + "\n").collect()
}

#[track_caller]
fn is_as_recorded(name: &str, model: &Model) {
    for size @ (width, height) in SIZES {
        let path = folder().join(format!("{name}-{width}x{height}.txt"));
        let picture = picture(model, size);
        if env::var_os("UPDATE_PICTURES").is_some() {
            fs::write(&path, &picture).unwrap();
        }
        assert_eq!(picture, fs::read_to_string(&path).unwrap(), "not as in {}", path.display());
    }
}

fn press(model: &mut Model, keys: &str) {
    let area = Rect::new(0, 0, 80, 24);
    for key in keys.chars() {
        let key = if key == '\r' { Key::Enter } else { Key::Char(key) };
        input::act(model, Input::Key(key), area);
    }
}

#[test]
fn pictures_of_rings() {
    is_as_recorded("rings", &model(Tab::Rings));
    let mut model = model(Tab::Rings);
    press(&mut model, "k");
    is_as_recorded("rings-receiveq", &model);
    press(&mut model, "j\r");
    is_as_recorded("buffers", &model);
}

#[test]
fn pictures_of_chains() {
    let mut model = model(Tab::Chains);
    is_as_recorded("chains", &model);
    press(&mut model, "\rjj");
    is_as_recorded("chain", &model);
}

#[test]
fn pictures_of_flows_and_counters() {
    is_as_recorded("flows", &model(Tab::Flows));
    is_as_recorded("counters", &model(Tab::Counters));
}

#[test]
fn pictures_of_a_page() {
    let mut model = model(Tab::Page);
    press(&mut model, "/0x5c69000\r");
    let Reply::Page { mut labels, mut flags, .. } = recorded("page.json") else { panic!("no page") };
    let label = labels.remove(0);
    let page = crate::control::Page { offset: label.offset(), label, flags: flags.remove(0), last_use: None };
    let known = Known { page: Some(Ok(page)), life: Ok(Life::default()) };
    model.take(News::Known(LifeOf::Page { gpa: 0x5c6_9000 }, Box::new(known)));
    is_as_recorded("page", &model);
}

#[test]
fn pictures_of_hold_keys_and_a_device_that_is_gone() {
    let mut model = model(Tab::Hold);
    is_as_recorded("hold", &model);
    press(&mut model, "?");
    is_as_recorded("keys", &model);
    press(&mut model, "x");
    model.take(News::Gone("nobody serves the control socket".to_owned()));
    is_as_recorded("gone", &model);
}

#[test]
fn pictures_of_the_readme() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once("<!-- vnic watch -->\n```\n").expect("README.md has no screen");
    let (screen, behind) = rest.split_once("```").unwrap();
    let picture = picture(&model(Tab::Rings), (140, 14));
    if env::var_os("UPDATE_PICTURES").is_some() {
        fs::write(&path, format!("{before}<!-- vnic watch -->\n```\n{picture}```{behind}")).unwrap();
    } else {
        assert_eq!(screen, picture, "README.md's screen is not what is drawn");
    }
}

/// Eight devices with four pairs each.
fn many() -> Model {
    let mut model = Model::new(Tab::Rings, true);
    let mut status: Status = recorded("status.json");
    let one = status.clone();
    status.devices = (0..8)
        .map(|device| {
            let mut all = one.clone();
            let pairs = (0..4).flat_map(|pair| one.queues.iter().map(move |queue| (pair, queue)));
            all.queues = pairs
                .map(|(pair, queue)| {
                    let name = queue.queue.trim_end_matches('0');
                    vnic::observe::protocol::QueueStatus { queue: format!("net{device}/{name}{pair}"), ..queue.clone() }
                })
                .collect();
            all
        })
        .collect();
    let mut ring: Vec<RingSnapshot> = recorded("rings.json");
    let rings = ring.pop().map(|ring| RingSnapshot { queue: "net0/transmitq0".to_owned(), ..ring });
    let rings = rings.into_iter().collect();
    model.take(News::State { at: Instant::now(), status: Box::new(status), rings, unlabelled: None });
    model
}

#[test]
fn every_queue_of_many_can_be_reached_and_no_size_is_too_small() {
    let mut model = many();
    is_as_recorded("many", &model);
    model.choose(Some("net7/transmitq3".to_owned()));
    assert!(picture(&model, (80, 24)).contains("net7/transmitq3"));
    for width in [0, 1, 2, 20, 79, 149, 150, 151, 400] {
        for height in [0, 1, 2, 3, 4, 5, 10, 100] {
            for tab in Tab::ALL {
                let mut one = self::model(tab);
                picture(&one, (width, height));
                press(&mut one, "\rj?");
                picture(&one, (width, height));
                draw::place(Rect::new(0, 0, width, height), &one, width / 2, height / 2);
            }
        }
    }
}
