//! The agent in the guest: does what the host asks over the virtio-serial port.
//!
//! With arguments it is the other process of a hazard.

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() { guest_tests::guest::agent::run() } else { guest_tests::hazards::act(&arguments) }
}
