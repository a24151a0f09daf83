//! The published figures, reproduced: pcie-bench's `pcie-model` (Neugebauer et al., "Understanding PCIe performance for end host
//! networking", SIGCOMM 2018; the repository's `nic_bw.py` computes them).
//!
//! What is computed there: both directions at once on PCIe 3.0 x8, MPS 256, MRRS 512; frames without their check sequence, which
//! is not in memory; the rate of the data in one direction. `nic_bw.py` writes two decimals, and "line rate from" is read off
//! them: so is it here.
//!
//! Two columns. As published, both cards' `rx_tx_data_B` is assigned (`=`) where it should be added to (`+=`), which drops the
//! request for the receive descriptor that was counted the line before. `Form::Published` leaves it out as well, and
//! `Form::Corrected` does not: that is what this library computes.

use super::account::{Account, Direction};
use super::bus::READ_OVERHEAD;
use super::model::Model;
use super::shapes::{Fold, Kind};
use super::traffic::Traffic;

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Published,
    Corrected,
}

/// A multiple of all batches, so that none is half full.
const FRAMES: u64 = 160;

fn both(model: &Model, frame: u64) -> (Account, Account) {
    let mut fold = Fold::default();
    (0..FRAMES).for_each(|at| fold.add(Kind::default(), [(at << 12, frame)].into_iter()));
    let shapes = fold.shapes();
    (model.account(Direction::Transmit, &shapes), model.account(Direction::Receive, &shapes))
}

/// Gb/s of data in one direction, of frames with `size` bytes on the wire.
fn rate(model: &str, size: u64, form: Form) -> f64 {
    let model: Model = model.parse().unwrap();
    let (transmit, receive) = both(&model, size - 4);
    let mut traffic = transmit.traffic() + receive.traffic();
    if form == Form::Published {
        traffic.up.bytes -= FRAMES * READ_OVERHEAD;
    }
    let Traffic { up, down } = traffic;
    let bus = model.hardware.unwrap().bus;
    transmit.payload_bytes as f64 * 8.0 / bus.seconds(up.bytes.max(down.bytes)) / 1e9
}

/// Gb/s of data on a 40 Gb/s line, of frames as `nic_bw.py` has them there: without the check sequence, and padded to 64 bytes.
fn line(size: u64) -> f64 {
    let size = (size - 4) as f64;
    40.0 * size / (size.max(64.0) + 20.0)
}

/// As `nic_bw.py` writes it.
fn two_decimals(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

const SIZES: [u64; 3] = [64, 256, 1024];
const CARDS: [&str; 3] = ["simple", "82599", "82599,driver=dpdk"];

fn cells(form: Form) -> [[f64; 3]; 3] {
    SIZES.map(|size| CARDS.map(|card| two_decimals(rate(card, size, form))))
}

fn line_rate_from(form: Form) -> [u64; 3] {
    let reaches = |card, size| two_decimals(rate(card, size, form)) >= two_decimals(line(size));
    CARDS.map(|card| (64..1519).find(|size| reaches(card, *size)).unwrap())
}

/// The table has one decimal of the two: 20.649 is 20.65 first, and so 20.7 and not 20.6.
#[test]
fn as_published() {
    let exact = [[12.58, 17.63, 20.65], [31.17, 37.50, 40.50], [44.33, 47.12, 48.23]];
    assert_eq!(cells(Form::Published), exact);
    let table = exact.map(|row| row.map(|rate| format!("{:.1}", (rate * 10.0).round() / 10.0)));
    assert_eq!(table, [["12.6", "17.6", "20.7"], ["31.2", "37.5", "40.5"], ["44.3", "47.1", "48.2"]]);
    assert_eq!(SIZES.map(|size| format!("{:.1}", line(size))), ["28.6", "37.1", "39.2"]);
    assert_eq!(line_rate_from(Form::Published), [476, 246, 182]);
}

#[test]
fn put_right() {
    assert_eq!(cells(Form::Corrected), [[11.58, 15.72, 18.07], [29.65, 35.32, 37.97], [43.54, 46.24, 47.30]]);
    assert_eq!(line_rate_from(Form::Corrected), [637, 353, 235]);
}
