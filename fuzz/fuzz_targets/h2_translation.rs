//! libFuzzer's way into [`sluice_fuzz_drivers::h2_translation`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sluice_fuzz_drivers::h2_translation(input));
