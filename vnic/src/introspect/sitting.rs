//! Several look-ups, one after the other.
//!
//! Operation: what leads to the page structures and, of each file, its name is looked up once for all of them. That is as good
//! as once for each of buffers that had their stamps before the sitting began: a page that was in a file then and is in it after
//! its name was read has been in it meanwhile, too.

use super::GuestPhysical;
use super::label::{Kind, Label};
use super::look::Look;
use super::stamp::{Stamp, pages};
use super::{MAX_STEPS, Statistics};

/// See the [module](self).
pub(crate) struct Sitting<'k, M> {
    pub(super) look: Look<'k, M>,
    pub(super) statistics: &'k mut Statistics,
}

impl<M: GuestPhysical> Sitting<'_, M> {
    /// See [`Introspection::labels_of`](super::Introspection::labels_of).
    pub(crate) fn labels_of(&mut self, gpa: u64, len: u32, stamp: u64, labels: &mut Vec<Label>) {
        let first = labels.len();
        let then = Stamp::from(stamp).kind();
        let had = |why: &str| Label::of(gpa, then.unwrap_or(Kind::Unsettled)).because(why);
        let pages = pages(gpa, len).filter(|_| stamp != 0);
        let Some(pages) = pages else { return labels.push(had("nobody looked at it when it was sent")) };
        let mut now = Stamp::default();
        for number in pages {
            let (mut label, stamp) = self.label((number << 12).max(gpa));
            if label.kind == Kind::Unsettled && then.is_some() {
                label = had("no more of it could be told");
            }
            labels.push(label);
            now.add(stamp);
        }
        if u64::from(now) != stamp {
            labels.truncate(first);
            labels.push(had("it has changed hands since it was sent"));
        }
    }

    /// Whose the byte at this guest-physical address is, and the stamp of its page.
    pub(super) fn label(&mut self, gpa: u64) -> (Label, Stamp) {
        self.look.begin(MAX_STEPS);
        let (label, stamp) = self.look.label(gpa);
        let steps = self.look.steps();
        let all = &mut *self.statistics;
        all.looks += 1;
        all.unsettled += u64::from(label.kind == Kind::Unsettled);
        all.steps += u64::from(steps);
        all.most_steps = all.most_steps.max(steps);
        (label, stamp)
    }
}
