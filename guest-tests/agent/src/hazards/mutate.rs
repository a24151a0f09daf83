//! `mutate`: `sendfile` returns before the device has read the bytes. Who changes the file in between changes what goes
//! out; `read` + `write` took a copy, and sends what was there.
//!
//! The device must hold its transmitq for it: see `vnic_experiment::wire`, step 4.
//!
//! Limits: methods that wait until the receiver has everything cannot be caught in between; and a NIC that makes the
//! kernel copy (`-no-sg`) sends a mixture, since the copy is taken as TCP sends.

use std::fs::OpenOptions;
use std::net::{Shutdown, SocketAddr};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use vnic_experiment::stamp;
use vnic_experiment::wire::{Event, Flow, NicWish, hex};

use super::Story;
use crate::connection::{connect, read_receipt};
use crate::filesystems;
use crate::methods::{self, Job, Nobody};
use crate::nic::{self, Nic};
use crate::pages::page_runs;
use crate::stage::Stage;
use crate::transfer::Unsupported;

const BYTES: u64 = 65536;

pub(super) fn show(method: &str, to: SocketAddr, stage: &mut dyn Stage) -> Result<Story> {
    let expect_new = match method {
        "sendfile" | "splice" | "vmsplice" => true,
        "read-write" | "mmap-write" => false,
        _ => bail!(Unsupported(format!("{method} does not return before the device has sent the bytes"))),
    };
    let known = methods::by_name(method).context("a method of this name")?;
    let nic = Nic::open(nic::NAME)?.apply(NicWish::default())?;
    let made = filesystems::make("tmpfs", 0, BYTES)?;
    let mut new = vec![0; usize::try_from(BYTES)?];
    stamp::fill(!made.file_id, 0, &mut new);
    let new_sha256 = hex(&Sha256::digest(&new));
    let socket = connect(to, Some(BYTES))?;
    let flow = Flow { protocol: 6, local: socket.local_addr()?, remote: socket.peer_addr()? };
    stage.tell(&Event::TransferBegin {
        flow,
        nic,
        pages: page_runs(&made.file)?,
        sha256: if expect_new { new_sha256.clone() } else { made.sha256.clone() },
        stream_bytes: None,
        filesystem: "tmpfs".to_owned(),
    })?;
    stage.wait_for_go()?;

    let mut story = Story::default();
    let job = Job {
        transfer: 0,
        file: &made.file,
        socket: &socket,
        offset: 0,
        bytes: BYTES,
        chunk: usize::try_from(BYTES)?,
        first_chunk_apart: true,
        program: &[],
        follower: &Nobody,
    };
    let sent = (known.send)(&job)?;
    story.step(format!("the device holds its transmitq; {method} returns: the kernel has taken {sent} bytes"));
    OpenOptions::new().write(true).open(made.path())?.write_all_at(&new, 0)?;
    story.step("the program overwrites the file");
    stage.tell(&Event::Paused { taken: sent })?;
    stage.wait_for_go()?;
    story.step("the device lets the transmitq go");
    socket.shutdown(Shutdown::Write).context("shut down the write side")?;
    let receipt = read_receipt(&socket)?;
    let got = match &receipt.sha256 {
        sha256 if *sha256 == new_sha256 => "the new ones",
        sha256 if *sha256 == made.sha256 => "the old ones",
        _ => "a mixture of old and new",
    };
    let wanted = if expect_new { "the new ones" } else { "the old ones" };
    story.check(got == wanted, format!("the receiver got {} bytes: {got}", receipt.bytes));
    Ok(story)
}
