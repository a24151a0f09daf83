//! stub
use crate::{net::*, ring::*};
/// x
#[derive(Debug)]
pub struct Capture;
impl Capture {
    /// x
    pub fn transmitted(&self, _q: &str, _s: &Segments, _f: &Frame<'_>) {}
    /// x
    pub fn received(&self, _q: &str, _s: &Segments, _f: &ReceiveSpace<'_>) {}
}
