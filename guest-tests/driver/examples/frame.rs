//! Sends a frame and receives one, with no kernel between this program and the network card.
//!
//! It asks by ARP who has 10.0.2.2, and prints the answer. To be run in a guest behind an IOMMU, whose PID 1 has loaded `vfio-pci`:
//!
//! ```text
//! scripts/run-qemu.sh --iommu --command frame
//! ```

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use vnic_driver::vfio::{Device, bind};
use vnic_driver::{Nic, Options};

/// Who asks, and who is asked.
const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

fn main() -> Result<()> {
    // The card goes from the kernel's driver to vfio-pci: eth0 is gone.
    let address = bind::find_nic()?;
    bind::take(&address)?;
    println!("{address} is in IOMMU group {}", address.group()?);

    // What comes after must be undone whatever happens.
    let asked = ask(&address);

    // And back: the kernel has its eth0 again.
    bind::give_back(&address)?;
    asked
}

fn ask(address: &bind::PciAddress) -> Result<()> {
    // Container, group, device; the device may reach for memory, of which it sees none yet.
    let device = Device::open(address)?;

    // The eight steps: reset, acknowledged, driven, features, queues in memory mapped for the device, live.
    let mut nic = Nic::start(&device, &Options::default())?;
    println!("MAC address {}, features {}", colons(nic.mac()), nic.features());

    // A frame: Ethernet and ARP, 42 bytes. `send` copies it behind a virtio-net header in the queue's memory and makes a
    // chain of one descriptor; `flush` publishes the chain and writes the queue's number to the device's register.
    let station = nic.station(OURS);
    let request = station.arp_request(PEER);
    nic.send(&request, None)?;
    nic.flush();
    println!("sent     {}", hex(&request));

    // The answer: the device writes it into one of the buffers that it has had since the start, and the buffer's chain
    // into the used ring. We look there until it does: no interrupt, no system call.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if let Some(frame) = nic.receive()? {
            println!("received {}", hex(frame));
            if let Some((mac, who)) = station.arp_reply(frame) {
                println!("{who} is at {}", colons(mac));
                return Ok(());
            }
        }
    }
    bail!("nobody answered")
}

fn colons(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
