//! The agent in the guest: does what the host asks over the virtio-serial port.

fn main() -> anyhow::Result<()> {
    guest_tests::guest::agent::run()
}
