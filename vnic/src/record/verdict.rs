//! The judgement on a transfer: what each witness says, and what they say together.
//!
//! Operation:
//! 1. Each witness turns its own books into a [`Testimony`], knowing nothing of the others. So far there is one: the
//!    device's descriptors against the file's physical pages ([`device`]).
//! 2. [`join`] compares the testimonies: those that speak must agree, or the verdict is "witnesses disagree".
//! 3. [`judge`] writes verdict, reasons and the figures per payload byte into the row.
//!
//! Limits: a witness that cannot speak says why, and is never counted as agreeing.

use super::run::{DeviceBooks, Method, Verdict};

/// From this share of payload bytes on the file's pages, a transfer is zero-copy (TCP may re-send a byte or two from a
/// linearised skb).
const ZERO_COPY_FROM: f64 = 0.999;
/// Up to this share it is copied.
const COPIED_UP_TO: f64 = 0.001;

/// What is known about a transfer beside its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Circumstances {
    /// Bytes of the file's pages that stood elsewhere in the stream than in the file.
    pub misplaced_bytes: u64,
    /// Frames of the flow whose headers could not be told from payload.
    pub unparsed_frames: u64,
    /// Pages of the file that were at another physical address after the transfer than before.
    pub pages_moved: u64,
}

/// What one witness says.
#[derive(Debug, Clone, PartialEq)]
pub enum Testimony {
    /// It saw enough to speak.
    Says {
        /// Its own verdict: zero-copy, copied or mixed.
        verdict: Verdict,
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

/// The device's testimony: where the payload bytes lay that it was handed.
#[must_use]
pub fn device(books: &DeviceBooks, bytes_sent: Option<u64>, circumstances: Circumstances) -> Testimony {
    let silent = |reason: String| Testimony::Silent { reason };
    let (Some(payload), Some(cached), Some(elsewhere)) =
        (books.payload_bytes, books.from_page_cache_bytes, books.from_elsewhere_bytes)
    else {
        return silent("the device has no books of this transfer".to_owned());
    };
    if payload == 0 {
        return silent("the device saw no payload of this transfer".to_owned());
    }
    if cached.checked_add(elsewhere) != Some(payload) {
        return silent(format!(
            "the device's books do not add up: {cached} bytes from the page cache and {elsewhere} from elsewhere, of {payload}"
        ));
    }
    if let Some(sent) = bytes_sent.filter(|sent| *sent != payload) {
        return silent(format!("the device saw {payload} payload bytes of {sent} sent"));
    }
    if circumstances.unparsed_frames > 0 {
        return silent(format!(
            "{} frames of the flow had headers the device could not tell from payload",
            circumstances.unparsed_frames
        ));
    }
    if circumstances.misplaced_bytes > 0 {
        return silent(format!(
            "{} bytes came from pages of the file, but not from their place in it",
            circumstances.misplaced_bytes
        ));
    }
    let share = cached as f64 / payload as f64;
    let verdict = if share >= ZERO_COPY_FROM {
        Verdict::ZeroCopy
    } else if circumstances.pages_moved > 0 {
        // A page that moved looks like a copy: only a full share can be believed.
        return silent(format!("{} pages of the file moved in memory during the transfer", circumstances.pages_moved));
    } else if share <= COPIED_UP_TO {
        Verdict::Copied
    } else {
        Verdict::Mixed
    };
    let figures = format!(
        "{cached} of {payload} payload bytes ({:.1} %) were gathered from the file's own pages, {elsewhere} from elsewhere",
        share * 100.0
    );
    Testimony::Says { verdict, figures }
}

/// What named witnesses say together.
#[must_use]
pub fn join(witnesses: &[(&str, Testimony)]) -> Judgement {
    let mut speaking = Vec::new();
    let mut clauses = Vec::new();
    for (name, testimony) in witnesses {
        match testimony {
            Testimony::Says { verdict, figures } => {
                speaking.push(*verdict);
                clauses.push(format!("{name}: {figures}"));
            }
            Testimony::Silent { reason } => clauses.push(format!("{name}: not known, {reason}")),
        }
    }
    let verdict = match speaking.split_first() {
        None => None,
        Some((first, others)) if others.iter().all(|other| other == first) => Some(*first),
        Some(_) => Some(Verdict::WitnessesDisagree),
    };
    Judgement { verdict, why: clauses.join("; ") }
}

/// Fills in what follows from a row's figures: verdict, why, copies per payload byte.
pub fn judge(method: &mut Method, circumstances: Circumstances) {
    let judgement = join(&[("device", device(&method.device, method.bytes_sent, circumstances))]);
    method.verdict = judgement.verdict;
    method.why = judgement.why;
    if method.verdict.is_none() {
        method.reasons.insert("verdict".to_owned(), method.why.clone());
    }
    if method.sha256_ok == Some(false) {
        method.why.push_str("; the receiver's SHA-256 is not the file's");
    }
    method.cpu_copies = None;
    method
        .reasons
        .entry("cpu_copies".to_owned())
        .or_insert_with(|| "the guest kernel's copying functions were not watched".to_owned());
    method.dma_copies = match (method.device.dma_read_bytes, method.device.payload_bytes) {
        (Some(read), Some(payload)) if payload > 0 => Some(read as f64 / payload as f64),
        _ => None,
    };
    if method.dma_copies.is_none() {
        method.reasons.entry("dma_copies".to_owned()).or_insert_with(|| "the device saw no payload".to_owned());
    }
}

/// What is not as it should be in a judged row, one sentence each; empty when all is.
#[must_use]
pub fn surprises(method: &Method) -> Vec<String> {
    let name = &method.method;
    let mut found = Vec::new();
    if let Some(expected) = method.expected {
        match method.verdict {
            Some(verdict) if verdict == expected => {}
            Some(verdict) => found.push(format!("{name}: {verdict}, but {expected} was expected ({})", method.why)),
            None => found.push(format!("{name}: no verdict, but {expected} was expected ({})", method.why)),
        }
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
