//! See `nvmf_fuzz::host_rx`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvmf_fuzz::host_rx::run(data));
