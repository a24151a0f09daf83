//! When each side of a ring wants to hear from the other: what tells a lost notification from a quiet ring.
//!
//! VIRTIO 1.3, 2.7.7 Used Buffer Notification Suppression, 2.7.10 Available Buffer Notification Suppression, 2.8.10 Driver
//! and Device Event Suppression.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::memory::Memory;
use crate::ring::RingLayout;
use crate::ring::pointers::{PackedParts, PackedPointers, SplitParts, SplitPointers};
use crate::spec::ring::{AVAIL_F_NO_INTERRUPT, PACKED_EVENT_DESC, PACKED_EVENT_ENABLE, PackedEvent, USED_F_NO_NOTIFY};
use crate::spec::{Feature, Features};

/// When one side wants to be notified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NotifyWhen {
    /// Whenever there is something.
    Always,
    /// Not at all.
    Never,
    /// When the other side's index passes this one (EVENT_IDX): `avail.idx` for a kick, `used.idx` for a call, free-running.
    /// Of a packed ring: when this slot is made available, or used.
    Past(u16),
}

/// When both sides of a ring want to be notified, as it stands in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventSuppression {
    /// The device's, of the driver.
    pub kick: NotifyWhen,
    /// The driver's, of the device.
    pub call: NotifyWhen,
}

impl EventSuppression {
    /// Reads them from the ring at `layout`; `None` where it is not guest memory.
    #[must_use]
    pub fn read(layout: &RingLayout, memory: &Arc<Memory>, features: Features) -> Option<EventSuppression> {
        if features.has(Feature::RingPacked) {
            PackedPointers::new(layout, Arc::clone(memory)).ok().map(|ring| EventSuppression::of_packed(ring.parts()))
        } else {
            SplitPointers::new(layout, Arc::clone(memory), features)
                .ok()
                .map(|ring| EventSuppression::of_split(ring.parts()))
        }
    }

    fn of_split(ring: SplitParts<'_>) -> EventSuppression {
        let unless = |flag: u16, flags: u16| if flags & flag == 0 { NotifyWhen::Always } else { NotifyWhen::Never };
        EventSuppression {
            kick: match ring.avail_event() {
                Some(event) => NotifyWhen::Past(event.load(Ordering::Relaxed)),
                None => unless(USED_F_NO_NOTIFY, ring.used_flags().load(Ordering::Relaxed)),
            },
            call: match ring.used_event() {
                Some(event) => NotifyWhen::Past(event.load(Ordering::Relaxed)),
                None => unless(AVAIL_F_NO_INTERRUPT, ring.avail_flags().load(Ordering::Relaxed)),
            },
        }
    }

    fn of_packed(ring: PackedParts<'_>) -> EventSuppression {
        let when = |event: PackedEvent| match event.flags {
            PACKED_EVENT_ENABLE => NotifyWhen::Always,
            // Bit 15 is the wrap counter.
            PACKED_EVENT_DESC => NotifyWhen::Past(event.off_wrap & 0x7fff),
            _ => NotifyWhen::Never,
        };
        EventSuppression { kick: when(ring.device_event()), call: when(ring.driver_event()) }
    }
}

impl fmt::Display for NotifyWhen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotifyWhen::Always => f.write_str("always"),
            NotifyWhen::Never => f.write_str("never"),
            NotifyWhen::Past(idx) => write!(f, "past {idx}"),
        }
    }
}
