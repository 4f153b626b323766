//! See `nvmf_fuzz::ops`.
#![no_main]

libfuzzer_sys::fuzz_target!(|ops: nvmf_fuzz::ops::Case| nvmf_fuzz::ops::run(&ops));
