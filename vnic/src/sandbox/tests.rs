//! What the kernel refuses once it is given up, each in a process of its own: what is given up stays so.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use super::*;

const CHILD: &str = "VNIC_TEST_SANDBOX";

/// Runs a test of this module in a process of its own.
fn alone(name: &str, test: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return test();
    }
    let program = std::env::current_exe().unwrap();
    let name = format!("sandbox::tests::{name}");
    let child = Command::new(program).args(["--exact", "--nocapture", &name]).env(CHILD, "1").output().unwrap();
    let said = [child.stdout, child.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn files_are_given_up_but_for_those_it_may_remove() {
    alone("files_are_given_up_but_for_those_it_may_remove", || {
        let folder = std::env::temp_dir().join(format!("vnic-sandbox-{}", std::process::id()));
        let [ours, others] = ["ours", "others"].map(|name| folder.join(name));
        for folder in [&ours, &others] {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join("socket"), "").unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut paths = Paths::default();
        paths.remove(&ours.join("socket"));
        files::give_up(&paths).unwrap();
        let kind = |error: io::Error| error.kind();
        assert_eq!(File::open(ours.join("socket")).map(drop).map_err(kind), Err(io::ErrorKind::PermissionDenied));
        assert_eq!(fs::write(ours.join("new"), "").map_err(kind), Err(io::ErrorKind::PermissionDenied));
        assert_eq!(fs::remove_file(others.join("socket")).map_err(kind), Err(io::ErrorKind::PermissionDenied));
        fs::remove_file(ours.join("socket")).unwrap();
        // Linux 6.7 asks about TCP as well.
        if Possible::on_this_kernel().landlock >= Some(4) {
            assert_eq!(TcpStream::connect(port).map(drop).map_err(kind), Err(io::ErrorKind::PermissionDenied));
        }
    });
}

#[test]
fn no_capability_is_left_nor_to_be_had_again() {
    alone("no_capability_is_left_nor_to_be_had_again", || {
        capabilities::drop_all().unwrap();
        let report = Kernel::open().report(Mode::On, Vec::new());
        assert_eq!(report.capabilities.as_deref(), Some("0000000000000000"));
        assert!(caps::raise(None, caps::CapSet::Effective, caps::Capability::CAP_CHOWN).is_err());
    });
}

#[test]
fn a_thread_keeps_what_its_role_needs_and_the_report_is_the_kernels_word() {
    alone("a_thread_keeps_what_its_role_needs_and_the_report_is_the_kernels_word", || {
        set(Mode::On, Program::Serve);
        let report = close(&Paths::default()).unwrap();
        assert_eq!((report.no_new_privileges, report.seccomp), (Some(true), Some(true)), "{report:?}");
        assert_eq!(report.landlock, Possible::on_this_kernel().landlock);
        let thread = std::thread::spawn(|| {
            enter(Role::Session { connects: true }).unwrap();
            let pair = std::os::unix::net::UnixStream::pair().map_err(|error| error.raw_os_error());
            let socket = std::os::unix::net::UnixStream::connect("/nowhere").map_err(|error| error.kind());
            let tcp = TcpStream::connect("127.0.0.1:1").map_err(|error| error.raw_os_error());
            (pair.err(), socket.err(), tcp.err())
        });
        let (pair, socket, tcp) = thread.join().unwrap();
        assert_eq!(pair, Some(Some(libc::EPERM)), "it makes no pairs");
        assert_eq!(socket, Some(io::ErrorKind::NotFound), "it dials its front-end");
        assert_eq!(tcp, Some(Some(libc::EPERM)));
    });
}

#[test]
fn to_log_refuses_nothing() {
    alone("to_log_refuses_nothing", || {
        set(Mode::Log, Program::Serve);
        let report = close(&Paths::default()).unwrap();
        enter(Role::Worker).unwrap();
        assert!(File::open("/proc/self/status").is_ok());
        assert_eq!((report.seccomp, report.landlock), (Some(true), None));
    });
}

#[test]
fn a_mode_is_one_of_three() {
    assert_eq!(["on", "log", "off"].map(|name| name.parse()), [Ok(Mode::On), Ok(Mode::Log), Ok(Mode::Off)]);
    assert!("maybe".parse::<Mode>().unwrap_err().to_string().contains("on, log"));
}
