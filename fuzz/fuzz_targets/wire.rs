//! See `nvmf_fuzz::wire`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvmf_fuzz::wire::run(data));
