//! A TCG plugin for QEMU: counts the bytes that the guest's CPU loads from and stores to watched guest-physical pages.
//!
//! | module | one sentence |
//! |---|---|
//! | [`counts`] | which pages are watched, and what the CPU did there |
//! | [`qemu`] | the functions of QEMU's plugin interface that are needed, declared by hand |
//! | [`server`] | the socket where one says which pages are watched, and reads the counts |
//!
//! Place: `run-qemu.sh --touches` loads it (`-plugin libguest_touches.so,socket=PATH`). It needs nothing in the guest and
//! sees every access, whatever does it: a copy, a checksum, a cipher.
//!
//! Operation: memory accesses are only looked at while pages are watched, for it makes the guest several times slower. The
//! server says so in [`WANTED`]; the next time the guest's CPU has nothing to do ([`idle`]), all translated code is thrown
//! away, and what is translated from then on calls [`access`].
//!
//! Limits: an access that crosses a page's border counts for the page it starts in. Under KVM there is no such plugin.

mod counts;
mod qemu;
mod server;

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use counts::{Access, COUNTS};
use qemu::{Functions, Id, MemInfo};

/// The version of the interface that this plugin was made for, as QEMU reads it: [`choose_version`] writes it before.
#[unsafe(export_name = "qemu_plugin_version")]
pub static VERSION: AtomicI32 = AtomicI32::new(qemu::OLD);

/// Runs when the library is loaded, before QEMU looks at [`VERSION`].
#[used]
#[unsafe(link_section = ".init_array")]
static CHOOSE_VERSION: extern "C" fn() = choose_version;

/// Are accesses to be looked at?
static WANTED: AtomicBool = AtomicBool::new(false);
/// Are they?
static ARMED: AtomicBool = AtomicBool::new(false);
/// Is the code being thrown away at the moment?
static CHANGING: AtomicBool = AtomicBool::new(false);

extern "C" fn choose_version() {
    VERSION.store(qemu::version(), Ordering::Relaxed);
}

/// QEMU's call when it has loaded the plugin; anything but 0 has it give up.
///
/// # Safety
/// QEMU hands over `argc` arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let arguments = (0..usize::try_from(argc).unwrap_or(0)).map(|index| {
        // SAFETY: argv has argc strings, each with a zero at its end.
        unsafe { CStr::from_ptr(*argv.add(index)) }.to_string_lossy().into_owned()
    });
    match install(id, arguments) {
        Ok(()) => 0,
        Err(why) => {
            qemu::complain(&why);
            -1
        }
    }
}

fn install(id: Id, mut arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let socket = match (arguments.next(), arguments.next()) {
        (Some(one), None) => one.strip_prefix("socket=").filter(|path| !path.is_empty()).map(str::to_owned),
        _ => None,
    };
    let socket = socket.ok_or("it is told one thing: socket=PATH, where it answers")?;
    let version = VERSION.load(Ordering::Relaxed);
    Functions::find(id, version)?;
    // From 4 GiB on, an old QEMU tells where in its RAM an access went, which is not its address in the guest.
    let limit = if version == qemu::OLD { 4 << 30 } else { u64::MAX };
    server::start(&socket, limit).map_err(|error| format!("{socket}: {error}"))?;
    Functions::get().on_idle();
    Ok(())
}

/// A virtual CPU has nothing to do.
fn idle() {
    let differs = WANTED.load(Ordering::Acquire) != ARMED.load(Ordering::Acquire);
    if differs && !CHANGING.swap(true, Ordering::AcqRel) {
        Functions::get().reset();
    }
}

/// All translated code is gone, and all that was registered.
fn renewed() {
    let wanted = WANTED.load(Ordering::Acquire);
    if wanted {
        Functions::get().on_translation();
    }
    Functions::get().on_idle();
    ARMED.store(wanted, Ordering::Release);
    CHANGING.store(false, Ordering::Release);
}

/// QEMU translates a block of instructions.
fn translated(block: *mut c_void) {
    Functions::get().on_each_access(block, access);
}

/// An instruction has read or written memory; `instruction` is its address.
extern "C" fn access(_cpu: c_uint, info: MemInfo, address: u64, instruction: *mut c_void) {
    if let Some(at) = Functions::get().physical(info, address) {
        let (bytes, is_store) = Functions::get().size_and_kind(info);
        // The kernel's half of the address space.
        let by_kernel = (instruction.expose_provenance() as u64) >> 63 == 1;
        COUNTS.add(Access { at, bytes, is_store, by_kernel });
    }
}
