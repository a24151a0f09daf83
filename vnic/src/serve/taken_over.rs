//! What a worker gets done that was taken over: each attempt in a process of its own, which is locked in as `vnic serve` is. And the
//! same attempts by the threads of `vnic attach` and `vnic proxy`: the main one, and one that answers.

mod elsewhere;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Output};
use std::sync::OnceLock;

use super::*;
use crate::backend::{Progress, Queues};
use crate::memory::testing::GuestRam;
use crate::sandbox;

/// What the process of a test is told: what to attempt, and on what.
const ATTEMPT: &str = "VNIC_TEST_ATTEMPT";
const ON: &str = "VNIC_TEST_ATTEMPT_ON";

/// A guest's memory, made while a file can be made; by now the file is empty.
static RAM: OnceLock<GuestRam> = OnceLock::new();

/// A data path that was taken over: it attempts something as soon as it is called.
struct TakenOver {
    attempt: fn(&str) -> io::Result<()>,
    on: String,
}

impl DataPath for TakenOver {
    fn pass(&mut self, _queues: &mut Queues, _now: Instant) -> Progress {
        say(&format!("it said: {:?}", (self.attempt)(&self.on).map_err(|error| error.raw_os_error())));
        std::process::exit(0);
    }
}

/// To the test, which hears what this process prints.
fn say(line: &str) {
    writeln!(io::stdout(), "{line}").unwrap();
}

/// Runs the attempt in a process of its own, by the test of this name, which is this one. Here the process's output is returned.
fn attempt(test: &str, on: &str, attempt: fn(&str) -> io::Result<()>) -> Output {
    if std::env::var_os(ATTEMPT).is_some() {
        let path = std::env::temp_dir().join(format!("vnic-taken-over-{}", std::process::id()));
        let ram = RAM.get_or_init(|| GuestRam::new(1 << 20).unwrap());
        nix::unistd::ftruncate(ram.fd(), 0).unwrap();
        sandbox::set(sandbox::Mode::On, sandbox::Program::Serve);
        let mut process = Process::prepare(PollMode::Adaptive, &[]).unwrap();
        let taken_over = TakenOver { attempt, on: std::env::var(ON).unwrap() };
        process.add(&Endpoint::Listen(path), Rng { queue_size: 64 }, taken_over).unwrap();
        say(&format!("it ended: {:?}", process.run().map_err(|error| error.to_string())));
        std::process::exit(0);
    }
    let name = format!("serve::taken_over::{test}");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "--nocapture", &name]).env(ATTEMPT, test).env(ON, on).env("RUST_BACKTRACE", "1");
    child.output().unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

/// An attempt that the kernel refuses, and one that it answers by ending the process.
macro_rules! attempts {
    ($($name:ident($on:expr) $outcome:ident $attempt:expr;)*) => {
        $(#[test]
        fn $name() {
            let output = attempt(stringify!($name), $on, $attempt);
            $outcome(&output);
        })*

        /// All of them, for those who attempt them elsewhere.
        const ATTEMPTS: &[Attempt] = &[
            $(Attempt { name: stringify!($name), on: $on, holds: Outcome::$outcome, attempt: $attempt },)*
        ];
    };
}

/// One of the attempts.
#[derive(Clone, Copy)]
struct Attempt {
    name: &'static str,
    on: &'static str,
    holds: Outcome,
    attempt: fn(&str) -> io::Result<()>,
}

/// What comes of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "named as the functions that assert them")]
enum Outcome {
    refused,
    killed,
    works,
}

fn refused(output: &Output) {
    assert!(said(output).contains("it said: Err(Some(1))"), "{}", said(output));
}

fn killed(output: &Output) {
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{}", said(output));
}

fn works(output: &Output) {
    assert!(said(output).contains("it said: Ok(())"), "{}", said(output));
}

attempts! {
    a_file_is_not_opened("/etc/passwd") refused |path| File::open(path).map(drop);
    no_file_is_made("/tmp/vnic-taken-over-made") refused |path| File::create(path).map(drop);
    no_folder_is_read("/") refused |path| fs::read_dir(path).map(drop);
    no_file_is_removed("/etc/hostname") refused |path| fs::remove_file(path);
    no_thread_is_started("") refused |_| std::thread::Builder::new().spawn(|| ()).map(drop);
    no_program_is_started("/bin/true") refused |program| Command::new(program).status().map(drop);
    nobody_is_signalled("") refused |_| Ok(nix::sys::signal::kill(nix::unistd::getppid(), None)?);
    nothing_is_executed("/bin/true") killed |program| {
        let program = std::ffi::CString::new(program)?;
        Ok(nix::unistd::execv(&program, &[&program]).map(drop)?)
    };
    nobody_is_traced("") killed |_| Ok(nix::sys::ptrace::attach(nix::unistd::getppid())?);
    nobody_elses_memory_is_read("") killed |_| {
        let from = [nix::sys::uio::RemoteIoVec { base: 0x1000, len: 1 }];
        let mut to = [0];
        let into = &mut [io::IoSliceMut::new(&mut to)];
        Ok(nix::sys::uio::process_vm_readv(nix::unistd::getppid(), into, &from).map(drop)?)
    };
    no_memory_becomes_executable("") killed |_| {
        let region = vm_memory::mmap::MmapRegionBuilder::<()>::new(4096);
        let region = region.with_mmap_prot(libc::PROT_READ | libc::PROT_EXEC).with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        region.build().map(drop).map_err(io::Error::other)
    };
    no_namespace_is_entered("") killed |_| Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)?);
    no_rights_come_back("") killed |_| Ok(nix::unistd::setuid(nix::unistd::Uid::from_raw(0))?);
    memory_is_to_be_had("") works |_| {
        drop((0..64).map(|_| vec![1_u8; 1 << 20]).collect::<Vec<_>>());
        Ok(())
    };
    a_file_that_shrinks_is_survived("") works |_| {
        let memory = RAM.get().ok_or(io::ErrorKind::NotFound)?.memory();
        let slice = memory.slice(0, 4096, crate::memory::Access::Read).map_err(io::Error::other)?;
        let mut bytes = [1; 16];
        slice.copy_to(&mut bytes);
        if bytes == [0; 16] { Ok(()) } else { Err(io::Error::other("what is not there was read")) }
    };
}

#[test]
fn nothing_is_connected_to() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let output = attempt("nothing_is_connected_to", &port.local_addr().unwrap().to_string(), |address| {
        TcpStream::connect(address).map(drop)
    });
    refused(&output);
}

#[test]
fn nor_is_a_socket_of_this_machine() {
    let path = std::env::temp_dir().join(format!("vnic-taken-over-by-{}", std::process::id()));
    let _listener = UnixListener::bind(&path);
    let output =
        attempt("nor_is_a_socket_of_this_machine", path.to_str().unwrap(), |path| UnixStream::connect(path).map(drop));
    let _ = fs::remove_file(&path);
    refused(&output);
}

#[test]
fn a_panic_says_where_it_was_and_ends_the_process_as_ever() {
    let output = attempt("a_panic_says_where_it_was_and_ends_the_process_as_ever", "", |_| panic!("a bug in a device"));
    let said = said(&output);
    assert!(said.contains("taken_over.rs") && said.contains("stack backtrace:"), "{said}");
    assert!(said.contains("it ended: Err(\"a worker failed: it panicked: a bug in a device\")"), "{said}");
}
