//! What VIRTIO asks of the device, played by a driver of ours against the real binary: no guest.

use conformance::Outcome;
use guest_fixture::{Device, Folder};

#[test]
fn the_device_does_what_virtio_asks_of_it() {
    let folder = Folder::new();
    let device = Device::start(folder.path(), &["--link", "loopback"]);
    let rows = conformance::play(&folder.path().join("vnic.sock"), "", |_| ()).expect("the device is there");
    let failed: Vec<_> = rows.iter().filter(|row| matches!(row.outcome, Outcome::Failed(_))).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let met = rows.iter().filter(|row| row.outcome == Outcome::Met).count();
    assert!(met >= 60, "only {met} were tried");
    assert!(device.stop().success());
}
