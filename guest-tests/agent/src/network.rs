//! The guest's network as QEMU's own user network has it.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::nic::{self, Nic};

/// The guest's address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0x15);

/// Brings the NIC up with the guest's addresses; also one that was away meanwhile.
///
/// # Errors
/// There is none, or the kernel's refusal.
pub fn up() -> Result<()> {
    Nic::open("lo")?.up()?;
    let nic = Nic::open(nic::NAME)?;
    nic.up_with(ADDRESS, NETMASK)?;
    nic.default_route(GATEWAY)?;
    nic.add_ipv6(ADDRESS6, 64)
}
