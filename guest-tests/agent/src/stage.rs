//! The host's part in a transfer or a hazard.

use std::fs::File;

use anyhow::Result;
use vnic_experiment::wire::Event;

/// Whoever is told how far it has come, and says when it goes on.
pub trait Stage {
    /// Says something to the host.
    ///
    /// # Errors
    /// The host has left.
    fn tell(&mut self, event: &Event) -> Result<()>;

    /// Waits for the host's `Go`.
    ///
    /// # Errors
    /// It says something else, or has left.
    fn wait_for_go(&mut self) -> Result<()>;

    /// Waits for the first `Go` of a transfer of this file, whose pages the host may want touched before.
    ///
    /// # Errors
    /// As above, or the file cannot be read.
    fn wait_for_first_go(&mut self, file: &File) -> Result<()> {
        let _ = file;
        self.wait_for_go()
    }
}
