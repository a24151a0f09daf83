//! How many bytes went through the kernel's copying functions.
//!
//! Operation: each function is watched by a kprobe event where the kernel takes one, else by a hardware breakpoint, else
//! not at all, and then its figure is `None` and the reason says what each refused. A breakpoint sees registers only: of a
//! function whose length is in memory it tells whether it was called, and where it never was, nothing was copied. The functions do not call each
//! other (`copy_page_to_iter` and `__pskb_pull_tail`, which do call them, are not watched), so the sum counts each copy
//! once.
//!
//! Two of them run in the program's own system calls: only this process's calls count, and copies of others meanwhile
//! are told apart. The others run wherever TCP happens to send from, in an interrupt of whoever runs then: all calls
//! count, and the guest must be quiet. Whether it was is in the notes.

use super::Sender;
use super::breakpoint::{Breakpoint, Register};
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

/// Bytes of the least copy that a ring must have room for: a page at a time.
const PAGE: u64 = wire::PAGE_SIZE;

impl Function {
    const fn new(name: &'static str, length: Length, context: Context) -> Function {
        Function { name, symbol: name, length, context }
    }
}

const FUNCTIONS: [Function; 5] = [
    Function::new("_copy_to_iter", Length::In(Register::Si), Context::SystemCall),
    Function::new("_copy_from_iter", Length::In(Register::Si), Context::SystemCall),
    Function::new("skb_copy_bits", Length::In(Register::Cx), Context::Stack),
    Function::new("skb_copy_and_csum_bits", Length::In(Register::Cx), Context::Stack),
    Function::new("skb_copy_ubufs", Length::Fragments, Context::Stack),
];

/// Where there is this one, pages and what TCP sends are copied without `_copy_to_iter` and `_copy_from_iter`: their figures
/// would be right, and no sum of the copies. Seen on 5.10, where a `read` of 4 MiB went through neither.
const BEFORE_5_14: &str = "_copy_from_iter_full";

/// Called once for each record of a TLS connection that the kernel enciphers, with how long its content is.
/// `crypto_aead_encrypt` would not do: some of its ciphers call it again.
const CIPHER: Function =
    Function { symbol: "tls_make_aad", ..Function::new(wire::CIPHER, Length::In(Register::Si), Context::Stack) };

/// The names, in the record's order.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.iter().map(|function| function.name)
}

/// All of them, being watched.
#[derive(Debug)]
pub(super) struct Copies {
    functions: Vec<(Function, Result<Counter, String>)>,
    owner: Owner,
}

#[derive(Debug)]
enum Counter {
    Kprobe(Kprobe),
    Breakpoint(Breakpoint),
    /// Sees calls and not how much they copy: the reason for it.
    Calls(Breakpoint, String),
}

impl Copies {
    /// Gets ready for a transfer of `bytes`.
    pub(super) fn open(bytes: u64, path_kind: PathKind, sender: Sender) -> Copies {
        let symbols = Symbols::read();
        let cipher = (path_kind == PathKind::Cipher).then_some(CIPHER);
        let functions = FUNCTIONS.into_iter().chain(cipher);
        let functions = functions.map(|function| (function, Counter::open(function, bytes, &symbols))).collect();
        Copies { functions, owner: Owner::of(sender) }
    }

    /// Counts from here.
    pub(super) fn start(&mut self) {
        for (_, counter) in &mut self.functions {
            if let Some(breakpoint) = breakpoint_of(counter)
                && let Err(error) = breakpoint.start()
            {
                *counter = Err(format!("its breakpoint: {error}"));
            }
        }
    }

    /// Makes room for more; no system call.
    pub(super) fn drain(&mut self) {
        for (_, counter) in &mut self.functions {
            if let Some(breakpoint) = breakpoint_of(counter) {
                breakpoint.drain();
            }
        }
    }

    /// The program's system calls are over.
    pub(super) fn stop_system_calls(&mut self) {
        for (function, counter) in &mut self.functions {
            if function.context == Context::SystemCall
                && let Some(breakpoint) = breakpoint_of(counter)
                && let Err(error) = breakpoint.stop()
            {
                *counter = Err(format!("its breakpoint: {error}"));
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

fn breakpoint_of(counter: &mut Result<Counter, String>) -> Option<&mut Breakpoint> {
    match counter {
        Ok(Counter::Breakpoint(breakpoint) | Counter::Calls(breakpoint, _)) => Some(breakpoint),
        Ok(Counter::Kprobe(_)) | Err(_) => None,
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
        if function.context == Context::SystemCall && symbols.address_of(BEFORE_5_14).is_ok() {
            return Err(format!("this kernel copies past it, too, as those before 5.14 do: it has {BEFORE_5_14}"));
        }
        let argument = match function.length {
            Length::In(Register::Cx) => "%cx:u32".to_owned(),
            Length::In(Register::Si) => "%si:u64".to_owned(),
            Length::Fragments => format!("+{}(%di):u32", symbols::offset_of("sk_buff", "data_len")?),
        };
        let refused = match Kprobe::open(function.symbol, &argument) {
            Ok(kprobe) if function.context == Context::Stack => return Ok(Counter::Kprobe(kprobe)),
            // A histogram would do here too, but its sum does not tell processes apart.
            Ok(_) => None,
            Err(error) => Some(error),
        };
        let kprobe = || refused.as_ref().map_or_else(String::new, |error| format!("; a kprobe event: {error}"));
        let register = match function.length {
            Length::In(register) => register,
            // Any will do.
            Length::Fragments => Register::Si,
        };
        match (Breakpoint::open(address, register, 2 * bytes.div_ceil(PAGE)), function.length) {
            (Ok(breakpoint), Length::In(_)) => Ok(Counter::Breakpoint(breakpoint)),
            (Ok(breakpoint), Length::Fragments) => {
                Ok(Counter::Calls(breakpoint, format!("its length is in memory, which no breakpoint sees{}", kprobe())))
            }
            (Err(error), _) => Err(format!("a hardware breakpoint: {error}{}", kprobe())),
        }
    }

    fn close(self, context: Context, owner: &Owner) -> Result<Counted, String> {
        let sums = match self {
            Counter::Kprobe(kprobe) => {
                let mut sums = Sums::default();
                sums.count(&kprobe.sums()?, owner);
                sums
            }
            Counter::Breakpoint(mut breakpoint) => {
                breakpoint.stop().map_err(|error| format!("its breakpoint: {error}"))?;
                breakpoint.sums(owner)
            }
            Counter::Calls(mut breakpoint, why) => {
                breakpoint.stop().map_err(|error| format!("its breakpoint: {error}"))?;
                return Counted::of_calls(breakpoint.calls(), &why);
            }
        };
        Counted::new(sums, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Function = FUNCTIONS[0];
    const SENT: Function = FUNCTIONS[2];

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
