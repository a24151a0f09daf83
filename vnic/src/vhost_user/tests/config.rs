//! A device that has its configuration space itself, and replies of any length.

use super::Ask::{Acked, Plain};
use super::*;
use crate::vhost_user::message::{ConfigAccess, Reply};
use crate::vhost_user::socket::{Connection, Received};

/// A session over ten bytes of configuration space.
fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.device.config = Some((0..10).collect());
    let protocol = PROTOCOL.with(ProtocolFeature::Config);
    bench.run(&[(Plain(Request::SetProtocolFeatures(protocol)), "")]);
    bench
}

fn access(offset: u32, bytes: &[u8]) -> ConfigAccess {
    ConfigAccess { offset, flags: 0, bytes: bytes.to_vec() }
}

/// The payload of the reply to a question.
fn ask(bench: &mut Bench, offset: u32, size: usize) -> Vec<u8> {
    bench.send(&Plain(Request::GetConfig(access(offset, &vec![0xee; size]))));
    assert!(matches!(bench.handle(), Ok(Handled::Done(_))));
    let mut head = [0; HEADER_LEN];
    bench.socket.read_exact(&mut head).unwrap();
    assert_eq!(head[..8], [24, 0, 0, 0, (VERSION | FLAG_REPLY) as u8, 0, 0, 0]);
    let mut payload = vec![0; u32::from_le_bytes(head[8..].try_into().unwrap()) as usize];
    bench.socket.read_exact(&mut payload).unwrap();
    payload
}

#[test]
fn any_part_of_the_configuration_space_can_be_read_and_nothing_beyond() {
    let mut bench = bench();
    assert_eq!(ask(&mut bench, 0, 10)[12..], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(ask(&mut bench, 8, 2), [8, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 8, 9]);
    for (offset, size) in [(8, 3), (11, 0), (u32::MAX, 256), (0, 256)] {
        assert_eq!(ask(&mut bench, offset, size), [0; 0], "an empty payload says that there is none");
    }
}

#[test]
fn what_the_driver_writes_reaches_the_device_unless_it_lies_beyond_the_end() {
    let mut bench = bench();
    bench.run(&[
        (Plain(Request::SetConfig(access(4, &[7, 8]))), "config at 4 [07, 08]"),
        (Acked(Request::SetConfig(access(9, &[7, 8]))), "refused: SET_CONFIG: offset 0x9 is not allowed; = 0x1"),
        (Acked(Request::SetConfig(access(4, &[9]))), "config at 4 [09]; = 0x0"),
    ]);
}

#[test]
fn a_size_that_is_not_the_payloads_is_refused() {
    let mut long = Request::SetConfig(access(0, &[1, 2])).to_bytes(0);
    long[HEADER_LEN + 4] = 3;
    let mut endless = Request::SetConfig(access(0, &[1, 2])).to_bytes(0);
    endless[HEADER_LEN + 5] = 1;
    let expected = ["14 bytes of payload instead of 15", "size 0x102 is not allowed"];
    for (bytes, expected) in [long, endless].into_iter().zip(expected) {
        let mut bench = bench();
        bench.write(&bytes);
        let outcome = bench.outcome(25);
        assert!(outcome.ends_with(&format!("SET_CONFIG: {expected}")), "{outcome}");
    }
}

#[test]
fn a_reply_can_carry_files() {
    let (near, far) = UnixStream::pair().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut reply = Reply::number(7);
    reply.fds.push(writer.into());
    let fds: Vec<BorrowedFd<'_>> = reply.fds.iter().map(AsFd::as_fd).collect();
    // As a request, since what comes in is one: the header's flags are all that differs.
    let mut bytes = reply.to_bytes(31);
    bytes[4] = VERSION as u8;
    Connection::new(near.into()).send(&bytes, &fds).unwrap();
    drop(reply);
    let Received::Message(message) = Connection::new(far.into()).receive().unwrap() else { panic!("no message") };
    assert_eq!((message.payload.as_slice(), message.fds.len()), (&7_u64.to_le_bytes()[..], 1));
    drop(message);
    assert_eq!((&reader).read(&mut [0]).unwrap(), 0, "the file was the pipe's");
}
