//! The judgement on a transfer: what each witness says, and what they say together.
//!
//! Operation:
//! 1. Each witness turns its own accounts into a [`Testimony`], knowing nothing of the others: [`device`], [`guest`],
//!    [`memory`], [`introspection`]. Each says in the same unit what it can vouch for: how often the CPU copied each payload byte, at least
//!    and at most ([`Copies`]).
//! 2. [`join`] looks for what all who speak can accept. Where there is nothing, the verdict is "witnesses disagree".
//! 3. [`judge`] writes verdict, reasons and the figures per payload byte into the row.
//!
//! What each can prove:
//! - the device: where the bytes lay that the NIC read. On the file's own pages: not copied. Elsewhere: moved at least
//!   once, and it cannot tell how often;
//! - the guest kernel's accounts: how many bytes went through its copying functions, each time counted;
//! - the guest's memory: in how many places the first chunk stood: one more than the copies that still exist;
//! - the guest kernel's structures, read from outside: the same as the device, without being told where the file is;
//! - the emulated CPU, where it is asked: how many bytes of the file's pages it loaded. None: none was copied by it;
//! - the disk's rings, where they are ours and it brought the file meanwhile: whether the NIC gathered the very frames that the disk filled.
//!
//! Limits: a witness that cannot speak says why, and is never counted as agreeing or disagreeing. What a method does by
//! other means than the page cache and the copying functions is a [`PathKind`] of its own.

use super::row::{PROGRAM, PathKind, Row};
use super::run::{Method, Verdict};

mod device;
mod disk;
mod guest;
mod introspection;
mod memory;
mod touches;

pub use device::device;
pub use disk::disk;
pub use guest::{copied_by, copies_per_byte, guest};
pub use introspection::introspection;
pub use memory::memory;
pub use touches::{NOT_COUNTED, touches};

/// From this share of payload bytes, all of them are meant (TCP may re-send a byte or two from a linearised skb).
pub(crate) const NEARLY_ALL: f64 = 0.999;
/// By so many copies per payload byte two witnesses may differ: the accounts hold a socket's few bytes beside the payload.
const TOLERANCE: f64 = 0.05;
/// Fewer copies per payload byte than this are none.
const NEARLY_NONE: f64 = 0.01;

/// What is known about a transfer beside its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Circumstances {
    /// Bytes of the file's pages that stood elsewhere in the stream than in the file.
    pub misplaced_bytes: u64,
    /// Frames that went by while the flow was watched and whose headers could not be read.
    pub unparsed_frames: u64,
    /// Bytes elsewhere that could not be looked for in the file's pages when these were known.
    pub forgotten_bytes: u64,
    /// Does the file system keep the file's bytes in memory in another form, too: compressed, packed?
    pub kept_elsewhere: bool,
    /// Does the file system get the file's bytes from a server, which copies on its own account?
    pub served: bool,
    /// Pages of the file that were at another physical address after the transfer than before.
    pub pages_moved: u64,
}

/// How often the CPU copied each payload byte on its way, as far as a witness can tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Copies {
    /// At least.
    pub least: f64,
    /// At most; infinite where a witness knows no bound.
    pub most: f64,
}

impl Copies {
    /// Exactly this often.
    #[must_use]
    pub fn exactly(count: f64) -> Self {
        Copies { least: count, most: count }
    }

    /// This often or more.
    #[must_use]
    pub fn at_least(count: f64) -> Self {
        Copies { least: count, most: f64::INFINITY }
    }

    /// The verdict that follows from this alone.
    fn verdict(self) -> Option<Verdict> {
        if self.most <= NEARLY_NONE {
            Some(Verdict::ZeroCopy)
        } else if self.least >= 1.0 - NEARLY_NONE {
            Some(Verdict::Copied)
        } else if self.least > NEARLY_NONE {
            Some(Verdict::Mixed)
        } else {
            None
        }
    }
}

