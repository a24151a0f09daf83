//! What runs inside the guest, what makes its image, and what the tests that boot it stand on.
//!
//! | module | one sentence |
//! |---|---|
//! | [`methods`] | the ways to send a file over TCP, one file each, readable as the textbook's example |
//! | [`guest`] | inside the guest: the NIC, the test file and its pages, the kernel's books, one whole transfer |
//! | [`hazards`] | what can go wrong with a file that is sent without copying it, one file each |
//! | [`vfio`] | inside the guest: a PCI device in the hands of a program, fenced in by the IOMMU |
//! | [`driver`] | a virtio network card driven by a program, meant to be read |
//! | [`image`] | on the host: the initramfs, its modules and its programs |
//! | [`fixture`] | on the host: virtual machines, receivers and deadlines for the tests |
//! | [`size`] | sizes as people write them |

pub mod driver;
pub mod fixture;
pub mod guest;
pub mod hazards;
pub mod image;
pub mod methods;
pub mod size;
pub mod vfio;
