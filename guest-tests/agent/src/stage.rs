//! The host's part in a transfer or a hazard.

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
}
