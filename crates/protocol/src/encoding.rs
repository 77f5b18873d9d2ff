//! Updates as ring vectors (section 7): clip, rotate, weigh, scale, round; and the weighted mean back from the sum.
//!
//! A masked vector has `d` elements of the update, then one for each metric, then the weight.

use rand_core::CryptoRng;
use unisono_crypto::CryptoError;
use unisono_crypto::prg::{self, Seed, Sign};
use unisono_crypto::ring::{Modulus, RingVector};
use unisono_crypto::secret::Secret32;
use zeroize::Zeroizing;

use crate::privacy::Privacy;
use crate::rotation::{self, Rotation};

/// How a scaled value becomes an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Up with the probability of the fractional part: unbiased.
    Stochastic,
    /// To the nearest integer.
    Deterministic,
}

/// Elements that follow each other and have an L-infinity bound of their own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClipRun {
    /// How many, at least 1.
    pub elements: u64,
    /// Their bound, above 0.
    pub clip: f32,
}

/// Most runs of elements with bounds of their own.
pub const MAX_CLIP_RUNS: usize = 4096;

/// The encoder's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantiser {
    /// Bits q of one quantised element, 1 to 32.
    pub bits: u32,
    /// L-infinity bound of an update's elements, above 0.
    pub clip: f32,
    /// Bounds of runs of elements in the place of `clip`, in order, with as many elements together as the update; empty: `clip` is the
    /// bound of all. Neighbours have different ones. Not with `privacy` or `rotation`, and at most [`MAX_CLIP_RUNS`].
    pub clips: Vec<ClipRun>,
    /// L2 bound of an update, applied first, above 0.
    pub l2_clip: Option<f32>,
    /// Largest weight of one client, above 0.
    pub max_weight: f32,
    /// How scaled values are rounded.
    pub rounding: Rounding,
    /// Interval to which each metric is clamped.
    pub metric_bounds: Vec<(f32, f32)>,
    /// Noise that [`Self::encode`] adds; `None` for exact sums. Needs `l2_clip`, and allows no metrics.
    pub privacy: Option<Privacy>,
    /// Rotation between the L2 bound and the L-infinity bound, undone by [`Self::decode`]; `None` for none. In a round it is
    /// the round's own, see [`RoundParams`](crate::params::RoundParams). Needs `bits` of at most 24.
    pub rotation: Option<Rotation>,
}

/// Why an update can't be encoded, or a sum not decoded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EncodingError {
    /// A setting is outside its range.
    #[error("quantiser setting `{setting}` is {got}; allowed is {allowed}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// Value found.
        got: String,
        /// What would be accepted.
        allowed: &'static str,
    },
    /// The modulus is too small for the number of clients.
    #[error(
        "sums of {clients} clients at {bits} bits need a modulus of {needed} bits; it has {modulus_bits}: they could overflow"
    )]
    Overflow {
        /// Clients in the sum.
        clients: u32,
        /// Bits of one element.
        bits: u32,
        /// Smallest sufficient modulus, bits.
        needed: u32,
        /// Modulus found, bits.
        modulus_bits: u32,
    },
    /// A value is NaN or infinite.
    #[error("element {index} of the {what} is {value}: only finite numbers can be sent")]
    NonFinite {
        /// Update or metrics.
        what: &'static str,
        /// Place of the first such value.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The weight is not in its range.
    #[error("the weight is {got}; allowed is above 0 up to max_weight = {max}")]
    Weight {
        /// Value found.
        got: f32,
        /// Largest weight.
        max: f32,
    },
    /// With privacy, every weight is the same: it is public then, and needs no noise.
    #[error("the weight is {got}; a round with privacy counts every device alike: it must be max_weight = {required}")]
    UnequalWeight {
        /// Value found.
        got: f32,
        /// The only weight.
        required: f32,
    },
    /// A vector has another length than the round's.
    #[error("the {what} has {got} elements; the round asks for {expected}")]
    Length {
        /// Update, metrics or sum.
        what: &'static str,
        /// Length required.
        expected: usize,
        /// Length found.
        got: usize,
    },
    /// The coins of stochastic rounding, or the signs of a rotation, can't be had.
    #[error(transparent)]
    Crypto(CryptoError),
    /// All weights were rounded to zero.
    #[error(
        "the weights of {clients} clients sum to zero after rounding: lower max_weight or raise the quantiser's bits"
    )]
    ZeroWeight {
        /// Clients in the sum.
        clients: u32,
    },
}

