//! Poisson variables, exact but for a statistical distance of 2^-142 each, from uniform words and integer arithmetic alone.
//!
//! A mean below [`TABLE_BELOW`] takes a table of the distribution function, a larger one rejection. Either decides by the
//! first 64 bits of a uniform number and of a bound on what it is compared with. When those do not decide, once in 2^39 draws
//! at most, 128 further bits of the number do, and arithmetic with 192 bits.
//!
//! # Distance
//!
//! * Tails. With `T = L/3 + sqrt((L/3)^2 + 2 L mean)` and `L = 100`, a variable is further than `T` from its mean with
//!   probability at most `2 exp(-100) < 2^-143` (Bernstein). What lies further than that is never drawn, by either method.
//! * Table. A weight takes at most 500 steps from the mode's, which is 1. A step multiplies an error by at most 1 and adds at
//!   most two units of 2^-192, so a sum of 1,000 weights is off by less than 2^-172, a threshold by less than 2^-170, and the
//!   distribution by less than `1000 * 2 * 2^-170 < 2^-159`.
//! * Rejection. An acceptance probability is off by less than 2^-150 (see [`Rejection`]), and 0.4 of all proposals are
//!   accepted, so the distribution is off by less than 2^-147.
//!
//! # Time
//!
//! A draw from the table reads all of it, and rejection computes the same for every proposal; neither divides, branches on,
//! or addresses memory by what is drawn. How many proposals are refused before one is accepted is independent of the one that
//! is accepted. What does depend on the value is the branch for undecided comparisons, which takes longer.

use unisono_crypto::CryptoError;

use super::wide::Wide;

/// A source of uniformly random words.
pub(super) trait Words {
    /// The next word.
    ///
    /// # Errors
    /// [`CryptoError`] when the source has none.
    fn word(&mut self) -> Result<u64, CryptoError>;
}

/// Smallest mean for which rejection is used.
pub(super) const TABLE_BELOW: f64 = 1024.0;

/// A mean: `mantissa / 2^shift`, as a double is, and its whole part.
#[derive(Debug, Clone, Copy)]
struct Mean {
    mantissa: u64,
    shift: u32,
    whole: u64,
    /// At least the `T` of the tails, and a few more.
    reach: u64,
}

impl Mean {
    /// Half of `variance`, which is above 0 and at most 2^48.
    fn half(variance: f64) -> Self {
        let bits = variance.to_bits();
        let (exponent, fraction) = ((bits >> 52) as u32, bits & ((1 << 52) - 1));
        let mantissa = if exponent == 0 { fraction } else { fraction | 1 << 52 };
        let shift = 1076 - exponent.max(1);
        let whole = if shift < 64 { mantissa >> shift } else { 0 };
        let (third, mean) = (100.0 / 3.0, variance / 2.0);
        let reach = (third + (third * third + 200.0 * mean).sqrt()).ceil() as u64 + 2;
        Self { mantissa, shift, whole, reach }
    }

    /// `number / mean`, for a mean of at least 1, where `number` is below 2^10.
    fn divide(self, number: Wide) -> Wide {
        number.up(self.shift).over_whole(self.mantissa)
    }
}

/// Independent Poisson variables.
#[derive(Debug)]
pub(super) enum Poisson {
    Table(Table),
    Rejection(Rejection),
}

impl Poisson {
    /// Of mean `variance / 2`, where `variance` is above 0 and at most 2^48.
    pub fn half(variance: f64) -> Self {
        let mean = Mean::half(variance);
        if variance / 2.0 < TABLE_BELOW { Self::Table(Table::new(mean)) } else { Self::Rejection(Rejection::new(mean)) }
    }

    /// The distance of a variable from a constant, which is the same for all of a mean.
    #[inline(always)]
    pub fn draw(&self, words: &mut impl Words) -> Result<i64, CryptoError> {
        match self {
            Self::Table(table) => table.draw(words),
            Self::Rejection(rejection) => rejection.draw(words),
        }
    }
}

