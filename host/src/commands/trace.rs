//! `vnic trace`: every chain as it passes, or those that somebody wants to see.

use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use vnic::observe::protocol::TraceEvent;

use super::ControlArgs;
use crate::control::{Client, Trace, Wanted};
use crate::export::{self, Export, perfetto::Perfetto};
use crate::filter::{self, Filter};
use crate::parquet::{self, Limits};
use crate::trouble::{Trouble, Troubles};
use crate::views::trace::{Style, Time};
use crate::{Finding, views};

/// How often is looked for what no chain tells.
const LOOK: Duration = Duration::from_millis(250);

/// Options of `vnic trace`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// Whose memory each buffer is that the device has read: a file's page, a program's, a socket's buffers
    #[arg(long)]
    labels: bool,
    /// Only this queue's: receiveq0, transmitq0, …
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// Only frames with these words in what is said of them: 10.0.2.2:9000
    #[arg(long, value_name = "WORDS")]
    flow: Option<String>,
    /// Only chains with a buffer of such a file, or of other memory that is called so; with labels
    #[arg(long, value_name = "PATH")]
    file: Option<String>,
    /// Only what went wrong: requests that failed, frames that were lost, rings that stopped
    #[arg(long, value_name = "WHAT")]
    only: Option<Only>,
    /// End after so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Seconds since the device is served, since the first line, or since the line before
    #[arg(long, value_name = "HOW", default_value = "absolute")]
    time: Time,
    /// With the virtio-net header in words and the frame's first bytes
    #[arg(long)]
    hex: bool,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
    /// Print nothing, write a timeline to this file, for ui.perfetto.dev: a row per ring, a slice per chain
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "hex", "time", "only"])]
    perfetto: Option<PathBuf>,
    /// Print nothing, write Parquet files into this folder, for DuckDB and Spark: a row per chain. A file has its name once it is whole
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["json", "hex", "time", "only"])]
    parquet: Option<PathBuf>,
    /// When one of these files is finished and another begun, whichever comes first: after so long, at such a size, at so many rows
    #[arg(long, value_name = "60s,256M,…rows", requires = "parquet", default_value = "60s,256M")]
    rotate: Limits,
}

/// What is wanted of all that passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    Errors,
}

/// What there is to be told.
enum Told {
    Event(TraceEvent),
    Trouble(Trouble),
    /// There is no more for the moment.
    Pause,
    /// It is over.
    End(Result<()>),
}

/// Prints events until there are enough, the device ends or nobody reads any more.
pub(super) fn run(args: &Args) -> Result<Finding> {
    let filter =
        Filter { queue: args.queue.clone(), flow: args.flow.clone(), file: args.file.clone(), ..Filter::default() };
    if args.perfetto.is_some() || args.parquet.is_some() {
        return export(args, &filter);
    }
    let errors = args.only == Some(Only::Errors);
    let mut view = views::trace::Trace::new(Style { json: args.json, time: args.time, hex: args.hex });
    let mut left = args.count.unwrap_or(u64::MAX);
    let shown = |told: &Told| match told {
        Told::Event(TraceEvent::Chain(chain)) => filter.admits(chain) && (!errors || filter::is_error(chain)),
        Told::Event(TraceEvent::Lost { queue, .. }) => filter.is_of(queue),
        Told::Trouble(trouble) => filter.is_of(&trouble.queue),
        Told::Pause | Told::End(_) => false,
    };
    let mut take = |told: Told| -> Result<bool> {
        let counts = shown(&told);
        match told {
            Told::Event(event) if counts => view.event(&event)?,
            Told::Trouble(trouble) if counts => view.trouble(&trouble)?,
            Told::Pause => view.flush()?,
            Told::End(ended) => {
                view.flush()?;
                return ended.map(|()| false);
            }
            Told::Event(_) | Told::Trouble(_) => {}
        }
        left -= u64::from(counts);
        if left == 0 {
            view.flush()?;
        }
        Ok(left > 0)
    };
    let mut trace = args.control.open()?;
    if errors {
        let (tell, told) = channel();
        let troubles = trace.status()?;
        let client = args.control.open()?;
        let (of_trace, of_status) = (tell.clone(), tell);
        let trace = trace.trace(args.wanted())?;
        // Both end with this process.
        thread::spawn(move || drop(follow(trace, |told| Ok(of_trace.send(told).is_ok()))));
        thread::spawn(move || watch(client, Troubles::since(&troubles), &of_status));
        while take(told.recv()?)? {}
    } else {
        follow(trace.trace(args.wanted())?, take)?;
    }
    Ok(Finding::Fine)
}

/// Writes what is wanted for other tools.
fn export(args: &Args, filter: &Filter) -> Result<Finding> {
    let mut client = args.control.open()?;
    let status = client.status()?;
    let process = format!("vnic {}", status.socket);
    let mut exports: Vec<Box<dyn Export>> = Vec::new();
    if let Some(path) = &args.perfetto {
        exports.push(Box::new(Perfetto::create(path, (&process, status.pid))?));
    }
    if let Some(folder) = &args.parquet {
        exports.push(Box::new(parquet::Chains::create(folder, args.rotate, &status)?));
    }
    let labels = args.wanted().labels;
    for written in export::run(client, filter, labels, args.count, exports)? {
        views::sentence(&written)?;
    }
    Ok(Finding::Fine)
}

impl Args {
    fn wanted(&self) -> Wanted {
        Wanted { labels: self.labels || self.file.is_some(), headers: self.hex }
    }
}

/// Hands on what the trace has, as long as it is taken.
fn follow(mut trace: Trace, mut take: impl FnMut(Told) -> Result<bool>) -> Result<()> {
    loop {
        let told = match trace.next() {
            Ok(Some(event)) => Told::Event(event),
            Ok(None) => Told::End(Ok(())),
            Err(error) => Told::End(Err(error)),
        };
        let over = matches!(told, Told::End(_));
        if !take(told)? || over {
            return Ok(());
        }
        if !trace.has_more() && !take(Told::Pause)? {
            return Ok(());
        }
    }
}

/// Hands on what goes wrong, until the device or whoever listens is gone: the trace tells of the device's end.
fn watch(mut client: Client, mut troubles: Troubles, tell: &Sender<Told>) {
    while let Ok(status) = client.status() {
        let news = troubles.news(&status);
        let any = !news.is_empty();
        let told = news.into_iter().map(Told::Trouble).chain(any.then_some(Told::Pause));
        for told in told {
            if tell.send(told).is_err() {
                return;
            }
        }
        thread::sleep(LOOK);
    }
}
