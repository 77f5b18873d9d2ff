//! Sizes of a cohort (docs/protocol.md, section 9; Bell et al., CCS 2020, section 3): degree of the graph, threshold of the sharing, bound of the
//! windows, and the committee that signs the certificate. Devices and the coordinator compute them alike, on any platform.

mod tail;
#[cfg(test)]
mod tests;

use self::tail::{Bound, all_marked_below, lower_quantile, upper_quantile};

/// Statistical security in semi-honest mode, bits.
pub const SIGMA_SEMI_HONEST: u8 = 40;
/// Statistical security in malicious mode, bits. A coordinator can try cohort after cohort offline: 2^60 tries leave 2^-40.
pub const SIGMA_MALICIOUS: u8 = 100;
/// Bits of the probability with which too few survive: failing is a lost round, not a leak.
const ROBUSTNESS: u32 = 20;
/// Largest cohort whose graph is always complete.
pub const MAX_SMALL: u32 = 32;
/// Largest degree, and one less than the largest committee, that is searched: beyond it a client would upload more than 2.5 MB of
/// shares.
pub const MAX_DEGREE: u32 = 1024;
/// Slack on the fractions, so that 0.07 of 100 is 7.
const FRACTION_TOLERANCE: f64 = 1e-14;

/// How a round treats its coordinator and its clients (section 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurityMode {
    /// Signatures, roster and consistency check: the coordinator is not trusted.
    Malicious,
    /// None of these.
    SemiHonest,
}

/// What is assumed about a cohort.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Assumptions {
    /// Adversarial fraction, 0 to below 1.
    pub gamma: f64,
    /// Fraction that may drop out, 0 to below 1.
    pub delta: f64,
    /// Fewest adversaries that are counted with, whatever `gamma` says; 0 is taken as 1.
    pub min_colluders: u32,
    /// Security mode.
    pub mode: SecurityMode,
}

/// Adversaries that a cohort of `n` is made for: `n_adv = max(ceil(gamma n), min_colluders, 1)`, at most `n` (section 9).
pub fn adversaries(n: u32, assumptions: &Assumptions) -> u32 {
    let fraction = ((assumptions.gamma - FRACTION_TOLERANCE) * f64::from(n)).ceil() as u32;
    fraction.max(assumptions.min_colluders).max(1).min(n)
}

/// Drop-outs that a cohort of `n` is made for: `n_drop = max(floor(delta n), 1)`, at most `n`; 0 for fewer than five clients, of
/// whom none can be spared in malicious mode (section 9).
pub fn drop_outs(n: u32, assumptions: &Assumptions) -> u32 {
    let fraction = ((assumptions.delta + FRACTION_TOLERANCE) * f64::from(n)).floor() as u32;
    if n < 5 { 0 } else { fraction.max(1).min(n) }
}

/// A smallest sum `n_min` that fits a cohort of `n`: nine tenths of those who are expected to survive, fewer where a complete graph
/// withstands more drop-outs, and enough for two honest inputs. For who has no number of its own.
///
/// # Errors
/// As [`find`], for a cohort of `n`.
pub fn default_n_min(n: u32, assumptions: &Assumptions) -> Result<u32, DegreeError> {
    let tolerated = find(n, assumptions)?.tolerated_drop_outs(n).unwrap_or(0);
    let expected = (n - drop_outs(n, assumptions)) / 10 * 9 + (n - drop_outs(n, assumptions)) % 10;
    let lowest = expected.min(n - tolerated).max(adversaries(n, assumptions) + 2).max(3).min(n);
    Ok((lowest..n).find(|&n_min| find(n_min, assumptions).is_ok()).unwrap_or(n))
}

/// The members of a cohort that sign its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committee {
    /// Members, `s`: at most the cohort, and all of it where the graph is complete.
    pub size: u32,
    /// Signatures that make a certificate, `tau`: more than half of `size`, at most `size`.
    pub quorum: u32,
}

/// What the search finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Neighbours of each client, `k`: even, or one less than the cohort.
    pub degree: u32,
    /// Shares that rebuild a secret, `t`: 2 to `degree`.
    pub threshold: u32,
    /// Each window of `k / 2` places must hold more than this many survivors, `a_w`; `None` where no window is checked: in a
    /// complete graph, and in semi-honest mode.
    pub window_bound: Option<u32>,
    /// Who signs the certificate; `None` in semi-honest mode.
    pub committee: Option<Committee>,
}

impl Topology {
    /// Most clients of a cohort of `n` that may drop out, whichever they are, before the round ends without a sum. `None` for a sparse
    /// graph, which is made for the fraction `delta` and withstands it except with probability 2^-20.
    pub fn tolerated_drop_outs(&self, n: u32) -> Option<u32> {
        let spare = self.committee.map_or(n, |committee| committee.size.saturating_sub(committee.quorum));
        (self.degree + 1 >= n).then(|| self.degree.saturating_sub(self.threshold).min(spare))
    }
}

