//! What the disk brought into memory: by its DMA, into the page cache's pages or the program's own.
//!
//! Operation: the kernel counts for each disk the sectors it has read (`/sys/dev/block/MAJOR:MINOR/stat`, third figure;
//! Documentation/block/stat.rst). The difference over the transfer is the figure. What else is read from the same disk
//! meanwhile is in it, so the guest must be quiet.
//!
//! A file on a tmpfs is on no disk: nothing is read, and 0 is the figure.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::sys::stat::{major, minor};
use vnic_experiment::wire;

/// Bytes of a sector in the kernel's statistics, whatever the disk's are.
const SECTOR: u64 = 512;

/// The disk of a file, and what it had read at the start.
#[derive(Debug)]
pub(super) struct DiskReads {
    /// `None`: the file is on no disk.
    stat: Option<PathBuf>,
    /// `None` before the start.
    before: Option<Result<u64, String>>,
}

impl DiskReads {
    /// The disk that `file` is on.
    pub(super) fn of(file: &File) -> DiskReads {
        let device = file.metadata().map_or(0, |about| about.dev());
        // File systems without a disk have devices without a driver.
        let stat = (major(device) != 0)
            .then(|| PathBuf::from(format!("/sys/dev/block/{}:{}/stat", major(device), minor(device))));
        DiskReads { stat, before: None }
    }

    /// Counts from the first start on.
    pub(super) fn start(&mut self) {
        if self.before.is_none() {
            self.before = Some(self.bytes());
        }
    }

    /// Writes what was counted into the record.
    pub(super) fn close(self, accounts: &mut wire::Accounts) {
        let before = self.before.clone().unwrap_or_else(|| Err("the transfer never began".to_owned()));
        let read = before.and_then(|before| Ok(self.bytes()?.saturating_sub(before)));
        accounts.disk_read_bytes = read.map_err(|why| accounts.reasons.insert("disk_read_bytes".to_owned(), why)).ok();
    }

    fn bytes(&self) -> Result<u64, String> {
        let Some(path) = &self.stat else { return Ok(0) };
        let stat = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        sectors_read(&stat)
            .map(|sectors| sectors.saturating_mul(SECTOR))
            .ok_or_else(|| format!("{} holds {stat:?}", path.display()))
    }
}

/// Reads, reads merged, sectors read, …
fn sectors_read(stat: &str) -> Option<u64> {
    stat.split_ascii_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_figure_is_the_sectors_read() {
        assert_eq!(
            sectors_read("     120       33     4096      210        0        0        0        0\n"),
            Some(4096)
        );
        assert_eq!(sectors_read("120 33"), None);
        assert_eq!(sectors_read("120 33 many 7"), None);
    }

    #[test]
    fn a_disk_that_cannot_be_read_is_no_figure_and_no_disk_reads_nothing() {
        let close = |mut reads: DiskReads| {
            let mut accounts = wire::Accounts::default();
            reads.start();
            reads.close(&mut accounts);
            accounts
        };
        assert_eq!(close(DiskReads { stat: None, before: None }).disk_read_bytes, Some(0));
        let missing = close(DiskReads { stat: Some("/nonexistent/stat".into()), before: None });
        assert_eq!(missing.disk_read_bytes, None);
        assert!(missing.reasons["disk_read_bytes"].contains("/nonexistent/stat"), "{:?}", missing.reasons);
    }
}
