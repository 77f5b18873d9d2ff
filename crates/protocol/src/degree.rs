//! Degree of the graph, threshold of the sharing and bound of the windows (section 9; Bell et al., CCS 2020, section 3).

/// Statistical security in semi-honest mode, bits.
pub const SIGMA_SEMI_HONEST: u32 = 40;
/// Statistical security in malicious mode, bits: a coordinator may try 2^40 cohorts and still has 2^-40.
pub const SIGMA_MALICIOUS: u32 = 80;
/// Bits of the probability with which too few survive: failing is a lost round, not a leak.
const ROBUSTNESS: u32 = 20;
/// Largest degree that is searched: beyond it a client would upload more than 2.5 MB of shares.
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
    /// Security mode.
    pub mode: SecurityMode,
}

/// Which conditions of section 9 the search applies; condition 1 and the survival bound always hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Statistical security, bits.
    pub sigma: u32,
    /// Raise the threshold so that both secrets of one client can never be had.
    pub malicious_threshold: bool,
    /// Condition 3: bound the windows of the ring.
    pub windows: bool,
}

impl Rules {
    /// The rules of a security mode.
    pub fn of(mode: SecurityMode) -> Self {
        match mode {
            SecurityMode::Malicious => Self { sigma: SIGMA_MALICIOUS, malicious_threshold: true, windows: true },
            SecurityMode::SemiHonest => Self { sigma: SIGMA_SEMI_HONEST, malicious_threshold: false, windows: false },
        }
    }
}

/// What the search finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Neighbours of each client, k.
    pub degree: u32,
    /// Shares that rebuild a secret, t.
    pub threshold: u32,
    /// Each window of `k / 2` places must hold more than this many survivors, `a_w`; `None` where no window is checked.
    pub window_bound: Option<u32>,
}

/// Why there is no graph.
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
    #[error(
        "{adversaries} adversaries and {drop_outs} drop-outs among {n} clients leave no threshold: a secret must need at least \
         {needed} shares, and only {available} are sure to be there{advice}"
    )]
    Infeasible {
        /// Size of the cohort.
        n: u32,
        /// Assumed adversaries.
        adversaries: u32,
        /// Assumed drop-outs.
        drop_outs: u32,
        /// Smallest secure threshold of the complete graph.
        needed: u32,
        /// Shares that survive in the complete graph, or the largest degree that is searched.
        available: u32,
        /// What would make it feasible.
        advice: String,
    },
}

/// Degree, threshold and window bound for `n` clients under the rules of the assumptions' mode.
///
/// # Errors
/// [`DegreeError`]; an infeasible request comes with the nearest feasible cohort and drop-out fraction.
pub fn find(n: u32, assumptions: &Assumptions) -> Result<Topology, DegreeError> {
    let rules = Rules::of(assumptions.mode);
    find_with(n, assumptions.gamma, assumptions.delta, &rules).map_err(|error| match error {
        DegreeError::Infeasible { n, adversaries, drop_outs, needed, available, .. } => {
            let advice = advice(n, assumptions, &rules);
            DegreeError::Infeasible { n, adversaries, drop_outs, needed, available, advice }
        }
        other => other,
    })
}

fn advice(n: u32, assumptions: &Assumptions, rules: &Rules) -> String {
    let Assumptions { gamma, delta, .. } = *assumptions;
    let mut hints = Vec::new();
    let larger = (1..=64).map(|step| n.saturating_add(step * (n / 16).max(1)));
    if let Some(n) = larger.into_iter().find(|&n| find_with(n, gamma, delta, rules).is_ok()) {
        hints.push(format!("a cohort of {n}"));
    }
    let steps = (0..(delta * 100.0).ceil() as u32).rev().map(|percent| f64::from(percent) / 100.0);
    if let Some(delta) = steps.into_iter().find(|&delta| find_with(n, gamma, delta, rules).is_ok()) {
        hints.push(format!("delta = {delta}"));
    }
    if let Some(gamma) = [gamma / 2.0, gamma / 4.0, 0.0].into_iter().find(|&g| find_with(n, g, delta, rules).is_ok()) {
        hints.push(format!("gamma = {gamma}"));
    }
    if hints.is_empty() { String::new() } else { format!("; feasible would be {}", hints.join(", or ")) }
}

/// The search of section 9 with explicit rules.
///
/// # Errors
/// As [`find`], without advice.
pub fn find_with(n: u32, gamma: f64, delta: f64, rules: &Rules) -> Result<Topology, DegreeError> {
    for (name, value) in [("gamma", gamma), ("delta", delta)] {
        if !(0.0..1.0).contains(&value) {
            return Err(DegreeError::Fraction { name, value });
        }
    }
    if n < 3 {
        return Err(DegreeError::TooFew(n));
    }
    let (adversaries, drop_outs) = (part(gamma, n), part(delta, n));
    let search = Search { n, adversaries, drop_outs, rules, factorials: LogFactorials::new(n) };
    let sparse = (2..(n - 1).min(MAX_DEGREE + 1)).step_by(2).find_map(|k| search.sparse(k));
    sparse.map_or_else(|| search.complete(), Ok)
}

