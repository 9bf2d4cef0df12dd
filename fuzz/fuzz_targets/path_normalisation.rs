//! libFuzzer's way into [`sluice_fuzz_drivers::path_normalisation`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sluice_fuzz_drivers::path_normalisation(input));
