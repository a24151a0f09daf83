//! The memory's testimony: in how many places the first chunk stood while the device held it.

use super::{Circumstances, Copies, Scope, Testimony};
use crate::row::PathKind;
use crate::run::Method;

/// What the scan of the guest's memory says.
#[must_use]
pub fn memory(method: &Method, path_kind: PathKind, circumstances: Circumstances) -> Testimony {
    let silent = |reason: &str| Testimony::Silent { reason: reason.to_owned() };
    let Some(instances) = method.memory.physical_instances else {
        let reason = method.reasons.get("memory.physical_instances");
        return silent(reason.map_or("the guest's memory was not scanned", String::as_str));
    };
    let Some(copies) = instances.checked_sub(1) else {
        return silent("what the device held stood nowhere in the guest's memory");
    };
    let most = copies as f64;
    let copies = match path_kind {
        // The server's have gone their way.
        PathKind::Direct if circumstances.served => Copies::at_least(0.0),
        // Some of them may be what the file system has packed, and no copies on the way.
        PathKind::PageCache | PathKind::Direct if circumstances.kept_elsewhere => Copies { least: 0.0, most },
        PathKind::PageCache => Copies::exactly(most),
        // The page cache may hold the file too, though nothing was copied out of it.
        PathKind::Direct => Copies { least: (most - 1.0).max(0.0), most },
        // The program's own page and the file's differ where it wrote, and are alike where it did not.
        PathKind::CopyOnWrite => Copies { least: 0.0, most: f64::INFINITY },
        // Enciphered bytes hold no stamps: what was found says nothing of them.
        PathKind::Cipher => return silent("the chunk was enciphered"),
    };
    let kept = if circumstances.kept_elsewhere { ", some of them perhaps as its file system packs it" } else { "" };
    let figures = match instances {
        1 => "the held chunk stood once in the guest's memory".to_owned(),
        _ => format!("the held chunk stood {instances} times in the guest's memory{kept}"),
    };
    Testimony::Says { verdict: copies.verdict(), copies, scope: Scope::FirstChunk, figures }
}
