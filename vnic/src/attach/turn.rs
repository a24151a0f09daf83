//! Whose turn it is on a ring, and since when it stands still.

use std::collections::BTreeMap;
use std::time::Instant;

use super::devices::{Frames, Queue};

/// Where each ring stood when it was seen to move, by queue.
#[derive(Debug, Default)]
pub(crate) struct Still(BTreeMap<String, ((u16, u16, u16), Instant)>);

impl Still {
    /// For how many seconds the queue's ring has stood like this, as far as it was looked at.
    pub(crate) fn seconds(&mut self, queue: &str, stands: (u16, u16, u16)) -> u64 {
        let now = Instant::now();
        let moved = self.0.entry(queue.to_owned()).or_insert((stands, now));
        if moved.0 != stands {
            *moved = (stands, now);
        }
        now.duration_since(moved.1).as_secs()
    }

    /// Other rings are to come.
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }
}

/// To go behind whose turn it is: for how many seconds that has been so.
pub(crate) fn so_for(seconds: u64) -> String {
    if seconds == 0 { String::new() } else { format!("; so for {seconds} s") }
}

/// So many of them.
pub(crate) fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Who has to do something next.
pub(crate) fn whose_turn(queue: &Queue, waiting: u16, uncollected: u16) -> String {
    let receives = queue.frames == Frames::Received;
    match () {
        () if queue.added > 0 => {
            format!("the driver's turn: {} that it has not kicked for", count(queue.added.into(), "chain"))
        }
        () if uncollected > 0 => format!("the driver's turn: {} to collect", count(uncollected.into(), "used chain")),
        () if waiting > 0 && receives => {
            let wait = if waiting == 1 { "waits" } else { "wait" };
            format!("the device's turn once frames come: {} {wait}", count(waiting.into(), "buffer"))
        }
        () if waiting > 0 => format!("the device's turn: {} to serve", count(waiting.into(), "chain")),
        () if receives => "the driver's turn: no buffer waits for a frame".to_owned(),
        () => "nobody's turn: nothing is in flight".to_owned(),
    }
}