/// Of what a witness speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Of every payload byte.
    Whole,
    /// Of the first chunk, which stands for the rest where all of it went the same way.
    FirstChunk,
}

/// What one witness says.
#[derive(Debug, Clone, PartialEq)]
pub enum Testimony {
    /// It saw enough to speak.
    Says {
        /// Its own verdict; `None` where its figures fit several.
        verdict: Option<Verdict>,
        /// What it can vouch for.
        copies: Copies,
        /// Of what.
        scope: Scope,
        /// The figures it rests on, one clause.
        figures: String,
    },
    /// It cannot tell.
    Silent {
        /// Why, one clause.
        reason: String,
    },
}

/// What the witnesses say together.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// The verdict; `None` when no witness could speak.
    pub verdict: Option<Verdict>,
    /// What it rests on, or why there is none: one sentence.
    pub why: String,
}

/// What named witnesses say together. The first that has a verdict gives it; the others may contradict.
#[must_use]
pub fn join(witnesses: &[(&str, Testimony)]) -> Judgement {
    let clauses: Vec<String> = witnesses
        .iter()
        .map(|(name, testimony)| match testimony {
            Testimony::Says { figures, .. } => format!("{name}: {figures}"),
            Testimony::Silent { reason } => format!("{name}: not known, {reason}"),
        })
        .collect();
    let speaking = || {
        witnesses.iter().filter_map(|(_, testimony)| match testimony {
            Testimony::Says { verdict, copies, scope, .. } => Some((*verdict, *copies, *scope)),
            Testimony::Silent { .. } => None,
        })
    };
    // Where only a part was copied, the first chunk stands for nothing but itself.
    let mixed = speaking().any(|(verdict, _, scope)| scope == Scope::Whole && verdict == Some(Verdict::Mixed));
    let (mut least, mut most) = (0.0_f64, f64::INFINITY);
    for (_, copies, _) in speaking().filter(|(_, _, scope)| *scope == Scope::Whole || !mixed) {
        least = least.max(copies.least);
        most = most.min(copies.most);
    }
    let verdict = if least > most + TOLERANCE {
        Some(Verdict::WitnessesDisagree)
    } else {
        speaking().find_map(|(verdict, _, _)| verdict)
    };
    Judgement { verdict, why: clauses.join("; ") }
}

/// What follows from where the payload lay: this share of it in the file's own pages, and no more than `at_most`.
///
/// # Errors
/// Nothing does: why.
fn by_share(
    share: f64,
    at_most: f64,
    path_kind: PathKind,
    circumstances: Circumstances,
) -> Result<(Option<Verdict>, Copies), String> {
    let elsewhere = Copies::at_least(1.0 - at_most);
    Ok(if share >= NEARLY_ALL {
        (Some(Verdict::ZeroCopy), Copies::exactly(0.0))
    } else if circumstances.pages_moved > 0 {
        // A page that moved looks like a copy: only a full share can be believed.
        return Err(format!("{} pages of the file moved in memory during the transfer", circumstances.pages_moved));
    } else if path_kind == PathKind::Direct {
        // What lies in the program's memory got there by the disk's DMA: no copy by the CPU can be told from it.
        (None, Copies::at_least(0.0))
    } else if at_most <= 1.0 - NEARLY_ALL {
        (Some(Verdict::Copied), elsewhere)
    } else if at_most - share > 1.0 - NEARLY_ALL {
        (None, elsewhere)
    } else {
        (Some(Verdict::Mixed), elsewhere)
    })
}