/// The smallest b with `clients (2^bits - 1) < 2^b`.
///
/// # Errors
/// [`EncodingError::Setting`] unless `bits` is 1 to 32 and there is a client.
pub fn modulus_bits(bits: u32, clients: u32) -> Result<u32, EncodingError> {
    if !(1..=32).contains(&bits) {
        return Err(EncodingError::Setting { setting: "bits", got: bits.to_string(), allowed: "1 to 32" });
    }
    if clients == 0 {
        return Err(EncodingError::Setting { setting: "clients", got: "0".into(), allowed: "at least 1" });
    }
    let largest = u64::from(clients) * ((1u64 << bits) - 1);
    Ok(64 - largest.leading_zeros())
}

/// What a client contributes.
#[derive(Debug, Clone, Copy)]
pub struct Contribution<'a> {
    /// The update, `d` elements.
    pub update: &'a [f32],
    /// The trainer's metrics, one for each interval of the quantiser.
    pub metrics: &'a [f32],
    /// Weight, above 0 up to `max_weight`.
    pub weight: f32,
}

/// The decoded sum of a round.
#[derive(Debug, Clone, PartialEq)]
pub struct Aggregate {
    /// Weighted mean of the updates, `d` elements.
    pub mean: Vec<f32>,
    /// Weighted means of the metrics.
    pub metrics: Vec<f32>,
    /// Sum of the weights.
    pub total_weight: f64,
    /// Bound on the error that quantisation adds to an element of `mean`, the one with the largest clip where there are several; clipping
    /// is not counted. With rotation this is the
    /// worst case, [`Rotation::error_growth`] times what a rotated element is off by; the RMS error over all elements does not grow.
    pub error_bound: f64,
    /// Standard deviation of the noise on an element of `mean`; 0 in a round without privacy.
    pub noise_deviation: f64,
}

impl Quantiser {
    /// Checks every setting's range.
    ///
    /// # Errors
    /// [`EncodingError::Setting`].
    pub fn validate(&self) -> Result<(), EncodingError> {
        let setting = |setting, got: String, allowed| Err(EncodingError::Setting { setting, got, allowed });
        let positive = |x: f32| x.is_finite() && x > 0.0;
        modulus_bits(self.bits, 1)?;
        if !positive(self.clip) {
            return setting("clip", self.clip.to_string(), "a finite number above 0");
        }
        if let Some(run) = self.clips.iter().find(|run| run.elements == 0 || !positive(run.clip)) {
            let got = format!("{} for {} elements", run.clip, run.elements);
            return setting("clips", got, "finite numbers above 0, each for at least one element");
        }
        if self.clips.windows(2).any(|pair| pair[0].clip == pair[1].clip) || self.clips.len() > MAX_CLIP_RUNS {
            return setting(
                "clips",
                format!("{} runs", self.clips.len()),
                "at most 4096 runs, each with another bound than the one before",
            );
        }
        if !self.clips.is_empty() && (self.privacy.is_some() || self.rotation.is_some()) {
            let with = if self.privacy.is_some() { "privacy" } else { "rotation" };
            return setting(
                "clips",
                format!("set, with {with}"),
                "one clip for all elements, with privacy or rotation",
            );
        }
        if let Some(clip) = self.l2_clip.filter(|&clip| !positive(clip)) {
            return setting("l2_clip", clip.to_string(), "a finite number above 0");
        }
        if !positive(self.max_weight) {
            return setting("max_weight", self.max_weight.to_string(), "a finite number above 0");
        }
        let bad = |&&(lower, upper): &&(f32, f32)| !(lower.is_finite() && upper.is_finite() && lower < upper);
        if let Some((lower, upper)) = self.metric_bounds.iter().find(bad) {
            return setting("metrics", format!("{lower}..{upper}"), "finite intervals with lower < upper");
        }
        if self.metric_bounds.len() > 64 {
            return setting("metrics", format!("{} intervals", self.metric_bounds.len()), "at most 64");
        }
        if self.rotation.is_some() && self.bits > rotation::MAX_BITS {
            return setting("bits", self.bits.to_string(), "1 to 24 in a round with rotation");
        }
        self.privacy.map_or(Ok(()), |privacy| privacy.validate(self))
    }

    /// The smallest b that holds sums of `clients` contributions with their noise on either side:
    /// `clients (2^bits - 1) + 2 margin < 2^b`, see [`Privacy::margin`]. Without privacy that is [`modulus_bits`].
    ///
    /// # Errors
    /// As [`modulus_bits`].
    pub fn modulus_bits(&self, clients: u32) -> Result<u32, EncodingError> {
        let without = modulus_bits(self.bits, clients)?;
        let Some(privacy) = &self.privacy else { return Ok(without) };
        let levels = (1u128 << self.bits) - 1;
        let whole = u128::from(clients) * levels + 2 * u128::from(privacy.margin(clients));
        Ok(128 - whole.leading_zeros())
    }

