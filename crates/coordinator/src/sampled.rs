//! Lines about refused calls, sampled by peer and reason: the first few of a kind in each minute, then how many more there were. Whoever
//! sends junk fills no disk with it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

/// Lines of one kind in each interval.
const FIRST: u64 = 3;
/// Kinds that are told apart by peer in each interval; of further ones, peers are not told apart.
const MOST_KINDS: usize = 256;
/// Kinds whose counts are logged at an interval's end.
const MOST_COUNTS: usize = 20;
/// After so long it begins anew.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60);

/// The process's only one, as its log is.
pub(crate) static REFUSALS: LazyLock<Sampler> = LazyLock::new(Sampler::default);

/// A peer, where it is told apart, and a reason.
type Kind = (Option<IpAddr>, String);

/// How often each kind came in this interval.
#[derive(Default)]
pub(crate) struct Sampler(Mutex<HashMap<Kind, u64>>);

impl Sampler {
    /// Whether a line about this is to be logged. Otherwise it is counted.
    pub fn admits(&self, peer: Option<IpAddr>, reason: &str) -> bool {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kind = (peer, reason.to_owned());
        if kinds.len() >= MOST_KINDS && !kinds.contains_key(&kind) {
            kind.0 = None;
        }
        let count = kinds.entry(kind).or_default();
        *count += 1;
        *count <= FIRST
    }

    /// Begins anew, and gives the kinds of which lines were held back, the most frequent first, with their numbers.
    fn take(&self) -> Vec<(Kind, u64)> {
        let kinds = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut held: Vec<_> = kinds.into_iter().filter(|(_, count)| *count > FIRST).collect();
        held.iter_mut().for_each(|(_, count)| *count -= FIRST);
        held.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        held
    }

    /// Logs how many lines were held back, and begins anew.
    pub fn flush(&self) {
        let held = self.take();
        for ((peer, reason), more) in held.iter().take(MOST_COUNTS) {
            let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
            tracing::info!(peer, reason, more, "further refusals of this kind");
        }
        let more: u64 = held.iter().skip(MOST_COUNTS).map(|(_, count)| count).sum();
        if more > 0 {
            tracing::info!(more, "further refusals of other kinds");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_kind_are_told_and_the_others_are_counted() {
        let sampler = Sampler::default();
        let peer = |i: u32| Some(IpAddr::from(i.to_be_bytes()));
        let told = (0..1000).filter(|_| sampler.admits(peer(1), "signature")).count();
        assert_eq!(told, 3);
        // Another reason, another peer.
        assert!(sampler.admits(peer(1), "full") && sampler.admits(peer(2), "signature"));
        // However many peers there are, the memory is bounded, and so are the lines.
        let told = (0..100_000).filter(|&i| sampler.admits(peer(i), "rate")).count();
        assert!(told <= MOST_KINDS + FIRST as usize, "{told}");
        assert!(sampler.0.lock().unwrap().len() <= MOST_KINDS + 1);
        let held = sampler.take();
        assert_eq!(held.iter().find(|((_, reason), _)| reason == "signature").unwrap().1, 997);
        assert!(held[0].1 > 99_000 && held.iter().all(|((_, reason), _)| reason != "full"));
        assert!(sampler.take().is_empty() && sampler.admits(peer(1), "signature"));
    }
}