/// Fills in what follows from a row's figures: verdict, why, copies per payload byte.
pub fn judge(method: &mut Method, circumstances: Circumstances) {
    let path_kind = Row::parse(&method.method).map_or(PathKind::PageCache, |row| row.path_kind());
    let mut witnesses = vec![
        ("device", device(&method.device, method.bytes_sent, path_kind, circumstances)),
        ("guest", guest(method, path_kind, circumstances)),
        ("memory", memory(method, path_kind, circumstances)),
        ("introspection", introspection(method, path_kind, circumstances)),
    ];
    witnesses.extend(touches(method, path_kind, circumstances).map(|testimony| ("touches", testimony)));
    witnesses.extend(disk(method, circumstances).map(|testimony| ("disk", testimony)));
    let judgement = join(&witnesses);
    method.verdict = judgement.verdict;
    method.why = judgement.why;
    if method.verdict.is_none() {
        method.reasons.insert("verdict".to_owned(), method.why.clone());
    }
    if method.sha256_ok == Some(false) {
        method.why.push_str("; the receiver's SHA-256 is not the file's");
    }
    match copies_per_byte(method) {
        Ok(copies) => method.cpu_copies = Some(copies),
        Err(reason) => {
            method.cpu_copies = None;
            method.reasons.entry("cpu_copies".to_owned()).or_insert(reason);
        }
    }
    match disk_copies(method).and_then(|disk| Ok(disk + nic_copies(method)?)) {
        Ok(copies) => method.dma_copies = Some(copies),
        Err(reason) => {
            method.dma_copies = None;
            method.reasons.entry("dma_copies".to_owned()).or_insert(reason.to_owned());
        }
    }
}

/// How often the NIC read a payload byte.
fn nic_copies(method: &Method) -> Result<f64, &'static str> {
    match (method.device.dma_read_bytes, method.device.payload_bytes) {
        (Some(read), Some(payload)) if payload > 0 => Ok(read as f64 / payload as f64),
        _ => Err("the device saw no payload"),
    }
}

/// How often the disk brought a payload byte into memory.
///
/// # Errors
/// Why that is not known.
pub fn disk_copies(method: &Method) -> Result<f64, &'static str> {
    // What the disk's own rings showed, or else what the guest's kernel counted.
    let read = method.dma.disk.as_ref().map(|disk| disk.bytes).or(method.guest.disk_read_bytes);
    match (read, method.bytes_sent) {
        (Some(read), Some(sent)) if sent > 0 => Ok(read as f64 / sent as f64),
        (None, _) => Err("what the disk brought was not counted"),
        _ => Err("no bytes were sent"),
    }
}

/// What is not as it should be in a judged row, one sentence each; empty when all is.
#[must_use]
pub fn surprises(method: &Method) -> Vec<String> {
    let name = match &method.filesystem {
        Some(filesystem) => format!("{} on {filesystem}", method.method),
        None => method.method.clone(),
    };
    let mut found = Vec::new();
    match (method.expected, method.verdict) {
        (Some(expected), Some(verdict)) if verdict == expected => {}
        (Some(expected), Some(verdict)) => {
            found.push(format!("{name}: {verdict}, but {expected} was expected ({})", method.why));
        }
        (Some(expected), None) => {
            found.push(format!("{name}: no verdict, but {expected} was expected ({})", method.why));
        }
        // Whatever it does, it is to do it.
        (None, None) if Row::parse(&method.method).is_ok_and(|row| row.method == PROGRAM) => {
            found.push(format!("{name}: no verdict ({})", method.why));
        }
        (None, Some(Verdict::WitnessesDisagree)) => found.push(format!("{name}: witnesses disagree ({})", method.why)),
        (None, _) => {}
    }
    if let Some(read) = touches::unaccounted(method) {
        found.push(format!(
            "{name}: the CPU loaded {read:.2} bytes of the file's pages for each that was sent, which no copy accounts for"
        ));
    }
    match method.sha256_ok {
        Some(true) => {}
        Some(false) => found.push(format!("{name}: the receiver's SHA-256 is not the file's")),
        None if method.verdict.is_some() => found.push(format!("{name}: the receiver's SHA-256 is not known")),
        None => {}
    }
    found
}

#[cfg(test)]
mod tests;