    /// The smallest bound of an element.
    pub fn narrowest(&self) -> f32 {
        self.clips.iter().map(|run| run.clip).reduce(f32::min).unwrap_or(self.clip)
    }

    /// The bound of each element of an update of `dimension`, as runs.
    ///
    /// # Errors
    /// [`EncodingError::Setting`] where `clips` have another number of elements.
    pub fn runs(&self, dimension: usize) -> Result<Vec<ClipRun>, EncodingError> {
        if self.clips.is_empty() {
            return Ok(vec![ClipRun { elements: dimension as u64, clip: self.clip }]);
        }
        let elements = self.clips.iter().try_fold(0u64, |sum, run| sum.checked_add(run.elements));
        if elements == Some(dimension as u64) {
            return Ok(self.clips.clone());
        }
        let got = elements.map_or("more than 2^64".into(), |elements| elements.to_string());
        let got = format!("{got} elements in all, of an update of {dimension}");
        Err(EncodingError::Setting { setting: "clips", got, allowed: "as many as the update has" })
    }

    /// Puts runs into the form of [`Self::clips`]: neighbours of one bound become one, and those without elements none.
    pub fn set_clips(&mut self, runs: impl IntoIterator<Item = ClipRun>) {
        self.clips.clear();
        for run in runs.into_iter().filter(|run| run.elements > 0) {
            match self.clips.last_mut() {
                Some(last) if last.clip == run.clip => last.elements = last.elements.saturating_add(run.elements),
                _ => self.clips.push(run),
            }
        }
    }

    fn scale(&self) -> f64 {
        ((1u64 << self.bits) - 1) as f64
    }

    /// Encodes a contribution of `dimension` elements as a vector mod 2^b.
    ///
    /// # Errors
    /// [`EncodingError::Length`], [`EncodingError::NonFinite`] or [`EncodingError::Weight`]; nothing leaves the device then.
    pub fn encode<R: CryptoRng + ?Sized>(
        &self,
        contribution: Contribution<'_>,
        dimension: usize,
        modulus: Modulus,
        rng: &mut R,
    ) -> Result<RingVector, EncodingError> {
        let Contribution { update, metrics, weight } = contribution;
        for (what, values, expected) in
            [("update", update, dimension), ("list of metrics", metrics, self.metric_bounds.len())]
        {
            if values.len() != expected {
                return Err(EncodingError::Length { what, expected, got: values.len() });
            }
            if let Some(index) = first_not_finite(values) {
                return Err(EncodingError::NonFinite { what, index, value: values[index] });
            }
        }
        if !(weight > 0.0 && weight <= self.max_weight) {
            return Err(EncodingError::Weight { got: weight, max: self.max_weight });
        }
        if self.privacy.is_some() && weight != self.max_weight {
            return Err(EncodingError::UnequalWeight { got: weight, required: self.max_weight });
        }
        let share = f64::from(weight) / f64::from(self.max_weight);
        let bounds = Bounds::of(&self.runs(dimension)?);
        let shrink = match self.l2_clip.map(f64::from) {
            Some(bound) => {
                let norm = l2_norm(update);
                if norm > bound { bound / norm } else { 1.0 }
            }
            None => 1.0,
        };
        let rotated = self.rotation.map(|rotation| rotation.rotate(update, shrink)).transpose();
        let rotated = rotated.map_err(EncodingError::Crypto)?;
        let (update, shrink) = rotated.as_ref().map_or((update, shrink), |rotated| (rotated.as_slice(), 1.0));
        let metrics = metrics.iter().zip(&self.metric_bounds).map(|(&x, &(lower, upper))| {
            let unit = (f64::from(x.clamp(lower, upper)) - f64::from(lower)) / (f64::from(upper) - f64::from(lower));
            unit * share
        });
        let last: Zeroizing<Vec<f64>> = Zeroizing::new(metrics.chain([share]).collect());
        let rounder = Rounder::new(self.rounding, self.scale(), rng);
        let encoded = RingVector::from_chunks(modulus, dimension + last.len(), |start, out| {
            for (start, out) in (start..).step_by(COINS).zip(out.chunks_mut(COINS)) {
                let coins = rounder.coins(start, out.len())?;
                let inside = out.len().min(dimension.saturating_sub(start));
                let (updates, others) = out.split_at_mut(inside);
                let values = &update[start.min(dimension)..];
                let (rounder, mut rest) = (&rounder, updates);
                let mut at = 0;
                for (length, clip) in bounds.within(start, inside) {
                    let (updates, later) = rest.split_at_mut(length);
                    rest = later;
                    let (values, coins) = (&values[at..at + length], &coins[at..at + length]);
                    let factor = share / (2.0 * clip);
                    pulp::Arch::new().dispatch(Quantise { updates, values, coins, shrink, clip, factor, rounder });
                    at += length;
                }
                let from = start.max(dimension) - dimension;
                let others = others.iter_mut().zip(&last[from..]).zip(&coins[inside..]);
                others.for_each(|((x, &unit), &coin)| *x = rounder.round(unit, coin));
            }
            Ok(())
        });
        let mut encoded = encoded.map_err(|error| match error {
            CryptoError::Range { .. } => self.overflow(1, modulus),
            other => EncodingError::Crypto(other),
        })?;
        if let Some(privacy) = &self.privacy {
            privacy.add_noise(&mut encoded, dimension, rng).map_err(EncodingError::Crypto)?;
        }
        Ok(encoded)
    }

