//! `receiver unix|mptcp`: takes one stream in the guest itself, and answers at its end as the receiver at the other end of the NIC does:
//! `bytes N sha256 HEX`. Says where it listens first.

#![expect(clippy::print_stdout, reason = "where it listens")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use guest_agent::connection::mptcp_socket;
use nix::sys::socket::{Backlog, SockaddrStorage, bind, listen};
use sha2::{Digest, Sha256};
use vnic_experiment::wire::hex;

/// Takes one stream, and answers with its count and digest.
#[derive(Debug, Parser)]
struct Options {
    /// What it is
    over: Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Over {
    Unix,
    Mptcp,
}

fn main() -> Result<()> {
    match Options::parse().over {
        Over::Unix => {
            let at = format!("/run/receiver-{}", std::process::id());
            let listener = UnixListener::bind(&at).with_context(|| at.clone())?;
            println!("{at}");
            take(listener.accept()?.0)
        }
        Over::Mptcp => {
            let socket = mptcp_socket(false)?;
            bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))?;
            listen(&socket, Backlog::new(1)?)?;
            let listener = TcpListener::from(socket);
            println!("{}", listener.local_addr()?);
            take(listener.accept()?.0)
        }
    }
}

fn take(mut stream: impl Read + Write) -> Result<()> {
    let (mut digest, mut bytes) = (Sha256::new(), 0);
    let mut piece = vec![0; 1 << 16];
    loop {
        match stream.read(&mut piece)? {
            0 => break,
            read => {
                digest.update(&piece[..read]);
                bytes += read;
            }
        }
    }
    Ok(writeln!(stream, "bytes {bytes} sha256 {}", hex(&digest.finalize()))?)
}
