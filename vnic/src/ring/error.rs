//! What a driver can get wrong in a ring.

use crate::memory::MemoryError;

macro_rules! ring_errors {
    ($($(#[doc = $doc:literal])* #[error($text:literal)] $variant:ident $({ $($(#[doc = $fdoc:literal])* $field:ident: $type:ty,)* })? = $name:literal;)*) => {
        /// A ring that breaks the rules. The ring stops; who reports it adds the queue's name.
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        pub enum RingError {
            $($(#[doc = $doc])* #[error($text)] $variant $({ $($(#[doc = $fdoc])* $field: $type,)* })?,)*
        }

        impl RingError {
            /// The short names of all errors, as counters and metrics have them.
            pub const NAMES: &'static [&'static str] = &[$($name,)*];

            /// The error's short name: stable, for counters and metrics.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self { $(RingError::$variant { .. } => $name,)* }
            }
        }
    };
}

ring_errors! {
    /// A size no ring of this format can have.
    #[error("a {format} ring cannot have {size} entries")]
    BadSize {
        /// `split` or `packed`.
        format: &'static str,
        /// The size.
        size: u16,
    } = "bad_size";
    /// A starting position no ring of this size can be at.
    #[error("the ring cannot start at {base:#x}")]
    BadBase {
        /// As the front-end gave it.
        base: u32,
    } = "bad_base";
    /// A part of the ring itself is not (wholly, aligned, in one piece) guest memory.
    #[error("{part}: {source}")]
    RingUnmapped {
        /// Which part.
        part: &'static str,
        /// What is wrong with it.
        source: MemoryError,
    } = "ring_unmapped";
    /// Two parts of a ring share bytes: each would be overwritten by what the other says.
    #[error("{first} and {second} overlap")]
    PartsOverlap {
        /// One part.
        first: &'static str,
        /// The other.
        second: &'static str,
    } = "ring_parts_overlap";
    /// The available index moved further than the ring is long.
    #[error("avail.idx went from {from} to {to} in a ring of {size}")]
    AvailJump {
        /// The next entry the device would take.
        from: u16,
        /// The index in memory.
        to: u16,
        /// The ring's size.
        size: u16,
    } = "avail_jump";
    /// An available entry names no descriptor.
    #[error("available entry {idx}: head {head} in a table of {size}")]
    HeadOutOfRange {
        /// Free-running index of the entry.
        idx: u16,
        /// What it says.
        head: u16,
        /// The table's size.
        size: u16,
    } = "head_out_of_range";
    /// A head was made available again before the device returned it.
    #[error("available entry {idx}: head {head} is still in flight")]
    HeadInFlight {
        /// Free-running index of the entry (packed: slot).
        idx: u16,
        /// The head (packed: buffer id).
        head: u16,
    } = "head_in_flight";
    /// Packed: a descriptor inside a chain whose flags say that it is not available.
    #[error("chain at slot {head}: descriptor {index} has flags {flags:#x}: not available")]
    DescNotAvailable {
        /// Slot of the chain's first descriptor.
        head: u16,
        /// Slot of this one.
        index: u16,
        /// Its flags.
        flags: u16,
    } = "desc_not_available";
    /// Packed: more descriptors made available than the ring has.
    #[error("chain at slot {head}: the device holds {held} of {size} slots and cannot have more")]
    RingOverrun {
        /// Slot of the chain's first descriptor.
        head: u16,
        /// Slots the device has, this chain's up to here included.
        held: u16,
        /// The ring's size.
        size: u16,
    } = "ring_overrun";
    /// A descriptor's `next` names no descriptor.
    #[error("head {head}: descriptor {index} has next {next} in a table of {size}")]
    DescIndexOutOfRange {
        /// The chain's head.
        head: u16,
        /// The descriptor.
        index: u16,
        /// What it says.
        next: u16,
        /// The table's size.
        size: u32,
    } = "desc_index_out_of_range";
    /// More descriptors than the table has: some come twice.
    #[error("head {head}: loop at descriptor {index} after all {size} of the table")]
    Loop {
        /// The chain's head.
        head: u16,
        /// The descriptor at which it became certain.
        index: u16,
        /// The table's size.
        size: u32,
    } = "loop";
    /// More descriptors than a chain may have.
    #[error("head {head}: more than {max} descriptors")]
    ChainTooLong {
        /// The chain's head.
        head: u16,
        /// How many it may have.
        max: u32,
    } = "chain_too_long";
    /// More buffers in one pass than any frame takes of an honest driver.
    #[error("head {head}: more than {max} buffers taken in one pass")]
    TooManySegments {
        /// The chain's head.
        head: u16,
        /// How many are taken.
        max: usize,
    } = "too_many_segments";
    /// More bytes than a chain may have.
    #[error("head {head}: more than {max} bytes at descriptor {index}")]
    TotalTooLarge {
        /// The chain's head.
        head: u16,
        /// The descriptor that passes the limit.
        index: u16,
        /// The limit.
        max: u32,
    } = "total_too_large";
    /// A device-readable buffer behind a device-writable one.
    #[error("head {head}: descriptor {index} is device-readable behind a device-writable one")]
    ReadableAfterWritable {
        /// The chain's head.
        head: u16,
        /// The readable descriptor.
        index: u16,
    } = "readable_after_writable";
    /// A buffer that is not (wholly) guest memory.
    #[error("head {head}: descriptor {index}: {source}")]
    Unmapped {
        /// The chain's head.
        head: u16,
        /// The descriptor.
        index: u16,
        /// What is wrong with it.
        source: MemoryError,
    } = "unmapped";
    /// A buffer that the driver's own IOMMU forbids the device to read, or to write.
    #[error("head {head}: descriptor {index}: {source}")]
    Forbidden {
        /// The chain's head.
        head: u16,
        /// The descriptor.
        index: u16,
        /// What is wrong with it.
        source: MemoryError,
    } = "forbidden";
    /// An indirect table though the feature was not negotiated.
    #[error("head {head}: descriptor {index} is indirect, which was not negotiated")]
    IndirectNotNegotiated {
        /// The chain's head.
        head: u16,
        /// The descriptor.
        index: u16,
    } = "indirect_not_negotiated";
    /// An indirect descriptor inside an indirect table.
    #[error("head {head}: descriptor {index} of the indirect table is indirect itself")]
    IndirectNested {
        /// The chain's head.
        head: u16,
        /// The descriptor in the table.
        index: u16,
    } = "indirect_nested";
    /// INDIRECT and NEXT on the same descriptor.
    #[error("head {head}: descriptor {index} is indirect and has a next")]
    IndirectWithNext {
        /// The chain's head.
        head: u16,
        /// The descriptor.
        index: u16,
    } = "indirect_with_next";
    /// An indirect table of no bytes.
    #[error("head {head}: descriptor {index} has an empty indirect table")]
    IndirectEmpty {
        /// The chain's head.
        head: u16,
        /// The descriptor.
        index: u16,
    } = "indirect_empty";
    /// An indirect table whose length is no multiple of a descriptor's.
    #[error("head {head}: descriptor {index} has an indirect table of {len} bytes, no multiple of 16")]
    IndirectMisaligned {
        /// The chain's head.
        head: u16,
        /// The descriptor.
        index: u16,
        /// The table's length.
        len: u32,
    } = "indirect_misaligned";
    /// An indirect table with more entries than there are indices.
    #[error("head {head}: descriptor {index} has an indirect table of {len} bytes, at most {max}")]
    IndirectTooLong {
        /// The chain's head.
        head: u16,
        /// The descriptor.
        index: u16,
        /// The table's length.
        len: u32,
        /// The longest there may be.
        max: u32,
    } = "indirect_too_long";
    /// An indirect table that is not (wholly) guest memory.
    #[error("head {head}: indirect table of descriptor {index}: {source}")]
    IndirectUnmapped {
        /// The chain's head.
        head: u16,
        /// The descriptor.
        index: u16,
        /// What is wrong with it.
        source: MemoryError,
    } = "indirect_unmapped";
    /// A chain was returned that is not in flight, or twice.
    #[error("head {head} was returned but is not in flight")]
    NotInFlight {
        /// The chain's head.
        head: u16,
    } = "not_in_flight";
    /// `used.idx` is not where the device left it: someone else uses this ring, too.
    #[error("used.idx went from {left} to {found}, and not by this device")]
    UsedMoved {
        /// As the device stored it last.
        left: u16,
        /// The index in memory.
        found: u16,
    } = "used_moved";
    /// More bytes were reported as written than the chain has room for.
    #[error("head {head}: {written} bytes written into {room}")]
    WrittenTooMuch {
        /// The chain's head.
        head: u16,
        /// Bytes reported.
        written: u32,
        /// Bytes there are.
        room: u32,
    } = "written_too_much";
    /// Driver half: the used index moved further than there are buffers out.
    #[error("used.idx went from {from} to {to} with {out} chains out")]
    UsedJump {
        /// The next entry the driver would take.
        from: u16,
        /// The index in memory.
        to: u16,
        /// Chains the device has.
        out: u16,
    } = "used_jump";
    /// Driver half: a used entry names a chain the device does not have.
    #[error("used entry {idx}: id {id} is not with the device")]
    UsedUnknown {
        /// Free-running index of the entry (packed: slot).
        idx: u16,
        /// What it says.
        id: u32,
    } = "used_unknown";
    /// Driver half: a chain of no buffers.
    #[error("a chain must have a buffer")]
    EmptyChain = "empty_chain";
    /// Driver half: no room for the chain.
    #[error("{needed} descriptors needed, {free} free")]
    Full {
        /// Descriptors the chain takes.
        needed: usize,
        /// Descriptors there are.
        free: usize,
    } = "full";
}

impl RingError {
    /// The buffer of descriptor `index` cannot be had.
    #[must_use]
    pub fn of_buffer(head: u16, index: u16, source: MemoryError) -> Self {
        match source {
            MemoryError::Forbidden { .. } => RingError::Forbidden { head, index, source },
            source => RingError::Unmapped { head, index, source },
        }
    }

    /// Is it no fault, but a translation that is missing?
    #[must_use]
    pub const fn is_miss(&self) -> bool {
        matches!(self.memory(), Some(MemoryError::Untranslated { .. }))
    }

    /// What is wrong with an address, if it is an address.
    #[must_use]
    pub const fn memory(&self) -> Option<&MemoryError> {
        match self {
            RingError::Unmapped { source, .. }
            | RingError::Forbidden { source, .. }
            | RingError::IndirectUnmapped { source, .. }
            | RingError::RingUnmapped { source, .. } => Some(source),
            _ => None,
        }
    }
}
