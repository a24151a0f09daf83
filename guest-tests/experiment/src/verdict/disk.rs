//! What the disk's rings say: whether what it brought was gathered from where it was brought to.

use super::{Circumstances, Copies, NEARLY_ALL, Scope, Testimony, Verdict};
use crate::run::Method;

/// The testimony of the disk's rings; `None`: they saw nothing of this file. Where the disk brought all that was sent, each payload byte
/// lay in a frame that it had filled, or was moved at least once.
#[must_use]
pub fn disk(method: &Method, circumstances: Circumstances) -> Option<Testimony> {
    let (disk, payload) = (method.dma.disk.as_ref()?, method.device.payload_bytes.filter(|payload| *payload > 0)?);
    if (disk.bytes as f64) < NEARLY_ALL * payload as f64 {
        return None;
    }
    if circumstances.served {
        let reason = "it filled the pages of the file system's server, and not the file's".to_owned();
        return Some(Testimony::Silent { reason });
    }
    let share = disk.payload_bytes_in_pages_read as f64 / payload as f64;
    let figures = format!(
        "{:.1} % of the payload lay in pages that its {} reads had filled, by {} descriptors",
        100.0 * share,
        disk.requests,
        disk.descriptors
    );
    let (verdict, copies) = if share >= NEARLY_ALL {
        (Some(Verdict::ZeroCopy), Copies::exactly(0.0))
    } else if share <= 1.0 - NEARLY_ALL {
        (Some(Verdict::Copied), Copies::at_least(1.0 - share))
    } else {
        (None, Copies::at_least(1.0 - share))
    };
    Some(Testimony::Says { verdict, copies, scope: Scope::Whole, figures })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::DiskAccounts;
    use crate::verdict::{disk_copies, join};

    /// What the disk brought, and how much of the payload lay in the frames that it filled.
    fn brought(bytes: u64, in_frames: u64) -> Option<DiskAccounts> {
        let (requests, descriptors) = (4, 32);
        let [bytes_in_pages_sent, payload_bytes_in_pages_read] = [in_frames; 2];
        Some(DiskAccounts { requests, descriptors, bytes, bytes_in_pages_sent, payload_bytes_in_pages_read })
    }

    #[test]
    fn the_disks_rings_speak_where_they_brought_all_that_was_sent() {
        let mut row = Method::default();
        row.device.payload_bytes = Some(4096);
        for (disk, expected) in [
            (None, None),
            (brought(0, 0), None),
            (brought(4000, 4000), None),
            (brought(8192, 4096), Some((Some(Verdict::ZeroCopy), Copies::exactly(0.0)))),
            (brought(4096, 0), Some((Some(Verdict::Copied), Copies::at_least(1.0)))),
            (brought(4096, 1024), Some((None, Copies::at_least(0.75)))),
        ] {
            row.dma.disk = disk;
            let said = super::disk(&row, Circumstances::default()).map(|testimony| match testimony {
                Testimony::Says { verdict, copies, .. } => (verdict, copies),
                Testimony::Silent { reason } => panic!("{reason}"),
            });
            assert_eq!(said, expected, "{:?}", row.dma.disk);
        }
    }

    #[test]
    fn a_frame_that_both_rings_had_contradicts_a_guest_that_counted_a_copy() {
        let mut row = Method::default();
        row.device.payload_bytes = Some(4096);
        row.dma.disk = brought(4096, 4096);
        let says = |copies| Testimony::Says { verdict: None, copies, scope: Scope::Whole, figures: String::new() };
        let disk = super::disk(&row, Circumstances::default()).unwrap();
        let judgement = join(&[("guest", says(Copies::exactly(1.0))), ("disk", disk)]);
        assert_eq!(judgement.verdict, Some(Verdict::WitnessesDisagree));
        assert!(judgement.why.contains("disk: 100.0 % of the payload lay in pages that its 4 reads had filled"));
        // Its own bytes count, not the guest's word.
        (row.bytes_sent, row.guest.disk_read_bytes) = (Some(4096), Some(1));
        assert_eq!(disk_copies(&row), Ok(1.0));
    }
}
