//! What can go wrong, by the name of the ioctl, and what to do about it.

use std::fmt;
use std::fs;
use std::io;

use vfio_ioctls::VfioError;

use super::PciAddress;

/// A step on the way to a device that failed. Each message names the file or ioctl and the group, and says what helps.
#[derive(Debug, thiserror::Error)]
pub enum VfioFault {
    /// The kernel has no `vfio-pci`.
    #[error("this kernel has no vfio-pci driver: it needs the modules vfio, vfio_iommu_type1 and vfio-pci")]
    NoDriver,
    /// Nothing between the device and memory.
    #[error(
        "{0} is in no IOMMU group: there is no IOMMU, or it is off; QEMU needs -device intel-iommu and the kernel \
         intel_iommu=on (scripts/run-qemu.sh --iommu does both)"
    )]
    NoIommu(PciAddress),
    /// No such device.
    #[error("there is no virtio-net PCI device in this machine")]
    NoNic,
    /// Not an address.
    #[error("{0:?} is no PCI address: it looks like 0000:00:02.0")]
    BadAddress(String),
    /// A file of sysfs could not be read or written.
    #[error("{action} {path}: {source}")]
    Sysfs {
        /// `read`, `write … to`.
        action: String,
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another driver has the device.
    #[error("{address} should be driven by {wanted}, and is by {}: {hint}", driver.as_deref().unwrap_or("nobody"))]
    StillBound {
        /// The device.
        address: PciAddress,
        /// Who was to have it.
        wanted: &'static str,
        /// Who has it.
        driver: Option<String>,
        /// What to do.
        hint: &'static str,
    },
    /// Container, group or device cannot be opened.
    #[error("{ioctl}, group {group} of {address}: {source}{}", Advice(advice))]
    Open {
        /// The ioctl, or the file to be opened.
        ioctl: &'static str,
        /// The IOMMU group.
        group: u32,
        /// The device.
        address: PciAddress,
        /// What the kernel said.
        source: VfioError,
        /// What to do.
        advice: String,
    },
    /// Reading or writing configuration space failed.
    #[error("configuration space of {address} at {offset:#x}: {source}")]
    Config {
        /// The device.
        address: PciAddress,
        /// Where.
        offset: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// A BAR cannot be mapped.
    #[error("BAR {bar} of {address}, {size} bytes: {reason}")]
    Bar {
        /// Which.
        bar: u8,
        /// The device.
        address: PciAddress,
        /// Its size.
        size: u64,
        /// Why.
        reason: String,
    },
    /// The kernel refuses a DMA map.
    #[error("VFIO_IOMMU_MAP_DMA, {len} bytes at IOVA {iova:#x} for {access}: {source}{}", Advice(advice))]
    Map {
        /// I/O virtual address.
        iova: u64,
        /// Length.
        len: u64,
        /// `reading` or `reading and writing`.
        access: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// No I/O virtual addresses are left.
    #[error("no {len} bytes of I/O virtual addresses are free (ranges: {ranges})")]
    NoSpace {
        /// Asked for.
        len: u64,
        /// What the IOMMU has.
        ranges: String,
    },
    /// The IOMMU cannot be asked for its ranges.
    #[error("VFIO_IOMMU_GET_INFO: {0}")]
    Info(io::Error),
    /// Memory of the program's own for the device could not be had.
    #[error("{len} bytes of memory for the device: {reason}")]
    Memory {
        /// Asked for.
        len: u64,
        /// Why not.
        reason: String,
    },
    /// Interrupts cannot be set up.
    #[error("VFIO_DEVICE_SET_IRQS, {kind} of {address}: {reason}")]
    Interrupts {
        /// `MSI-X` or `INTx`.
        kind: &'static str,
        /// The device.
        address: PciAddress,
        /// What the kernel said.
        reason: String,
    },
}

/// Advice behind a message, where there is some.
struct Advice<T>(T);

impl<T: AsRef<str>> fmt::Display for Advice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_ref() {
            "" => Ok(()),
            advice => write!(f, "; {advice}"),
        }
    }
}

