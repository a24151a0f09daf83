//! The functions of QEMU's plugin interface that are needed, declared by hand: no package has its header.
//!
//! Versions: QEMU 7.2 takes plugins for version 0 or 1 of the interface, QEMU 10.0 those for 2 to 4, QEMU 11.1 those for 7. What is used
//! here is the same in all of them but for the callbacks: until version 6 they are handed the plugin's number, from 7 on a word of the
//! plugin's own. A QEMU that knows 6 and not 7 refuses the plugin, and says so. The functions are looked up when the plugin is loaded: one
//! that QEMU lacks is an error with its name.

use std::ffi::{CString, c_int, c_uint, c_void};
use std::io::Write;
use std::ptr::null_mut;
use std::sync::OnceLock;

/// The last version that QEMU before 9 takes.
pub(crate) const OLD: i32 = 1;
/// The last one that hands callbacks the plugin's number and that QEMU from 9 on takes.
const BY_NUMBER: i32 = 4;
/// The first one that hands them a word of the plugin's own.
const BY_WORD: i32 = 7;
/// Came when version 1 went.
const SINCE_2: &str = "qemu_plugin_num_vcpus";
/// Came with version 6, which no QEMU known to us stopped at.
const SINCE_6: &str = "qemu_plugin_set_pc";

/// Registers are neither read nor written by a callback.
const NO_REGISTERS: c_int = 0;
/// Loads and stores.
const LOADS_AND_STORES: c_int = 3;

/// A plugin's number.
pub(crate) type Id = u64;
/// What is known of an access: packed by QEMU.
pub(crate) type MemInfo = u32;

/// A word of the plugin's own, which it has no use for.
type Word = *mut c_void;
type OnAccess = extern "C" fn(c_uint, MemInfo, u64, *mut c_void);

