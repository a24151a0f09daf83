//! Disks and readers that take nothing more: neither frames nor the end wait for them.

use super::*;

/// Records frames until one goes unrecorded. Returns how many it were.
fn record_until_lost(capture: &Capture) -> u64 {
    let mut recorded = 0;
    while capture.counters().get("capture_lost_frames") == 0 {
        record_three(capture);
        recorded += 3;
        assert!(recorded < 10 * MAX_RECORDS as u64, "nothing bounds the queue");
    }
    recorded
}

/// How long a thousand frames may take that go unrecorded: far less than if each waited for the disk.
const UNRECORDED: Duration = Duration::from_secs(20);

#[test]
fn a_reader_that_reads_nothing_holds_up_neither_frames_nor_the_end() {
    let path = Scratch::new("fifo");
    nix::unistd::mkfifo(&path.0, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path.0).unwrap();
    let capture = Capture::create(&path.0).unwrap();
    let counters = capture.counters();
    let mut recorded = record_until_lost(&capture);
    let begun = Instant::now();
    for _ in 0..334 {
        record_three(&capture);
        recorded += 3;
        assert!(begun.elapsed() < UNRECORDED, "the frames wait for the reader");
    }
    assert!(counters.get("capture_lost_frames") >= 1000);
    // Its thread hangs in a write, and is left there.
    drop(capture);
    assert_eq!(counters.get("capture_frames") + counters.get("capture_lost_frames"), recorded);
    drop(reader);
}

/// A disk that takes so many bytes and is full then.
struct Disk {
    room: usize,
}

impl io::Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let count = bytes.len().min(self.room);
        self.room -= count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_ends_the_capture_and_nothing_else() {
    let capture = Capture::to(Disk { room: 4000 }, Path::new("disk")).unwrap();
    let counters = capture.counters();
    let deadline = Instant::now() + Duration::from_secs(10);
    while counters.get("capture_failed") == 0 {
        record_three(&capture);
        assert!(Instant::now() < deadline, "the disk never filled up");
    }
    let (frames, lost) = (counters.get("capture_frames"), counters.get("capture_lost_frames"));
    record_three(&capture);
    assert_eq!(counters.get("capture_frames"), frames);
    drop(capture);
    assert!(counters.get("capture_lost_frames") >= lost + 3);
}

#[test]
fn a_disk_that_hangs_holds_nobody_up_and_the_lost_frames_are_told() {
    /// Writes nothing until told to.
    struct Hanging(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);
    impl io::Write for Hanging {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // An error means that the other end is gone: go on.
            let _ = self.0.recv();
            self.1.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (go, hang) = mpsc::channel();
    let (written, all) = mpsc::channel();
    // The section's header passes.
    go.send(()).unwrap();
    let capture = Capture::to(Hanging(hang, written), Path::new("disk")).unwrap();
    let counters = capture.counters();
    let mut recorded = record_until_lost(&capture);
    assert!(capture.inner.shared.lock().bytes <= MAX_BYTES + 70_000);
    drop(go);
    // Room comes back, and the next record says what is missing.
    let deadline = Instant::now() + Duration::from_secs(10);
    while capture.inner.shared.lock().lost.iter().any(|lost| lost.since_last_record > 0) {
        record_three(&capture);
        recorded += 3;
        assert!(Instant::now() < deadline, "no room came back");
    }
    drop(capture);
    assert_eq!(counters.get("capture_frames") + counters.get("capture_lost_frames"), recorded);
    let file = all.iter().collect::<Vec<_>>().concat();
    let mut reader = PcapNgReader::new(&file[..]).unwrap();
    let (mut told, mut at_the_end) = (0, 0);
    while let Some(block) = reader.next_block() {
        match block.unwrap().0 {
            Block::EnhancedPacket(packet) => {
                let dropped = packet.options.iter().filter_map(|option| match option {
                    EnhancedPacketOption::DropCount(count) => Some(*count),
                    _ => None,
                });
                told += dropped.sum::<u64>();
            }
            Block::InterfaceStatistics(statistics) => {
                let [InterfaceStatisticsOption::IsbIfDrop(count)] = statistics.options[..] else {
                    panic!("{statistics:?}")
                };
                at_the_end += count;
            }
            _ => {}
        }
    }
    assert_eq!(at_the_end, told, "frames lost before a record, and frames lost in all");
    assert_eq!(told, counters.get("capture_lost_frames"));
}