impl VfioFault {
    /// What an error of `vfio-ioctls` while opening means.
    pub(super) fn open(source: VfioError, group: u32, address: &PciAddress) -> Self {
        let (ioctl, advice) = match &source {
            VfioError::OpenContainer(_) => ("open /dev/vfio/vfio", "is the module vfio loaded?".to_owned()),
            VfioError::VfioApiVersion => ("VFIO_GET_API_VERSION", String::new()),
            VfioError::VfioExtension => {
                ("VFIO_CHECK_EXTENSION", "is the module vfio_iommu_type1 loaded, and is there an IOMMU?".to_owned())
            }
            VfioError::OpenGroup(error, _) => ("open /dev/vfio/GROUP", open_group_advice(error).to_owned()),
            VfioError::GetGroupStatus => ("VFIO_GROUP_GET_STATUS", String::new()),
            VfioError::GroupViable => ("VFIO_GROUP_GET_STATUS", viable_advice(group)),
            VfioError::GroupSetContainer => {
                ("VFIO_GROUP_SET_CONTAINER", "does another program use this group?".to_owned())
            }
            VfioError::ContainerSetIOMMU(error) if error.errno() == libc::EPERM => (
                "VFIO_SET_IOMMU",
                "the IOMMU does not remap interrupts: QEMU needs -device intel-iommu,intremap=on (with KVM also \
                 kernel-irqchip=split), or load vfio_iommu_type1 with allow_unsafe_interrupts=1"
                    .to_owned(),
            ),
            VfioError::ContainerSetIOMMU(_) => ("VFIO_SET_IOMMU", String::new()),
            VfioError::GroupGetDeviceFD(_) => {
                ("VFIO_GROUP_GET_DEVICE_FD", "is the device bound to vfio-pci?".to_owned())
            }
            VfioError::VfioDeviceGetInfo(_) | VfioError::VfioDeviceGetInfoPCI | VfioError::VfioDeviceGetInfoOther => {
                ("VFIO_DEVICE_GET_INFO", String::new())
            }
            VfioError::VfioDeviceGetRegionInfo(_) => ("VFIO_DEVICE_GET_REGION_INFO", String::new()),
            _ => ("VFIO", String::new()),
        };
        VfioFault::Open { ioctl, group, address: address.clone(), source, advice }
    }

    /// What the kernel's refusal of a DMA map means.
    pub(super) fn map(source: io::Error, iova: u64, len: u64, writable: bool) -> Self {
        let advice = match source.raw_os_error() {
            Some(libc::ENOMEM) => {
                "pinned memory counts against RLIMIT_MEMLOCK: raise it (ulimit -l), or run with CAP_IPC_LOCK"
            }
            Some(libc::ENOSPC) => "the container's limit of maps is reached: map larger pieces (dma_entry_limit)",
            Some(libc::EFAULT) if writable => {
                "these pages cannot be pinned for writing: a file's pages are mapped read-only"
            }
            Some(libc::EFAULT) => "these pages cannot be pinned: has the file been cut short?",
            Some(libc::EEXIST) => "something is mapped there already",
            Some(libc::EINVAL) => "address and length must be whole pages inside the IOMMU's ranges",
            _ => "",
        };
        let access = if writable { "reading and writing" } else { "reading" };
        VfioFault::Map { iova, len, access, source, advice }
    }
}

fn open_group_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "another program has the group open: only one can",
        Some(libc::ENOENT) => "no device of the group is bound to vfio-pci",
        Some(libc::EACCES | libc::EPERM) => "this user may not open it: root may, or chown the file",
        _ => "",
    }
}

/// Why a group is not viable: which of its devices have drivers of their own.
fn viable_advice(group: u32) -> String {
    let devices = fs::read_dir(format!("/sys/kernel/iommu_groups/{group}/devices"));
    let others: Vec<String> = devices
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|device| {
            let driver = fs::read_link(device.path().join("driver")).ok()?;
            let driver = driver.file_name()?.to_string_lossy().into_owned();
            (driver != "vfio-pci").then(|| format!("{} ({driver})", device.file_name().to_string_lossy()))
        })
        .collect();
    format!("all devices of a group must be bound to vfio-pci or to nobody; others have {}", others.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> PciAddress {
        "0000:00:02.0".parse().expect("an address")
    }

    #[test]
    fn an_error_names_ioctl_group_and_what_to_do() {
        let refused = VfioError::ContainerSetIOMMU(vmm_sys_util::errno::Error::new(libc::EPERM));
        let text = VfioFault::open(refused, 7, &address()).to_string();
        for part in ["VFIO_SET_IOMMU", "group 7", "0000:00:02.0", "allow_unsafe_interrupts"] {
            assert!(text.contains(part), "{text}");
        }
        let busy = VfioError::OpenGroup(io::Error::from_raw_os_error(libc::EBUSY), "7".to_owned());
        assert!(VfioFault::open(busy, 7, &address()).to_string().contains("another program"), "EBUSY");
        let text = VfioFault::open(VfioError::GroupViable, u32::MAX, &address()).to_string();
        assert!(text.contains("VFIO_GROUP_GET_STATUS") && text.contains("not viable"), "{text}");
    }

    #[test]
    fn a_refused_map_says_why_it_may_be() {
        let refused =
            |errno, writable| VfioFault::map(io::Error::from_raw_os_error(errno), 0x1000, 4096, writable).to_string();
        assert!(refused(libc::ENOMEM, false).contains("RLIMIT_MEMLOCK"));
        assert!(refused(libc::EFAULT, true).contains("read-only"));
        assert!(refused(libc::EFAULT, false).contains("cut short"));
        assert!(!refused(libc::EIO, false).ends_with("; "));
    }

    #[test]
    fn who_has_no_driver_is_driven_by_nobody() {
        let fault = VfioFault::StillBound { address: address(), wanted: "vfio-pci", driver: None, hint: "h" };
        assert_eq!(fault.to_string(), "0000:00:02.0 should be driven by vfio-pci, and is by nobody: h");
    }
}
