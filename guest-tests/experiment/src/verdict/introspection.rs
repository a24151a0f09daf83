//! The guest kernel's structures' testimony: whose the pages were that the payload lay in, by a look from outside.

use super::{Circumstances, Scope, Testimony, by_share};
use crate::row::PathKind;
use crate::run::Method;

/// What the look into the guest's kernel says.
#[must_use]
pub fn introspection(method: &Method, path_kind: PathKind, circumstances: Circumstances) -> Testimony {
    let silent = |reason: &str| Testimony::Silent { reason: reason.to_owned() };
    let Some(accounts) = &method.introspection else {
        let reason = method.reasons.get("introspection");
        return silent(reason.map_or("the guest's kernel was not looked into", String::as_str));
    };
    let (payload, cached) = (accounts.payload_bytes, accounts.from_page_cache_bytes);
    let Some(known) = cached.checked_add(accounts.unsettled_bytes).filter(|known| *known <= payload) else {
        return silent("its figures do not add up");
    };
    if payload == 0 {
        return silent("no payload was seen");
    }
    let share = |bytes: u64| bytes as f64 / payload as f64;
    let of = accounts.paths.first().map_or("files", String::as_str);
    let mut figures =
        format!("{cached} of {payload} payload bytes ({:.1} %) lay in pages of {of}", share(cached) * 100.0);
    if accounts.unsettled_bytes > 0 {
        figures += &format!(", {} in pages that have changed hands since", accounts.unsettled_bytes);
    }
    match by_share(share(cached), share(known), path_kind, circumstances) {
        Ok((verdict, copies)) => Testimony::Says { verdict, copies, scope: Scope::Whole, figures },
        Err(reason) => Testimony::Silent { reason },
    }
}
