//! Who drives a PCI device: away from the kernel's driver, and back. Documentation/ABI/testing/sysfs-bus-pci.
//!
//! Operation: `driver_override` says which driver may have the device; `unbind` takes it from the one that has it;
//! `drivers_probe` has the kernel look again. All three are files of sysfs, written by root.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::VfioFault;

const DEVICES: &str = "/sys/bus/pci/devices";
const PROBE: &str = "/sys/bus/pci/drivers_probe";
/// The driver that hands a device to programs.
pub const VFIO_PCI: &str = "vfio-pci";
/// The kernel's driver of virtio devices on PCI.
pub const VIRTIO_PCI: &str = "virtio-pci";

/// VIRTIO 1.3, 4.1.2 PCI Device Discovery: vendor; transitional network card; modern network card.
const VENDOR: &str = "0x1af4";
const NETWORK_CARDS: [&str; 2] = ["0x1000", "0x1041"];

/// Domain, bus, device, function: `0000:00:02.0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciAddress(String);

impl FromStr for PciAddress {
    type Err = VfioFault;

    fn from_str(text: &str) -> Result<Self, VfioFault> {
        // It becomes part of a path.
        let shape: String = text.chars().map(|c| if c.is_ascii_hexdigit() { 'x' } else { c }).collect();
        if shape == "xxxx:xx:xx.x" {
            Ok(PciAddress(text.to_owned()))
        } else {
            Err(VfioFault::BadAddress(text.to_owned()))
        }
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl PciAddress {
    /// The device's folder in sysfs.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        Path::new(DEVICES).join(&self.0)
    }

    /// Its IOMMU group.
    ///
    /// # Errors
    /// It is in none.
    pub fn group(&self) -> Result<u32, VfioFault> {
        let link = fs::read_link(self.folder().join("iommu_group")).ok();
        let group = link.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()?.parse().ok());
        group.ok_or_else(|| VfioFault::NoIommu(self.clone()))
    }

    /// The driver that has it.
    #[must_use]
    pub fn driver(&self) -> Option<String> {
        let link = fs::read_link(self.folder().join("driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    }
}

/// The machine's first virtio network card, whoever drives it.
///
/// # Errors
/// There is none.
pub fn find_nic() -> Result<PciAddress, VfioFault> {
    let mut found: Vec<String> = fs::read_dir(DEVICES)
        .map_err(|source| VfioFault::Sysfs { action: "read".to_owned(), path: DEVICES.to_owned(), source })?
        .flatten()
        .filter(|device| {
            let is = |file: &str| fs::read_to_string(device.path().join(file)).unwrap_or_default().trim().to_owned();
            is("vendor") == VENDOR && NETWORK_CARDS.contains(&is("device").as_str())
        })
        .map(|device| device.file_name().to_string_lossy().into_owned())
        .collect();
    found.sort_unstable();
    found.first().ok_or(VfioFault::NoNic)?.parse()
}

/// Takes the device from its kernel driver and gives it to `vfio-pci`. Nothing happens if it is there already.
///
/// # Errors
/// No IOMMU, no vfio-pci, or the kernel's refusal.
pub fn take(address: &PciAddress) -> Result<(), VfioFault> {
    address.group()?;
    if !Path::new("/sys/bus/pci/drivers").join(VFIO_PCI).exists() {
        return Err(VfioFault::NoDriver);
    }
    hand_over(address, VFIO_PCI, VFIO_PCI, "did the kernel's log say why?")
}

/// Gives the device back to the kernel's own driver. Nothing happens if it is there already.
///
/// # Errors
/// The kernel's refusal; a program that still has the device open makes it wait.
pub fn give_back(address: &PciAddress) -> Result<(), VfioFault> {
    // An empty override: any driver that matches.
    hand_over(address, "\n", VIRTIO_PCI, "is the module virtio_pci loaded?")
}

fn hand_over(address: &PciAddress, wish: &str, driver: &'static str, hint: &'static str) -> Result<(), VfioFault> {
    let folder = address.folder();
    write(&folder.join("driver_override"), wish)?;
    let has = address.driver();
    if has.as_deref() != Some(driver) {
        if has.is_some() {
            write(&folder.join("driver/unbind"), &address.0)?;
        }
        write(Path::new(PROBE), &address.0)?;
    }
    match address.driver() {
        Some(has) if has == driver => Ok(()),
        has => Err(VfioFault::StillBound { address: address.clone(), wanted: driver, driver: has, hint }),
    }
}

fn write(path: &Path, text: &str) -> Result<(), VfioFault> {
    fs::write(path, text).map_err(|source| VfioFault::Sysfs {
        action: format!("write {:?} to", text.trim_end()),
        path: path.display().to_string(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_domain_bus_device_and_function() {
        for good in ["0000:00:02.0", "0001:fe:1f.7"] {
            assert_eq!(good.parse::<PciAddress>().expect("an address").to_string(), good);
        }
        for bad in ["", "00:02.0", "0000:00:02", "0000:00:02.0/..", "../../../..", "0000:00:0g.0", "0000-00-02.0"] {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
    }
}
