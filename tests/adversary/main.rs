//! A coordinator that lies, clients that cheat, a network that fails: each test is one attack, and shows both the refusal and
//! that no secret left the victim. `docs/security.md` has the table.
//!
//! Most attacks run on the real crates in memory; `over_grpc` plays the most telling ones against real processes' code over
//! real connections.

#[allow(dead_code)]
#[path = "../../crates/protocol/tests/rounds/lying.rs"]
mod lying;
#[allow(dead_code)]
#[path = "../../crates/protocol/tests/rounds/world.rs"]
mod world;

#[allow(dead_code)] // the wording of docs/protocol.md, of which a cheat needs a few lines
#[path = "../vectors/derivation.rs"]
mod derivation;

#[allow(dead_code)]
#[path = "../deployed/mod.rs"]
mod deployed;

#[allow(dead_code)]
#[path = "../../crates/protocol/tests/agreement/knowledge.rs"]
mod knowledge;
#[allow(dead_code)]
#[path = "../../crates/protocol/tests/agreement/malicious.rs"]
mod malicious;
#[allow(dead_code)]
#[path = "../../crates/protocol/tests/agreement/plan.rs"]
mod plan;

mod coordinator;
mod harness;
#[allow(dead_code)] // late offers are for tests/withstand
mod proxy;

mod cheating_clients;
mod dealers;
mod durability;
mod grants;
mod keys_and_adverts;
mod late;
mod models;
mod models_over_grpc;
mod over_grpc;
mod roster;
mod shares;
mod shipped_elsewhere;
mod small_disk;
mod survivors;
mod tap;
mod topology;
mod transport;
mod uploads;
