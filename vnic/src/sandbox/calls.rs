//! System calls: those that no thread makes, and those that each role makes. (seccomp)
//!
//! A role's list was made by running every test and every guest with `--sandbox log`, and reading the kernel's log; what the C
//! library does late (a panic's backtrace, the end of a thread, more memory) is on all of them.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::{Mode, Program, Role, SandboxError};

/// Rules by the number of the call; without a rule, the call whatever its arguments.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// No device makes these after it has begun: who tries is not ours any more.
const NEVER: &[i64] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_open_by_handle_at,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_personality,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    libc::SYS_memfd_secret,
];

/// Every thread: its memory, its locks, its files, the time, its end, and what a panic does.
const EVERY: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_fstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_fcntl,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getrandom,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_membarrier,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The sockets are removed where they still are its own; a thread that ended is joined.
const MAIN: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_shutdown,
];

/// Messages with files, and for the disk's configuration the image's size. Its socket is removed. One of its own: see `arguments`.
const SESSION: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_eventfd2,
    libc::SYS_fstatfs,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
];

const WORKER: &[i64] = &[
    libc::SYS_epoll_ctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_timerfd_settime,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_statx,
];

const CONTROL: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_setpriority,
    libc::SYS_mincore,
];

/// Memory of its own, with a file behind it.
const COPIES: &[i64] =
    &[libc::SYS_memfd_create, libc::SYS_ftruncate, libc::SYS_fstatfs, libc::SYS_newfstatat, libc::SYS_statx];

/// What a role makes beside those of [`EVERY`] thread.
fn of(role: Role, program: Program) -> &'static [&'static [i64]] {
    match (role, program) {
        // Its main thread is both. It waits for the back-end and for the front-end's end at once.
        (Role::Session { .. }, Program::Proxy) => {
            &[MAIN, SESSION, &[libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_mincore]]
        }
        // Whether the VM is still there is read off its memory.
        (Role::Main, Program::Attach) => &[MAIN, &[libc::SYS_pread64]],
        (Role::Main, _) => &[MAIN],
        (Role::Session { .. }, _) => &[MAIN, SESSION],
        (Role::Worker, _) => &[WORKER],
        (Role::Control, Program::Serve) => &[CONTROL],
        // The VM's memory, and what of it exists; rings are looked at in copies. Threads: see `arguments`, and `fall_back`.
        (Role::Control, Program::Attach) => &[CONTROL, COPIES, &[libc::SYS_pread64, libc::SYS_clone3]],
        // What can be opened, Landlock says.
        (Role::Control, Program::Proxy) => &[CONTROL, &[libc::SYS_openat, libc::SYS_clone3]],
        (Role::Writer, _) => &[&[libc::SYS_fsync, libc::SYS_fdatasync]],
        (Role::Connector, _) => &[&[libc::SYS_setsockopt, libc::SYS_recvfrom, libc::SYS_sendto, libc::SYS_recvmsg]],
        (Role::Starter, _) => &[],
    }
}

/// Requests that a tap device gets while it runs: what the driver negotiated, and which queues it uses. (`linux/if_tun.h`)
const TUN_REQUESTS: [u64; 3] = [
    nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>()) as u64,
    nix::request_code_write!(b'T', 216, size_of::<libc::c_int>()) as u64,
    nix::request_code_write!(b'T', 217, size_of::<libc::c_int>()) as u64,
];

/// Calls that a role makes with certain arguments only.
fn arguments(role: Role, program: Program) -> Result<Rules, SandboxError> {
    // A panic that aborts signals itself.
    let mut rules = Rules::from([(libc::SYS_tgkill, vec![is(0, u64::from(std::process::id()))?])]);
    // A socket is made one that does not wait.
    let mut requests = vec![is(1, libc::FIONBIO)?];
    if role == Role::Worker {
        for request in TUN_REQUESTS {
            requests.push(is(1, request)?);
        }
    }
    rules.insert(libc::SYS_ioctl, requests);
    match role {
        Role::Session { connects: true } | Role::Connector => {
            rules.insert(libc::SYS_socket, vec![is(0, libc::AF_UNIX as u64)?]);
            rules.insert(libc::SYS_connect, Vec::new());
        }
        // Who follows rings is served by threads that are started then, have a name, and are to be woken in time.
        Role::Control if program != Program::Serve => {
            let thread = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;
            rules.insert(libc::SYS_clone, vec![condition(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
            let wishes = [libc::PR_SET_NAME, libc::PR_SET_TIMERSLACK].map(|wish| is(0, wish as u64));
            rules.insert(libc::SYS_prctl, wishes.into_iter().collect::<Result<_, _>>()?);
        }
        _ => {}
    }
    Ok(rules)
}

/// The argument of this index is this value, as far as its 32 bits go.
fn is(index: u8, value: u64) -> Result<SeccompRule, SandboxError> {
    condition(index, SeccompCmpOp::Eq, value)
}

fn condition(index: u8, operation: SeccompCmpOp, value: u64) -> Result<SeccompRule, SandboxError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operation, value)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(|error| failed(error.into()))
}

fn failed(error: seccompiler::Error) -> SandboxError {
    SandboxError::new("filter system calls")(Box::new(error))
}

/// What no thread does from here on.
pub(super) fn never(mode: Mode) -> Result<BpfProgram, SandboxError> {
    let mut rules: Rules = NEVER.iter().map(|call| (*call, Vec::new())).collect();
    // New code does not come from anywhere: no executable memory is mapped, or made from other memory.
    let executable = libc::PROT_EXEC as u64;
    for call in [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
        rules.insert(call, vec![condition(2, SeccompCmpOp::MaskedEq(executable), executable)?]);
    }
    let refused = if mode == Mode::On { SeccompAction::KillProcess } else { SeccompAction::Log };
    program_of(rules, SeccompAction::Allow, refused)
}

/// What a thread of this role does: in the order in which they are to be applied.
pub(super) fn only(role: Role, program: Program, mode: Mode) -> Result<Vec<BpfProgram>, SandboxError> {
    let mut rules = arguments(role, program)?;
    rules.extend(EVERY.iter().chain(of(role, program).iter().copied().flatten()).map(|call| (*call, Vec::new())));
    let falls_back = mode == Mode::On && rules.contains_key(&libc::SYS_clone3);
    let refused = if mode == Mode::On { SeccompAction::Errno(libc::EPERM as u32) } else { SeccompAction::Log };
    let only = program_of(rules, refused, SeccompAction::Allow)?;
    // Under the last one there are no more to be had.
    Ok(falls_back.then(fall_back).transpose()?.into_iter().chain([only]).collect())
}

/// What `clone3` is to start stands in memory, where no filter can look: the C library is told that there is no such call, and makes
/// `clone`.
fn fall_back() -> Result<BpfProgram, SandboxError> {
    let rules = Rules::from([(libc::SYS_clone3, Vec::new())]);
    program_of(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
}

fn program_of(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, SandboxError> {
    let target = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| failed(error.into()))?;
    SeccompFilter::new(rules, otherwise, matched, target)
        .and_then(BpfProgram::try_from)
        .map_err(|error| failed(error.into()))
}

/// Filters this thread's system calls.
pub(super) fn apply(program: &BpfProgram) -> Result<(), SandboxError> {
    apply_filter(program).map_err(failed)
}
