//! `vnic rings`: the ring notation, and what has changed since the last look.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use vnic::observe::protocol::{ChainSnapshot, RingSnapshot};

use super::style::{DIM, HEAD, WARN};
use super::{figures, notation, table};

/// One ring after the other; idle buffers one by one if `all` are asked for.
pub(crate) fn show(rings: &[RingSnapshot], all: bool) -> Result<()> {
    if rings.is_empty() {
        return super::sentence("no queue is set up yet: no driver has started the device");
    }
    let mut text = String::new();
    for ring in rings {
        text.push_str(&notation::ring(ring, all, usize::from(table::width())));
        text.push('\n');
    }
    super::put(text)
}

/// What is not as it was the last time; `at` is since the first look.
pub(crate) fn show_changes(at: Duration, before: &[RingSnapshot], now: &[RingSnapshot], all: bool) -> Result<()> {
    let mut text = format!("\n{HEAD}after {:.2} s{HEAD:#}\n", at.as_secs_f64());
    for ring in now {
        match before.iter().find(|other| other.queue == ring.queue) {
            Some(before) => text.push_str(&changes(before, ring, all, usize::from(table::width()))),
            None => writeln!(text, "{}", notation::ring(ring, all, usize::from(table::width())))?,
        }
    }
    for gone in before.iter().filter(|ring| now.iter().all(|other| other.queue != ring.queue)) {
        writeln!(text, "{WARN}{} is gone{WARN:#}", gone.queue)?;
    }
    super::put(text)
}

/// How far both sides have come, and what is still in flight of what was before.
fn changes(before: &RingSnapshot, now: &RingSnapshot, all: bool, width: usize) -> String {
    let moved = |now: u16, before: u16| match now.wrapping_sub(before) {
        0 => String::new(),
        by => format!(" (+{by})"),
    };
    // A packed ring has slots only, in which it goes round and round.
    let split = now.format == "split";
    let stands = before.avail_idx == now.avail_idx && before.used_idx == now.used_idx;
    let (queue, in_flight) = (&now.queue, now.in_flight);
    if stands && before.chains == now.chains && before.faults == now.faults {
        let rest = if in_flight == 0 { "nothing in flight".to_owned() } else { format!("{in_flight} in flight") };
        return format!("{queue}  {DIM}as before, {rest}{DIM:#}\n");
    }
    let (avail, used) = match split {
        true => (moved(now.avail_idx, before.avail_idx), moved(now.used_idx, before.used_idx)),
        false => (String::new(), String::new()),
    };
    let kept = |chain: &&ChainSnapshot| before.chains.contains(chain);
    // Of a ring that came round meanwhile nobody knows.
    let round = !split || now.avail_idx.wrapping_sub(before.avail_idx) >= now.size;
    let still = now.chains.iter().filter(kept).count() as u64;
    let text = notation::ring(now, all, width);
    let (_, chains) = text.split_once('\n').unwrap_or((&text, ""));
    let mut text = format!(
        "{HEAD}{queue}{HEAD:#}  avail.idx {}{avail}  used.idx {}{used}  in flight {} -> {in_flight}\n",
        now.avail_idx, now.used_idx, before.in_flight
    );
    if still > 0 && !round {
        text += &format!("  {DIM}{} of them since the last look{DIM:#}\n", figures::count(still));
    }
    if !chains.is_empty() {
        text += chains;
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(before: &str, now: &str) -> String {
        let text = changes(&before.parse().unwrap(), &now.parse().unwrap(), false, 100);
        anstream::adapter::strip_str(&text).to_string()
    }

    #[test]
    fn a_second_look_says_how_far_both_sides_came_and_what_is_still_there() {
        let before =
            "transmitq0 split size=256 avail.idx=65535 used.idx=65534 in-flight=1\n  [254] head 1: R 0x1000+78";
        let now = "transmitq0 split size=256 avail.idx=1 used.idx=65534 in-flight=3\n  [254] head 1: R 0x1000+78\n  \
            [255] head 2: R 0x2000+78\n  [0] head 3: R 0x3000+78";
        assert_eq!(
            changed(before, now),
            "transmitq0  avail.idx 1 (+2)  used.idx 65534  in flight 1 -> 3\n  1 of them since the last look\n  \
             [254] head 1: R 0x1000+78\n  [255] head 2: R 0x2000+78\n  [0] head 3: R 0x3000+78\n"
        );
        assert_eq!(changed(now, now), "transmitq0  as before, 3 in flight\n");
    }
}
