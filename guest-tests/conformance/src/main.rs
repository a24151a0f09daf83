//! The command behind `scripts/conformance.sh`: see [`conformance`].

#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a program for people")]

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use conformance::{Format, Outcome, Row, Target};

/// Plays what VIRTIO 1.3 asks of a network device and its virtqueues against a vhost-user back-end that gives back the frames it is
/// sent, or against a device of QEMU's own: each requirement in sessions of its own, with split and with packed rings.
///
/// Exit codes: 0; 1 a requirement is not met; 2 bad usage, or nobody listens there.
#[derive(Debug, Parser)]
#[command(name = "conformance")]
struct Options {
    /// The back-end's socket
    #[arg(value_name = "SOCKET", required_unless_present = "qemu")]
    socket: Option<PathBuf>,
    /// QEMU's own virtio-net-pci instead, in this QEMU, without a guest
    #[arg(long, value_name = "PROGRAM", conflicts_with = "socket")]
    qemu: Option<PathBuf>,
    /// Only requirements whose number begins so, like 2.7
    #[arg(long, value_name = "NUMBER", default_value = "")]
    only: String,
    /// As JSON, one object a line
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// As a table in Markdown
    #[arg(long)]
    markdown: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let progress = std::io::stderr().is_terminal();
    let tell = |row: &Row| {
        if progress || !(options.json || options.markdown) {
            eprintln!("{}", line(row));
        }
    };
    let place = options.socket.as_deref().or(options.qemu.as_deref()).unwrap_or(Path::new(""));
    let target = if options.qemu.is_some() { Target::qemu(place) } else { Target::new(place) };
    let rows = match target.map(|target| conformance::play_against(&target, &options.only, tell)) {
        Ok(rows) if rows.is_empty() => {
            eprintln!("no requirement's number begins with {}; they are those of VIRTIO 1.3, like 2.7.5", options.only);
            return ExitCode::from(2);
        }
        Ok(rows) => rows,
        Err(error) => {
            eprintln!("{}: {error:#}", place.display());
            return ExitCode::from(2);
        }
    };
    if options.json {
        for row in &rows {
            println!("{}", serde_json::to_string(row).unwrap_or_default());
        }
    } else if options.markdown {
        println!("| VIRTIO 1.3 | the device … | split | packed | |\n|---|---|---|---|---|");
        for same in rows.chunk_by(|one, next| one.number == next.number && one.text == next.text) {
            println!("{}", markdown(same));
        }
    }
    let count = |met: fn(&Outcome) -> bool| rows.iter().filter(|row| met(&row.outcome)).count();
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let skipped = count(|outcome| matches!(outcome, Outcome::Skipped(_)));
    eprintln!("{} met, {failed} not met, {skipped} not tried", count(|outcome| *outcome == Outcome::Met));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn name(format: Option<Format>) -> &'static str {
    match format {
        Some(Format::Split) => "split",
        Some(Format::Packed) => "packed",
        None => "",
    }
}

fn line(row: &Row) -> String {
    let (word, why) = match &row.outcome {
        Outcome::Met => ("met", String::new()),
        Outcome::Failed(why) => ("NOT MET", format!(": {why}")),
        Outcome::Skipped(why) => ("not tried", format!(": {why}")),
    };
    format!("{:<12} {:<6} {word:<9} {}{why}", row.number, name(row.format), row.text)
}

/// The rows of one requirement as a line of a table.
fn markdown(rows: &[Row]) -> String {
    let cell = |format| {
        let row = rows.iter().find(|row| row.format == Some(format));
        row.map_or("", |row| match row.outcome {
            Outcome::Met => "met",
            Outcome::Failed(_) => "**not met**",
            Outcome::Skipped(_) => "not tried",
        })
    };
    let whys = rows.iter().filter_map(|row| match &row.outcome {
        Outcome::Met => None,
        Outcome::Failed(why) | Outcome::Skipped(why) => Some(why.as_str()),
    });
    let mut whys: Vec<&str> = whys.collect();
    whys.dedup();
    let (number, text) = rows.first().map_or(("", ""), |row| (row.number, row.text));
    format!("| {number} | {text} | {} | {} | {} |", cell(Format::Split), cell(Format::Packed), whys.join("; "))
}
