//! Bytes to types and back.

use proptest::prelude::*;

use super::super::message::{RULES, Rule, parse, parse_header};
use super::*;
use crate::memory::{RegionSpec, UserAddr};
use crate::spec::vhost_user::{Iotlb, MAX_PAYLOAD, RequestCode};

fn vring_state() -> impl Strategy<Value = VringState> {
    (any::<u32>(), any::<u32>()).prop_map(|(index, num)| VringState { index, num })
}

fn vring_file() -> impl Strategy<Value = VringFile> {
    (0..256_u32, any::<bool>()).prop_map(|(index, present)| VringFile { index, present })
}

fn region() -> impl Strategy<Value = RegionSpec> {
    any::<[u64; 4]>().prop_map(|[gpa, size, user, mmap_offset]| RegionSpec {
        gpa: Gpa(gpa),
        size,
        user_addr: UserAddr(user),
        mmap_offset,
    })
}

pub(super) fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        Just(Request::GetFeatures),
        any::<u64>().prop_map(|bits| Request::SetFeatures(Features(bits))),
        Just(Request::SetOwner),
        Just(Request::ResetOwner),
        prop::collection::vec(region(), 0..=8).prop_map(Request::SetMemTable),
        vring_state().prop_map(Request::SetVringNum),
        any::<(u32, u32, [u64; 4])>().prop_map(|(index, flags, [descriptor, used, available, log])| {
            Request::SetVringAddr(VringAddr { index, flags, descriptor, used, available, log })
        }),
        vring_state().prop_map(Request::SetVringBase),
        vring_state().prop_map(Request::GetVringBase),
        vring_file().prop_map(Request::SetVringKick),
        vring_file().prop_map(Request::SetVringCall),
        vring_file().prop_map(Request::SetVringErr),
        Just(Request::GetProtocolFeatures),
        any::<u64>().prop_map(|bits| Request::SetProtocolFeatures(ProtocolFeatures(bits))),
        Just(Request::GetQueueNum),
        vring_state().prop_map(Request::SetVringEnable),
        any::<[u8; 6]>().prop_map(Request::SendRarp),
        any::<u64>().prop_map(Request::NetSetMtu),
        Just(Request::ResetDevice),
        Just(Request::GetMaxMemSlots),
        region().prop_map(Request::AddMemReg),
        region().prop_map(Request::RemMemReg),
        any::<u64>().prop_map(Request::SetStatus),
        Just(Request::GetStatus),
        Just(Request::SetBackendReqFd),
        any::<([u64; 3], u8, u8)>().prop_map(|([iova, size, user_address], permissions, kind)| {
            Request::IotlbMsg(Iotlb { iova, size, user_address, permissions, kind })
        }),
    ]
}

fn files_of(request: &Request) -> usize {
    match request {
        Request::SetMemTable(regions) => regions.len(),
        Request::AddMemReg(_) | Request::SetBackendReqFd => 1,
        Request::SetVringKick(file) | Request::SetVringCall(file) | Request::SetVringErr(file) => {
            usize::from(file.present)
        }
        _ => 0,
    }
}

fn header_of(bytes: &[u8]) -> [u8; HEADER_LEN] {
    bytes[..HEADER_LEN].try_into().expect("a header")
}

proptest! {
    #[test]
    fn a_request_survives_the_trip_through_bytes(request in request()) {
        let bytes = request.to_bytes(FLAG_NEED_REPLY);
        let header = parse_header(header_of(&bytes)).expect("header");
        prop_assert_eq!(header.size as usize, bytes.len() - HEADER_LEN);
        let rule = Rule::of(header.request).expect("rule");
        prop_assert_eq!(parse(rule, &bytes[HEADER_LEN..], files_of(&request)).expect("request"), request);
    }

    #[test]
    fn a_payload_of_another_size_is_refused(request in request(), cut in 1..8_usize, longer: bool) {
        let mut payload = request.payload();
        let files = files_of(&request);
        if longer {
            payload.extend(vec![0; cut]);
        } else if payload.len() >= cut {
            payload.truncate(payload.len() - cut);
        } else {
            return Ok(());
        }
        let rule = Rule::of(request.code() as u32).expect("rule");
        let refused = matches!(parse(rule, &payload, files), Err(SessionError::Size { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn another_number_of_files_is_refused(request in request(), files in 0..10_usize) {
        let tolerated = matches!(request, Request::RemMemReg(_)) && files <= 1;
        if files == files_of(&request) || tolerated {
            return Ok(());
        }
        let rule = Rule::of(request.code() as u32).expect("rule");
        let parsed = parse(rule, &request.payload(), files);
        let refused = matches!(parsed, Err(SessionError::Fds { fds, .. }) if fds == files);
        prop_assert!(refused);
    }
}

#[test]
fn there_is_one_rule_for_each_request() {
    let codes: Vec<RequestCode> = RULES.iter().map(|rule| rule.code).collect();
    assert_eq!(codes, RequestCode::ALL);
}

#[test]
fn headers_after_which_nothing_can_be_understood_are_refused() {
    let header = |flags: u32, size: u32| {
        parse_header(header_of(&[1_u32.to_le_bytes(), flags.to_le_bytes(), size.to_le_bytes()].concat()))
    };
    assert!(matches!(header(0, 0), Err(SessionError::Version { request: 1, version: 0 })));
    assert!(matches!(header(3, 0), Err(SessionError::Version { request: 1, version: 3 })));
    assert!(matches!(header(5, 0), Err(SessionError::UnexpectedReply { request: 1 })));
    assert!(matches!(header(1, MAX_PAYLOAD as u32 + 1), Err(SessionError::PayloadTooLong { .. })));
    assert!(matches!(header(1, u32::MAX), Err(SessionError::PayloadTooLong { .. })));
    assert!(header(9, MAX_PAYLOAD as u32).is_ok());
}
