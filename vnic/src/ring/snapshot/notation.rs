//! The one notation for a ring, as text.
//!
//! ```text
//! transmitq0 split size=256 avail.idx=7 used.idx=5 in-flight=2
//!   [5] head 12: R 0x1f000+78 -> R 0x20000+4096 (page 0) -> R 0x21000+3144 (page 1)
//!   [6] head 14: indirect(2): R 0x1f040+78 -> R 0x31000+1448
//! ```
//!
//! `R` is device-readable, `W` device-writable; behind an IOMMU ` at 0x1dc0000` says where an address leads; `(page N)` is page N of the file whose pages are known; or there stands whose memory it is,
//! where that was asked for, which is not read back. What is wrong
//! stands behind `!`, at its chain or on a line of its own; `~` says that the ring moved while it was read.

use std::fmt;
use std::str::FromStr;

use super::{BufferSnapshot, ChainSnapshot, RingSnapshot};

const MOVED: &str = "~ the ring moved while it was read: entries may be from different moments";

impl fmt::Display for RingSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RingSnapshot { queue, format, size, avail_idx, used_idx, in_flight, .. } = self;
        write!(f, "{queue} {format} size={size} avail.idx={avail_idx} used.idx={used_idx} in-flight={in_flight}")?;
        for chain in &self.chains {
            write!(f, "\n  {chain}")?;
        }
        for fault in &self.faults {
            write!(f, "\n  ! {fault}")?;
        }
        if !self.consistent {
            write!(f, "\n  {MOVED}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ChainSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] head {}: ", self.slot, self.head)?;
        if self.indirect {
            write!(f, "indirect({}): ", self.buffers.len())?;
        }
        write_buffers(f, &self.buffers)?;
        match &self.fault {
            Some(fault) if self.buffers.is_empty() => write!(f, "! {fault}"),
            Some(fault) => write!(f, " -> ! {fault}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for BufferSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:#x}+{}", if self.writable { 'W' } else { 'R' }, self.addr, self.len)?;
        if let Some(gpa) = self.gpa {
            write!(f, " at {gpa:#x}")?;
        }
        match (&self.label, self.file_page) {
            (Some(label), _) => write!(f, " ({label})"),
            (None, Some(page)) => write!(f, " (page {page})"),
            (None, None) => Ok(()),
        }
    }
}

/// Buffers with arrows between them, for whoever prints chains in the ring notation.
///
/// # Errors
/// The formatter's.
pub fn write_buffers(f: &mut fmt::Formatter<'_>, buffers: &[BufferSnapshot]) -> fmt::Result {
    for (at, buffer) in buffers.iter().enumerate() {
        let arrow = if at == 0 { "" } else { " -> " };
        write!(f, "{arrow}{buffer}")?;
    }
    Ok(())
}

/// A text that is not in the ring notation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}`: expected {expected}")]
pub struct NotationError {
    /// The part that could not be read.
    pub text: String,
    /// What should stand there.
    pub expected: &'static str,
}

fn wrong(text: &str, expected: &'static str) -> NotationError {
    NotationError { text: text.to_owned(), expected }
}

fn number<T: FromStr>(text: &str, expected: &'static str) -> Result<T, NotationError> {
    text.parse().map_err(|_| wrong(text, expected))
}

impl FromStr for RingSnapshot {
    type Err = NotationError;

