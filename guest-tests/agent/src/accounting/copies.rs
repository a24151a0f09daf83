//! How many bytes went through the kernel's copying functions.
//!
//! Operation: each function is watched by a kprobe event where the kernel takes one, else by a hardware breakpoint, else
//! not at all, and then its figure is `None` and the reason says what each refused. A breakpoint sees registers only: of a
//! function whose length is in memory it tells whether it was called, and where it never was, nothing was copied. Which functions
//! depends on the kernel's version. They do not call each other (`copy_page_to_iter` and `__pskb_pull_tail`, which do call
//! them, are not watched), so the sum counts each copy once.
//!
//! Some run in the program's own system calls: only this process's calls count, and copies of others meanwhile are told apart. The others run wherever TCP happens to send from, in an interrupt of whoever runs then: all calls
//! count, and the guest must be quiet. Whether it was is in the notes.

use super::Sender;
use super::samples::{Register, Samples};
use super::sums::{Owner, Sums};
use super::symbols::{self, Symbols};
use super::tracefs::Kprobe;

use vnic_experiment::row::PathKind;
use vnic_experiment::wire;

/// One of the functions.
#[derive(Debug, Clone, Copy)]
struct Function {
    /// In the record.
    name: &'static str,
    /// In the kernel.
    symbol: &'static str,
    length: Length,
    context: Context,
}

/// How a call says how much it copies.
#[derive(Debug, Clone, Copy)]
enum Length {
    /// In a register.
    In(Register),
    /// It copies all the socket buffer in its first argument has in fragments: `sk_buff.data_len`.
    Fragments,
}

/// Where calls come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Context {
    /// From system calls of the program.
    SystemCall,
    /// From the network stack, whoever runs then.
    Stack,
}

impl Context {
    /// How many calls a ring must have room for: twice those of a transfer that is copied a page at a time, or in frames of
    /// the least size that TCP sends without being told (RFC 9293, 3.7.1).
    fn calls(self, bytes: u64) -> u64 {
        const DEFAULT_SEGMENT: u64 = 536;
        2 * bytes.div_ceil(match self {
            Context::SystemCall => wire::PAGE_SIZE,
            Context::Stack => DEFAULT_SEGMENT,
        })
    }
}

impl Function {
    const fn new(name: &'static str, length: Length, context: Context) -> Function {
        Function { name, symbol: name, length, context }
    }
}

/// Since 6.0 all that a file or a socket copies from or to a program goes through one of the two: `copy_page_to_iter`, which
/// `read` calls, became a caller of `_copy_to_iter` ("copy_page_{to,from}_iter(): switch iovec variants to generic").
const ITERATORS: [Function; 2] = [
    Function::new("_copy_to_iter", Length::In(Register::Si), Context::SystemCall),
    Function::new("_copy_from_iter", Length::In(Register::Si), Context::SystemCall),
];

/// Before 6.0 (lib/iov_iter.c) `copy_page_to_iter`, and before 5.14 `_copy_from_iter_full`, which TCP calls, copy by
/// themselves; the former is also called where nothing is copied, to hand a page to the pipe of a `sendfile`. What all of them
/// call to copy from and to a program is one of these, which one depends on the CPU (arch/x86/lib/copy_user_64.S). None of
/// them calls another. They see both directions, and the few bytes that system calls take as structures.
const USER_COPIES: [Function; 3] = [
    Function::new("copy_user_generic_unrolled", Length::In(Register::Dx), Context::SystemCall),
    Function::new("copy_user_generic_string", Length::In(Register::Dx), Context::SystemCall),
    Function::new("copy_user_enhanced_fast_string", Length::In(Register::Dx), Context::SystemCall),
];

/// Of lib/iov_iter.c in kernels before 6.0 only ("get rid of non-advancing variants").
const BEFORE_6_0: &str = "iov_iter_get_pages";

const STACK: [Function; 3] = [
    Function::new("skb_copy_bits", Length::In(Register::Cx), Context::Stack),
    Function::new("skb_copy_and_csum_bits", Length::In(Register::Cx), Context::Stack),
    Function::new("skb_copy_ubufs", Length::Fragments, Context::Stack),
];

