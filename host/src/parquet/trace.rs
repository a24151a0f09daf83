//! `vnic trace --parquet`: the chains of a trace into files.
//!
//! Place: a thread of its own writes, so that a slow disk costs the trace chains, which it counts, only once [`WAITING`] of them
//! wait; and so that a file is finished in its time even if no more chains come.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow};
use vnic::observe::protocol::{BufferSnapshot, Status, TraceEvent};

use super::chains::{CHAINS, Chain, Origin};
use super::folder::{Finished, Folder, Limits};
use crate::control::Wanted;
use crate::export::Export;
use crate::views::figures;

/// Chains that may wait for the disk.
const WAITING: usize = 4096;

/// Chains on their way into files.
#[derive(Debug)]
pub(crate) struct Chains {
    tell: SyncSender<TraceEvent>,
    writer: JoinHandle<Result<String>>,
}

impl Chains {
    /// Into this folder, which is made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn create(folder: &Path, limits: Limits, of: &Status) -> Result<Self> {
        let machine = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let origin = Origin { machine, socket: of.socket.clone(), pid: of.pid };
        // A machine's name may be anything.
        let name: String = origin.machine.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let open = Folder::open(folder, &name, &CHAINS, limits)?;
        let mut files = Files { folder: open, origin: Arc::new(origin), lost: HashMap::new(), finished: Vec::new() };
        let (tell, told) = sync_channel(WAITING);
        let folder = folder.display().to_string();
        let writer = thread::spawn(move || files.write(&told).map(|()| files.summary(&folder)));
        Ok(Chains { tell, writer })
    }
}

impl Export for Chains {
    fn wanted(&self) -> Wanted {
        Wanted { labels: false, headers: true }
    }

    fn event(&mut self, event: &TraceEvent) -> Result<()> {
        // Only one that failed takes no more; why, it says at the end.
        self.tell.send(event.clone()).map_err(|_| anyhow!("the Parquet files cannot be written any more"))
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn end(self: Box<Self>) -> Result<String> {
        drop(self.tell);
        self.writer.join().map_err(|_| anyhow!("what writes the Parquet files has panicked"))?
    }
}

/// The files, and how far they have come.
#[derive(Debug)]
struct Files {
    folder: Folder<Chain, BufferSnapshot>,
    origin: Arc<Origin>,
    /// Chains that were lost since the last row, by queue.
    lost: HashMap<String, u64>,
    finished: Vec<Finished>,
}

impl Files {
    /// Writes until no more comes.
    fn write(&mut self, told: &Receiver<TraceEvent>) -> Result<()> {
        loop {
            let finished = match told.recv_timeout(self.folder.left()) {
                Ok(TraceEvent::Chain(event)) => {
                    let lost = self.lost.remove(&event.queue).unwrap_or_default();
                    self.folder.push(&Chain::new(&self.origin, event, lost))?
                }
                Ok(TraceEvent::Lost { queue, events }) => {
                    *self.lost.entry(queue).or_default() += events;
                    None
                }
                Err(RecvTimeoutError::Timeout) => self.folder.finish()?,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            self.finished.extend(finished);
        }
        self.finished.extend(self.folder.finish()?);
        Ok(())
    }

    fn summary(&self, folder: &str) -> String {
        let (rows, bytes) =
            self.finished.iter().fold((0, 0), |(rows, bytes), file| (rows + file.rows, bytes + file.bytes));
        let files = match self.finished.len() {
            1 => "1 file".to_owned(),
            count => format!("{count} files"),
        };
        let lost: u64 = self.lost.values().sum();
        let behind = if lost > 0 { format!("; {lost} chains behind the last row were lost") } else { String::new() };
        let size = figures::bytes(bytes);
        format!("{folder}: {files}, {} chains, {size}{behind}. DuckDB: FROM '{folder}/*.parquet'", figures::count(rows))
    }
}
