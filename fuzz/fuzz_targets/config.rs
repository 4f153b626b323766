//! See `nvmf_fuzz::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|case: nvmf_fuzz::config::Case| nvmf_fuzz::config::run(&case));
