//! The aggregation protocol of unisono: parameters, graph, encoding and both sides' state machines.
//!
//! Sans-IO: bytes come in, bytes go out; time and randomness are arguments. No network, no file, no async runtime, so the
//! same code serves a device, the coordinator, a simulator and a test. The specification is `docs/protocol.md`.
//!
//! - [`client`] holds the device's side, [`client::Session`];
//! - [`server`] holds the states of the coordinator, one type a phase;
//! - [`roster`] is what the registrar publishes, [`policy`] what a client refuses;
//! - [`keyfile`] is the text in which keys are stored;
//! - [`params`], [`degree`], [`graph`] and [`encoding`] are what both sides compute alike;
//! - [`rotation`] spreads large elements of an update before it is clipped;
//! - [`privacy`] is the noise of differential privacy, and what it guarantees;
//! - [`traffic`] is what all of it costs a client, in bytes.

pub mod bitmap;
pub mod client;
pub mod cohort;
pub mod degree;
pub mod encoding;
pub mod graph;
pub mod ids;
pub mod keyfile;
mod pairwise;
pub mod params;
pub mod phase;
pub mod policy;
pub mod privacy;
pub mod proto;
pub mod roster;
pub mod rotation;
pub mod server;
pub mod signed;
pub mod traffic;

pub use ids::{ClientId, CohortId, RoundId};