/// The functions in which this kernel copies, each copy in one of them.
fn functions(symbols: &Symbols) -> impl Iterator<Item = Function> {
    let system_calls = match symbols.address_of(BEFORE_6_0) {
        Ok(_) => USER_COPIES.as_slice(),
        Err(_) => &ITERATORS,
    };
    system_calls.iter().chain(&STACK).copied()
}

/// Called once for each record of a TLS connection that the kernel enciphers, with how long its content is.
/// `crypto_aead_encrypt` would not do: some of its ciphers call it again.
const CIPHER: Function =
    Function { symbol: "tls_make_aad", ..Function::new(wire::CIPHER, Length::In(Register::Si), Context::Stack) };

/// Of datagrams whose checksum the NIC does not make the kernel makes it while it copies. Where the first of the two is there, it calls the
/// second (inlined, perhaps), and is all that is called from elsewhere.
const SUMMED: [&str; 2] = ["csum_and_copy_from_iter_full", "csum_and_copy_from_iter"];

fn summed(symbols: &Symbols) -> Function {
    let symbol = SUMMED.into_iter().find(|symbol| symbols.address_of(symbol).is_ok()).unwrap_or(SUMMED[1]);
    Function { symbol, ..Function::new(SUMMED[1], Length::In(Register::Si), Context::SystemCall) }
}

/// The names that current kernels have, in the record's order.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    ITERATORS.iter().chain(&STACK).map(|function| function.name)
}

/// All of them, being watched.
#[derive(Debug)]
pub(super) struct Copies {
    functions: Vec<(Function, Result<Counter, String>)>,
    owner: Owner,
}

#[derive(Debug)]
enum Counter {
    /// The kernel sums an event.
    Histogram(Kprobe),
    /// We sum an event. The samples end before it does.
    Event(Samples, Kprobe),
    Breakpoint(Samples),
    /// Sees calls and not how much they copy: the reason for it.
    Calls(Samples, String),
}

impl Copies {
    /// Gets ready for a transfer of `bytes`.
    pub(super) fn open(bytes: u64, path_kind: PathKind, sender: Sender, datagrams: bool) -> Copies {
        let symbols = Symbols::read();
        let cipher = (path_kind == PathKind::Cipher).then_some(CIPHER);
        let functions = functions(&symbols).chain(cipher).chain(datagrams.then(|| summed(&symbols)));
        let functions = functions.map(|function| (function, Counter::open(function, bytes, &symbols))).collect();
        Copies { functions, owner: Owner::of(sender) }
    }

    /// Counts from here.
    pub(super) fn start(&mut self) {
        for (_, counter) in &mut self.functions {
            if let Some(samples) = samples_of(counter)
                && let Err(error) = samples.start()
            {
                *counter = Err(format!("its samples: {error}"));
            }
        }
    }

    /// Makes room for more; no system call.
    pub(super) fn drain(&mut self) {
        for (_, counter) in &mut self.functions {
            if let Some(samples) = samples_of(counter) {
                samples.drain();
            }
        }
    }

    /// The program's system calls are over.
    pub(super) fn stop_system_calls(&mut self) {
        for (function, counter) in &mut self.functions {
            if function.context == Context::SystemCall
                && let Some(samples) = samples_of(counter)
                && let Err(error) = samples.stop()
            {
                *counter = Err(format!("its samples: {error}"));
            }
        }
    }

    /// Writes what was counted into the record.
    pub(super) fn close(self, accounts: &mut wire::Accounts) {
        for (function, counter) in self.functions {
            let counted = counter.and_then(|counter| counter.close(function.context, &self.owner));
            let bytes = match counted {
                Ok(counted) => {
                    accounts.notes.extend(counted.note(function));
                    Some(counted.bytes)
                }
                Err(why) => {
                    accounts.reasons.insert(format!("copied_bytes.{}", function.name), why);
                    None
                }
            };
            accounts.copied_bytes.insert(function.name.to_owned(), bytes);
        }
    }
}

fn samples_of(counter: &mut Result<Counter, String>) -> Option<&mut Samples> {
    match counter {
        Ok(Counter::Event(samples, _) | Counter::Breakpoint(samples) | Counter::Calls(samples, _)) => Some(samples),
        Ok(Counter::Histogram(_)) | Err(_) => None,
    }
}

