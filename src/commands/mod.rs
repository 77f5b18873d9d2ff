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
use unisono::protocol::keyfile::KeyFileError;
use zeroize::Zeroizing;

/// Unix time in seconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Reads a key file.
pub fn read_key<K>(path: &Path, parse: impl FnOnce(&str) -> Result<K, KeyFileError>) -> Result<K> {
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    parse(&Zeroizing::new(text)).with_context(|| path.display().to_string())
}

/// Writes a key that must not exist yet, and says so.
pub fn write_key(path: &Path, text: &str, what: &str) -> Result<()> {
    unisono::files::create(path, text.as_bytes())
        .with_context(|| format!("can't write {} (a key is never overwritten)", path.display()))?;
    println!("{what}: {}", path.display());
    Ok(())
}
