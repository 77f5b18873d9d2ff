//! The subcommands, and what they share.

pub mod admin;
pub mod client;
pub mod coordinator;
pub mod keys;
pub mod metrics;
pub mod model;
pub mod registrar;
pub mod simulate;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use unisono::protocol::keyfile::{self, KeyFileError};

/// Unix time in seconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Reads the file of a public key.
pub fn read_key<K>(path: &Path, parse: impl FnOnce(&str) -> Result<K, KeyFileError>) -> Result<K> {
    let text = keyfile::read_public(path).with_context(|| format!("can't read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

/// Reads the file of a secret key, which nobody else may read.
pub fn read_secret<K>(path: &Path, parse: impl FnOnce(&str) -> Result<K, KeyFileError>) -> Result<K> {
    let text = keyfile::read_secret(path).with_context(|| format!("can't read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

/// Writes a key that must not exist yet, and says so.
pub fn write_key(path: &Path, text: &str, what: &str) -> Result<()> {
    unisono::files::create(path, text.as_bytes())
        .with_context(|| format!("can't write {} (a key is never overwritten)", path.display()))?;
    println!("{what}: {}", path.display());
    Ok(())
}
