//! unisono: secure aggregation for federated learning, from the device to the signed, encrypted model.
//!
//! This facade re-exports the crates, and adds what the `unisono` command and the examples share: a [`registrar`] that keeps
//! its devices in a folder, and a softmax regression on labelled [`examples`].
//!
//! - an application embeds [`client`];
//! - a service runs [`coordinator`], or the command `unisono coordinator`;
//! - a researcher simulates thousands of clients with [`sim`], or drives [`protocol`] in memory (`examples/in_memory_round.rs`).

pub use unisono_client as client;
pub use unisono_coordinator as coordinator;
pub use unisono_crypto as crypto;
pub use unisono_protocol as protocol;
pub use unisono_release as release;
pub use unisono_sim as sim;
pub use unisono_wire as wire;

pub mod examples;
pub mod federation;
pub mod files;
pub mod local;
pub mod plot;
pub mod registrar;
pub mod softmax;
