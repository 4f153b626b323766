//! See `nvmf_fuzz::target`.
#![no_main]

libfuzzer_sys::fuzz_target!(|case: nvmf_fuzz::target::Case| nvmf_fuzz::target::run(&case));
