//! A disk that is full: under a capture, and under a disk's image. In a mount namespace, so that nobody else sees it.

use std::fs;
use std::path::Path;
use std::thread;

use conformance::{Format, Packet, Target};
use guest_fixture::{Deadline, Device, Folder, until};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::Hostile;

const SAYS: Deadline = Deadline::secs("the device to say that its capture's disk is full", 30);
const ROOM: &str = "size=256k";

impl Hostile {
    /// The capture ends and is said to; frames go on.
    pub(super) fn disk_full(&mut self) {
        let folder = Folder::new();
        let small = folder.path().join("small");
        fs::create_dir(&small).expect("a folder");
        let capture = small.join("capture.pcapng").display().to_string();
        let start = || {
            small_disk(&small);
            Device::start(folder.path(), &["--link", "loopback", "--capture", &capture])
        };
        let device =
            thread::scope(|scope| scope.spawn(start).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let mut device = device;
        let target = Target::new(&folder.path().join("vnic.sock")).expect("the device is there");
        let mut driver = target.start(Format::Split, &[]).expect("a session");
        until(SAYS, || {
            for number in 0..64 {
                driver.echo(&Packet::plain(1514, number)).expect("frames go on");
            }
            device.child().output().contains("the capture ends here").then_some(())
        });
        self.some(&mut driver, 64);
        drop(driver);
        assert!(device.stop().success(), "a capture's full disk is not the device's end");
    }
}

/// This thread, and what it starts, sees a disk with little room here.
fn small_disk(folder: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("what is mounted here stays here");
    mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some(ROOM)).expect("a small tmpfs");
}
