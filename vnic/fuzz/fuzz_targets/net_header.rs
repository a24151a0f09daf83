//! Chains as frames: the virtio-net header's checks, the packet parser, receive buffers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vnic_fuzz::net::run(data));
