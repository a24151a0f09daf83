//! Records of what is in flight.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vnic_fuzz::in_flight::run(data));