/// Why there are no sizes.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DegreeError {
    /// A fraction is no number from 0 to below 1.
    #[error("`{name}` is {value}; a fraction from 0 to below 1 is needed")]
    Fraction {
        /// gamma or delta.
        name: &'static str,
        /// Value found.
        value: f64,
    },
    /// Fewer than three clients.
    #[error("a cohort of {0} is too small: with fewer than 3 clients a sum says too much about each")]
    TooFew(u32),
    /// No degree fits, nor does the complete graph.
    #[error("{}{}", shortage(*.n, *.adversaries, *.drop_outs, *.tolerated), hint(.advice))]
    Infeasible {
        /// Size of the cohort.
        n: u32,
        /// Assumed adversaries.
        adversaries: u32,
        /// Assumed drop-outs.
        drop_outs: u32,
        /// Most drop-outs that are tolerated with as many adversaries. `None` when no number is: there are too many adversaries,
        /// or no degree up to [`MAX_DEGREE`] fits a cohort that is too large for the complete graph.
        tolerated: Option<u32>,
        /// What would make it feasible: empty, or what [`advise`] says.
        advice: String,
    },
}

fn shortage(n: u32, adversaries: u32, drop_outs: u32, tolerated: Option<u32>) -> String {
    tolerated.map_or_else(
        || {
            format!(
                "{n} clients with {adversaries} adversaries and {drop_outs} drop-outs have no secure graph of degree up to {MAX_DEGREE}"
            )
        },
        |tolerated| {
            format!(
                "{n} clients with {adversaries} adversaries tolerate {tolerated} drop-outs, fewer than the {drop_outs} that are assumed"
            )
        },
    )
}

fn hint(advice: &str) -> String {
    if advice.is_empty() { String::new() } else { format!("; feasible would be {advice}") }
}

impl DegreeError {
    /// The error with the advice that [`advise`] has for an infeasible cohort. For who chooses the parameters: it takes up to a
    /// second, which nobody should be able to cost a device.
    #[must_use]
    pub fn advised(mut self, assumptions: &Assumptions) -> Self {
        if let Self::Infeasible { n, advice, .. } = &mut self {
            *advice = advise(*n, assumptions);
        }
        self
    }
}

/// Sizes for `n` clients at the security of the assumptions' mode: [`SIGMA_MALICIOUS`] or [`SIGMA_SEMI_HONEST`]. Takes less than a
/// millisecond for usual fractions, and a few at most.
///
/// # Errors
/// [`DegreeError`], without advice: see [`DegreeError::advised`].
pub fn find(n: u32, assumptions: &Assumptions) -> Result<Topology, DegreeError> {
    let sigma = match assumptions.mode {
        SecurityMode::Malicious => SIGMA_MALICIOUS,
        SecurityMode::SemiHonest => SIGMA_SEMI_HONEST,
    };
    find_with(n, assumptions, sigma)
}

/// [`find`] at a statistical security of `sigma` bits.
///
/// # Errors
/// As [`find`].
pub fn find_with(n: u32, assumptions: &Assumptions, sigma: u8) -> Result<Topology, DegreeError> {
    for (name, value) in [("gamma", assumptions.gamma), ("delta", assumptions.delta)] {
        if !(0.0..1.0).contains(&value) {
            return Err(DegreeError::Fraction { name, value });
        }
    }
    if n < 3 {
        return Err(DegreeError::TooFew(n));
    }
    let search = Search::new(n, assumptions, sigma);
    if n <= MAX_SMALL {
        return search.complete();
    }
    let sparse = (2..(n - 1).min(MAX_DEGREE + 1)).step_by(2).find_map(|k| search.sparse(k));
    sparse.map_or_else(|| search.complete(), Ok)
}

/// What would make `n` clients feasible, each alone: a larger cohort, a smaller `delta`, a smaller `gamma`. Empty when none of those
/// that are tried would. Takes up to a second; for the coordinator only.
pub fn advise(n: u32, assumptions: &Assumptions) -> String {
    let feasible = |n: u32, gamma: f64, delta: f64| find(n, &Assumptions { gamma, delta, ..*assumptions }).is_ok();
    let Assumptions { gamma, delta, .. } = *assumptions;
    let mut hints = Vec::new();
    let mut larger = (1..=64).map(|step| n.saturating_add(step * (n / 16).max(1)));
    if let Some(n) = larger.find(|&n| feasible(n, gamma, delta)) {
        hints.push(format!("a cohort of {n}"));
    }
    let mut steps = (0..(delta * 100.0).ceil() as u32).rev().map(|percent| f64::from(percent) / 100.0);
    if let Some(delta) = steps.find(|&delta| feasible(n, gamma, delta)) {
        hints.push(format!("delta = {delta}"));
    }
    if let Some(gamma) = [gamma / 2.0, gamma / 4.0, 0.0].into_iter().find(|&gamma| feasible(n, gamma, delta)) {
        hints.push(format!("gamma = {gamma}"));
    }
    hints.join(", or ")
}

