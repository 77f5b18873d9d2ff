//! One certified pair of sets for the whole cohort (sections 6 and 8): a coordinator that lies about who shared keys and who
//! survived, with colluders whose secrets and signatures it has, against the real devices. `knowledge` decides what it has learned.

#[allow(dead_code)]
#[path = "../../../../tests/vectors/derivation.rs"]
mod derivation;
#[allow(dead_code)]
#[path = "../rounds/world.rs"]
mod world;

mod knowledge;
mod malicious;
mod plan;

mod certificates;
mod encodings;
mod records;
mod two_sets;
