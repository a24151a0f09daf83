//! Privileges that were needed to open things, and are not any more.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

use super::SandboxError;

/// Drops this thread's capabilities, and the possibility to get them back.
pub(super) fn drop_all() -> Result<(), SandboxError> {
    let failed = |error: CapsError| SandboxError::new("drop the capabilities")(Box::new(error));
    let may_narrow = caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(failed)?;
    if may_narrow {
        for capability in caps::runtime::thread_all_supported() {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
        }
    }
    // Kernels before 4.3 have no such set, and none of its members.
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient).map_err(failed)?;
    }
    let none = CapsHashSet::new();
    [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable]
        .into_iter()
        .try_for_each(|set| caps::set(None, set, &none))
        .map_err(failed)
}