/// A fraction of `n` clients, as section 9 rounds it.
pub(crate) fn part(fraction: f64, n: u32) -> u32 {
    ((fraction + FRACTION_TOLERANCE) * f64::from(n)).floor() as u32
}

/// Most of the `degree` neighbours of a client that are adversarial, except with probability 2^-10.
pub(crate) fn adversarial_neighbours(n: u32, gamma: f64, degree: u32) -> u32 {
    let (adversaries, rules) = (part(gamma, n), Rules::of(SecurityMode::Malicious));
    let search = Search { n, adversaries, drop_outs: 0, rules: &rules, factorials: LogFactorials::new(n) };
    search.upper_quantile(adversaries, degree, (-10f64).exp2())
}

struct Search<'a> {
    n: u32,
    adversaries: u32,
    drop_outs: u32,
    rules: &'a Rules,
    factorials: LogFactorials,
}

impl Search<'_> {
    /// The topology of degree `k`, if all conditions hold.
    fn sparse(&self, k: u32) -> Option<Topology> {
        let n = self.n;
        let survivors = n - self.drop_outs;
        let secure = (-f64::from(self.rules.sigma + 1)).exp2();
        let robust = (-f64::from(ROBUSTNESS)).exp2() / f64::from(n);

        let bad = self.adversaries + self.drop_outs;
        if k <= bad {
            if bad >= n {
                return None;
            }
            let log = f64::from(n).ln() + f64::from(n - k - 1).ln() - 2f64.ln()
                + self.factorials.choose(n - k, bad - k)
                - self.factorials.choose(n, bad);
            if log >= secure.ln() {
                return None;
            }
        }

        let mut t1 = self.upper_quantile(self.adversaries, k, secure / f64::from(n));
        if self.rules.malicious_threshold {
            t1 = ((f64::from(t1) + f64::from(k) - 1.25) / 2.0).ceil() as u32;
        }
        let threshold = (t1 + 1).max(2);
        if self.lower_quantile(survivors, k, robust) < threshold {
            return None;
        }

        let window_bound = if self.rules.windows {
            let a_w = self.upper_quantile(self.adversaries, k / 2, secure / f64::from(n));
            let too_few: f64 = (0..=a_w).map(|s| self.probability(survivors, k / 2, s)).sum();
            if too_few > robust {
                return None;
            }
            Some(a_w)
        } else {
            None
        };
        Some(Topology { degree: k, threshold, window_bound })
    }

    /// The complete graph with the smallest threshold that fits.
    fn complete(&self) -> Result<Topology, DegreeError> {
        let degree = self.n - 1;
        let mut needed = (self.adversaries + 1).max(2);
        if self.rules.malicious_threshold {
            needed = needed.max((degree + self.adversaries) / 2 + 1);
        }
        let available = if degree <= MAX_DEGREE { degree.saturating_sub(self.drop_outs) } else { 0 };
        if needed <= available {
            return Ok(Topology { degree, threshold: needed, window_bound: None });
        }
        Err(DegreeError::Infeasible {
            n: self.n,
            adversaries: self.adversaries,
            drop_outs: self.drop_outs,
            needed,
            available,
            advice: String::new(),
        })
    }

    /// Smallest `x` with `P[X > x] <= bound`, where X counts the marked among `draws` of n.
    fn upper_quantile(&self, marked: u32, draws: u32, bound: f64) -> u32 {
        let mut x = marked.min(draws);
        let mut tail = 0.0;
        while x > 0 {
            tail += self.probability(marked, draws, x);
            if tail > bound {
                break;
            }
            x -= 1;
        }
        x
    }

    /// Largest `x` with `P[X < x] <= bound`.
    fn lower_quantile(&self, marked: u32, draws: u32, bound: f64) -> u32 {
        let mut x = 0;
        let mut tail = 0.0;
        while x < marked.min(draws) {
            tail += self.probability(marked, draws, x);
            if tail > bound {
                break;
            }
            x += 1;
        }
        x
    }

    /// Hypergeometric `P[X = x]`, from logarithms.
    fn probability(&self, marked: u32, draws: u32, x: u32) -> f64 {
        let rest = self.n - marked;
        if x > marked || x > draws || draws - x > rest {
            return 0.0;
        }
        let choose = |n, k| self.factorials.choose(n, k);
        (choose(marked, x) + choose(rest, draws - x) - choose(self.n, draws)).exp()
    }
}

/// Natural logarithms of `0!` to `n!`.
struct LogFactorials(Vec<f64>);

impl LogFactorials {
    fn new(n: u32) -> Self {
        let mut sum = 0.0;
        Self(
            (0..=n)
                .map(|i| {
                    sum += f64::from(i.max(1)).ln();
                    sum
                })
                .collect(),
        )
    }

