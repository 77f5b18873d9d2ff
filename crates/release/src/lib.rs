//! Sealed models of unisono, released ones and base models of rounds: one file for all devices, sealed and signed, and one small
//! grant per device (`docs/protocol.md` section 13).
//!
//! A sealed model is useless to whoever copies the file, can't be forged and can't be rolled back. Like the protocol, this crate
//! is sans-IO: bytes, time and randomness are arguments, and it does not parse the model.
//!
//! ```text
//! magic "UNISONO1" | u32 LE header length | header | chunk 0 | chunk 1 | ... | signature block
//! ```
//!
//! - the **header** ([`Header`]) is a `ReleaseHeader`, readable without a key and used as carried;
//! - the **chunks** hold 64 KiB of plaintext and a tag of 16 bytes each, the last one less, in the STREAM construction of
//!   Hoang, Reyhanitabar, Rogaway and Vizár (CRYPTO 2015, ePrint 2015/189) over ChaCha20-Poly1305 with a nonce prefix of
//!   zero, the key being used once. The associated data is the hash of the header. An empty payload is one chunk that is a
//!   tag only;
//! - the **signature block** is `header hash (32) | hash of the chunks (32) | Ed25519 signature | ML-DSA-65 signature`, the
//!   signatures over the two hashes. It carries the hashes so that a reader can say *which* part was exchanged. A base model in
//!   semi-honest mode has no signatures.
//!
//! Whoever holds the publisher's verifying key can check a release with [`Release::verify`], without any decryption key. A
//! device also holds a grant, from which [`open_grant`] takes the [`ContentKey`], and [`open`]s the release under its
//! [`OpenPolicy`]. The publisher [`seal`]s releases and issues grants with [`grant`]. A device verifies before it decrypts
//! and decrypts before it parses.

mod error;
mod file;
mod grant;
mod header;
mod key;
pub mod proto;
mod stream;
mod token;

pub use error::{Part, ReleaseError};
pub use file::{CHUNK_LEN, FUTURE_ALLOWANCE, MAGIC, OpenPolicy, Release, Seen, Signers, VersionRecord, open, seal};
pub use grant::{Issuer, Issuers, Recipient, grant, open_grant};
pub use header::{Header, MAX_HEADER_LEN, SUITE_V1, publisher_id};
pub use key::{ContentKey, KeyEncryptionKey, WRAPPED_KEY_LEN};
pub use stream::open_to;
pub use token::{PROOF_LEN, Token, TokenError};