    fn overflow(&self, clients: u32, modulus: Modulus) -> EncodingError {
        let needed = self.modulus_bits(clients).unwrap_or(u32::MAX);
        EncodingError::Overflow { clients, bits: self.bits, needed, modulus_bits: modulus.bits() }
    }

    /// Decodes the sum over `clients` contributions.
    ///
    /// # Errors
    /// [`EncodingError::Length`], [`EncodingError::Overflow`], [`EncodingError::ZeroWeight`] or [`EncodingError::Crypto`].
    pub fn decode(&self, sum: &RingVector, dimension: usize, clients: u32) -> Result<Aggregate, EncodingError> {
        let expected = dimension + self.metric_bounds.len() + 1;
        if sum.len() != expected {
            return Err(EncodingError::Length { what: "sum", expected, got: sum.len() });
        }
        if self.modulus_bits(clients)? > sum.modulus().bits() {
            return Err(self.overflow(clients, sum.modulus()));
        }
        let scale = self.scale();
        let number = self.signed(clients, sum.modulus());
        let units: Vec<f64> = sum.to_u64().into_iter().map(|x| number(x) / scale).collect();
        let weight = units[expected - 1];
        if weight == 0.0 {
            return Err(EncodingError::ZeroWeight { clients });
        }
        let (runs, clients) = (self.runs(dimension)?, f64::from(clients));
        let clip = runs.iter().map(|run| f64::from(run.clip)).fold(0.0, f64::max);
        let clips = runs.iter().flat_map(|run| std::iter::repeat_n(f64::from(run.clip), run.elements as usize));
        let mean = units[..dimension].iter().zip(clips);
        let mean = mean.map(|(unit, clip)| ((unit * 2.0 - clients) * clip / weight) as f32).collect();
        let metric = |(unit, &(lower, upper)): (&f64, &(f32, f32))| {
            (f64::from(lower) + unit / weight * (f64::from(upper) - f64::from(lower))) as f32
        };
        let metrics = units[dimension..expected - 1].iter().zip(&self.metric_bounds).map(metric).collect();
        // |s'/W' - s/W| <= (|s' - s| + |s/W| |W' - W|) / W', each client off by less than one step (half, when deterministic), and
        // by the 2^-17 to which `Rounder::round` is exact.
        let step = (if self.rounding == Rounding::Stochastic { 1.0 } else { 0.5 } + 1.0 / f64::from(1 << 17)) / scale;
        let error_bound = clients * step * (2.0 * clip + clip) / weight;
        let variance = self.privacy.map_or(0.0, |privacy| privacy.noise_variance);
        let noise_deviation = (clients * variance).sqrt() / scale * 2.0 * clip / weight;
        let total_weight = weight * f64::from(self.max_weight);
        let (mean, error_bound) = match &self.rotation {
            Some(rotation) => {
                let mean = rotation.undo(mean).map_err(EncodingError::Crypto)?;
                (mean, error_bound * Rotation::error_growth(dimension))
            }
            None => (mean, error_bound),
        };
        Ok(Aggregate { mean, metrics, total_weight, error_bound, noise_deviation })
    }

    /// How an element of a sum is read. Noise may take it below zero, or above the largest sum of contributions: what the
    /// ring has to spare is divided between the two.
    fn signed(&self, clients: u32, modulus: Modulus) -> impl Fn(u64) -> f64 + use<> {
        let largest = u64::from(clients) * ((1 << self.bits) - 1);
        let top = match self.privacy {
            Some(_) => largest + (modulus.mask() - largest) / 2,
            None => u64::MAX,
        };
        move |x| if x <= top { x as f64 } else { -((modulus.mask() - x) as f64 + 1.0) }
    }
}

