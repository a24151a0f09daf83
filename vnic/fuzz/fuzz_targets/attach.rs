//! See [`vnic_fuzz::attach`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vnic_fuzz::attach::run(data));