/// Declares functions of QEMU's, whose names begin with `qemu_plugin_`, and how they are found.
macro_rules! functions {
    ($(#[$about:meta])* $these:ident { $($name:ident: $type:ty,)* }) => {
        $(#[$about])*
        struct $these {
            $($name: $type,)*
        }

        impl $these {
            fn looked_up() -> Result<$these, String> {
                Ok($these {
                    $($name: {
                        let name = concat!("qemu_plugin_", stringify!($name));
                        let found = symbol(name).ok_or_else(|| format!("this QEMU has no {name}"))?;
                        // SAFETY: of the type that QEMU's header gives this name, in every version that these are looked up for.
                        unsafe { std::mem::transmute::<*mut c_void, $type>(found) }
                    },)*
                })
            }
        }
    };
}

functions! {
    /// The same in all versions.
    Common {
        register_vcpu_mem_cb: unsafe extern "C" fn(*mut c_void, OnAccess, c_int, c_int, *mut c_void),
        tb_n_insns: unsafe extern "C" fn(*const c_void) -> usize,
        tb_get_insn: unsafe extern "C" fn(*const c_void, usize) -> *mut c_void,
        insn_vaddr: unsafe extern "C" fn(*const c_void) -> u64,
        mem_size_shift: unsafe extern "C" fn(MemInfo) -> c_uint,
        mem_is_store: unsafe extern "C" fn(MemInfo) -> bool,
        get_hwaddr: unsafe extern "C" fn(MemInfo, u64) -> *const c_void,
        hwaddr_is_io: unsafe extern "C" fn(*const c_void) -> bool,
        hwaddr_phys_addr: unsafe extern "C" fn(*const c_void) -> u64,
    }
}

functions! {
    /// Those that take a callback, until version 6.
    ByNumber {
        register_vcpu_idle_cb: unsafe extern "C" fn(Id, extern "C" fn(Id, c_uint)),
        reset: unsafe extern "C" fn(Id, extern "C" fn(Id)),
        register_vcpu_tb_trans_cb: unsafe extern "C" fn(Id, extern "C" fn(Id, *mut c_void)),
    }
}

functions! {
    /// The same from version 7 on.
    ByWord {
        register_vcpu_idle_cb: unsafe extern "C" fn(Id, extern "C" fn(c_uint, Word), Word),
        reset: unsafe extern "C" fn(Id, extern "C" fn(Word), Word),
        register_vcpu_tb_trans_cb: unsafe extern "C" fn(Id, extern "C" fn(*mut c_void, Word), Word),
    }
}

enum Callbacks {
    ByNumber(ByNumber),
    ByWord(ByWord),
}

/// What was found in QEMU.
pub(crate) struct Functions {
    common: Common,
    callbacks: Callbacks,
    /// The plugin's number.
    id: Id,
}

/// What QEMU calls, in both ways: [`crate::idle`], [`crate::renewed`], [`crate::translated`].
mod call {
    use super::{Id, Word, c_uint, c_void};

    pub(super) extern "C" fn idle(_: Id, _: c_uint) {
        crate::idle();
    }
    pub(super) extern "C" fn idle_by_word(_: c_uint, _: Word) {
        crate::idle();
    }
    pub(super) extern "C" fn renewed(_: Id) {
        crate::renewed();
    }
    pub(super) extern "C" fn renewed_by_word(_: Word) {
        crate::renewed();
    }
    pub(super) extern "C" fn translated(_: Id, block: *mut c_void) {
        crate::translated(block);
    }
    pub(super) extern "C" fn translated_by_word(block: *mut c_void, _: Word) {
        crate::translated(block);
    }
}

static FUNCTIONS: OnceLock<Functions> = OnceLock::new();

fn symbol(name: &str) -> Option<*mut c_void> {
    let name = CString::new(name).ok()?;
    // SAFETY: a name with a zero at its end is looked up; nothing is called.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// The version of the interface to claim.
pub(crate) fn version() -> i32 {
    if symbol(SINCE_6).is_some() {
        BY_WORD
    } else if symbol(SINCE_2).is_some() {
        BY_NUMBER
    } else {
        OLD
    }
}

/// Says something where QEMU's own errors go.
pub(crate) fn complain(what: &str) {
    // Who cannot be told is not.
    let _ = writeln!(std::io::stderr(), "guest-touches: {what}");
}

impl Functions {
    /// Looks them up, for the plugin of this number and the version that it claimed.
    ///
    /// # Errors
    /// QEMU has no such function: its name.
    pub(crate) fn find(id: Id, version: i32) -> Result<(), String> {
        let callbacks = if version >= BY_WORD {
            Callbacks::ByWord(ByWord::looked_up()?)
        } else {
            Callbacks::ByNumber(ByNumber::looked_up()?)
        };
        let _ = FUNCTIONS.set(Functions { common: Common::looked_up()?, callbacks, id });
        Ok(())
    }

    /// Those that [`find`](Self::find) found.
    pub(crate) fn get() -> &'static Functions {
        FUNCTIONS.get().unwrap_or_else(|| std::process::abort())
    }

    /// Has QEMU say when a virtual CPU has nothing to do.
    pub(crate) fn on_idle(&self) {
        // SAFETY: QEMU's function, with the number it gave us and a callback of the type it wants.
        unsafe {
            match &self.callbacks {
                Callbacks::ByNumber(these) => (these.register_vcpu_idle_cb)(self.id, call::idle),
                Callbacks::ByWord(these) => (these.register_vcpu_idle_cb)(self.id, call::idle_by_word, null_mut()),
            }
        }
    }

    /// Has QEMU forget all that was registered and translated, and then say so.
    pub(crate) fn reset(&self) {
        // SAFETY: as above.
        unsafe {
            match &self.callbacks {
                Callbacks::ByNumber(these) => (these.reset)(self.id, call::renewed),
                Callbacks::ByWord(these) => (these.reset)(self.id, call::renewed_by_word, null_mut()),
            }
        }
    }

    /// Has QEMU show each block that it translates.
    pub(crate) fn on_translation(&self) {
        // SAFETY: as above.
        unsafe {
            match &self.callbacks {
                Callbacks::ByNumber(these) => (these.register_vcpu_tb_trans_cb)(self.id, call::translated),
                Callbacks::ByWord(these) => {
                    (these.register_vcpu_tb_trans_cb)(self.id, call::translated_by_word, null_mut());
                }
            }
        }
    }

    /// Has each access of a block's instructions call, with the instruction's address.
    pub(crate) fn on_each_access(&self, block: *mut c_void, call: OnAccess) {
        // SAFETY: the block is QEMU's, of the translation that goes on; its instructions live as long.
        unsafe {
            for index in 0..(self.common.tb_n_insns)(block) {
                let instruction = (self.common.tb_get_insn)(block, index);
                let at = std::ptr::with_exposed_provenance_mut((self.common.insn_vaddr)(instruction) as usize);
                (self.common.register_vcpu_mem_cb)(instruction, call, NO_REGISTERS, LOADS_AND_STORES, at);
            }
        }
    }

    /// Where in the guest's memory an access went; `None` for a device's registers.
    pub(crate) fn physical(&self, info: MemInfo, address: u64) -> Option<u64> {
        // SAFETY: asked of the access that QEMU calls about, as it must be; what comes back is valid during the call.
        unsafe {
            let place = (self.common.get_hwaddr)(info, address);
            (!place.is_null() && !(self.common.hwaddr_is_io)(place)).then(|| (self.common.hwaddr_phys_addr)(place))
        }
    }

    /// An access's bytes, and whether it is a store.
    pub(crate) fn size_and_kind(&self, info: MemInfo) -> (u64, bool) {
        // SAFETY: pure functions of a number.
        unsafe { (1 << ((self.common.mem_size_shift)(info) & 7), (self.common.mem_is_store)(info)) }
    }
}
