//! `tests/vectors/*.json`: every step of docs/protocol.md with all its inputs, so that another implementation can be tested
//! with them, and so that a change of a byte is noticed here. `README.md` describes the files.
//!
//! Each file is computed anew and compared. `UNISONO_WRITE_VECTORS=1 cargo test --test vectors` writes them instead; whoever
//! does that changes the protocol.

mod derivation;
mod formats;
mod messages;
mod play;
mod primitives;
mod round;
mod service;
mod wire;

use std::convert::Infallible;
use std::path::Path;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_core::{TryCryptoRng, TryRng};
use serde_json::Value;

/// Compares `computed` with the file, or writes it.
fn check(name: &str, computed: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name);
    if std::env::var_os("UNISONO_WRITE_VECTORS").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(computed).unwrap() + "\n").unwrap();
    }
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    if let Some(at) = difference(&stored, computed, String::new()) {
        panic!("{name} differs at {at}");
    }
}

/// Path to the first value that differs.
fn difference(stored: &Value, computed: &Value, at: String) -> Option<String> {
    match (stored, computed) {
        (Value::Object(a), Value::Object(b)) if a.len() == b.len() => a.iter().find_map(|(key, a)| match b.get(key) {
            Some(b) => difference(a, b, format!("{at}/{key}")),
            None => Some(format!("{at}/{key}")),
        }),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| difference(a, b, format!("{at}/{i}")))
        }
        _ => (stored != computed).then_some(at),
    }
}

/// The shortest digits that give each number back. JSON's numbers are read to the last bit by few.
fn decimal(values: &[f32]) -> Vec<String> {
    values.iter().map(f32::to_string).collect()
}

/// A seeded generator that remembers what it gave.
struct Drawn {
    rng: ChaCha20Rng,
    bytes: Vec<u8>,
}

impl Drawn {
    fn new(seed: u64) -> Self {
        Self { rng: ChaCha20Rng::seed_from_u64(seed), bytes: Vec::new() }
    }

    /// What it gave since the last call.
    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

impl TryRng for Drawn {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        self.rng.try_fill_bytes(out)?;
        self.bytes.extend_from_slice(out);
        Ok(())
    }
}

impl TryCryptoRng for Drawn {}

/// Bytes that were drawn, to be drawn again.
struct Again<'a>(&'a [u8]);

impl TryRng for Again<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("secrets are drawn as bytes")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("secrets are drawn as bytes")
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        let (now, later) = self.0.split_at(out.len());
        out.copy_from_slice(now);
        self.0 = later;
        Ok(())
    }
}

impl TryCryptoRng for Again<'_> {}
