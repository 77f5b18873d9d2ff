//! Bodies of the fuzz targets, as functions of bytes that must not panic. `cargo fuzz` runs them through `fuzz_targets/`,
//! and the root's `tests/fuzz_corpus.rs` includes this file and replays the seeds with any toolchain.

#![forbid(unsafe_code)]

pub mod client;
pub mod decoders;
pub mod files;
pub mod handlers;
pub mod release;
pub mod roster;
pub mod seeds;
pub mod server;
pub mod stored;
pub mod tamper;
#[allow(dead_code)] // made for another test, which uses all of it
#[path = "../../crates/protocol/tests/rounds/world.rs"]
pub mod world;

/// What a target does with bytes.
type Target = fn(&[u8]);

/// A target by name.
pub const TARGETS: [(&str, Target); 5] = [
    ("decoders", decoders::run),
    ("files", files::run),
    ("client", client::run),
    ("server", server::run),
    ("handlers", handlers::run),
];
