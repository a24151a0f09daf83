//! Drives the NIC from this program, without the kernel: sends a file, receives one, or gives the NIC back.

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};
use clap::{Parser, ValueEnum};
use guest_agent::size::parse_size;
use guest_agent::stage::Stage;
use guest_agent::userspace::{self, Decoy, How};
use vnic_driver::{Completion, Options, RingFormat};
use vnic_experiment::wire::{Event, NicWish, Over, TransferSpec};

/// Takes the NIC from the kernel, sends a file made for the purpose as UDP datagrams straight out of the page cache, and gives
/// the NIC back.
#[derive(Debug, Parser)]
struct Arguments {
    /// Gives the NIC back to the kernel, and does nothing else: for when this program was killed.
    #[arg(long, exclusive = true)]
    undo: bool,
    /// Sends the file to an echo (--to 10.0.2.2:7), and receives what comes back into buffers of its own.
    #[arg(long)]
    receive: bool,
    /// How much; K, M and G are powers of 1024.
    #[arg(long, default_value = "16M", value_parser = parse_size)]
    bytes: u64,
    /// Where in the file to start.
    #[arg(long, default_value = "0", value_parser = parse_size)]
    offset: u64,
    /// The receiver, which answers with its count and digest (10.0.2.2:9000), or the echo (10.0.2.2:7).
    #[arg(long, default_value = "10.0.2.2:9000", default_value_if("receive", "true", "10.0.2.2:7"))]
    to: SocketAddr,
    /// The file system the file is made on.
    #[arg(long, default_value = "tmpfs")]
    filesystem: String,
    /// How the rings look.
    #[arg(long, value_enum, default_value = "split")]
    ring: Ring,
    /// Do without these features of the device.
    #[arg(long, value_enum, value_delimiter = ',')]
    without: Vec<Left>,
    /// Sleep until an interrupt in place of looking again and again.
    #[arg(long)]
    interrupts: bool,
    /// Entries of a ring, at most.
    #[arg(long, default_value = "256")]
    queue_size: u16,
    /// For tests: kills itself when it has sent so many bytes.
    #[arg(long, value_parser = parse_size)]
    die_after: Option<u64>,
    /// For tests: points a descriptor at a page that was never mapped, and waits in vain.
    #[arg(long, value_enum)]
    decoy: Option<Pointed>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Pointed {
    Behind,
    Physical,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Ring {
    Split,
    Packed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Left {
    IndirectDesc,
    EventIdx,
}

impl Arguments {
    fn how(&self) -> How {
        let options = Options {
            ring: match self.ring {
                Ring::Split => RingFormat::Split,
                Ring::Packed => RingFormat::Packed,
            },
            indirect: !self.without.contains(&Left::IndirectDesc),
            event_idx: !self.without.contains(&Left::EventIdx),
            completion: if self.interrupts { Completion::Interrupts } else { Completion::Polling },
            queue_size: self.queue_size,
        };
        How { options, die_after: self.die_after }
    }

    fn spec(&self) -> TransferSpec {
        TransferSpec {
            method: userspace::METHOD.to_owned(),
            bytes: self.bytes,
            offset: self.offset,
            chunk: 65536,
            filesystem: self.filesystem.clone(),
            to: self.to,
            nic: NicWish::default(),
            program: Vec::new(),
            cold: false,
            over: Over::Tcp,
            module: None,
            pause: false,
            accounts: true,
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.undo {
        println!("{} is the kernel's again", userspace::undo()?);
        return Ok(());
    }
    let (spec, how) = (arguments.spec(), arguments.how());
    match arguments.decoy {
        Some(pointed) => {
            let decoy = match pointed {
                Pointed::Behind => Decoy::Behind,
                Pointed::Physical => Decoy::Physical,
            };
            userspace::send_decoy(&spec, &how, decoy, &mut || println!("posted"))
        }
        None if arguments.receive => receive(&spec, &how),
        None => send(&spec, &how),
    }
}

fn send(spec: &TransferSpec, how: &How) -> Result<()> {
    let mut console = Console::default();
    let done = userspace::transfer(&mut console, spec, how)?;
    let seconds = done.took.as_secs_f64();
    println!(
        "sent     {} bytes in {seconds:.3} s, {:.1} MB/s",
        done.bytes_sent,
        done.bytes_sent as f64 / seconds / 1e6
    );
    println!("accounts {}", serde_json::to_string(&done.accounts)?);
    ensure!(done.receipt.bytes == spec.bytes, "the receiver got {} bytes", done.receipt.bytes);
    ensure!(done.receipt.sha256 == console.sha256, "the receiver got other bytes: SHA-256 {}", done.receipt.sha256);
    println!("receipt  SHA-256 {}: the receiver got the file's bytes", done.receipt.sha256);
    Ok(())
}

fn receive(spec: &TransferSpec, how: &How) -> Result<()> {
    let received = userspace::receive(spec, how)?;
    let seconds = received.took.as_secs_f64();
    println!(
        "received {} bytes in {} frames in {seconds:.3} s, {:.1} MB/s",
        received.bytes,
        received.frames,
        received.bytes as f64 / seconds / 1e6
    );
    println!("accounts {}", serde_json::to_string(&received.accounts)?);
    if !received.sha256_ok {
        bail!("other bytes came back than were sent");
    }
    println!("digest   the file's bytes came back");
    Ok(())
}

/// In place of a host: says what there is to say, and never waits.
#[derive(Debug, Default)]
struct Console {
    sha256: String,
}

impl Stage for Console {
    fn tell(&mut self, event: &Event) -> Result<()> {
        if let Event::TransferBegin { flow, pages, sha256, .. } = event {
            println!("flow     {} -> {}, UDP", flow.local, flow.remote);
            println!("pages    {} in {} runs", pages.iter().map(|run| run.count).sum::<u64>(), pages.len());
            sha256.clone_into(&mut self.sha256);
        }
        Ok(())
    }

    fn wait_for_go(&mut self) -> Result<()> {
        Ok(())
    }
}
