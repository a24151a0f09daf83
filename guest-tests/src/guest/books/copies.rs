//! How many bytes went through the kernel's copying functions.
//!
//! Operation: each function is watched by a kprobe event where the kernel takes one, else by a hardware breakpoint, else
//! not at all, and then its figure is `None` and the reason says what each refused. The functions do not call each
//! other (`copy_page_to_iter` and `__pskb_pull_tail`, which do call them, are not watched), so the sum counts each copy
//! once.
//!
//! Two of them run in the program's own system calls: only this process's calls count, and copies of others meanwhile
//! are told apart. The others run wherever TCP happens to send from, interrupts included: all calls count, and the
//! guest must be quiet.

use super::breakpoint::{Breakpoint, Register, Sums};
use super::symbols::{self, Symbols};
use super::tracefs::Kprobe;

use vnic::record::wire;

/// One of the functions.
#[derive(Debug, Clone, Copy)]
struct Function {
    name: &'static str,
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

const FUNCTIONS: [Function; 5] = [
    Function { name: "_copy_to_iter", length: Length::In(Register::Si), context: Context::SystemCall },
    Function { name: "_copy_from_iter", length: Length::In(Register::Si), context: Context::SystemCall },
    Function { name: "skb_copy_bits", length: Length::In(Register::Cx), context: Context::Stack },
    Function { name: "skb_copy_and_csum_bits", length: Length::In(Register::Cx), context: Context::Stack },
    Function { name: "skb_copy_ubufs", length: Length::Fragments, context: Context::Stack },
];

/// The names, in the record's order.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.iter().map(|function| function.name)
}

/// All of them, being watched.
#[derive(Debug)]
pub(super) struct Copies(Vec<(Function, Result<Counter, String>)>);

#[derive(Debug)]
enum Counter {
    Kprobe(Kprobe),
    Breakpoint(Breakpoint),
}

impl Copies {
    /// Gets ready for a transfer of `bytes`.
    pub(super) fn open(bytes: u64) -> Copies {
        let symbols = Symbols::read();
        Copies(FUNCTIONS.map(|function| (function, Counter::open(function, bytes, &symbols))).into())
    }

    /// Counts from here.
    pub(super) fn start(&mut self) {
        for (_, counter) in &mut self.0 {
            if let Ok(Counter::Breakpoint(breakpoint)) = counter
                && let Err(error) = breakpoint.start()
            {
                *counter = Err(format!("its breakpoint: {error}"));
            }
        }
    }

    /// Makes room for more; no system call.
    pub(super) fn drain(&mut self) {
        for (_, counter) in &mut self.0 {
            if let Ok(Counter::Breakpoint(breakpoint)) = counter {
                breakpoint.drain();
            }
        }
    }

    /// The program's system calls are over.
    pub(super) fn stop_system_calls(&mut self) {
        for (function, counter) in &mut self.0 {
            if function.context == Context::SystemCall
                && let Ok(Counter::Breakpoint(breakpoint)) = counter
                && let Err(error) = breakpoint.stop()
            {
                *counter = Err(format!("its breakpoint: {error}"));
            }
        }
    }

    /// Writes what was counted into the record.
    pub(super) fn close(self, books: &mut wire::Books) {
        let mut others = 0;
        for (function, counter) in self.0 {
            let counted = counter.and_then(|counter| counter.close(function.context, &mut others));
            if let Err(why) = &counted {
                books.reasons.insert(format!("copied_bytes.{}", function.name), why.clone());
            }
            books.copied_bytes.insert(function.name.to_owned(), counted.ok());
        }
        if others > 0 {
            let note = format!("the guest was not quiet: other programs copied {others} bytes meanwhile, not counted");
            books.reasons.insert("copied_bytes".to_owned(), note);
        }
    }
}

impl Counter {
    fn open(function: Function, bytes: u64, symbols: &Symbols) -> Result<Counter, String> {
        // First of all: a function that this kernel lacks is no matter of privileges.
        let address = symbols.address_of(function.name)?;
        let argument = match function.length {
            Length::In(Register::Cx) => "%cx:u32".to_owned(),
            Length::In(Register::Si) => "%si:u64".to_owned(),
            Length::Fragments => format!("+{}(%di):u32", symbols::offset_of("sk_buff", "data_len")?),
        };
        let refused = match Kprobe::open(function.name, &argument) {
            Ok(kprobe) if function.context == Context::Stack => return Ok(Counter::Kprobe(kprobe)),
            // A histogram would do here too, but its sum does not tell processes apart.
            Ok(_) => None,
            Err(error) => Some(error),
        };
        let kprobe = || refused.as_ref().map_or_else(String::new, |error| format!("; a kprobe event: {error}"));
        let Length::In(register) = function.length else {
            return Err(format!("it has its length in memory, which no breakpoint sees{}", kprobe()));
        };
        match Breakpoint::open(address, register, 2 * bytes.div_ceil(PAGE)) {
            Ok(breakpoint) => Ok(Counter::Breakpoint(breakpoint)),
            Err(error) => Err(format!("a hardware breakpoint: {error}{}", kprobe())),
        }
    }

    fn close(self, context: Context, others: &mut u64) -> Result<u64, String> {
        match self {
            Counter::Kprobe(kprobe) => kprobe.sum(),
            Counter::Breakpoint(mut breakpoint) => {
                breakpoint.stop().map_err(|error| format!("its breakpoint: {error}"))?;
                match (breakpoint.sums(), context) {
                    (Sums { lost: 1.., .. }, _) => {
                        Err("more calls than their ring had room for: records lost".to_owned())
                    }
                    (sums, Context::Stack) => Ok(sums.own.saturating_add(sums.others)),
                    (sums, Context::SystemCall) => {
                        *others += sums.others;
                        Ok(sums.own)
                    }
                }
            }
        }
    }
}
