//! See [`vnic_fuzz::introspect`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vnic_fuzz::introspect::run(data));
