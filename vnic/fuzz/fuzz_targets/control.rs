//! See [`vnic_fuzz::control`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vnic_fuzz::control::run(data));
