//! Phase 4: secrets are rebuilt from shares, some of which may be wrong (section 6).

use std::collections::BTreeMap;

use unisono_crypto::CryptoError;
use unisono_crypto::shamir::{self, Decoded, Interpolator, SecretScalar, Share};

use super::unmask::Unmasking;
use super::{Fault, Lost, Report};
use crate::degree::adversarial_neighbours;

/// Most subsets of a secret's shares that are tried; a try costs 10 to 100 microseconds.
const MOST_SUBSETS: u64 = 5_000;

/// Every needed secret that can be had, by its owner, and what was wrong with shares.
pub(super) struct Rebuilt {
    pub secrets: Vec<(u32, SecretScalar)>,
    /// Dealt shares that do not fit the others.
    pub reports: Vec<Report>,
    /// What was dealt wrong although the secret is there.
    pub misdealt: Vec<Lost>,
    /// Secrets that nobody gives.
    pub lost: Vec<Lost>,
}

impl Rebuilt {
    /// The secrets of `owners`, from the shares that were revealed, or from the owners themselves.
    pub fn of(unmasking: &Unmasking, owners: impl Iterator<Item = u32>) -> Result<Self, CryptoError> {
        let mut rebuilder = Rebuilder::new(unmasking);
        let (mut secrets, mut misdealt, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        for v in owners {
            // Shares are looked at where the owner's word would do: the next time it may not be there to give it.
            match (rebuilder.secret(v)?, unmasking.own(v)) {
                (Ok((secret, fault)), _) => {
                    secrets.push((v, secret));
                    misdealt.extend(fault);
                }
                (Err(why), Some(own)) => {
                    secrets.push((v, own.clone()));
                    // That holders have vanished says nothing about the dealer.
                    misdealt.extend(Some(why).filter(|why| !matches!(why, Lost::TooFewShares { .. })));
                }
                (Err(why), None) => lost.push(why),
            }
        }
        Ok(Self { secrets, reports: rebuilder.reports, misdealt, lost })
    }

    /// Whether the shares that were revealed give the secrets of all `owners`.
    pub fn possible(unmasking: &Unmasking, mut owners: impl Iterator<Item = u32>) -> bool {
        let mut rebuilder = Rebuilder::new(unmasking);
        owners.all(|v| matches!(rebuilder.secret(v), Ok(Ok(_))))
    }
}

/// Rebuilds secrets; remembers the Lagrange coefficients of each set of holders.
struct Rebuilder<'a> {
    unmasking: &'a Unmasking,
    interpolators: BTreeMap<Vec<u32>, Interpolator>,
    reports: Vec<Report>,
    /// Most holders of one secret that are assumed to lie when they say that they can't open a share; at least one, because none
    /// does not explain anything.
    liars: usize,
}

impl<'a> Rebuilder<'a> {
    fn new(unmasking: &'a Unmasking) -> Self {
        let members = &unmasking.masked.members;
        let (graph, assumptions) = (&members.cohort.graph, &members.context.params.assumptions);
        let liars = adversarial_neighbours(graph.n(), assumptions, graph.topology().degree).max(1) as usize;
        Self { unmasking, interpolators: BTreeMap::new(), reports: Vec::new(), liars }
    }

    /// The needed secret of `of`, checked against its advert; and what is wrong with its shares. They are those that `of` dealt, so if
    /// some do not fit, it is the cheat. As many as their number allows are corrected.
    fn secret(&mut self, of: u32) -> Result<Result<(SecretScalar, Option<Lost>), Lost>, CryptoError> {
        let members = &self.unmasking.masked.members;
        let client = members.id(of);
        let need = members.cohort.threshold();
        let mut shares = self.unmasking.shares.get(&of).cloned().unwrap_or_default();
        let have = shares.len();
        if have < need {
            let unreadable = |report: &&Report| report.about == client && report.what == Fault::UnreadableShares;
            let unreadable = self.unmasking.reports.iter().filter(unreadable).count();
            return Ok(Err(if have + unreadable < need {
                Lost::TooFewShares { client, have, need }
            } else {
                let at_fault = unreadable > self.liars;
                Lost::UnreadableShares { client, unreadable, have, need, at_fault }
            }));
        }
        shares.sort_by_key(Share::abscissa);
        let holders: Vec<u32> = shares[..need].iter().map(Share::abscissa).collect();
        if !self.interpolators.contains_key(&holders) {
            self.interpolators.insert(holders.clone(), Interpolator::new(&holders)?);
        }
        let secret = self.interpolators[&holders].reconstruct(&shares[..need])?;
        if self.fits(of, &secret) {
            return Ok(Ok((secret, None)));
        }
        // What decoding can't tell alone, the advert can, because it knows the secret: where they are few, all subsets are tried.
        let decoded = match shamir::decode(&shares, need)?.filter(|decoded| self.fits(of, &decoded.secret)) {
            Some(decoded) => Some(decoded),
            None => match Subsets::new(have, need) {
                Some(subsets) => self.search(of, &shares, subsets)?,
                None => None,
            },
        };
        let Some(decoded) = decoded else { return Ok(Err(Lost::WrongShares { client })) };
        let report =
            |abscissa: &u32| Report { about: client, by: members.id(abscissa - 1), what: Fault::MisdealtShare };
        self.reports.extend(decoded.wrong.iter().map(report));
        Ok(Ok((decoded.secret, Some(Lost::WrongShares { client }))))
    }

