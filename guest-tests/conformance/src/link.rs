//! How the driver reaches the device: over a vhost-user session, or by the registers of a device of QEMU's own.

use anyhow::{Result, bail};
use guest_fixture::{FrontEnd, first_base};
use vnic::ring::RingLayout;
use vnic::spec::Features;

use crate::pci::Pci;

/// Either way.
pub enum Link {
    /// A vhost-user session.
    Session(FrontEnd),
    /// Registers.
    Registers(Box<Pci>),
}

impl Link {
    /// The session, where there is one.
    ///
    /// # Errors
    /// There is none.
    pub fn session(&mut self) -> Result<&mut FrontEnd> {
        match self {
            Link::Session(session) => Ok(session),
            Link::Registers(_) => bail!("there is no vhost-user session"),
        }
    }

    /// Does a ring that was stopped go on where it was? Else it begins anew.
    pub(crate) fn goes_on(&self) -> bool {
        matches!(self, Link::Session(_))
    }

    /// Tells the device that there is something in a queue, or so it may think.
    ///
    /// # Errors
    /// It is gone.
    pub fn kick(&self, index: usize) -> Result<()> {
        match self {
            Link::Session(session) => {
                let kick = if index == 0 { &session.receive_kick } else { &session.kick };
                kick.write(1)?;
                Ok(())
            }
            Link::Registers(pci) => pci.kick(index as u64),
        }
    }

    /// Takes the notifications that came of a queue. Were there any?
    pub(crate) fn called(&self, index: usize) -> Result<bool> {
        match self {
            Link::Session(session) => {
                let call = if index == 0 { &session.receive_call } else { &session.call };
                Ok(call.read().is_ok())
            }
            Link::Registers(pci) => pci.called(index as u64),
        }
    }

    /// Starts a ring that was stopped from this place on, and enables it.
    pub(crate) fn start_ring(&mut self, index: usize, ring: RingLayout, base: u32) -> Result<()> {
        match self {
            Link::Session(session) => {
                session.start_ring(index as u32, ring, base)?;
                session.enable(index as u32, true)?;
                session.is_taken_in()
            }
            Link::Registers(pci) => pci.start_ring(index as u64, ring),
        }
    }

    /// Stops a ring, or resets its queue: where it would go on.
    pub(crate) fn stop_ring(&mut self, index: usize, features: Features) -> Result<u32> {
        match self {
            Link::Session(session) => session.stop_ring(index as u32),
            Link::Registers(pci) => pci.stop_ring(index as u64).map(|()| first_base(features)),
        }
    }

    /// The same, and with these features and rings.
    pub(crate) fn start_anew(&mut self, features: Features, rings: [RingLayout; 2]) -> Result<()> {
        match self {
            Link::Session(_) => bail!("a session's rings go on"),
            Link::Registers(pci) => pci.start(features, rings),
        }
    }

    /// Has the device begin anew, which only its registers can ask for.
    pub(crate) fn reset(&mut self) -> Result<()> {
        match self {
            Link::Session(_) => bail!("the front-end has the device status field"),
            Link::Registers(pci) => pci.reset(),
        }
    }
}
