//! Sockets: made, taken over, abandoned, inherited, waited for.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;

use super::super::listen::{Connector, Inherited, ListenError, Listener};
use super::*;

/// A directory of the test's own, gone with it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vnic-listen-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a directory");
        Place(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_listener_accepts_one_front_end_after_another_and_removes_its_file() {
    let place = Place::new("accept");
    let listener = Listener::bind(&place.socket()).expect("listener");
    assert!(listener.accept(listener.as_fd()).expect("accept").is_none());
    for _ in 0..2 {
        let _front_end = UnixStream::connect(place.socket()).expect("connect");
        assert!(listener.accept(listener.as_fd()).expect("accept").is_some());
    }
    drop(listener);
    assert!(!place.socket().exists());
}

#[test]
fn an_abandoned_socket_is_replaced() {
    let place = Place::new("abandoned");
    drop(UnixListener::bind(place.socket()).expect("bind"));
    assert!(place.socket().exists());
    let listener = Listener::bind(&place.socket()).expect("listener");
    UnixStream::connect(place.socket()).expect("connect");
    drop(listener);
}

#[test]
fn a_socket_that_is_served_is_left_alone() {
    let place = Place::new("served");
    let other = UnixListener::bind(place.socket()).expect("bind");
    assert!(matches!(Listener::bind(&place.socket()), Err(ListenError::InUse(_))));
    other.accept().expect("the probe");
    assert!(place.socket().exists());
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let place = Place::new("file");
    fs::write(place.socket(), "precious").expect("write");
    assert!(matches!(Listener::bind(&place.socket()), Err(ListenError::NotASocket(_))));
    let never = EventFd::new().expect("eventfd");
    assert!(matches!(Connector::new(&place.socket()).connect(never.as_fd()), Err(ListenError::NotASocket(_))));
    assert_eq!(fs::read_to_string(place.socket()).expect("read"), "precious");
}

#[test]
fn a_missing_directory_and_a_path_too_long_are_one_clear_error() {
    let place = Place::new("missing");
    let path = place.0.join("none/socket");
    let error = Listener::bind(&path).expect_err("no directory").to_string();
    assert_eq!(error, format!("{}: the directory {} does not exist", path.display(), place.0.join("none").display()));
    let never = EventFd::new().expect("eventfd");
    assert_eq!(Connector::new(&path).connect(never.as_fd()).expect_err("no directory").to_string(), error);
    let long = place.0.join("x".repeat(120));
    assert!(matches!(Listener::bind(&long), Err(ListenError::PathTooLong { .. })));
}

#[test]
fn a_replaced_socket_file_is_not_removed_by_the_one_it_replaced() {
    let place = Place::new("replaced");
    let first = Listener::bind(&place.socket()).expect("listener");
    let aside = place.0.join("aside");
    fs::rename(place.socket(), &aside).expect("rename");
    let _second = Listener::bind(&place.socket()).expect("listener");
    drop(first);
    assert!(place.socket().exists());
}

#[test]
fn a_client_waits_for_its_front_end() {
    let place = Place::new("client");
    let never = EventFd::new().expect("eventfd");
    let path = place.socket();
    let listener = thread::scope(|scope| {
        let client = scope.spawn(|| Connector::new(&path).connect(never.as_fd()));
        let listener = UnixListener::bind(&path).expect("bind");
        assert!(client.join().expect("client").expect("connect").is_some());
        listener
    });
    drop(listener);
}

#[test]
fn a_waiting_client_can_be_cancelled() {
    let place = Place::new("cancel");
    let cancel = EventFd::new().expect("eventfd");
    let path = place.socket();
    thread::scope(|scope| {
        let client = scope.spawn(|| Connector::new(&path).connect(cancel.as_fd()));
        cancel.write(1).expect("cancel");
        assert!(client.join().expect("client").expect("connect").is_none());
    });
}

#[test]
fn an_inherited_socket_is_listening_or_connected_or_no_use() {
    let place = Place::new("inherited");
    let listening = UnixListener::bind(place.socket()).expect("bind");
    let Ok(Inherited::Listening(listener)) = Inherited::new(listening.into()) else { panic!("it listens") };
    assert!(listener.accept(listener.as_fd()).expect("accept").is_none(), "accept does not wait");
    let (one, _other) = UnixStream::pair().expect("pair");
    assert!(matches!(Inherited::new(one.into()), Ok(Inherited::Connected(_))));
    let (pipe, _) = std::io::pipe().expect("pipe");
    assert!(matches!(Inherited::new(pipe.into()), Err(ListenError::NotAStream { .. })));
    let (datagram, _) = std::os::unix::net::UnixDatagram::pair().expect("pair");
    assert!(matches!(Inherited::new(datagram.into()), Err(ListenError::NotAStream { .. })));
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    assert!(matches!(Inherited::new(tcp.into()), Err(ListenError::NotAStream { .. })));
}

/// A front-end that accepts and hangs up, again and again.
#[test]
fn a_client_slows_down_while_its_connections_do_not_last() {
    let place = Place::new("flapping");
    let listener = UnixListener::bind(place.socket()).expect("bind");
    let never = EventFd::new().expect("eventfd");
    let mut connector = Connector::new(&place.socket());
    let start = Instant::now();
    assert_eq!(connector.pause_before(start), Duration::ZERO);
    assert!(connector.connect(never.as_fd()).expect("connect").is_some());
    drop(listener);
    let pauses: Vec<u128> = (0..8).map(|_| connector.pause_before(start).as_millis()).collect();
    assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1000, 1000]);
    let later = Instant::now() + Duration::from_secs(1);
    assert_eq!(connector.pause_before(later), Duration::ZERO, "that one lasted");
}
