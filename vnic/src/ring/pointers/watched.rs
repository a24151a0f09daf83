//! The atomics of ring memory as tests and fuzzers have them: an access can be interrupted, or made in a model of memory.
//!
//! Place: overlaid on ring memory by the rest of the pointer layer instead of those of `std`, in test and fuzz builds. Both
//! halves of a ring run as they are; what is different is what an access does.
//!
//! Operation, thread by thread:
//! - [`interrupted`] runs something with an interruption before each load and behind each store: there a hostile guest
//!   writes at the very moment that hurts most, and a test counts what is read.
//! - [`modelled`] runs something inside `loom`: each word of the ring is then one of loom's atomics, found by its address,
//!   and loom shows every value that the memory model lets a load see.
//!
//! Limits: loom knows no mixed sizes; a word of the ring is always accessed in one size, and the used ring's elements word
//! by word (`is_modelled`). Buffers and indirect tables are not modelled: nothing is copied while it looks on.

use std::cell::RefCell;
use std::sync::atomic::{self as real, Ordering};

/// What is done to a word of ring memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// It will be loaded.
    Load,
    /// It was stored.
    Store,
}

type Interruption = Box<dyn FnMut(Touch, usize)>;

thread_local! {
    static INTERRUPTION: RefCell<Option<Interruption>> = const { RefCell::new(None) };
}

/// Runs `f`; before each load of ring memory that it does, and behind each store, `interruption` gets the word's host
/// address.
pub fn interrupted<R>(interruption: impl FnMut(Touch, usize) + 'static, f: impl FnOnce() -> R) -> R {
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            INTERRUPTION.take();
        }
    }
    INTERRUPTION.replace(Some(Box::new(interruption)));
    let _end = End;
    f()
}

fn touch(what: Touch, at: usize) {
    // Taken out meanwhile: what the interruption does is not interrupted.
    if let Some(mut interruption) = INTERRUPTION.take() {
        interruption(what, at);
        INTERRUPTION.replace(Some(interruption));
    }
}

macro_rules! atomics {
    ($($name:ident($integer:ty) $field:ident;)*) => {
        $(
            /// As the one in `std`.
            #[repr(transparent)]
            #[derive(Debug)]
            pub(in crate::ring) struct $name(real::$name);

            impl $name {
                /// # Safety
                /// As in `std`.
                pub(super) const unsafe fn from_ptr<'a>(at: *mut $integer) -> &'a Self {
                    // SAFETY: the caller's contract; the layout is the same.
                    unsafe { &*at.cast::<$name>() }
                }

                fn at(&self) -> usize {
                    std::ptr::from_ref(self) as usize
                }

                pub(in crate::ring) fn load(&self, order: Ordering) -> $integer {
                    touch(Touch::Load, self.at());
                    #[cfg(test)]
                    if let Some(word) = model::find(|words| &mut words.$field, self.at(), || self.0.load(order)) {
                        return word.load(order);
                    }
                    self.0.load(order)
                }

                pub(in crate::ring) fn store(&self, value: $integer, order: Ordering) {
                    #[cfg(test)]
                    if let Some(word) = model::find(|words| &mut words.$field, self.at(), || self.0.load(Ordering::Relaxed)) {
                        return word.store(value, order);
                    }
                    self.0.store(value, order);
                    touch(Touch::Store, self.at());
                }
            }
        )*

        #[cfg(test)]
        mod model {
            use std::cell::RefCell;
            use std::collections::HashMap;
            use std::rc::Rc;

            use loom::sync::atomic;

            /// The words of ring memory in this execution, by address.
            #[derive(Default)]
            pub(super) struct Words {
                $(pub(super) $field: HashMap<usize, Rc<atomic::$name>>,)*
            }

            thread_local! {
                // Loom runs all of its threads on one of the system's, one at a time.
                pub(super) static WORDS: RefCell<Option<Words>> = const { RefCell::new(None) };
            }

            /// What the two sizes have in common.
            pub(super) trait Word {
                type Value;
                fn new(value: Self::Value) -> Self;
            }

            $(impl Word for atomic::$name {
                type Value = $integer;
                fn new(value: $integer) -> Self {
                    atomic::$name::new(value)
                }
            })*

            /// The modelled word at `at`, if there is a model; a new one has the value that stands in memory.
            pub(super) fn find<W: Word>(
                of: impl FnOnce(&mut Words) -> &mut HashMap<usize, Rc<W>>,
                at: usize,
                value: impl FnOnce() -> W::Value,
            ) -> Option<Rc<W>> {
                WORDS.with_borrow_mut(|words| {
                    Some(of(words.as_mut()?).entry(at).or_insert_with(|| Rc::new(W::new(value()))).clone())
                })
            }
        }
    };
}

atomics! {
    AtomicU16(u16) words16;
    AtomicU32(u32) words32;
    AtomicU64(u64) words64;
}

impl AtomicU16 {
    pub(in crate::ring) fn compare_exchange(
        &self,
        current: u16,
        new: u16,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u16, u16> {
        touch(Touch::Load, self.at());
        #[cfg(test)]
        if let Some(word) = model::find(|words| &mut words.words16, self.at(), || self.0.load(failure)) {
            return word.compare_exchange(current, new, success, failure);
        }
        let exchanged = self.0.compare_exchange(current, new, success, failure);
        if exchanged.is_ok() {
            touch(Touch::Store, self.at());
        }
        exchanged
    }
}

/// As the one in `std`.
pub(super) fn fence(order: Ordering) {
    #[cfg(test)]
    if is_modelled() {
        return loom::sync::atomic::fence(order);
    }
    real::fence(order);
}

/// Is ring memory loom's at the moment?
#[cfg(test)]
pub(super) fn is_modelled() -> bool {
    model::WORDS.with_borrow(Option::is_some)
}

/// Runs `f` as often as loom finds another order of events, with ring memory that is loom's: at the start of each run it
/// holds what stands in the real one, which is never written. Rings are to be made before threads are spawned.
#[cfg(test)]
pub(in crate::ring) fn modelled(f: impl Fn() + Send + Sync + 'static) {
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            model::WORDS.take();
        }
    }
    let mut builder = loom::model::Builder::new();
    // With three switches at places where none is necessary, all known mistakes show; without a bound, hours pass.
    builder.preemption_bound = None;
    builder.check(move || {
        model::WORDS.set(Some(model::Words::default()));
        let _end = End;
        f();
    });
}