    /// Logarithm of the binomial coefficient, `k <= n`.
    fn choose(&self, n: u32, k: u32) -> f64 {
        self.0[n as usize] - self.0[k as usize] - self.0[(n - k) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn searched(n: u32, gamma: f64, delta: f64, rules: &Rules) -> (u32, u32, Option<u32>) {
        let found = find_with(n, gamma, delta, rules).unwrap();
        (found.degree, found.threshold, found.window_bound)
    }

    #[test]
    fn the_worked_values_of_section_9() {
        let plain = Rules { sigma: 40, malicious_threshold: false, windows: false };
        let raised = Rules { malicious_threshold: true, ..plain };
        let full = Rules::of(SecurityMode::Malicious);
        for (n, semi, malicious, all) in [
            (100, (12, 6), (16, 11), (22, 14, 5)),
            (1000, (30, 17), (52, 37), (78, 56, 25)),
            (10_000, (34, 20), (62, 44), (94, 68, 30)),
        ] {
            if cfg!(miri) && n > 100 {
                continue;
            }
            assert_eq!(searched(n, 0.05, 0.05, &plain), (semi.0, semi.1, None), "n = {n}");
            assert_eq!(searched(n, 0.05, 0.05, &raised), (malicious.0, malicious.1, None), "n = {n}");
            assert_eq!(searched(n, 0.05, 0.05, &full), (all.0, all.1, Some(all.2)), "n = {n}");
        }
        assert_eq!(searched(100, 0.05, 0.1, &full), (30, 18, Some(5)));
        if !cfg!(miri) {
            assert_eq!(searched(1000, 0.05, 0.1, &full), (98, 67, Some(28)));
            assert_eq!(searched(10_000, 0.05, 0.1, &full), (120, 83, Some(33)));
        }
        assert_eq!(searched(20, 0.05, 0.2, &full), (12, 7, Some(1)));
        assert_eq!(searched(50, 0.05, 0.2, &full), (24, 14, Some(2)));
    }

    #[test]
    fn fewer_neighbours_of_one_client_lie_than_of_the_cohort() {
        let all: Vec<u32> = (0..4).map(|degree| adversarial_neighbours(10, 0.2, 9 - degree)).collect();
        assert_eq!(all, [2; 4], "two of ten can all be neighbours of one client");
        for (n, degree, expected) in [(100, 22, 4), (1000, 78, 11)] {
            assert_eq!(adversarial_neighbours(n, 0.05, degree), expected, "n = {n}");
        }
        assert_eq!(adversarial_neighbours(100, 0.0, 22), 0);
    }

    #[test]
    fn a_small_cohort_gets_the_complete_graph() {
        let assumptions = Assumptions { gamma: 0.2, delta: 0.2, mode: SecurityMode::Malicious };
        let found = find(5, &assumptions).unwrap();
        // One adversary, one drop-out: 2 t > 4 + 1 and t <= 3.
        assert_eq!(found, Topology { degree: 4, threshold: 3, window_bound: None });
    }

    #[test]
    fn without_adversaries_a_threshold_of_two_still_survives_the_assumed_drop_outs() {
        // One of six may drop out: with two neighbours, its neighbours would be left with one share.
        let found = find(6, &Assumptions { gamma: 0.0, delta: 0.2, mode: SecurityMode::SemiHonest }).unwrap();
        assert!(found.threshold == 2 && found.degree >= 3, "{found:?}");
    }

    #[test]
    fn an_infeasible_request_says_what_would_do() {
        let error = find(10, &Assumptions { gamma: 0.3, delta: 0.4, mode: SecurityMode::Malicious }).unwrap_err();
        assert!(matches!(
            error,
            DegreeError::Infeasible { n: 10, adversaries: 3, drop_outs: 4, needed: 7, available: 5, .. }
        ));
        let text = error.to_string();
        assert!(text.contains("delta = ") && text.contains("gamma = "), "{text}");
        for (gamma, delta) in [(f64::NAN, 0.1), (0.1, 1.0), (-0.1, 0.1), (f64::INFINITY, 0.0)] {
            assert!(matches!(
                find(10, &Assumptions { gamma, delta, mode: SecurityMode::SemiHonest }),
                Err(DegreeError::Fraction { .. })
            ));
        }
        assert_eq!(
            find(2, &Assumptions { gamma: 0.0, delta: 0.0, mode: SecurityMode::SemiHonest }),
            Err(DegreeError::TooFew(2))
        );
    }

    #[test]
    fn every_small_cohort_and_fraction_gives_a_topology_or_an_error() {
        for mode in [SecurityMode::Malicious, SecurityMode::SemiHonest] {
            for n in 3..if cfg!(miri) { 6 } else { 80 } {
                for (gamma, delta) in [(0.0, 0.0), (0.1, 0.1), (0.33, 0.33), (0.0, 0.99), (0.99, 0.0), (0.6, 0.6)] {
                    if let Ok(found) = find(n, &Assumptions { gamma, delta, mode }) {
                        assert!(found.threshold >= 2 && found.threshold <= found.degree && found.degree < n);
                        assert!(found.degree == n - 1 || found.degree.is_multiple_of(2));
                    }
                }
            }
        }
    }
}
