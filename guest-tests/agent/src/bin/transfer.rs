//! Sends a file by one method, by hand, and says what it did.

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use clap::builder::PossibleValuesParser;
use clap::{Parser, ValueEnum};
use guest_agent::methods::METHODS;
use guest_agent::size::parse_size;
use guest_agent::transfer::Prepared;
use vnic_experiment::wire::{NicWish, Over, PageRun, TransferSpec};

/// Sends a file made for the purpose over TCP by one method, and says where the file's pages are.
#[derive(Debug, Parser)]
struct Arguments {
    /// How to send.
    #[arg(value_parser = PossibleValuesParser::new(METHODS.iter().map(|method| method.name)))]
    method: String,
    /// How much; K, M and G are powers of 1024.
    #[arg(long, default_value = "16M", value_parser = parse_size)]
    bytes: u64,
    /// Where in the file to start.
    #[arg(long, default_value = "0", value_parser = parse_size)]
    offset: u64,
    /// Bytes per system call, for the methods that work in pieces.
    #[arg(long, default_value = "64K", value_parser = parse_size)]
    chunk: u64,
    /// The receiver, which answers with its count and digest.
    #[arg(long, default_value = "10.0.2.2:9000")]
    to: SocketAddr,
    /// The file system the file is made on.
    #[arg(long, default_value = "tmpfs")]
    filesystem: String,
    /// Have none of the file in memory when it starts.
    #[arg(long)]
    cold: bool,
    /// What to switch off in the NIC first.
    #[arg(long, value_enum, value_delimiter = ',')]
    nic_off: Vec<Switch>,
    /// What the method `program` runs: the file is its standard input, the connection its standard output.
    #[arg(last = true)]
    program: Vec<String>,
}

/// A switch of the NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    Sg,
    Csum,
    Tso,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let off = |switch| arguments.nic_off.contains(&switch).then_some(false);
    let spec = TransferSpec {
        method: arguments.method.clone(),
        bytes: arguments.bytes,
        offset: arguments.offset,
        chunk: arguments.chunk,
        filesystem: arguments.filesystem,
        to: arguments.to,
        nic: NicWish { sg: off(Switch::Sg), csum: off(Switch::Csum), tso: off(Switch::Tso), mtu: None },
        program: arguments.program,
        cold: arguments.cold,
        over: Over::Tcp,
        module: None,
        pause: false,
        accounts: true,
    };
    let prepared = Prepared::new(spec)?;
    println!("method   {}", arguments.method);
    println!("nic      {}", prepared.nic);
    println!("flow     {} -> {}", prepared.flow.local, prepared.flow.remote);
    println!("pages    {}", describe(&prepared.pages));
    let (before, sha256) = (prepared.pages.clone(), prepared.sha256().to_owned());
    let stream_bytes = prepared.stream_bytes();
    let done = prepared.send(&mut |_| Ok(()))?;
    let seconds = done.took.as_secs_f64();
    println!(
        "sent     {} bytes in {seconds:.3} s, {:.1} MB/s",
        done.bytes_sent,
        done.bytes_sent as f64 / seconds / 1e6
    );
    println!("accounts {}", serde_json::to_string(&done.accounts)?);
    if done.pages != before {
        println!("pages    moved meanwhile: {}", describe(&done.pages));
    }
    if sha256.is_empty() {
        println!("receipt  {} bytes; what the receiver should get could not be foretold", done.receipt.bytes);
        return Ok(());
    }
    ensure!(
        done.receipt.bytes == stream_bytes.unwrap_or(arguments.bytes),
        "the receiver got {} bytes",
        done.receipt.bytes
    );
    ensure!(done.receipt.sha256 == sha256, "the receiver got other bytes: SHA-256 {}", done.receipt.sha256);
    println!("receipt  SHA-256 {sha256}: the receiver got what it should");
    Ok(())
}

/// The first few runs.
fn describe(runs: &[PageRun]) -> String {
    const SHOWN: usize = 4;
    let mut text: Vec<String> =
        runs.iter().take(SHOWN).map(|run| format!("{:#x}+{}", run.gpa, run.count * 4096)).collect();
    if runs.len() > SHOWN {
        text.push(format!("… ({} runs)", runs.len()));
    }
    text.join(" ")
}
