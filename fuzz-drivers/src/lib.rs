//! What the fuzz targets check, as functions of one input that panic where a rule is broken. libFuzzer calls them from
//! `fuzz/`, and tests call them with the seeds and the found cases.
//!
//! Inputs are bytes that one can read and write by hand: what the client sends, and after a line of `---` what an
//! upstream answers.

pub mod engine;
pub mod pieces;
pub mod strict;
pub mod target;

mod chunks;
mod exchange;
mod frames;
mod heads;
mod paths;
mod translation;

pub use chunks::h1_chunked;
pub use exchange::h1_exchange;
pub use heads::h1_head;
pub use paths::path_normalisation;
pub use translation::h2_translation;

/// What checks one input.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("h1_head", h1_head),
    ("h1_chunked", h1_chunked),
    ("h1_exchange", h1_exchange),
    ("h2_translation", h2_translation),
    ("path_normalisation", path_normalisation),
];
