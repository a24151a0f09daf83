//! Chains as requests for a disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vnic_fuzz::disk::run(data));
