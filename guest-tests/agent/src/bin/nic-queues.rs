//! The NIC's queues: shows them, changes them, fills them.

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::net::SocketAddr;

use anyhow::Result;
use clap::{Parser, Subcommand};
use guest_agent::flows;
use guest_agent::nic::{NAME, Nic};
use guest_agent::size::parse_size;

/// Shows the NIC's queue pairs and ring sizes, after changing them if asked.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Use this many queue pairs (ethtool -L).
    Pairs {
        /// How many.
        pairs: u32,
    },
    /// Make all rings of these sizes (ethtool -G).
    Rings {
        /// The receive rings.
        receive: u32,
        /// The transmit rings.
        transmit: u32,
    },
    /// Send on many connections at once to an echo, and check what comes back.
    Echo {
        /// How many; each on a CPU of its own, as far as there are some.
        #[arg(long, default_value = "8")]
        flows: usize,
        /// How much on each.
        #[arg(long, default_value = "256K", value_parser = parse_size)]
        bytes: u64,
        /// The echo.
        #[arg(long, default_value = "10.0.2.2:7")]
        to: SocketAddr,
    },
    /// Send many datagrams at once to an echo, and check what comes back.
    Datagrams {
        /// Bytes of each.
        #[arg(long, default_value = "1400")]
        size: u16,
        /// Bytes of all.
        #[arg(long, default_value = "50K", value_parser = parse_size)]
        bytes: u64,
        /// The echo.
        #[arg(long, default_value = "10.0.2.2:7")]
        to: SocketAddr,
    },
}

fn main() -> Result<()> {
    let nic = Nic::open(NAME)?;
    match Arguments::parse().what {
        None => {}
        Some(What::Pairs { pairs }) => nic.set_pairs(pairs)?,
        Some(What::Rings { receive, transmit }) => nic.set_rings(receive, transmit)?,
        Some(What::Datagrams { size, bytes, to }) => flows::datagrams(to, size, usize::try_from(bytes)?)?,
        Some(What::Echo { flows, bytes, to }) => flows::echo(to, flows, usize::try_from(bytes)?)?,
    }
    let (pairs, [receive, transmit]) = (nic.pairs()?, nic.rings()?);
    println!(
        "{NAME}: {} of {} queue pairs, rings of {} (at most {}) to receive, {} (at most {}) to transmit",
        pairs.now, pairs.most, receive.now, receive.most, transmit.now, transmit.most
    );
    Ok(())
}