/// Where runs of elements end, and their bounds.
struct Bounds(Vec<(usize, f64)>);

impl Bounds {
    fn of(runs: &[ClipRun]) -> Self {
        let ends = runs.iter().scan(0, |end, run| {
            *end += run.elements as usize;
            Some((*end, f64::from(run.clip)))
        });
        Self(ends.collect())
    }

    /// The `count` elements from `start` on: how many follow each other with which bound.
    fn within(&self, start: usize, count: usize) -> impl Iterator<Item = (usize, f64)> {
        let (mut at, end) = (start, start + count);
        let first = self.0.partition_point(|(run_end, _)| *run_end <= start);
        self.0[first..].iter().map_while(move |&(run_end, clip)| {
            let length = run_end.min(end) - at;
            at += length;
            (length > 0).then_some((length, clip))
        })
    }
}

/// The loop over an update's elements; `dispatch` runs it compiled for the widest vectors that the processor has.
struct Quantise<'a> {
    updates: &'a mut [u32],
    values: &'a [f32],
    coins: &'a [u16],
    shrink: f64,
    clip: f64,
    factor: f64,
    rounder: &'a Rounder,
}

impl pulp::NullaryFnOnce for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { updates, values, coins, shrink, clip, factor, rounder } = self;
        for ((x, &value), &coin) in updates.iter_mut().zip(values).zip(coins) {
            let clipped = (f64::from(value) * shrink).clamp(-clip, clip);
            *x = rounder.round(clipped * factor + 0.5, coin);
        }
    }
}

/// Place of the first value that is NaN or infinite.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    // Whole chunks first, without a branch for each value.
    struct AllFinite<'a>(&'a [f32]);
    impl pulp::NullaryFnOnce for AllFinite<'_> {
        type Output = bool;

        #[inline(always)]
        fn call(self) -> bool {
            self.0.iter().fold(true, |all, x| all & x.is_finite())
        }
    }
    let good = |chunk| pulp::Arch::new().dispatch(AllFinite(chunk));
    let chunk = values.chunks(1024).position(|chunk| !good(chunk))?;
    values[1024 * chunk..].iter().position(|x| !x.is_finite()).map(|index| 1024 * chunk + index)
}

/// The L2 norm, summed in eight lanes.
fn l2_norm(values: &[f32]) -> f64 {
    let (blocks, rest) = values.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
    }
    let rest: f64 = rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    (lanes.iter().sum::<f64>() + rest).sqrt()
}

/// Elements whose coins are drawn at a time.
const COINS: usize = 4096;

/// Rounds by adding a coin of `[0, 1)` and rounding down; deterministically, the coin is one half.
struct Rounder {
    /// The stream of coins, in stochastic rounding: a seed drawn from the caller's generator, so that chunks can be
    /// rounded by several threads and yet depend on that generator alone.
    coins: Option<Seed>,
    scale: f64,
}

impl Rounder {
    fn new<R: CryptoRng + ?Sized>(rounding: Rounding, scale: f64, rng: &mut R) -> Self {
        let seed = |rng| Seed::from_secret(&Secret32::random(rng));
        Self { coins: (rounding == Rounding::Stochastic).then(|| seed(rng)), scale }
    }

    /// The coins for `count` elements from `start` on, at most [`COINS`] of them.
    fn coins(&self, start: usize, count: usize) -> Result<Zeroizing<[u16; COINS]>, CryptoError> {
        let Some(seed) = &self.coins else { return Ok(Zeroizing::new([1 << 15; COINS])) };
        let mut coins = Zeroizing::new([0; COINS]);
        prg::apply(seed, start as u64, Sign::Add, &mut coins[..count])?;
        Ok(coins)
    }

    /// Scales a value of 0 to 1 and rounds it. Coins have 16 bits, and the scaled value is rounded to 2^-16 first: added to 2^36, a
    /// double's last bit is 2^-16, and what stands above it is the integer.
    #[inline(always)]
    fn round(&self, unit: f64, coin: u16) -> u32 {
        const STEP: f64 = 1.0 / (1u64 << 16) as f64;
        let scaled = unit.clamp(0.0, 1.0) * self.scale + f64::from(coin) * STEP;
        ((scaled + (1u64 << 36) as f64).to_bits() >> 16) as u32
    }
}

#[cfg(test)]
mod tests;
