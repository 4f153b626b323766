//! See `nvmf_fuzz::rx`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvmf_fuzz::rx::run(data));
