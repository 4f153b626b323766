//! See `nvmf_fuzz::connect`.
#![no_main]

libfuzzer_sys::fuzz_target!(|case: nvmf_fuzz::connect::Case| nvmf_fuzz::connect::run(&case));
