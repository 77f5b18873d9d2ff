//! Randomness: the operating system's, unless a test or a simulation gives a seed.

use getrandom::SysRng;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_core::{CryptoRng, UnwrapErr};

/// A generator of its own for one call.
pub fn rng(seed: Option<[u8; 32]>) -> Box<dyn CryptoRng + Send> {
    match seed {
        Some(seed) => Box::new(ChaCha20Rng::from_seed(seed)),
        None => Box::new(UnwrapErr(SysRng)),
    }
}

/// Unix time in seconds, unless the caller has its own clock.
pub fn unix_time(now: Option<u64>) -> u64 {
    let system = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    now.unwrap_or_else(system)
}
