//! A front-end that sends whatever it likes, files included, to a session with real workers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vnic_fuzz::front_end::run(data));
