//! What people write for a page: an address, or a file's path.

use std::str::FromStr;

use vnic::observe::protocol::LifeOf;

/// `0x2ee1000`, or the same in decimals.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| format!("`{text}` is no address: write 0x2ee1000"))
}

/// An address, or a path.
#[derive(Debug, Clone)]
pub(crate) struct Of(pub(crate) LifeOf);

impl FromStr for Of {
    type Err = String;

    fn from_str(text: &str) -> Result<Of, String> {
        if text.starts_with('/') {
            return Ok(Of(LifeOf::File { path: text.to_owned() }));
        }
        let gpa = parse(text);
        gpa.map(|gpa| Of(LifeOf::Page { gpa }))
            .map_err(|_| format!("`{text}` is no path and no address: write /srv/file or 0x2ee1000"))
    }
}