    /// The first of `subsets` of a secret's shares that gives it, and which other shares are not on its polynomial.
    fn search(&self, of: u32, shares: &[Share], subsets: Subsets) -> Result<Option<Decoded>, CryptoError> {
        let rebuild = |chosen: &[&Share]| {
            let chosen: Vec<Share> = chosen.iter().map(|share| (*share).clone()).collect();
            let abscissas: Vec<u32> = chosen.iter().map(Share::abscissa).collect();
            Interpolator::new(&abscissas)?.reconstruct(&chosen)
        };
        for subset in subsets {
            let chosen: Vec<&Share> = subset.iter().map(|&i| &shares[i]).collect();
            let secret = rebuild(&chosen)?;
            if !self.fits(of, &secret) {
                continue;
            }
            // Another share is on the same polynomial if it gives the same secret in the place of one of them.
            let mut wrong = Vec::new();
            for (_, other) in shares.iter().enumerate().filter(|(i, _)| !subset.contains(i)) {
                let exchanged = [&chosen[1..], &[other]].concat();
                if !rebuild(&exchanged)?.to_secret().ct_eq(&secret.to_secret()) {
                    wrong.push(other.abscissa());
                }
            }
            return Ok(Some(Decoded { secret, wrong }));
        }
        Ok(None)
    }

    fn fits(&self, of: u32, secret: &SecretScalar) -> bool {
        self.unmasking.masked.members.fits(of, self.unmasking.kind(of), secret)
    }
}

/// All ways to choose `size` of `count` things, each as ascending places.
struct Subsets {
    count: usize,
    next: Option<Vec<usize>>,
}

impl Subsets {
    /// `None` when they are more than [`MOST_SUBSETS`].
    fn new(count: usize, size: usize) -> Option<Self> {
        let mut ways = 1u64;
        for i in 0..size.min(count - size) as u64 {
            // A binomial coefficient at each step, so the division leaves nothing.
            ways = ways * (count as u64 - i) / (i + 1);
            if ways > MOST_SUBSETS {
                return None;
            }
        }
        Some(Self { count, next: Some((0..size).collect()) })
    }
}

impl Iterator for Subsets {
    type Item = Vec<usize>;

    fn next(&mut self) -> Option<Vec<usize>> {
        let current = self.next.take()?;
        let size = current.len();
        // The last place that can move on does, and those behind it follow.
        let movable = (0..size).rev().find(|&i| current[i] < self.count - size + i);
        self.next = movable.map(|i| {
            let start = current[i] + 1;
            current[..i].iter().copied().chain(start..start + size - i).collect()
        });
        Some(current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subset_comes_once_and_too_many_are_refused() {
        for (count, size, ways) in [(4, 3, 4), (5, 5, 1), (6, 2, 15), (9, 6, 84), (14, 9, 2002)] {
            let subsets: std::collections::BTreeSet<Vec<usize>> = Subsets::new(count, size).unwrap().collect();
            assert_eq!(subsets.len(), ways);
            assert!(subsets.iter().all(|s| s.len() == size && s.is_sorted_by(|a, b| a < b) && s[size - 1] < count));
            assert_eq!(Subsets::new(count, size).unwrap().count(), ways);
        }
        assert!(Subsets::new(98, 67).is_none() && Subsets::new(22, 14).is_none());
    }
}
