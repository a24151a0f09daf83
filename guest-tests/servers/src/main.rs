//! The command behind `scripts/servers.sh`: real servers in an unmodified guest, and where the bytes they send come from.
//!
//! | module | one sentence |
//! |---|---|
//! | [`row`] | which server, with which configuration, fetched by which client |
//! | [`guest`] | boots, and does what it is told |
//! | [`client`] | the clients on the host, and whether they got the right bytes |
//! | [`account`] | where the bytes came from, as the card tells |
//! | [`result`] | what came of a row, for people and as JSON |
//! | [`record`] | the rows that were measured, on disk after each |

#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a program for people")]

mod account;
mod client;
mod guest;
mod record;
mod result;
mod row;

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use anyhow::{Context, anyhow};
use clap::Parser;
use guest_launcher::children::Signals;
use guest_launcher::{Failure, repository};
use vnic::provenance::Report;

use crate::client::Fetch;
use crate::guest::{Card, Guest, Outside};
use crate::record::Record;
use crate::result::{Measured, Outcome};
use crate::row::{ROWS, Row, server};

/// Starts real servers in a Debian guest that knows nothing of us, fetches a file of 64 MiB from each with its client, and says
/// where the bytes that they sent came from. Leaves target/servers/servers.json, after each row.
///
/// Exit codes: 0; 1 a row could not be measured (its line says why); 2 bad usage, or no guest; 130 a signal.
#[derive(Debug, Parser)]
#[command(name = "servers.sh")]
struct Options {
    /// These rows (nginx-off), or all rows of a server (nginx); all there are by default
    #[arg(value_name = "NAME", value_parser = known)]
    names: Vec<String>,
    /// The card is QEMU's own, on this network, and `vnic attach --pid` looks at it from outside
    #[arg(long, value_name = "NETWORK", num_args = 0..=1, require_equals = true, default_missing_value = "user")]
    outside: Option<Outside>,
    /// Goes on where a run was cut short: rows that servers.json has are not measured again
    #[arg(long)]
    resume: bool,
    /// As JSON, one object a row
    #[arg(long)]
    json: bool,
}

fn known(name: &str) -> Result<String, String> {
    if ROWS.iter().any(|row| is_meant(row, name)) {
        return Ok(name.to_owned());
    }
    let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
    Err(format!("there is no such row; there are {}", names.join(", ")))
}

/// A server's name means all its rows.
fn is_meant(row: &Row, name: &str) -> bool {
    row.name == name || server(row.name) == name
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Failure::Interrupted) => ExitCode::from(130),
        Err(failure) => {
            eprintln!("servers.sh: {failure}");
            ExitCode::from(2)
        }
    }
}

/// Were all rows measured?
fn run(options: &Options) -> Result<bool, Failure> {
    let asked = |row: &&Row| options.names.is_empty() || options.names.iter().any(|name| is_meant(row, name));
    let path = repository().join("target/servers/servers.json");
    let mut record = if options.resume { Record::resumed(path)? } else { Record::fresh(path) };
    let rows: Vec<&Row> = ROWS.iter().filter(asked).filter(|row| !record.has(row.name)).collect();
    if rows.is_empty() {
        return finish(options, &record);
    }
    let signals = Signals::watch()?;
    let mut work = || measure_all(options, &signals, &rows, &mut record);
    match options.outside {
        // Whatever is started there stays in it.
        Some(Outside::Tap) => guest::namespace()?.enter(work)?,
        _ => work()?,
    }
    finish(options, &record)
}

/// Boots the guest, and measures these rows in it.
fn measure_all(options: &Options, signals: &Signals, rows: &[&Row], record: &mut Record) -> Result<(), Failure> {
    let folder = repository().join("target/guest/servers");
    let versions = result::versions(&folder)?;
    let mut ports: Vec<u16> = rows.iter().map(|row| row.port).collect();
    ports.sort_unstable();
    ports.dedup();
    eprintln!("Booting the guest: half a minute under TCG …");
    let mut guest = Guest::boot(signals, &ports, options.outside.map_or(Card::Ours, Card::Qemus))?;
    for (at, row) in rows.iter().enumerate() {
        eprint!("[{}/{}] {}: {} … ", at + 1, rows.len(), row.name, row.setting);
        let measured = match measure(&mut guest, signals, row, &folder.join("big.bin")) {
            Ok(report) => Measured::Sent(Box::new(report)),
            Err(Failure::Interrupted) => return Err(Failure::Interrupted),
            Err(failure) => Measured::Not(failure.to_string()),
        };
        let outcome = Outcome::new(row, &versions, measured);
        eprintln!("{}", if outcome.is_measured() { "done" } else { "could not be measured" });
        record.put(outcome)?;
    }
    Ok(())
}

/// Shows all rows that there are. Were all measured?
fn finish(options: &Options, record: &Record) -> Result<bool, Failure> {
    if options.json {
        for outcome in record.outcomes() {
            println!("{}", serde_json::to_string(outcome).context("JSON")?);
        }
    } else {
        print!("{}", result::table(record.outcomes()));
    }
    eprintln!("{}", record.path().display());
    Ok(record.outcomes().iter().all(Outcome::is_measured))
}

/// Starts a row's server, fetches the file, and counts.
fn measure(guest: &mut Guest<'_>, signals: &Signals, row: &Row, original: &Path) -> Result<Report, Failure> {
    // Every row begins alike: nothing else runs, and the file is in the page cache, as one that is asked for often.
    guest.run("kill -KILL -1; cat /var/www/html/big.bin /var/lib/tomcat10/webapps/ROOT/big.bin >/dev/null")?;
    guest.run(&row.start.replace("DATA", &guest.data.to_string()))?;
    let listens = format!("timeout 120 sh -c 'until [ -n \"$(ss -Hltn sport = :{})\" ]; do sleep 0.2; done'", row.port);
    guest.run(&listens)?;
    let bytes = original.metadata().with_context(|| original.display().to_string())?.len();
    let fetch = Fetch::new(row.client, guest.found_at(row.port)?, bytes, guest.folder());
    let control = guest.control();
    let done = AtomicBool::new(false);
    let (ready, traced) = channel();
    std::thread::scope(|scope| {
        let following = scope.spawn(|| {
            account::follow(&control, &done, move || {
                // Whoever waits for it is there.
                let _ = ready.send(());
            })
        });
        // Without an account, its thread says why.
        let fetched = if traced.recv().is_ok() { fetch.run(signals, original) } else { Ok(()) };
        done.store(true, Ordering::Release);
        let report = following.join().map_err(|_| anyhow!("the account's thread panicked"))??;
        fetched?;
        Ok(report)
    })
}
