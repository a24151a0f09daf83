//! The functions of QEMU's plugin interface that are needed, declared by hand: no package has its header.
//!
//! Versions: QEMU 7.2 takes plugins for version 0 or 1 of the interface, QEMU 10.0 those for 2 to 4. What is used here is the
//! same in all of them. The functions are looked up when the plugin is loaded: one that QEMU lacks is an error with its name.

use std::ffi::{CString, c_int, c_uint, c_void};
use std::io::Write;
use std::sync::OnceLock;

/// The last version that QEMU before 9 takes.
pub(crate) const OLD: i32 = 1;
/// One that QEMU from 9 on takes.
const NEW: i32 = 4;
/// Came when version 1 went.
const SINCE_NEW: &str = "qemu_plugin_num_vcpus";

/// Registers are neither read nor written by a callback.
const NO_REGISTERS: c_int = 0;
/// Loads and stores.
const LOADS_AND_STORES: c_int = 3;

/// A plugin's number.
pub(crate) type Id = u64;
/// What is known of an access: packed by QEMU.
pub(crate) type MemInfo = u32;

type OnIdle = extern "C" fn(Id, c_uint);
type OnReset = extern "C" fn(Id);
type OnTranslation = extern "C" fn(Id, *mut c_void);
type OnAccess = extern "C" fn(c_uint, MemInfo, u64, *mut c_void);

/// Declares functions of QEMU's, whose names begin with `qemu_plugin_`, and how they are found.
macro_rules! functions {
    ($($name:ident: $type:ty,)*) => {
        /// What was found in QEMU.
        pub(crate) struct Functions {
            $($name: $type,)*
        }

        impl Functions {
            fn looked_up() -> Result<Functions, String> {
                Ok(Functions {
                    $($name: {
                        let name = concat!("qemu_plugin_", stringify!($name));
                        let found = symbol(name).ok_or_else(|| format!("this QEMU has no {name}"))?;
                        // SAFETY: of the type that QEMU's header gives this name, in every version that `version` claims.
                        unsafe { std::mem::transmute::<*mut c_void, $type>(found) }
                    },)*
                })
            }
        }
    };
}

functions! {
    register_vcpu_idle_cb: unsafe extern "C" fn(Id, OnIdle),
    reset: unsafe extern "C" fn(Id, OnReset),
    register_vcpu_tb_trans_cb: unsafe extern "C" fn(Id, OnTranslation),
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

static FUNCTIONS: OnceLock<Functions> = OnceLock::new();

fn symbol(name: &str) -> Option<*mut c_void> {
    let name = CString::new(name).ok()?;
    // SAFETY: a name with a zero at its end is looked up; nothing is called.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// The version of the interface to claim.
pub(crate) fn version() -> i32 {
    if symbol(SINCE_NEW).is_some() { NEW } else { OLD }
}

/// Says something where QEMU's own errors go.
pub(crate) fn complain(what: &str) {
    // Who cannot be told is not.
    let _ = writeln!(std::io::stderr(), "guest-touches: {what}");
}

impl Functions {
    /// Looks them up.
    ///
    /// # Errors
    /// QEMU has no such function: its name.
    pub(crate) fn find() -> Result<(), String> {
        let _ = FUNCTIONS.set(Functions::looked_up()?);
        Ok(())
    }

    /// Those that [`find`](Self::find) found.
    pub(crate) fn get() -> &'static Functions {
        FUNCTIONS.get().unwrap_or_else(|| std::process::abort())
    }

    pub(crate) fn on_idle(&self, id: Id, call: OnIdle) {
        // SAFETY: QEMU's function, with the number it gave us and a callback of the type it wants.
        unsafe { (self.register_vcpu_idle_cb)(id, call) }
    }

    /// Has QEMU forget all that was registered and translated, and then call.
    pub(crate) fn reset(&self, id: Id, call: OnReset) {
        // SAFETY: as above.
        unsafe { (self.reset)(id, call) }
    }

    pub(crate) fn on_translation(&self, id: Id, call: OnTranslation) {
        // SAFETY: as above.
        unsafe { (self.register_vcpu_tb_trans_cb)(id, call) }
    }

    /// Has each access of a block's instructions call, with the instruction's address.
    pub(crate) fn on_each_access(&self, block: *mut c_void, call: OnAccess) {
        // SAFETY: the block is QEMU's, of the translation that goes on; its instructions live as long.
        unsafe {
            for index in 0..(self.tb_n_insns)(block) {
                let instruction = (self.tb_get_insn)(block, index);
                let at = std::ptr::with_exposed_provenance_mut((self.insn_vaddr)(instruction) as usize);
                (self.register_vcpu_mem_cb)(instruction, call, NO_REGISTERS, LOADS_AND_STORES, at);
            }
        }
    }

    /// Where in the guest's memory an access went; `None` for a device's registers.
    pub(crate) fn physical(&self, info: MemInfo, address: u64) -> Option<u64> {
        // SAFETY: asked of the access that QEMU calls about, as it must be; what comes back is valid during the call.
        unsafe {
            let place = (self.get_hwaddr)(info, address);
            (!place.is_null() && !(self.hwaddr_is_io)(place)).then(|| (self.hwaddr_phys_addr)(place))
        }
    }

    /// An access's bytes, and whether it is a store.
    pub(crate) fn size_and_kind(&self, info: MemInfo) -> (u64, bool) {
        // SAFETY: pure functions of a number.
        unsafe { (1 << ((self.mem_size_shift)(info) & 7), (self.mem_is_store)(info)) }
    }
}
