//! An event of `vnic trace` as one line, with the chain in the ring notation ([`crate::ring::snapshot`]).
//!
//! ```text
//! 2.000345 transmitq0 #7 head 12: R 0x1f000+78 -> R 0x20000+4096 (page 0) | 10.0.2.15:34512 > 10.0.2.2:9000 tcp …
//! ```
//!
//! Seconds since `serve` started, queue, free-running index, head, buffers; what the device wrote; the frame in words.

use std::fmt;

use super::protocol::{ChainEvent, TraceEvent};
use crate::ring::snapshot::write_buffers;

impl fmt::Display for TraceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TraceEvent::Chain(chain) => chain.fmt(f),
            TraceEvent::Lost { queue, events } => write!(f, "~ {queue}: {events} events lost"),
        }
    }
}

impl fmt::Display for ChainEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, rest) = (self.at_ns / 1_000_000_000, self.at_ns % 1_000_000_000);
        write!(f, "{seconds}.{:06} {} #{} head {}: ", rest / 1000, self.queue, self.idx, self.head)?;
        if self.indirect {
            write!(f, "indirect({}): ", self.descriptors)?;
        }
        write_buffers(f, &self.buffers)?;
        let unseen = usize::from(self.descriptors).saturating_sub(self.buffers.len());
        if unseen > 0 {
            write!(f, " -> … {unseen} more")?;
        }
        if self.written > 0 {
            write!(f, " written={}", self.written)?;
        }
        if !self.summary.is_empty() {
            write!(f, " | {}", self.summary)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::BufferSnapshot;

    #[test]
    fn an_event_is_one_line() {
        let event = TraceEvent::Chain(ChainEvent {
            at_ns: 2_000_345_678,
            available_ns: 2_000_340_000,
            queue: "transmitq0".to_owned(),
            head: 12,
            idx: 65535,
            indirect: false,
            buffers: vec![BufferSnapshot::at(0x1f000, 78)],
            descriptors: 3,
            written: 0,
            summary: "10.0.2.15:1 > 10.0.2.2:9000 tcp seq 1 len 8192".to_owned(),
            headers: None,
        });
        assert_eq!(
            event.to_string(),
            "2.000345 transmitq0 #65535 head 12: R 0x1f000+78 -> … 2 more | 10.0.2.15:1 > 10.0.2.2:9000 tcp seq 1 len 8192"
        );
        let lost = TraceEvent::Lost { queue: "receiveq0".to_owned(), events: 3 };
        assert_eq!(lost.to_string(), "~ receiveq0: 3 events lost");
    }
}
