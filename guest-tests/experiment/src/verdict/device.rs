//! The device's testimony: where the payload bytes lay that it was handed.

use super::{Circumstances, Scope, Testimony, by_share};
use crate::row::PathKind;
use crate::run::DeviceAccounts;

/// What the device's accounts of a transfer of `bytes_sent` say.
#[must_use]
pub fn device(
    accounts: &DeviceAccounts,
    bytes_sent: Option<u64>,
    path_kind: PathKind,
    circumstances: Circumstances,
) -> Testimony {
    let silent = |reason: String| Testimony::Silent { reason };
    let (Some(payload), Some(cached), Some(elsewhere)) =
        (accounts.payload_bytes, accounts.from_page_cache_bytes, accounts.from_elsewhere_bytes)
    else {
        return silent("the device has no accounts of this transfer".to_owned());
    };
    if payload == 0 {
        return silent("the device saw no payload of this transfer".to_owned());
    }
    if cached.checked_add(elsewhere) != Some(payload) {
        return silent(format!(
            "the device's accounts do not add up: {cached} bytes from the page cache and {elsewhere} from elsewhere, of {payload}"
        ));
    }
    // A cipher's records have heads and tails of their own.
    let is_all = |sent: u64| if path_kind == PathKind::Cipher { payload >= sent } else { payload == sent };
    if let Some(sent) = bytes_sent.filter(|sent| !is_all(*sent)) {
        return silent(format!("the device saw {payload} payload bytes of {sent} sent"));
    }
    if circumstances.unparsed_frames > 0 {
        return silent(format!(
            "{} frames went by whose headers could not be read, and some may have been its own",
            circumstances.unparsed_frames
        ));
    }
    if circumstances.forgotten_bytes > 0 {
        return silent(format!(
            "there was no room to remember where {} bytes lay until the file's pages were known",
            circumstances.forgotten_bytes
        ));
    }
    if circumstances.misplaced_bytes > 0 {
        return silent(format!(
            "{} bytes came from pages of the file, but not from their place in it",
            circumstances.misplaced_bytes
        ));
    }
    let share = cached as f64 / payload as f64;
    let figures = format!(
        "{cached} of {payload} payload bytes ({:.1} %) were gathered from the file's own pages, {elsewhere} from elsewhere",
        share * 100.0
    );
    match by_share(share, share, path_kind, circumstances) {
        Ok((verdict, copies)) => Testimony::Says { verdict, copies, scope: Scope::Whole, figures },
        Err(reason) => silent(reason),
    }
}
