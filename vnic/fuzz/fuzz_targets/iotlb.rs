//! See [`vnic_fuzz::iotlb`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vnic_fuzz::iotlb::run(data));