/// The distribution function of a Poisson variable.
#[derive(Debug)]
pub(super) struct Table {
    /// `P[X <= first + i]`, first 64 bits, less 2^63: processors compare signed numbers faster.
    heads: Vec<i64>,
    /// 128 more bits of each.
    tails: Vec<[u64; 2]>,
}

impl Table {
    fn new(mean: Mean) -> Self {
        let Mean { mantissa, shift, whole, reach } = mean;
        let first = whole.saturating_sub(reach);
        // Weights relative to the mode's: P[k] / P[k - 1] = mean / k.
        let down = (first..whole).rev().scan(Wide::ONE, |weight, k| {
            *weight = mean.divide(weight.times_whole(k + 1));
            Some(*weight)
        });
        let mut weights: Vec<Wide> = down.collect();
        weights.reverse();
        weights.push(Wide::ONE);
        weights.extend((whole + 1..=whole + reach).scan(Wide::ONE, |weight, k| {
            *weight = weight.times_whole(mantissa).down(shift).over_whole(k);
            Some(*weight)
        }));
        let mut sum = Wide::ZERO;
        let sums: Vec<Wide> = weights
            .iter()
            .map(|weight| {
                sum = sum.plus(*weight);
                sum
            })
            .collect();
        let scale = sum.reciprocal();
        // Nothing is above the last weight's.
        let thresholds = sums[..sums.len() - 1].iter().map(|sum| sum.times(scale).min(Wide::BELOW_ONE));
        let (heads, tails) = thresholds.map(|t| (signed(t.0[1]), [t.0[2], t.0[3]])).unzip();
        Self { heads, tails }
    }

    /// The number of thresholds that a uniform number of 192 bits reaches.
    #[inline(always)]
    fn draw(&self, words: &mut impl Words) -> Result<i64, CryptoError> {
        let head = signed(words.word()?);
        let (mut above, mut reached) = (0i64, 0i64);
        for &threshold in &self.heads {
            above += i64::from(threshold < head);
            reached += i64::from(threshold <= head);
        }
        if above == reached { Ok(reached) } else { self.decide(head, [words.word()?, words.word()?]) }
    }

    #[cold]
    #[inline(never)]
    fn decide(&self, head: i64, tail: [u64; 2]) -> Result<i64, CryptoError> {
        let thresholds = self.heads.iter().zip(&self.tails);
        Ok(thresholds.map(|(&h, &t)| i64::from((h, t) <= (head, tail))).sum())
    }
}

fn signed(head: u64) -> i64 {
    (head ^ 1 << 63) as i64
}

/// Bits after the point of a logarithm.
const LOG_BITS: u32 = 54;
const LN_2: i64 = (0xb172_17f7_d1cf_79ab_u64 >> (64 - LOG_BITS)) as i64;
/// log2(e), with 63 bits after the point.
const LOG2_E: u64 = 0xb8aa_3b29_5c17_f0bb;
/// `1 / i!` with 63 bits after the point.
const EXP: [u64; 21] = exp_coefficients();

const fn exp_coefficients() -> [u64; 21] {
    let mut out = [1 << 63; 21];
    let mut i = 1;
    while i < out.len() {
        out[i] = out[i - 1] / i as u64;
        i += 1;
    }
    out
}

/// Numerators and denominators of Stirling's series, `B(2r) / (2r (2r - 1))`; signs alternate.
const STIRLING: [(u64, u64); 9] =
    [(1, 12), (1, 360), (1, 1260), (1, 1680), (1, 1188), (691, 360_360), (1, 156), (3617, 122_400), (43_867, 244_188)];

