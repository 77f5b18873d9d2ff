//! The primitives of unisono: mask PRG, ring vectors, Shamir sharing, hybrid KEM and signatures, single-use AEAD, Merkle trees, KDF and MAC.
//!
//! This crate knows no network, no file, no clock and no async runtime. Randomness is an argument, so that the
//! callers decide between the operating system and, in tests and simulation, a seeded generator.
//! Each module names the section of `docs/protocol.md` and the standard that it implements.

pub mod aead;
mod bits;
mod error;
pub mod kdf;
pub mod kem;
pub mod merkle;
mod ml_kem;
pub mod prg;
pub mod ring;
pub mod secret;
pub mod shamir;
pub mod sign;
pub mod x25519;

pub use error::CryptoError;
