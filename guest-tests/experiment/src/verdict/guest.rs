//! The guest kernel's testimony: the bytes that went through its copying functions.

use super::{Circumstances, Copies, Scope, Testimony};
use crate::row::PathKind;
use crate::run::Method;
use crate::wire;

/// Copies per payload byte; less is a socket's few bytes beside the payload.
const WORTH_NAMING: f64 = 0.005;

/// Bytes copied by the guest's CPU per payload byte, by its kernel's accounts.
///
/// # Errors
/// Why it is not known: a function could not be watched, or nothing was sent. One that the kernel lacks copies nothing,
/// and is no reason.
pub fn copies_per_byte(method: &Method) -> Result<f64, String> {
    let accounts = &method.guest.copied_bytes;
    if accounts.is_empty() {
        return Err(reason(method, "guest.copied_bytes")
            .unwrap_or("the guest kernel's copying functions were not watched")
            .to_owned());
    }
    let mut copied = 0_u64;
    for (function, bytes) in accounts {
        match bytes {
            Some(bytes) => copied = copied.saturating_add(*bytes),
            None => match reason(method, &format!("guest.copied_bytes.{function}")) {
                Some(reason) if reason.starts_with(wire::LACKS) => {}
                Some(reason) => return Err(format!("{function} was not counted: {reason}")),
                None => return Err(format!("{function} was not counted")),
            },
        }
    }
    match method.bytes_sent {
        Some(sent) if sent > 0 => Ok(copied as f64 / sent as f64),
        _ => Err("no bytes were sent".to_owned()),
    }
}

/// The functions that copied a share of the payload worth naming, with how often each copied a payload byte.
pub fn copied_by(method: &Method) -> impl Iterator<Item = (&str, f64)> {
    let sent = method.bytes_sent.filter(|sent| *sent > 0);
    let copied = method.guest.copied_bytes.iter().filter_map(|(function, bytes)| Some((function.as_str(), (*bytes)?)));
    copied
        .filter_map(move |(function, bytes)| Some((function, bytes as f64 / sent? as f64)))
        .filter(|(_, share)| *share >= WORTH_NAMING)
}

fn reason<'a>(method: &'a Method, path: &str) -> Option<&'a str> {
    method.reasons.get(path).map(String::as_str)
}

/// What the guest kernel's accounts of a transfer say.
#[must_use]
pub fn guest(method: &Method, path_kind: PathKind, circumstances: Circumstances) -> Testimony {
    let count = match copies_per_byte(method) {
        Ok(count) => count,
        Err(reason) => return Testimony::Silent { reason },
    };
    let cipher = method.guest.copied_bytes.contains_key(wire::CIPHER);
    let copies = match path_kind {
        // Nobody watched it: it did its work all the same.
        PathKind::Cipher if !cipher => Copies::at_least(count),
        // Past the page cache it was the server that brought it into the program's memory.
        PathKind::Direct if circumstances.served => Copies::at_least(count),
        _ => Copies::exactly(count),
    };
    let by: Vec<String> = copied_by(method).map(|(function, share)| format!("{function} {share:.2}")).collect();
    let mut figures = format!("the CPU copied each payload byte {count:.2} times");
    if !by.is_empty() {
        figures.push_str(&format!(" ({})", by.join(", ")));
    }
    if path_kind == PathKind::Cipher && !cipher {
        figures.push_str(", not counting what the cipher wrote");
    }
    if path_kind == PathKind::Direct && circumstances.served {
        figures.push_str(", not counting what the file system's server copied");
    }
    Testimony::Says { verdict: copies.verdict(), copies, scope: Scope::Whole, figures }
}
