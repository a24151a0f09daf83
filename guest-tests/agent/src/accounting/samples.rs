//! Counting by samples: of each call of a kernel function a record with its length.
//!
//! Place: an execution breakpoint, whose samples hold the register with the length, is for functions that refuse kprobe
//! events. The kernel's `lib/`, where `_copy_to_iter` lives, is built without ftrace, and stock kernels refuse kprobe events
//! there; the CPU's debug registers do not ask. There are four per CPU. Samples of a kprobe event are for kernels without
//! histograms ([`super::tracefs`]).
//!
//! Operation: one event and one ring per CPU, for every task of it. The kernel writes a record per call; [`Samples::drain`]
//! reads them, and must come often enough that the ring does not run over.
//!
//! Invariants: the ring's head is written by the kernel only, its tail by us only; records between the two are whole.
//! A record that the kernel could not write shows as a later `PERF_RECORD_LOST`, and the figure is gone.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::raw::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use vnic_experiment::wire::PAGE_SIZE;

use super::perf::{self, Attr, Scope};
use super::sums::{Owner, Sums};

const BREAKPOINT_EXECUTE: u32 = 4;
const SAMPLE_TID: u64 = 1 << 1;
const SAMPLE_RAW: u64 = 1 << 10;
const SAMPLE_REGS_INTR: u64 = 1 << 18;
const RECORD_LOST: u32 = 2;
const RECORD_SAMPLE: u32 = 9;
/// Bytes of the longer sample, an event's: header, process and thread, size, the event's common fields and address, its
/// argument.
const SAMPLE: usize = 40;
/// Where the length is behind the header: after process, thread and register ABI.
const IN_REGISTER: usize = 16;
/// After process, thread, size, and the fields that every kprobe event begins with.
const IN_EVENT: usize = 28;
/// The most memory for one ring.
const LARGEST_RING: usize = 8 << 20;

/// A register by its perf number (`asm/perf_regs.h`).
#[derive(Debug, Clone, Copy)]
pub(super) enum Register {
    /// The fourth argument of a function.
    Cx = 2,
    /// The third.
    Dx = 3,
    /// The second.
    Si = 4,
}

/// A sum over calls of one function, on every CPU.
#[derive(Debug)]
pub(super) struct Samples {
    rings: Vec<Ring>,
    /// Where in a sample the length is: [`IN_REGISTER`] or [`IN_EVENT`].
    length_at: usize,
    counts: Counts,
}

/// What was read out of the rings.
#[derive(Debug, Default)]
struct Counts {
    by_process: Vec<(u32, u64)>,
    /// Calls that were recorded.
    calls: u64,
    lost: u64,
}

impl Samples {
    /// Will sum `register`, from [`Samples::start`] on, over the calls of the function at `address`; `calls` may come before
    /// they are drained.
    pub(super) fn of_breakpoint(address: u64, register: Register, calls: u64) -> io::Result<Samples> {
        let attr = Attr {
            kind: perf::TYPE_BREAKPOINT,
            sample_type: SAMPLE_TID | SAMPLE_REGS_INTR,
            bp_type: BREAKPOINT_EXECUTE,
            bp_addr: address,
            bp_len: size_of::<libc::c_long>() as u64,
            sample_regs_intr: 1 << register as u32,
            ..Attr::default()
        };
        Samples::open(attr, IN_REGISTER, calls)
    }

    /// Will sum the one argument, a `u32`, of the kprobe event with this number in tracefs.
    pub(super) fn of_event(number: u64, calls: u64) -> io::Result<Samples> {
        let attr = Attr {
            kind: perf::TYPE_TRACEPOINT,
            config: number,
            sample_type: SAMPLE_TID | SAMPLE_RAW,
            ..Attr::default()
        };
        Samples::open(attr, IN_EVENT, calls)
    }

