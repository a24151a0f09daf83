//! The thread that writes the file.
//!
//! Format: pcapng (IETF draft-ietf-opsawg-pcapng), one section; one interface per queue, described when its first frame
//! comes; one enhanced packet block per frame, nanoseconds, with direction flags, comment and a custom option; at the end the
//! statistics of each queue of which frames are missing.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pcap_file::DataLink;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::custom::CustomUtf8Option;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption, InterfaceTsResolution,
};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};
use pcap_file::pcapng::blocks::opt_common::CommonOption;
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};

use super::option::VENDOR;
use super::{Count, Lost, MAX_SPARE, Record, Shared, State, Whose, comment, option, verdict};
use crate::net::MAX_FRAME_LEN;

/// When no frame has come for so long, what was written is flushed.
const QUIET: Duration = Duration::from_millis(100);
/// Room between the blocks and the file.
const BUFFER: usize = 128 << 10;
/// The most that a kept record's frame buffer may hold on to.
const SPARE_CAPACITY: usize = MAX_FRAME_LEN as usize;

/// epb_flags, bits 0–1: 1 inbound, 2 outbound, as the guest's interface sees it.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

pub(super) struct Writer<W: Write> {
    file: PcapNgWriter<BufWriter<W>>,
    interfaces: Vec<String>,
    whose: Vec<Option<Whose>>,
}

impl<W: Write> Writer<W> {
    /// Begins the file: the section's header is on disk when this returns.
    pub(super) fn new(file: W) -> io::Result<Self> {
        let application = concat!("vnic ", env!("CARGO_PKG_VERSION"));
        let options = vec![SectionHeaderOption::UserApplication(Cow::Borrowed(application))];
        let section = SectionHeaderBlock { options, ..SectionHeaderBlock::default() };
        let buffered = BufWriter::with_capacity(BUFFER, file);
        let mut file = PcapNgWriter::with_section_header(buffered, section).map_err(failed)?;
        file.get_mut().flush()?;
        Ok(Writer { file, interfaces: Vec::new(), whose: Vec::new() })
    }

    /// Writes what comes, until the last handle is gone or the file cannot be written.
    pub(super) fn run(mut self, shared: &Shared, path: &Path) {
        let mut records = VecDeque::new();
        let mut dirty = false;
        loop {
            let closing = take(shared, &mut records, dirty);
            let quiet = records.is_empty();
            dirty = !quiet;
            let result = match (quiet, closing) {
                (false, _) => records.iter().try_for_each(|record| self.write(record, shared)),
                (true, false) => self.file.get_mut().flush(),
                (true, true) => self.finish(shared),
            };
            if let Err(error) = result {
                tracing::error!(path = %path.display(), %error, "the capture ends here; the device goes on");
                Count::Failed.add(&shared.counters, 1);
                shared.lock().end(&shared.counters);
                return;
            }
            give_back(shared, &mut records);
            if closing && quiet {
                return;
            }
        }
    }

    fn write(&mut self, record: &Record, shared: &Shared) -> io::Result<()> {
        let interface = self.interface(&record.queue)?;
        let direction = if record.to_driver { INBOUND } else { OUTBOUND };
        self.whose.clear();
        if let Some(labels) = shared.labels.get().filter(|_| !record.to_driver) {
            // Those that the device has read come first.
            let sent = record.packet.buffers.partition_point(|buffer| !buffer.writable);
            labels.label(record.at, record.packet.buffers.get(..sent).unwrap_or_default(), &mut self.whose);
        }
        let verdict = verdict::of(record, &self.whose);
        let comment = comment::of(record, &self.whose, verdict);
        let all = CustomUtf8Option { pen: VENDOR, value: Cow::Owned(option::of(record, &self.whose, verdict)) };
        let mut options = vec![
            EnhancedPacketOption::Common(CommonOption::Comment(Cow::Owned(comment))),
            EnhancedPacketOption::Common(CommonOption::CustomUtf8Copiable(all)),
            EnhancedPacketOption::Flags(direction),
        ];
        if record.lost_before > 0 {
            options.push(EnhancedPacketOption::DropCount(record.lost_before));
        }
        let block = EnhancedPacketBlock {
            interface_id: interface,
            timestamp: record.at,
            // No longer than a frame.
            original_len: record.frame.len() as u32,
            data: Cow::Borrowed(&record.frame),
            options,
        };
        self.file.write_pcapng_block(block).map_err(failed)?;
        Count::Frames.add(&shared.counters, 1);
        Count::Bytes.add(&shared.counters, record.frame.len() as u64);
        Ok(())
    }

    /// The end of the file: what is missing in it.
    fn finish(&mut self, shared: &Shared) -> io::Result<()> {
        let lost = shared.lock().lost.clone();
        for Lost { queue, in_all, .. } in lost {
            let block = InterfaceStatisticsBlock {
                interface_id: self.interface(&queue)?,
                timestamp: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
                options: vec![InterfaceStatisticsOption::IsbIfDrop(in_all)],
            };
            self.file.write_pcapng_block(block).map_err(failed)?;
        }
        self.file.get_mut().flush()
    }

    /// The number of a queue's interface. The first time it is described in the file.
    fn interface(&mut self, queue: &str) -> io::Result<u32> {
        let known = self.interfaces.iter().position(|name| name == queue);
        // One per queue, so the number fits.
        let number = known.unwrap_or(self.interfaces.len()) as u32;
        if known.is_none() {
            let options = vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(queue)),
                InterfaceDescriptionOption::IfTsResol(InterfaceTsResolution::NANO),
            ];
            let block = InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options };
            self.file.write_pcapng_block(block).map_err(failed)?;
            self.interfaces.push(queue.to_owned());
        }
        Ok(number)
    }
}

/// With what the disk said: the library's own words are only that it said something.
fn failed(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    match error.source() {
        Some(source) => io::Error::other(format!("{error}: {source}")),
        None => io::Error::other(error),
    }
}

/// Waits for records and takes all there are; with something to flush, only for a while. Returns whether there will be
/// no more.
fn take(shared: &Shared, records: &mut VecDeque<Record>, dirty: bool) -> bool {
    let nothing = |state: &mut State| state.records.is_empty() && !state.closing;
    let state = shared.lock();
    let mut state = if dirty {
        shared.work.wait_timeout_while(state, QUIET, nothing).unwrap_or_else(PoisonError::into_inner).0
    } else {
        shared.work.wait_while(state, nothing).unwrap_or_else(PoisonError::into_inner)
    };
    std::mem::swap(&mut state.records, records);
    state.closing
}

/// The records are written: room for as much again.
fn give_back(shared: &Shared, records: &mut VecDeque<Record>) {
    let mut state = shared.lock();
    // What is queued now came while they were written.
    state.bytes = state.records.iter().map(Record::size).sum();
    while let Some(record) = records.pop_front() {
        if state.spare.len() < MAX_SPARE && record.frame.capacity() <= SPARE_CAPACITY {
            state.spare.push(record);
        }
    }
}
