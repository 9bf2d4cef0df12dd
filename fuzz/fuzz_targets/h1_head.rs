//! libFuzzer's way into [`sluice_fuzz_drivers::h1_head`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sluice_fuzz_drivers::h1_head(input));