    fn open(attr: Attr, length_at: usize, calls: u64) -> io::Result<Samples> {
        let attr = Attr { sample_period: 1, flags: perf::DISABLED | perf::EXCLUDE_USER, ..attr };
        let bytes = usize::try_from(calls).unwrap_or(usize::MAX).saturating_mul(SAMPLE).clamp(1 << 16, LARGEST_RING);
        let mut rings = Vec::new();
        for cpu in online_cpus()? {
            rings.push(Ring::new(perf::open(attr, Scope::Cpu(cpu))?, bytes.next_power_of_two())?);
        }
        Ok(Samples { rings, length_at, counts: Counts::default() })
    }

    /// Reads what the rings hold. No system call.
    pub(super) fn drain(&mut self) {
        for ring in &mut self.rings {
            ring.drain(|kind, body| self.counts.add(kind, body, self.length_at));
        }
    }

    /// Counts from here.
    pub(super) fn start(&mut self) -> io::Result<()> {
        self.rings.iter().try_for_each(|ring| perf::enable(&ring.event))
    }

    /// Counts no more.
    pub(super) fn stop(&mut self) -> io::Result<()> {
        self.rings.iter().try_for_each(|ring| perf::disable(&ring.event))
    }

    /// How often the function was called, whatever its registers held.
    pub(super) fn calls(&mut self) -> u64 {
        self.drain();
        self.counts.calls.saturating_add(self.counts.lost)
    }

    /// All that was counted.
    pub(super) fn sums(&mut self, owner: &Owner) -> Sums {
        self.drain();
        let mut sums = Sums { lost: self.counts.lost, ..Sums::default() };
        sums.count(&self.counts.by_process, owner);
        sums
    }
}

impl Counts {
    /// Takes a record. No function copies 4 GiB at once: the lower half of a register will do, and some lengths have no other.
    fn add(&mut self, kind: u32, body: &[u8], length_at: usize) {
        let u32_at = |at: usize| body.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let u64_at = |at: usize| body.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
        match kind {
            RECORD_SAMPLE => match u32_at(0).zip(u32_at(length_at)) {
                Some((process, bytes)) => {
                    let bytes = u64::from(bytes);
                    self.calls += 1;
                    match self.by_process.iter_mut().find(|(known, _)| *known == process) {
                        Some((_, sum)) => *sum = sum.saturating_add(bytes),
                        None => self.by_process.push((process, bytes)),
                    }
                }
                None => self.lost += 1,
            },
            // Event id, count.
            RECORD_LOST => self.lost = self.lost.saturating_add(u64_at(8).unwrap_or(1)),
            _ => {}
        }
    }
}

/// The numbers of the CPUs that run: `0-1,3`.
fn online_cpus() -> io::Result<Vec<i32>> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    parse_cpus(text.trim()).ok_or_else(|| io::Error::other(format!("no list of CPUs: {text:?}")))
}

fn parse_cpus(list: &str) -> Option<Vec<i32>> {
    let mut cpus = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.parse::<i32>().ok()?..=last.parse::<i32>().ok()?);
    }
    Some(cpus)
}

/// An event's ring: a page of state, then the records.
#[derive(Debug)]
struct Ring {
    event: File,
    base: NonNull<c_void>,
    length: NonZeroUsize,
    /// Bytes for records; a power of two.
    room: usize,
}

/// Offsets in the first page (`struct perf_event_mmap_page`).
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;