    fn from_str(text: &str) -> Result<Self, NotationError> {
        const HEADER: &str = "`QUEUE split|packed size=N avail.idx=N used.idx=N in-flight=N`";
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let header = lines.next().unwrap_or_default();
        let mut words = header.split_ascii_whitespace();
        let queue = words.next().ok_or_else(|| wrong(header, HEADER))?;
        let format = words.next().filter(|word| ["split", "packed"].contains(word));
        let format = format.ok_or_else(|| wrong(header, HEADER))?;
        let mut field = |name: &str| {
            let word = words.next().and_then(|word| word.strip_prefix(name)?.strip_prefix('='));
            number(word.ok_or_else(|| wrong(header, HEADER))?, HEADER)
        };
        let mut ring = RingSnapshot::empty(queue, format, field("size")?);
        ring.avail_idx = field("avail.idx")?;
        ring.used_idx = field("used.idx")?;
        ring.in_flight = field("in-flight")?;
        for line in lines {
            if line == MOVED {
                ring.consistent = false;
            } else if let Some(fault) = line.strip_prefix("! ") {
                ring.faults.push(fault.to_owned());
            } else {
                ring.chains.push(line.parse()?);
            }
        }
        Ok(ring)
    }
}

impl FromStr for ChainSnapshot {
    type Err = NotationError;

    fn from_str(line: &str) -> Result<Self, NotationError> {
        const CHAIN: &str = "`[SLOT] head HEAD: BUFFER -> BUFFER …`";
        let parts = line.trim().strip_prefix('[').and_then(|rest| rest.split_once("] head "));
        let (slot, rest) = parts.ok_or_else(|| wrong(line, CHAIN))?;
        let (head, rest) = rest.split_once(':').ok_or_else(|| wrong(line, CHAIN))?;
        let rest = rest.trim_start();
        let (indirect, rest) = match rest.strip_prefix("indirect(") {
            Some(table) => {
                let (count, rest) = table.split_once("):").ok_or_else(|| wrong(line, "`indirect(N):`"))?;
                (Some(number::<usize>(count, "the number of buffers in the table")?), rest.trim_start())
            }
            None => (None, rest),
        };
        let mut chain = ChainSnapshot {
            slot: number(slot, CHAIN)?,
            head: number(head, CHAIN)?,
            indirect: indirect.is_some(),
            buffers: Vec::new(),
            fault: None,
        };
        // A fault may hold any text, so it is cut off before the arrows are counted.
        let (buffers, fault) = match rest.split_once("! ") {
            Some((buffers, fault)) => (buffers, Some(fault)),
            None => (rest, None),
        };
        chain.fault = fault.map(str::to_owned);
        let buffers = buffers.trim_end().trim_end_matches("->").trim_end();
        if !buffers.is_empty() {
            chain.buffers = buffers.split(" -> ").map(str::parse).collect::<Result<_, _>>()?;
        }
        if indirect.is_some_and(|count| count != chain.buffers.len()) {
            return Err(wrong(line, "as many buffers as `indirect(N)` says"));
        }
        Ok(chain)
    }
}

impl FromStr for BufferSnapshot {
    type Err = NotationError;

    fn from_str(text: &str) -> Result<Self, NotationError> {
        const BUFFER: &str = "`R|W 0xADDRESS+LENGTH`";
        let (way, range) = text.trim().split_once(' ').ok_or_else(|| wrong(text, BUFFER))?;
        let writable = match way {
            "R" => false,
            "W" => true,
            _ => return Err(wrong(text, BUFFER)),
        };
        let (range, page) = match range.split_once(" (page ") {
            Some((range, page)) => (range, Some(page.strip_suffix(')').ok_or_else(|| wrong(text, "`(page N)`"))?)),
            None => (range, None),
        };
        let (range, gpa) = match range.split_once(" at 0x") {
            Some((range, gpa)) => {
                (range, Some(u64::from_str_radix(gpa, 16).map_err(|_| wrong(text, "` at 0xADDRESS`"))?))
            }
            None => (range, None),
        };
        let (addr, len) =
            range.strip_prefix("0x").and_then(|range| range.split_once('+')).ok_or_else(|| wrong(text, BUFFER))?;
        let addr = u64::from_str_radix(addr, 16).map_err(|_| wrong(text, BUFFER))?;
        let file_page = page.map(|page| number(page, "`(page N)`")).transpose()?;
        Ok(BufferSnapshot { writable, addr, len: number(len, BUFFER)?, gpa, file_page, ..BufferSnapshot::at(0, 0) })
    }
}