/// What a function copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    /// In the transfer's accounts.
    bytes: u64,
    /// While another program ran: in the accounts too where the function runs for whoever sends.
    others: u64,
}

impl Counted {
    fn new(sums: Sums, context: Context) -> Result<Counted, String> {
        let Sums { own, others, kernel, starter, lost } = sums;
        if lost > 0 {
            return Err(format!("more calls than their ring had room for: {lost} records lost"));
        }
        let bytes = match context {
            Context::SystemCall => own,
            Context::Stack => [kernel, starter, others].into_iter().fold(own, u64::saturating_add),
        };
        Ok(Counted { bytes, others })
    }

    /// Of a function that was called so often, and whose lengths cannot be seen.
    fn of_calls(calls: u64, why: &str) -> Result<Counted, String> {
        match calls {
            0 => Ok(Counted { bytes: 0, others: 0 }),
            _ => Err(format!("called {calls} times, and {why}")),
        }
    }

    /// That the guest was not quiet.
    fn note(self, function: Function) -> Option<String> {
        if self.others == 0 {
            return None;
        }
        let (bytes, name) = (self.others, function.name);
        Some(match function.context {
            Context::SystemCall => {
                format!(
                    "the guest was not quiet: other programs had {bytes} bytes copied by {name} meanwhile, not counted"
                )
            }
            Context::Stack => format!(
                "the guest was not quiet: {bytes} of the bytes that {name} copied were copied while another program ran, \
                 and may be its own"
            ),
        })
    }
}

impl Counter {
    fn open(function: Function, bytes: u64, symbols: &Symbols) -> Result<Counter, String> {
        // First of all: a function that this kernel lacks is no matter of privileges.
        let address = symbols.address_of(function.symbol).map_err(|why| match function.symbol == function.name {
            true => why,
            // There is one all the same.
            false => format!("it is not seen: {why}"),
        })?;
        let calls = function.context.calls(bytes);
        let refused = match function.context {
            // A histogram would do here too, but its sum does not tell processes apart.
            Context::SystemCall => None,
            Context::Stack => match Counter::of_event(function, calls) {
                Ok(counter) => return Ok(counter),
                Err(why) => Some(why),
            },
        };
        let event = || refused.as_ref().map_or_else(String::new, |why| format!("; a kprobe event: {why}"));
        let register = match function.length {
            Length::In(register) => register,
            // Any will do.
            Length::Fragments => Register::Si,
        };
        match (Samples::of_breakpoint(address, register, calls), function.length) {
            (Ok(samples), Length::In(_)) => Ok(Counter::Breakpoint(samples)),
            (Ok(samples), Length::Fragments) => {
                Ok(Counter::Calls(samples, format!("its length is in memory, which no breakpoint sees{}", event())))
            }
            (Err(error), _) => Err(format!("a hardware breakpoint: {error}{}", event())),
        }
    }

    fn of_event(function: Function, calls: u64) -> Result<Counter, String> {
        let argument = match function.length {
            Length::In(Register::Cx) => "%cx:u32".to_owned(),
            Length::In(Register::Dx) => "%dx:u32".to_owned(),
            Length::In(Register::Si) => "%si:u32".to_owned(),
            Length::Fragments => format!("+{}(%di):u32", symbols::offset_of("sk_buff", "data_len")?),
        };
        let kprobe = Kprobe::open(function.symbol, &argument).map_err(|error| error.to_string())?;
        // Without CONFIG_HIST_TRIGGERS, as in Debian's 5.10, the event is taken, and its trigger is no valid argument.
        let Err(histogram) = kprobe.sum() else { return Ok(Counter::Histogram(kprobe)) };
        let samples = kprobe.number().and_then(|number| Samples::of_event(number, calls));
        let samples = samples.map_err(|error| format!("a histogram of it: {histogram}; samples of it: {error}"))?;
        Ok(Counter::Event(samples, kprobe))
    }

