//! The NIC changes hands: from the kernel to this program, and back.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::transfer::Unsupported;
use crate::waiting::until;
use crate::{network, nic};
use vnic_driver::vfio::{PciAddress, VfioFault, bind};

/// How long the kernel may take to make its interface again.
const COMES_BACK: Duration = Duration::from_secs(20);

/// The NIC, in the hands of this program; given back when dropped.
#[derive(Debug)]
pub struct Card {
    address: PciAddress,
}

impl Card {
    /// Takes the NIC from the kernel.
    ///
    /// # Errors
    /// [`Unsupported`] where this guest has no IOMMU or no VFIO; else what failed.
    pub fn take() -> Result<Card> {
        let address = bind::find_nic()?;
        // From here on it is undone, however far it got.
        let card = Card { address };
        bind::take(&card.address).map_err(unsupported)?;
        Ok(card)
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &PciAddress {
        &self.address
    }

    /// Gives it back to the kernel, with the addresses it had.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn give_back(self) -> Result<()> {
        give_back(&self.address)
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        if self.address.driver().as_deref() != Some(bind::VIRTIO_PCI) {
            // Who wants to know why uses `give_back`; here something else has failed already.
            let _ = give_back(&self.address);
        }
    }
}

/// Gives the NIC back to the kernel, whoever left it where it is.
///
/// # Errors
/// The kernel's refusal.
pub fn undo() -> Result<PciAddress> {
    let address = bind::find_nic()?;
    give_back(&address)?;
    Ok(address)
}

fn give_back(address: &PciAddress) -> Result<()> {
    bind::give_back(address)?;
    let interface = Path::new("/sys/class/net").join(nic::NAME);
    until(COMES_BACK, || Ok(interface.exists().then_some(())))?
        .with_context(|| format!("{address} is the kernel's again, but there is no {}", nic::NAME))?;
    network::up().context("bring the kernel's network up again")
}

/// What this guest lacks, as such.
fn unsupported(fault: VfioFault) -> anyhow::Error {
    match fault {
        VfioFault::NoDriver | VfioFault::NoIommu(_) => Unsupported(fault.to_string()).into(),
        fault => fault.into(),
    }
}
