//! Any bytes, any files, in any order: no panic, no file left open, and a device that is always told to stop.

use proptest::prelude::*;

use super::messages::request;
use super::*;
use crate::spec::vhost_user::{Iotlb, RequestCode};

/// A piece of what a hostile front-end writes.
#[derive(Debug, Clone)]
enum Piece {
    /// A request as it should be, with this many files.
    Request(Request, u32, usize),
    /// A header with any code and size, and any payload.
    Message { code: u32, flags: u32, size: Option<u32>, payload: Vec<u8>, files: usize },
    /// Bytes.
    Bytes(Vec<u8>, usize),
    /// What brings a ring to life, so that the rest meets a running one.
    Setup,
}

fn piece() -> impl Strategy<Value = Piece> {
    let flags = prop_oneof![4 => Just(0), 4 => Just(FLAG_NEED_REPLY), 1 => any::<u32>()];
    let size = prop_oneof![3 => Just(None), 1 => (0..700_u32).prop_map(Some), 1 => any::<u32>().prop_map(Some)];
    let code = prop_oneof![8 => 0..45_u32, 1 => any::<u32>()];
    let payload = prop::collection::vec(any::<u8>(), 0..80);
    prop_oneof![
        4 => (request(), flags.clone(), 0..10_usize).prop_map(|(request, flags, files)| Piece::Request(request, flags, files)),
        4 => (small(), flags.clone()).prop_map(|(request, flags)| {
            let files = match request.code() {
                RequestCode::SetVringKick | RequestCode::SetVringCall | RequestCode::SetVringErr | RequestCode::SetBackendReqFd => 1,
                _ => 0,
            };
            Piece::Request(request, flags, files)
        }),
        3 => (code, flags, size, payload, 0..10_usize).prop_map(|(code, flags, size, payload, files)| {
            Piece::Message { code, flags, size, payload, files }
        }),
        1 => (prop::collection::vec(any::<u8>(), 0..40), 0..3_usize).prop_map(|(bytes, files)| Piece::Bytes(bytes, files)),
        3 => Just(Piece::Setup),
    ]
}

/// Requests with values that are right or nearly so.
fn small() -> impl Strategy<Value = Request> {
    let index = 0..5_u32;
    prop_oneof![
        index.clone().prop_map(kick),
        index.clone().prop_map(call),
        index.clone().prop_map(err),
        index.clone().prop_map(get_base),
        (index.clone(), 0..3_u32).prop_map(|(index, on)| enable(index, on)),
        (index.clone(), 0..300_u32).prop_map(|(index, size)| num(index, size)),
        (index.clone(), 0..300_u64).prop_map(|(index, page)| addr(index, page * 0x1000)),
        (index, any::<u32>()).prop_map(|(index, at)| base(index, at)),
        any::<u64>().prop_map(|bits| Request::SetFeatures(OFFERED.and(Features(bits)))),
        any::<u64>().prop_map(|bits| Request::SetProtocolFeatures(ProtocolFeatures(bits & PROTOCOL.0))),
        (0..16_u64).prop_map(Request::SetStatus),
        Just(Request::ResetDevice),
        Just(Request::SetBackendReqFd),
        (0..RAM, 0..0x3000_u64, 0..4_u8, 0..4_u8).prop_map(|(at, size, permissions, kind)| {
            Request::IotlbMsg(Iotlb { iova: at << 12, size, user_address: USER_BASE + at, permissions, kind })
        }),
    ]
}

fn write(bench: &mut Bench, bytes: &[u8], files: usize) {
    // An empty write cannot carry files; a socket that the other end closed cannot carry anything.
    if !bytes.is_empty() {
        let files: Vec<OwnedFd> = (0..files).map(|_| bench.watched_file()).collect();
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        let _ = send_on(bench.socket.as_fd(), bytes, &borrowed);
    }
}

fn play(bench: &mut Bench, piece: Piece) {
    match piece {
        Piece::Request(request, flags, files) => write(bench, &request.to_bytes(flags), files),
        Piece::Message { code, flags, size, payload, files } => {
            let size = size.unwrap_or(payload.len() as u32);
            let mut bytes: Vec<u8> = [code, VERSION | flags, size].iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.extend(payload);
            write(bench, &bytes, files);
        }
        Piece::Bytes(bytes, files) => write(bench, &bytes, files),
        Piece::Setup => {
            let table = bench.table();
            let features = Request::SetFeatures(Features(0x1_4000_0000));
            for request in [features, table, num(0, 256), addr(0, 0x1000), kick(0)] {
                bench.send(&Ask::Plain(request));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(512), ..ProptestConfig::default() })]

    #[test]
    fn nothing_a_front_end_sends_panics_or_leaks(pieces in prop::collection::vec(piece(), 1..40)) {
        let mut bench = Bench::new();
        bench.send(&Ask::Plain(Request::SetProtocolFeatures(PROTOCOL)));
        let mut ended = false;
        'session: for piece in pieces {
            play(&mut bench, piece);
            loop {
                match bench.handle() {
                    Ok(Handled::Nothing) => break,
                    Ok(Handled::Done(_) | Handled::Refused(_)) => {}
                    Ok(Handled::Closed) | Err(_) => {
                        ended = true;
                        break 'session;
                    }
                }
                // The front-end reads what it is told, or it would be dropped for that alone.
                let mut replies = [0; 4096];
                bench.socket.set_nonblocking(true).expect("fcntl");
                let _ = bench.socket.read(&mut replies);
                bench.socket.set_nonblocking(false).expect("fcntl");
            }
        }
        if !ended {
            bench.session.end(&mut bench.device);
        }
        prop_assert!(bench.device.running.is_empty());
        prop_assert_eq!(bench.device.calls.last().map(String::as_str), Some("memory 0"));
        let Bench { session, eyes, .. } = bench;
        drop(session);
        let bench = Bench { eyes, ..Bench::new() };
        prop_assert_eq!(bench.open_files(), 0);
    }
}
