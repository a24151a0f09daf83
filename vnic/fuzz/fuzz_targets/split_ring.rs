//! A split ring under a guest that writes whatever it likes whenever it likes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vnic_fuzz::ring::run(vnic_fuzz::ring::Format::Split, data));
