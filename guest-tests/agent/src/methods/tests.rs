//! Every method sends exactly the bytes asked for, over a loopback connection.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::thread;

use vnic::datagram::{Header, Kind};

use super::*;

/// What the far end got when `method` sent `bytes` from `offset` of a file of `content`.
fn sent_by(method: &Method, content: &[u8], offset: u64, bytes: u64, chunk: usize) -> (io::Result<u64>, Vec<u8>) {
    received(content, |file, socket| {
        let first_chunk_apart = false;
        let job =
            Job { file, socket, transfer: 7, offset, bytes, chunk, first_chunk_apart, program: &[], follower: &Nobody };
        (method.available)(&job).and_then(|()| (method.send)(&job))
    })
}

/// What `send` returned, and what the far end got.
fn received(content: &[u8], send: impl FnOnce(&File, &TcpStream) -> io::Result<u64>) -> (io::Result<u64>, Vec<u8>) {
    let mut file = crate::file::unlinked_temporary().expect("a temporary file");
    file.write_all(content).expect("the file is written");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let address = listener.local_addr().expect("its address");
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).expect("the stream is read");
        got
    });
    let socket = TcpStream::connect(address).expect("connected");
    let result = send(&file, &socket);
    drop(socket);
    (result, receiver.join().expect("the receiver ends"))
}

/// What is not to be had on this machine is tried in the guest.
fn is_unsupported(result: &io::Result<u64>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Unsupported)
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i % 251) as u8).collect()
}

#[test]
fn each_method_sends_the_asked_bytes_and_no_others() {
    let content = content(300_000);
    // Those that send other bytes than the file's are for the guest tests.
    for method in METHODS.iter().filter(|method| method.stream.is_none() && !method.datagrams) {
        for (offset, bytes, chunk) in
            [(0, 1, 65536), (0, 300_000, 65536), (4096, 65536, 65536), (4097, 123_457, 10_001), (299_999, 1, 1)]
        {
            let (result, got) = sent_by(method, &content, offset, bytes, chunk);
            let case = format!("{} offset {offset} bytes {bytes} chunk {chunk}", method.name);
            if is_unsupported(&result) {
                continue;
            }
            assert_eq!(result.expect(&case), bytes, "{case}");
            let from = usize::try_from(offset).expect("small");
            let to = from + usize::try_from(bytes).expect("small");
            assert!(got == content[from..to], "{case}: other bytes arrived");
        }
    }
}

#[test]
fn a_file_that_is_too_short_is_an_error_and_not_a_silent_end() {
    let content = content(10_000);
    for method in METHODS {
        let (result, got) = sent_by(method, &content, 0, 20_000, 4096);
        assert!(result.is_err(), "{} sent {} bytes of a file of 10000", method.name, got.len());
    }
}

#[test]
fn names_are_unique_and_found() {
    for method in METHODS {
        assert_eq!(by_name(method.name).map(|found| found.name), Some(method.name));
        assert_eq!(METHODS.iter().filter(|other| other.name == method.name).count(), 1);
    }
    assert!(by_name("telepathy").is_none());
}

#[test]
fn a_program_gets_the_file_and_the_connection_and_is_followed_once() {
    let content = content(100_000);
    for (program, paused, right) in [
        (&["cat"][..], false, true),
        (&["cat"], true, true),
        (&["sh", "-c", "echo what a pity >&2; exit 3"], false, false),
        (&["sh", "-c", "echo what a pity >&2; exit 3"], true, false),
        (&["no-such-program"], false, false),
        (&["no-such-program"], true, false),
    ] {
        let follower = Counter::default();
        let words: Vec<String> = program.iter().map(|word| (*word).to_owned()).collect();
        let (result, got) = received(&content, |file, socket| {
            program::send(&Job {
                file,
                socket,
                transfer: 0,
                offset: 1000,
                bytes: 99_000,
                chunk: 65536,
                first_chunk_apart: paused,
                program: &words,
                follower: &follower,
            })
        });
        match result {
            Ok(sent) => assert!(right && sent == 99_000 && got == content[1000..], "{program:?}"),
            Err(error) => {
                let error = error.to_string();
                assert!(!right && error.contains(program[0]), "{program:?}: {error}");
                assert!(program.len() == 1 || error.ends_with("exit status: 3: what a pity"), "{error}");
            }
        }
        assert_eq!(follower.0.get(), u32::from(program[0] != "no-such-program"), "{program:?}, paused: {paused}");
    }
}

#[test]
fn each_method_in_datagrams_sends_the_asked_bytes_with_headers_between() {
    // No more than a socket has room for: nobody reads meanwhile.
    let content = content(40_000);
    let mut file = crate::file::unlinked_temporary().expect("a temporary file");
    file.write_all(&content).expect("the file is written");
    for method in METHODS.iter().filter(|method| method.datagrams) {
        for (offset, bytes) in [(0, 1), (0, 40_000), (4096, 8192), (4097, 12_345)] {
            let case = format!("{} offset {offset} bytes {bytes}", method.name);
            let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a receiver");
            receiver.set_nonblocking(true).expect("it waits for nothing");
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a sender");
            socket.connect(receiver.local_addr().expect("its address")).expect("connected");
            let socket = TcpStream::from(OwnedFd::from(socket));
            let job = Job {
                file: &file,
                socket: &socket,
                transfer: 7,
                offset,
                bytes,
                chunk: 65536,
                first_chunk_apart: false,
                program: &[],
                follower: &Nobody,
            };
            let sent = (method.available)(&job).and_then(|()| (method.send)(&job));
            if is_unsupported(&sent) {
                continue;
            }
            assert_eq!(sent.expect(&case), bytes, "{case}");
            let (mut got, mut datagram) = (Vec::new(), [0; 2048]);
            while let Ok(read) = receiver.recv(&mut datagram) {
                let (header, payload) = Header::read(&datagram[..read]).expect("a header");
                assert_eq!(header, Header { kind: Kind::Data, transfer: 7, offset: got.len() as u64 }, "{case}");
                got.extend_from_slice(payload);
            }
            let from = usize::try_from(offset).expect("small");
            assert!(got == content[from..from + usize::try_from(bytes).expect("small")], "{case}: {}", got.len());
        }
    }
}

/// Counts how often it was told that something was taken.
#[derive(Debug, Default)]
struct Counter(std::cell::Cell<u32>);

impl Follower for Counter {
    fn taken(&self, _sent: u64) -> io::Result<()> {
        self.0.set(self.0.get() + 1);
        Ok(())
    }

    fn claim(&self, _what: &'static str, _count: u64) {}

    fn copied_on_write(&self, _bytes: u64) {}
}
