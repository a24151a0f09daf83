//! The agent in the guest: does what the host asks over the virtio-serial port.
//!
//! With arguments it is the other process of a hazard.

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() { guest_agent::requests::run() } else { guest_agent::hazards::act(&arguments) }
}