#[inline(always)]
fn high(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

/// `x`, or `-x` where `mask` is -1 instead of 0.
#[inline(always)]
fn negate_if(mask: i64, x: i64) -> i64 {
    (x ^ mask).wrapping_sub(mask)
}

/// Rejection from blocks of `2^block_bits` values, of which the `g`th on either side of the mode is proposed with probability
/// `2^(-g - 2)`.
///
/// With `d = k - mean`, `x = d / mean` and `q = d^2 / mean`, Stirling's series for `k!` gives
///
/// `-ln P[k] = constant + linear x + q (c0 - c1 x + c2 x^2 - ...)`,
///
/// `c_n = 1/((n+1)(n+2)) - 1/(2 mean (n+2)) + sum over r of b_r C(n+2r, 2r-2) / mean^(2r)`, `b_r = B(2r) / (2r (2r-1))`.
/// Nine terms of Stirling's series leave less than `1.4 k^-19 < 2^-170`, because `k > 512`; and all |x| stay below 1/2. Then
/// `k` is accepted with probability `exp(-h)`, `h = -ln P[k] + ceiling - g ln 2`, where `ceiling` makes no `h` negative. As
/// the distribution falls on both sides of the mode, it is enough to look at the first value of each block.
///
/// Errors of `h` with 192 bits: 1/mean, and so `x`, is off by less than 2^-191, `q` by less than `2^28 * 2^-191` and the
/// rest by less: below 2^-155 in all. With 64 bits: 55 steps of three units of 2^-64 for the series, times q < 2^8; ten units
/// of 2^-54 for q, as many for the rest: below 2^-48. [`SLACK`] is 2^-42.
#[derive(Debug)]
pub(super) struct Rejection {
    mean: Mean,
    /// What the mean is above its whole part, times `2^shift`.
    fraction: i64,
    block_bits: u32,
    blocks: u32,
    /// All |x| are below `2^-zeros`; at least 1.
    zeros: u32,
    /// `2^116 / mantissa`.
    reciprocal: u64,
    /// `c_n 2^(-zeros n)` and `linear`, 64 bits each.
    series: Vec<u64>,
    linear: u64,
    /// The same with all bits, without the powers of two.
    wide_series: Vec<Wide>,
    wide_linear: Wide,
    ceiling: i64,
    /// By how much a probability from 1/2 to 1, with 63 bits after the point, is taken to be wrong.
    slack: u64,
}

/// 2^-42.
const SLACK: u64 = 1 << (63 - 42);

/// A proposed value.
#[derive(Debug, Clone, Copy)]
struct Proposal {
    /// From the mode.
    offset: i64,
    block: u32,
}

impl Rejection {
    fn new(mean: Mean) -> Self {
        let Mean { mantissa, shift, whole, reach } = mean;
        // The largest block of at most 0.98 standard deviations.
        let block_bits = (0..24).rev().find(|bits| 25u64 << (2 * bits) <= 24 * whole).unwrap_or(0);
        let blocks = reach.div_ceil(1 << block_bits) as u32;
        let furthest = (u64::from(blocks) << block_bits) + 1;
        let zeros = (1..24).rev().find(|zeros| furthest << zeros <= whole).unwrap_or(0);
        debug_assert!(zeros >= 1 && blocks < 40 && whole > 512 + furthest);
        let count = 176 / zeros + 2;
        let wide_series: Vec<Wide> = (0..u64::from(count)).map(|n| coefficient(mean, n)).collect();
        let scaled = wide_series.iter().zip(0..).map(|(c, n)| c.down(zeros * n).head());
        let wide_linear = linear(mean);
        let mut rejection = Self {
            mean,
            fraction: (mantissa - (whole << shift)) as i64,
            block_bits,
            blocks,
            zeros,
            reciprocal: (((1u128 << 116) - 1) / u128::from(mantissa)) as u64,
            series: scaled.take_while(|c| *c > 0).collect(),
            linear: wide_linear.head(),
            wide_series,
            wide_linear,
            ceiling: 0,
            slack: SLACK,
        };
        let first =
            |block: u32| [0, -1].map(|side| Proposal { offset: (i64::from(block) << block_bits) ^ side, block });
        let excess = (0..blocks).flat_map(first).map(|first| -rejection.exponent(first));
        // Far more than the 2^-48 by which those may be wrong.
        rejection.ceiling = excess.max().unwrap_or(0).max(0) + (1 << (LOG_BITS - 44));
        rejection
    }

    #[inline(always)]
    fn draw(&self, words: &mut impl Words) -> Result<i64, CryptoError> {
        loop {
            // Bit 0 is the side, 1 to 40 are the block, the others the place in it.
            let word = words.word()?;
            let block = (word >> 1 | 1 << 40).trailing_zeros();
            let place = word >> 41 >> (23 - self.block_bits);
            let offset = ((u64::from(block) << self.block_bits | place) as i64) ^ -((word & 1) as i64);
            let number = words.word()?;
            if block < self.blocks && self.accepts(Proposal { offset, block }, number, words)? {
                return Ok(offset);
            }
        }
    }

    #[inline(always)]
    fn accepts(&self, proposal: Proposal, number: u64, words: &mut impl Words) -> Result<bool, CryptoError> {
        let (chance, halvings) = exp_minus((self.exponent(proposal) + self.ceiling).max(0) as u64);
        let slack = self.slack;
        // As multiples of 2^-64. What is not drawn yet of the number adds less than one.
        let number_wide = u128::from(number);
        let least = u128::from(chance.saturating_sub(slack)) << 1 >> halvings;
        let most = (u128::from(chance + slack) << 1 >> halvings) + 1;
        if number_wide < least {
            Ok(true)
        } else if number_wide >= most {
            Ok(false)
        } else {
            self.decide(proposal, [number, words.word()?, words.word()?])
        }
    }

    #[cold]
    #[inline(never)]
    fn decide(&self, proposal: Proposal, number: [u64; 3]) -> Result<bool, CryptoError> {
        let [a, b, c] = number;
        Ok(Wide([0, a, b, c]) < self.wide_exponent(proposal).exp_minus())
    }

    /// |d| 2^shift, and -1 where d is negative, else 0.
    #[inline(always)]
    fn distance(&self, offset: i64) -> (u64, i64) {
        let d = (offset << self.mean.shift) - self.fraction;
        (d.unsigned_abs(), d >> 63)
    }

    /// `h`, less `ceiling`.
    #[inline(always)]
    fn exponent(&self, proposal: Proposal) -> i64 {
        let (d, negative) = self.distance(proposal.offset);
        let (shift, zeros) = (self.mean.shift, self.zeros);
        // x 2^zeros.
        let x = ((u128::from(d) * u128::from(self.reciprocal)) >> (52 - zeros)) as u64;
        let q = ((u128::from(d) * u128::from(x)) >> (64 - LOG_BITS + shift + zeros)) as u64;
        let sign = !negative;
        let series =
            self.series.iter().rev().fold(0u64, |sum, c| c.wrapping_add(negate_if(sign, high(sum, x) as i64) as u64));
        let linear = (high(x, self.linear) >> (64 - LOG_BITS + zeros)) as i64;
        high(q, series) as i64 + negate_if(negative, linear) - i64::from(proposal.block) * LN_2
    }

    /// `h`.
    fn wide_exponent(&self, proposal: Proposal) -> Wide {
        let (d, negative) = self.distance(proposal.offset);
        let x = Wide::whole(d).over_whole(self.mean.mantissa);
        let q = x.times_whole(d).down(self.mean.shift);
        let series = self.wide_series.iter().rev().fold(Wide::ZERO, |sum, c| {
            let rest = sum.times(x);
            if negative == 0 { c.minus(rest) } else { c.plus(rest) }
        });
        let linear = x.times(self.wide_linear);
        let sum = q.times(series).plus(Wide::whole(self.ceiling as u64).down(LOG_BITS));
        let less = Wide::LN_2.times_whole(proposal.block.into());
        if negative == 0 { sum.plus(linear).minus_or_zero(less) } else { sum.minus_or_zero(less.plus(linear)) }
    }
}

/// `exp(-h)`, as a number from 1/2 to 1 with 63 bits after the point and how often it is to be halved, at most 127.
#[inline(always)]
fn exp_minus(h: u64) -> (u64, u32) {
    let bits = (u128::from(h) * u128::from(LOG2_E)) >> 63;
    let halvings = (bits >> LOG_BITS).min(127) as u32;
    // With 64 bits after the point.
    let rest = high((bits as u64) << (64 - LOG_BITS), 0xb172_17f7_d1cf_79ab);
    (EXP.iter().rev().fold(0, |sum, c| c - high(sum, rest)), halvings)
}

/// The `c_n` of [`Rejection`].
fn coefficient(mean: Mean, n: u64) -> Wide {
    let mut sum = Wide::ONE.over_whole((n + 1) * (n + 2));
    let mut less = mean.divide(Wide::ONE).over_whole(2 * (n + 2));
    // C(n + 2r, 2r - 2) / mean^(2r).
    let mut term = mean.divide(mean.divide(Wide::ONE));
    for ((numerator, denominator), r) in STIRLING.into_iter().zip(1..) {
        let part = term.times_whole(numerator).over_whole(denominator);
        let side = if r % 2 == 1 { &mut sum } else { &mut less };
        *side = side.plus(part);
        term = mean.divide(term.times_whole(n + 2 * r + 1)).over_whole(2 * r - 1);
        term = mean.divide(term.times_whole(n + 2 * r + 2)).over_whole(2 * r);
    }
    sum.minus(less)
}

/// The coefficient of `x` of [`Rejection`]: `1/2 - sum over r of b_r (2r - 1) / mean^(2r - 1)`.
fn linear(mean: Mean) -> Wide {
    let (mut sum, mut less) = (Wide::ONE.over_whole(2), Wide::ZERO);
    let mut power = mean.divide(Wide::ONE);
    for ((numerator, denominator), r) in STIRLING.into_iter().zip(1..) {
        let part = power.times_whole(numerator * (2 * r - 1)).over_whole(denominator);
        let side = if r % 2 == 1 { &mut less } else { &mut sum };
        *side = side.plus(part);
        power = mean.divide(mean.divide(power));
    }
    sum.minus(less)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Given words; the test has failed when there are no more.
    struct Given(Vec<u64>);

    impl Words for Given {
        fn word(&mut self) -> Result<u64, CryptoError> {
            Ok(self.0.pop().expect("another word"))
        }
    }

    /// A generator that is good enough for choosing cases (SplitMix64).
    struct Cases(u64);

    impl Words for Cases {
        fn word(&mut self) -> Result<u64, CryptoError> {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            Ok(x ^ x >> 31)
        }
    }

    const LARGE: [f64; 9] =
        [1024.0, 1024.0 + 1.0 / 4096.0, 1499.999, 12_345.678, 1e6, 1e9 + 0.3, 3e11, 1e14, (1u64 << 47) as f64];

    fn near(a: Wide, b: Wide, bits: u32) -> bool {
        a.max(b).minus(a.min(b)) <= Wide::ONE.down(bits)
    }

    /// Thresholds of a table, and the value below the first.
    fn table(mean: f64) -> (Vec<Wide>, u64) {
        let mean = Mean::half(2.0 * mean);
        let table = Table::new(mean);
        let wide = |(&head, &[b, c]): (&i64, &[u64; 2])| Wide([0, head as u64 ^ 1 << 63, b, c]);
        (table.heads.iter().zip(&table.tails).map(wide).collect(), mean.whole.saturating_sub(mean.reach))
    }

    fn rejection(mean: f64) -> Rejection {
        Rejection::new(Mean::half(2.0 * mean))
    }

    fn some_proposal(rejection: &Rejection, cases: &mut Cases) -> Proposal {
        let block = cases.word().unwrap() as u32 % rejection.blocks;
        let place = cases.word().unwrap() & ((1 << rejection.block_bits) - 1);
        let side = -((cases.word().unwrap() & 1) as i64);
        Proposal { offset: (u64::from(block) << rejection.block_bits | place) as i64 ^ side, block }
    }

    #[test]
    fn a_mean_is_half_of_the_variance_to_the_last_bit() {
        for (variance, mantissa, shift, whole) in [
            (2.0, 1 << 52, 52, 1),
            (7.0, 7 << 50, 51, 3),
            (MAX, 1 << 52, 5, 1 << 47),
            (f64::MIN_POSITIVE, 1 << 52, 1075, 0),
            (f64::from_bits(1), 1, 1075, 0),
            (2.0 * 1024.75, 4099 << 40, 42, 1024),
        ] {
            let mean = Mean::half(variance);
            assert_eq!((mean.mantissa, mean.shift, mean.whole), (mantissa, shift, whole), "{variance}");
        }
    }

    const MAX: f64 = crate::privacy::MAX_NOISE_VARIANCE;

    /// By the definition, without a mode or a quotient: `exp(-mean) sum of mean^i / i!`.
    #[test]
    fn a_table_has_the_probabilities_of_the_definition_to_140_bits() {
        for (numerator, denominator) in [(1, 1 << 20), (3, 20), (1, 2), (1, 1), (5, 1), (21, 2), (19, 1)] {
            // A mean that a double does not hold would be rounded.
            let mean = numerator as f64 / denominator as f64;
            let Mean { mantissa, shift, .. } = Mean::half(2.0 * mean);
            let exact = Wide::whole(mantissa).down(shift);
            let scale = exact.exp_minus();
            let (thresholds, first) = table(mean);
            assert_eq!(first, 0);
            let (mut power, mut sum) = (Wide::ONE, Wide::ZERO);
            for (i, threshold) in thresholds.into_iter().enumerate() {
                sum = sum.plus(power);
                power = power.times(exact).over_whole(i as u64 + 1);
                assert!(near(sum.times(scale), threshold, 140), "{mean}, up to {i}");
            }
        }
    }

    /// A product of quotients, and Stirling's series.
    #[test]
    #[cfg_attr(miri, ignore = "many numbers of many limbs")]
    fn table_and_rejection_agree_on_every_probability_to_130_bits() {
        for mean in [1024.0, 1024.0 + 1.0 / 3.0, 1500.25, 2000.9] {
            let (thresholds, first) = table(mean);
            let rejection = rejection(mean);
            let chance = |offset| rejection.wide_exponent(Proposal { offset, block: 0 }).exp_minus();
            let at = |k: u64| {
                let i = (k - first) as usize;
                thresholds[i].minus(thresholds[i - 1])
            };
            let mode = mean as u64;
            let furthest = i64::from(rejection.blocks) << rejection.block_bits;
            for offset in (-furthest..furthest).filter(|offset| offset.unsigned_abs() < rejection.mean.reach) {
                let k = (mode as i64 + offset) as u64;
                let (left, right) = (at(k).times(chance(0)), at(mode).times(chance(offset)));
                assert!(near(left, right, 130), "mean {mean}, {offset}");
            }
        }
    }

    /// `P[k + 1] (k + 1) = P[k] mean`.
    #[test]
    fn chances_of_rejection_have_the_quotients_of_the_distribution() {
        let mut cases = Cases(1);
        for mean in LARGE {
            let rejection = rejection(mean);
            let Mean { mantissa, shift, whole, .. } = rejection.mean;
            for _ in 0..20 {
                let offset = some_proposal(&rejection, &mut cases).offset;
                let chance = |offset| rejection.wide_exponent(Proposal { offset, block: 0 }).exp_minus();
                let next = chance(offset + 1).times_whole((whole as i64 + offset + 1) as u64);
                let this = chance(offset).times_whole(mantissa).down(shift);
                // Both were multiplied by the mean.
                assert!(near(next, this, 150 - (64 - whole.leading_zeros())), "mean {mean}, {offset}");
            }
        }
    }

    #[test]
    fn what_64_bits_say_is_as_near_as_is_claimed_and_no_chance_exceeds_1() {
        let mut cases = Cases(2);
        for mean in LARGE {
            let rejection = rejection(mean);
            assert!(rejection.zeros >= 1 && rejection.blocks < 40 && rejection.series.len() < 60);
            assert!(rejection.mean.whole > 512 + (u64::from(rejection.blocks) << rejection.block_bits));
            assert!(
                rejection.block_bits <= 23
                    && (u64::from(rejection.blocks) << rejection.block_bits) > rejection.mean.reach
            );
            for i in 0..600 {
                let mut proposal = some_proposal(&rejection, &mut cases);
                if i < 80 {
                    // First and last of a block.
                    let block = i % rejection.blocks;
                    let last = (1i64 << rejection.block_bits) - 1;
                    let offset = (i64::from(block) << rejection.block_bits) + if i < 40 { 0 } else { last };
                    proposal = Proposal { offset: if i % 2 == 0 { offset } else { !offset }, block };
                }
                let h = rejection.exponent(proposal) + rejection.ceiling;
                assert!(h > 0, "mean {mean}, {proposal:?}");
                let exact = rejection.wide_exponent(proposal);
                assert!(near(Wide::whole(h as u64).down(LOG_BITS), exact, 47), "mean {mean}, {proposal:?}");
                let (chance, halvings) = exp_minus(h as u64);
                assert!(near(Wide([0, chance << 1, 0, 0]).down(halvings), exact.exp_minus(), 45));
            }
            // The hat is not higher than it has to be: some value is all but always accepted.
            let edges = (0..rejection.blocks).flat_map(|block| {
                let first = i64::from(block) << rejection.block_bits;
                [first, !first].map(|offset| rejection.exponent(Proposal { offset, block }) + rejection.ceiling)
            });
            assert!(edges.min() < Some(1 << (LOG_BITS - 40)));
        }
    }

    #[test]
    fn a_number_that_64_bits_do_not_tell_from_its_bound_is_decided_by_192() {
        let mut cases = Cases(3);
        for mean in LARGE {
            let rejection = rejection(mean);
            for _ in 0..20 {
                let proposal = some_proposal(&rejection, &mut cases);
                let Wide([_, a, b, c]) = rejection.wide_exponent(proposal).exp_minus();
                let accepts = |below: bool| {
                    let Wide([_, a, b, c]) = Wide([0, a, b, c]).minus(Wide([0, 0, 0, below.into()]));
                    rejection.accepts(proposal, a, &mut Given(vec![c, b])).unwrap()
                };
                assert!(accepts(true) && !accepts(false), "mean {mean}, {proposal:?}");
                // Where 64 bits decide, they decide alike, and take no more words.
                for _ in 0..20 {
                    let number = cases.word().unwrap();
                    let decided = rejection.accepts(proposal, number, &mut Given(Vec::new())).unwrap();
                    assert_eq!(decided, rejection.decide(proposal, [number, 0, 0]).unwrap());
                }
            }
        }
        let table = Table::new(Mean::half(11.0));
        for i in [0, 1, 5, 20] {
            let (head, [b, c]) = (table.heads[i] as u64 ^ 1 << 63, table.tails[i]);
            let at = |c| table.draw(&mut Given(vec![c, b, head])).unwrap();
            assert_eq!((at(c - 1), at(c)), (i as i64, i as i64 + 1));
            assert_eq!(table.draw(&mut Given(vec![head + 1])).unwrap(), i as i64 + 1);
            assert_eq!(table.draw(&mut Given(vec![head - 1])).unwrap(), i as i64);
        }
    }

    /// As if 64 bits were 2 bits: nearly all comparisons go on to 192.
    #[test]
    #[cfg_attr(miri, ignore = "statistics take too many draws")]
    fn undecided_comparisons_leave_the_distribution_as_it_is() {
        let (n, mean) = (20_000, 1500.5);
        let mut rejection = rejection(mean);
        rejection.slack = 1 << 61;
        let mut cases = Cases(4);
        let draws: Vec<f64> = (0..n).map(|_| rejection.draw(&mut cases).unwrap() as f64 - 0.5).collect();
        let moment = |power| draws.iter().map(|x| x.powi(power)).sum::<f64>() / f64::from(n);
        assert!(moment(1).abs() < 5.0 * (mean / f64::from(n)).sqrt(), "{}", moment(1));
        assert!((moment(2) / mean - 1.0).abs() < 5.0 * (2.0 / f64::from(n)).sqrt(), "{}", moment(2));
    }
}
