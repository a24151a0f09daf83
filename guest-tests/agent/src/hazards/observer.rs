//! `observer`: a packet capture in the guest (tcpdump) turns `MSG_ZEROCOPY` into a copy, and leaves `sendfile` alone.
//!
//! The capture here is a packet socket for all protocols on the NIC, as tcpdump opens one (without its memory-mapped
//! ring): what the kernel does about it, it does before the packet reaches the socket.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use vnic_experiment::wire::{Accounts, NicWish, Over, TransferSpec};

use super::Story;
use crate::conversation::transfer;
use crate::modules::load_group;
use crate::nic;
use crate::stage::Stage;

pub(super) fn show(method: &str, to: SocketAddr, stage: &mut dyn Stage) -> Result<Story> {
    let spec = TransferSpec {
        method: method.to_owned(),
        bytes: BYTES,
        offset: 0,
        chunk: 65536,
        filesystem: "tmpfs".to_owned(),
        to,
        nic: NicWish::default(),
        program: Vec::new(),
        cold: false,
        over: Over::Tcp,
        module: None,
        pause: false,
        accounts: true,
    };
    let mut story = Story::default();
    let alone = transfer(stage, spec.clone())?.accounts;
    story.step(format!("{method} alone: {}", words(&alone)));
    let capture = capture().context("open a packet socket as tcpdump does")?;
    let observed = transfer(stage, spec)?.accounts;
    drop(capture);
    let line = format!("{method} with a packet capture in the guest: {}", words(&observed));
    let sum = |accounts: &Accounts| accounts.copied_bytes.values().copied().sum::<Option<u64>>();
    match (alone.claims.get(COPIED), observed.claims.get(COPIED)) {
        (Some(0), Some(copied)) => {
            let all_copied = *copied > 0 && observed.claims.get(ZEROCOPY) == Some(&0);
            story.check(all_copied, line);
        }
        (Some(_), Some(_)) => story.check(false, format!("{line}; but it was copied without one already")),
        _ => {
            let more = sum(&alone).zip(sum(&observed)).map(|(alone, observed)| alone.abs_diff(observed));
            story.check(more.is_some_and(|bytes| bytes <= STRAY), line);
        }
    }
    Ok(story)
}

/// Bytes that may be copied for other packets than the transfer's: the kernel speaks to the network by itself now and then.
const STRAY: u64 = BYTES / 100;
const BYTES: u64 = 1 << 20;

const ZEROCOPY: &str = "sends reported zero-copy";
const COPIED: &str = "sends reported copied";

fn words(accounts: &Accounts) -> String {
    let mut words: Vec<String> = accounts.claims.iter().map(|(what, count)| format!("{count} {what}")).collect();
    for (function, bytes) in accounts.copied_bytes.iter().filter(|(_, bytes)| **bytes != Some(0)) {
        words.push(match bytes {
            Some(bytes) => format!("{bytes} bytes through {function}"),
            None => {
                let why = accounts.reasons.get(&format!("copied_bytes.{function}"));
                format!("{function} not counted ({})", why.map_or("it is not said why", String::as_str))
            }
        });
    }
    if words.is_empty() { "the kernel's accounts show no copy".to_owned() } else { words.join(", ") }
}

/// A socket that gets a copy of every packet of the NIC.
fn capture() -> Result<OwnedFd> {
    load_group("capture")?;
    let capture = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    let path = format!("/sys/class/net/{}/ifindex", nic::NAME);
    let index: i32 = fs::read_to_string(&path).with_context(|| path.clone())?.trim().parse().context(path)?;
    // SAFETY: sockaddr_ll is plain data for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `address`, which lives here.
    if unsafe { libc::bind(capture.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        return Err(std::io::Error::last_os_error()).context("bind");
    }
    Ok(capture)
}
