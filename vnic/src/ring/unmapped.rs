//! A ring out of the device's reach: behind an IOMMU that has not said, or no longer says, where it is.

use super::{Chain, DeviceRing, DrainEnd, RingError, Segments, Visitor};

/// What is left of such a ring: where it goes on. It holds no pointer, so nothing is read or written; it has no chains.
#[derive(Debug, Clone, Copy)]
pub struct Unmapped {
    /// As [`DeviceRing::base`] says it.
    pub base: u32,
    /// The ring's size.
    pub size: u16,
}

impl DeviceRing for Unmapped {
    fn pop(&mut self, _into: &mut Segments) -> Result<Option<Chain>, RingError> {
        Ok(None)
    }

    fn drain<V: Visitor>(&mut self, _: &mut Segments, _: u16, _: &mut V) -> Result<DrainEnd, RingError> {
        Ok(DrainEnd::Empty)
    }

    fn pop_buffers(&mut self, _: &mut Segments, _: u16, _: &mut Vec<Chain>) -> Result<(), RingError> {
        Ok(())
    }

    fn prefetch(&mut self, _count: u16) {}

    fn unpop(&mut self, chains: &[Chain]) -> Result<(), RingError> {
        chains.first().map_or(Ok(()), |chain| Err(RingError::NotInFlight { head: chain.head }))
    }

    fn push_used(&mut self, chain: &Chain, _written: u32) -> Result<(), RingError> {
        Err(RingError::NotInFlight { head: chain.head })
    }

    fn publish(&mut self) -> Result<bool, RingError> {
        Ok(false)
    }

    fn enable_notifications(&mut self) -> Result<bool, RingError> {
        Ok(false)
    }

    fn disable_notifications(&mut self) {}

    fn available(&mut self) -> Result<u16, RingError> {
        Ok(0)
    }

    fn base(&self) -> u32 {
        self.base
    }

    fn in_flight(&self) -> u16 {
        0
    }

    fn size(&self) -> u16 {
        self.size
    }
}