/// Most of the `degree` neighbours of a client that are adversarial, except with probability 2^-10.
pub(crate) fn adversarial_neighbours(n: u32, assumptions: &Assumptions, degree: u32) -> u32 {
    let marked = adversaries(n, assumptions).min(n - 1);
    upper_quantile(n - 1, marked, degree, Bound { bits: 10, clients: 1 })
}

struct Search {
    n: u32,
    adversaries: u32,
    drop_outs: u32,
    malicious: bool,
    /// Bits of the probability of each event that would break privacy: they share `2^-sigma`.
    secure: u32,
}

impl Search {
    fn new(n: u32, assumptions: &Assumptions, sigma: u8) -> Self {
        let malicious = assumptions.mode == SecurityMode::Malicious;
        // Three events in malicious mode, two in semi-honest mode.
        let secure = u32::from(sigma) + if malicious { 2 } else { 1 };
        let (adversaries, drop_outs) = (adversaries(n, assumptions), drop_outs(n, assumptions));
        Self { n, adversaries, drop_outs, malicious, secure }
    }

    /// The topology of degree `k`, if all conditions hold. Of a client's neighbours, drawn from the `n - 1` others, at most
    /// `colluders` collude, for all clients at once; and the threshold survives.
    fn sparse(&self, k: u32) -> Option<Topology> {
        let others = self.n - 1;
        let secure = Bound { bits: self.secure, clients: self.n };
        let colluders = upper_quantile(others, self.adversaries.min(others), k, secure);
        // 2 t > k + A: else two sets of t holders could have no honest one in common.
        let threshold = if self.malicious { (k + colluders) / 2 + 1 } else { colluders + 1 }.max(2);
        let robust = Bound { bits: ROBUSTNESS, clients: self.n };
        if lower_quantile(others, others - self.drop_outs.min(others), k, robust) < threshold {
            return None;
        }
        let (mut window_bound, mut committee) = (None, None);
        if self.malicious {
            // Windows keep the survivors in one piece whatever set drops out, at random or not.
            let bound = upper_quantile(self.n, self.adversaries, k / 2, secure);
            if lower_quantile(self.n, self.n - self.drop_outs, k / 2, robust) <= bound {
                return None;
            }
            (window_bound, committee) = (Some(bound), Some(self.committee()?));
        } else if !self.connected(k) {
            return None;
        }
        Some(Topology { degree: k, threshold, window_bound, committee })
    }

    /// Whether drop-outs at random leave the honest clients connected: a Harary graph falls apart only when two disjoint runs of
    /// `k / 2` places are all bad.
    fn connected(&self, k: u32) -> bool {
        let (n, bad) = (self.n, self.adversaries + self.drop_outs);
        let cuts = f64::from(n) * f64::from(n - k - 1) / 2.0;
        k > bad || (bad < n && all_marked_below(cuts, n, bad, k, self.secure))
    }

    /// The smallest committee of which enough survive to sign, although no two quorums may have only colluders in common.
    fn committee(&self) -> Option<Committee> {
        let secure = Bound { bits: self.secure, clients: 1 };
        let robust = Bound { bits: ROBUSTNESS, clients: 1 };
        (1..=self.n.min(MAX_DEGREE + 1)).find_map(|size| {
            let colluders = upper_quantile(self.n, self.adversaries, size, secure);
            let quorum = (size + colluders) / 2 + 1;
            let alive = lower_quantile(self.n, self.n - self.drop_outs, size, robust);
            (quorum <= alive).then_some(Committee { size, quorum })
        })
    }

    /// The complete graph with the smallest threshold, and all clients as the committee.
    fn complete(&self) -> Result<Topology, DegreeError> {
        let Self { n, adversaries, drop_outs, malicious, .. } = *self;
        let degree = n - 1;
        let threshold = if malicious { (degree + adversaries) / 2 + 1 } else { adversaries + 1 }.max(2);
        let committee = malicious.then_some(Committee { size: n, quorum: (n + adversaries) / 2 + 1 });
        let spare = committee.map_or(Some(n), |committee| n.checked_sub(committee.quorum));
        let tolerated = degree.checked_sub(threshold).filter(|_| degree <= MAX_DEGREE);
        let tolerated = tolerated.zip(spare).map(|(shares, signers)| shares.min(signers));
        if tolerated.is_some_and(|tolerated| drop_outs <= tolerated) {
            return Ok(Topology { degree, threshold, window_bound: None, committee });
        }
        Err(DegreeError::Infeasible { n, adversaries, drop_outs, tolerated, advice: String::new() })
    }
}