impl Ring {
    fn new(event: File, room: usize) -> io::Result<Ring> {
        let length = NonZeroUsize::new(room + PAGE_SIZE as usize).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: no address is asked for, so the kernel places the mapping where nothing else is.
        let base = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &event, 0) }?;
        let ring = Ring { event, base, length, room };
        // Every page once, so that reading records is no page fault of the transfer's.
        for page in 0..length.get() / PAGE_SIZE as usize {
            // SAFETY: page is one of the mapping's.
            std::hint::black_box(unsafe { base.as_ptr().cast::<u8>().add(page * PAGE_SIZE as usize).read_volatile() });
        }
        Ok(ring)
    }

    /// One of the two positions, which both sides use atomically.
    fn position(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: both offsets are 8-aligned and inside the first page, mapped writable until drop.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().cast::<u8>().add(offset).cast()) }
    }

    /// Passes on each record's kind and body, and gives the room back.
    fn drain(&mut self, mut take: impl FnMut(u32, &[u8])) {
        let head = self.position(DATA_HEAD).load(Ordering::Acquire);
        let mut tail = self.position(DATA_TAIL).load(Ordering::Relaxed);
        let mut body = [0; 256];
        while tail < head {
            let mut header = [0; 8];
            self.copy(tail, &mut header);
            let [k0, k1, k2, k3, _, _, s0, s1] = header;
            let size = usize::from(u16::from_ne_bytes([s0, s1]));
            if size < header.len() {
                break;
            }
            // Longer records are of kinds nobody asked for: their front will do.
            let wanted = (size - header.len()).min(body.len());
            self.copy(tail + header.len() as u64, &mut body[..wanted]);
            take(u32::from_ne_bytes([k0, k1, k2, k3]), &body[..wanted]);
            tail += size as u64;
        }
        self.position(DATA_TAIL).store(tail, Ordering::Release);
    }

    /// Copies out of the ring, around its end.
    fn copy(&self, from: u64, to: &mut [u8]) {
        for (at, byte) in (from..).zip(to) {
            let place = PAGE_SIZE as usize + (at as usize & (self.room - 1));
            // SAFETY: place is below PAGE_SIZE + room, the mapping's length; the kernel does not write between tail
            // and head.
            *byte = unsafe { self.base.as_ptr().cast::<u8>().add(place).read() };
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: base and length are what mmap returned and was given; nothing borrowed from it is left.
        let unmapped = unsafe { munmap(self.base, self.length.get()) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(pid: u32, bytes: u64) -> Vec<u8> {
        [&pid.to_ne_bytes()[..], &7_u32.to_ne_bytes(), &2_u64.to_ne_bytes(), &bytes.to_ne_bytes()].concat()
    }

    #[test]
    fn samples_are_summed_by_whose_they_are() {
        let mut counts = Counts::default();
        for (process, bytes) in [(1, 4096), (1, 96), (2, 10)] {
            counts.add(RECORD_SAMPLE, &sample(process, bytes), IN_REGISTER);
        }
        assert_eq!((counts.by_process, counts.calls, counts.lost), (vec![(1, 4192), (2, 10)], 3, 0));
    }

    #[test]
    fn of_a_register_the_lower_half_counts() {
        let mut counts = Counts::default();
        counts.add(RECORD_SAMPLE, &sample(1, 0xdead_beef_0000_1000), IN_REGISTER);
        assert_eq!(counts.by_process, [(1, 4096)]);
    }

    #[test]
    fn the_argument_of_an_event_is_behind_its_common_fields() {
        // Process, thread, size; type, flags, thread; address; argument.
        let words: [u32; 9] = [1, 7, 28, 1234, 7, 0x816b_77d0, 0xffff_ffff, 1448, 0xaaaa_aaaa];
        let body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut counts = Counts::default();
        counts.add(RECORD_SAMPLE, &body, IN_EVENT);
        assert_eq!((counts.by_process, counts.calls, counts.lost), (vec![(1, 1448)], 1, 0));
    }

    #[test]
    fn a_lost_record_is_noticed() {
        let mut counts = Counts::default();
        let body = [&9_u64.to_ne_bytes()[..], &3_u64.to_ne_bytes()].concat();
        counts.add(RECORD_LOST, &body, IN_REGISTER);
        counts.add(RECORD_SAMPLE, &[0; 5], IN_REGISTER);
        assert_eq!(counts.lost, 4);
    }

    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse_cpus("0"), Some(vec![0]));
        assert_eq!(parse_cpus("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_cpus(""), None);
    }
}