    fn close(self, context: Context, owner: &Owner) -> Result<Counted, String> {
        let stop = |samples: &mut Samples| samples.stop().map_err(|error| format!("its samples: {error}"));
        let sums = match self {
            Counter::Histogram(kprobe) => {
                let mut sums = Sums::default();
                sums.count(&kprobe.sums()?, owner);
                sums
            }
            Counter::Event(mut samples, kprobe) => {
                stop(&mut samples)?;
                kprobe.none_missed()?;
                samples.sums(owner)
            }
            Counter::Breakpoint(mut samples) => {
                stop(&mut samples)?;
                samples.sums(owner)
            }
            Counter::Calls(mut samples, why) => {
                stop(&mut samples)?;
                return Counted::of_calls(samples.calls(), &why);
            }
        };
        Counted::new(sums, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Function = ITERATORS[0];
    const SENT: Function = STACK[0];

    /// In a kernel that has these.
    fn watched(list: &str) -> Vec<&'static str> {
        functions(&Symbols::of(list)).map(|function| function.name).collect()
    }

    #[test]
    fn before_6_0_copies_are_counted_where_all_of_them_end() {
        let both = "ffffffff814e8c30 T _copy_to_iter\nffffffff814e95b0 T _copy_from_iter\n";
        let new = format!("{both}ffffffff8171c190 T iov_iter_get_pages2\nffffffff816a84e0 T bio_iov_iter_get_pages\n");
        assert_eq!(watched(&new), names().collect::<Vec<_>>());
        let old = format!("{both}ffffffff814e5900 T iov_iter_get_pages\n");
        let user = ["copy_user_generic_unrolled", "copy_user_generic_string", "copy_user_enhanced_fast_string"];
        assert_eq!(watched(&old), [user, STACK.map(|function| function.name)].concat());
    }

    #[test]
    fn breakpoints_suffice_where_events_are_taken() {
        const PER_CPU: usize = 4;
        for system_calls in [ITERATORS.as_slice(), &USER_COPIES] {
            assert!(system_calls.iter().all(|function| function.context == Context::SystemCall));
            assert!(system_calls.len() <= PER_CPU);
        }
        assert!(STACK.iter().all(|function| function.context == Context::Stack));
    }

    #[test]
    fn rings_have_room_for_a_call_per_frame() {
        let frames = (16 << 20) / 1448;
        assert!(Context::Stack.calls(16 << 20) > 2 * frames && Context::SystemCall.calls(4097) == 4);
    }

    fn counted(function: Function, sums: Sums) -> Result<Counted, String> {
        Counted::new(sums, function.context)
    }

    #[test]
    fn a_quiet_guest_needs_no_note() {
        let sums = Sums { own: 4096, kernel: 100, starter: 20, ..Sums::default() };
        let (read, sent) = (counted(READ, sums).expect("a figure"), counted(SENT, sums).expect("a figure"));
        assert_eq!((read.bytes, read.note(READ)), (4096, None));
        assert_eq!((sent.bytes, sent.note(SENT)), (4216, None));
    }

    #[test]
    fn accounts_that_other_activity_got_into_say_so() {
        let sums = Sums { own: 4096, others: 70, ..Sums::default() };
        let read = counted(READ, sums).expect("a figure");
        assert_eq!(read.bytes, 4096);
        assert!(read.note(READ).is_some_and(|note| note.contains("70 bytes") && note.contains("not counted")));
        let sent = counted(SENT, sums).expect("a figure");
        assert_eq!(sent.bytes, 4166);
        assert!(sent.note(SENT).is_some_and(|note| note.contains("70 of the bytes") && note.contains("skb_copy_bits")));
    }

    #[test]
    fn where_only_calls_are_seen_none_is_no_bytes_and_one_is_no_figure() {
        assert_eq!(Counted::of_calls(0, "its length is in memory"), Ok(Counted { bytes: 0, others: 0 }));
        let why = Counted::of_calls(3, "its length is in memory").expect_err("three of any length");
        assert!(why.contains("called 3 times") && why.contains("in memory"), "{why}");
    }

    #[test]
    fn lost_records_are_no_figure() {
        for function in [READ, SENT] {
            let why = counted(function, Sums { own: 4096, lost: 3, ..Sums::default() }).expect_err("three are missing");
            assert!(why.contains("3 records lost"), "{why}");
        }
    }
}
