//! The random rotation of an update before it is clipped (section 7): random signs and Walsh-Hadamard transforms, which spread
//! a large element over thousands of places, so that the clip can be smaller.
//!
//! A rotation keeps the L2 norm and the number of elements. All clients of a round share it, so that the mean of rotated
//! updates is the rotated mean; it is public, and protects nothing. After Suresh et al., "Distributed Mean Estimation with
//! Limited Communication" (ICML 2017), who pad a vector to a power of two; here the last window overlaps the one before.

use rayon::prelude::*;
use unisono_crypto::CryptoError;
use unisono_crypto::kdf::{derive_secret, label};
use unisono_crypto::prg::{self, Seed, Sign};
use zeroize::Zeroizing;

use crate::ids::RoundId;

/// Most elements of a window: in `f64` they fit a core's innermost cache.
const WINDOW: usize = 4096;
/// Words of signs that each window has, whatever its length.
const SIGN_WORDS: usize = WINDOW / 64;
/// Elements of a class that are put back at a time: a cache line of them.
const TILE: usize = 16;
/// Most bits of a quantised element in a round with rotation: a rotated element is rounded to an `f32`.
pub const MAX_BITS: u32 = 24;

/// The rotation of one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation(RoundId);

impl Default for Rotation {
    /// A fixed rotation that belongs to no round: for settings, from which a round's parameters are yet to be made, and for
    /// sums outside of rounds.
    fn default() -> Self {
        Self(RoundId([0; RoundId::LEN]))
    }
}

impl Rotation {
    /// The rotation that all clients of a round use.
    pub fn of_round(round_id: RoundId) -> Self {
        Self(round_id)
    }

    /// How many times larger than its bound on a rotated element an element's error can be once the rotation is undone:
    /// `sqrt(B)` for windows of `B` elements, and `sqrt(2 B)` where two overlap.
    pub fn error_growth(len: usize) -> f64 {
        let layout = Layout::of(len);
        let windows = if layout.overlap().is_some() { 2 } else { 1 };
        ((windows * layout.window) as f64).sqrt()
    }

    /// Multiplies an update by `shrink` and rotates it; as many elements come out. Arithmetic is in `f64`, rounded once to an `f32` (in the
    /// overlap twice). An element beyond its range becomes infinite, for the clip to cut.
    ///
    /// # Errors
    /// [`CryptoError`] when the signs can't be had.
    pub(crate) fn rotate(&self, update: &[f32], shrink: f64) -> Result<Zeroizing<Vec<f32>>, CryptoError> {
        let (layout, seed) = (Layout::of(update.len()), self.seed());
        let mut rotated = Zeroizing::new(vec![0.0; update.len()]);
        let buffer = || Zeroizing::new([0.0; WINDOW]);
        rotated.par_chunks_mut(layout.window).enumerate().try_for_each_init(buffer, |buffer, (number, window)| {
            let values = &mut buffer[..window.len()];
            let elements = layout.elements(number * layout.window);
            values.iter_mut().zip(elements).for_each(|(x, element)| *x = f64::from(update[element]) * shrink);
            if window.len() == layout.window {
                transform(&seed, number, Direction::Forward, values)?;
            }
            store(values, window);
            Ok::<(), CryptoError>(())
        })?;
        if let Some((number, start)) = layout.overlap() {
            in_place(&seed, number, Direction::Forward, &mut buffer(), &mut rotated[start..])?;
        }
        Ok(rotated)
    }

    /// Undoes [`Self::rotate`] on a mean of rotated updates.
    ///
    /// # Errors
    /// [`CryptoError`] when the signs can't be had.
    pub(crate) fn undo(&self, mut rotated: Vec<f32>) -> Result<Vec<f32>, CryptoError> {
        let (layout, seed) = (Layout::of(rotated.len()), self.seed());
        let buffer = || Zeroizing::new([0.0; WINDOW]);
        if let Some((number, start)) = layout.overlap() {
            in_place(&seed, number, Direction::Inverse, &mut buffer(), &mut rotated[start..])?;
        }
        rotated
            .par_chunks_exact_mut(layout.window)
            .enumerate()
            .try_for_each_init(buffer, |buffer, (number, window)| {
                in_place(&seed, number, Direction::Inverse, buffer, window)
            })?;
        let mut update = vec![0.0; rotated.len()];
        update.par_chunks_mut(TILE * layout.windows).enumerate().for_each(|(tile, out)| {
            for class in 0..layout.windows {
                let places = &rotated[layout.start(class) + tile * TILE..];
                out.iter_mut().skip(class).step_by(layout.windows).zip(places).for_each(|(x, &value)| *x = value);
            }
        });
        Ok(update)
    }

    /// The stream that gives the signs: window `w` has the 64 words from word `64 w` on.
    fn seed(&self) -> Seed {
        Seed::from_secret(&derive_secret(label::ROTATION, &self.0.0, &[]))
    }
}

/// How the elements are dealt to windows. With `m` windows, elements `c, c + m, c + 2 m, ...` stand side by side, for
/// each class `c` below `m`: so every part of a model is spread over all windows, and these have about the same norm.
#[derive(Debug, Clone, Copy)]
struct Layout {
    len: usize,
    /// Elements of a window, a power of two.
    window: usize,
    /// Windows, at least 1. When the last is not whole, it begins earlier and overlaps the one before.
    windows: usize,
}

impl Layout {
    fn of(len: usize) -> Self {
        let window = len.checked_ilog2().map_or(1, |log| 1 << log).min(WINDOW);
        Self { len, window, windows: len.div_ceil(window).max(1) }
    }

    /// Number and start of the window that overlaps the one before.
    fn overlap(&self) -> Option<(usize, usize)> {
        (!self.len.is_multiple_of(self.window)).then(|| (self.windows - 1, self.len - self.window))
    }

    /// Place of a class's first element.
    fn start(&self, class: usize) -> usize {
        class * (self.len / self.windows) + class.min(self.len % self.windows)
    }

    /// The elements that stand at `place` and after it.
    fn elements(self, place: usize) -> impl Iterator<Item = usize> {
        let Self { len, windows, .. } = self;
        let (short, longer) = (len / windows, len % windows);
        // The first `longer` classes have one element more.
        let (class, row) = match place.checked_sub(longer * (short + 1)) {
            None => (place / (short + 1), place % (short + 1)),
            Some(place) => (longer + place / short, place % short),
        };
        let next = move |&element: &usize| {
            let next = element + windows;
            Some(if next < len { next } else { next % windows + 1 })
        };
        std::iter::successors(Some(class + row * windows), next)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Inverse,
}

fn in_place(
    seed: &Seed,
    number: usize,
    direction: Direction,
    buffer: &mut [f64; WINDOW],
    window: &mut [f32],
) -> Result<(), CryptoError> {
    let values = &mut buffer[..window.len()];
    values.iter_mut().zip(&*window).for_each(|(x, &value)| *x = value.into());
    transform(seed, number, direction, values)?;
    store(values, window);
    Ok(())
}

fn store(values: &[f64], window: &mut [f32]) {
    window.iter_mut().zip(values).for_each(|(x, &value)| *x = value as f32);
}

/// Signs and the normalised Walsh-Hadamard transform of a window, or the inverse.
fn transform(seed: &Seed, number: usize, direction: Direction, values: &mut [f64]) -> Result<(), CryptoError> {
    let mut signs = [0u64; SIGN_WORDS];
    prg::apply(seed, (number * SIGN_WORDS) as u64, Sign::Add, &mut signs)?;
    pulp::Arch::new().dispatch(Transform { values, signs: &signs, direction });
    Ok(())
}

/// The loops of [`transform`]; `dispatch` runs them compiled for the widest vectors that the processor has.
struct Transform<'a> {
    values: &'a mut [f64],
    signs: &'a [u64; SIGN_WORDS],
    direction: Direction,
}

impl pulp::NullaryFnOnce for Transform<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { values, signs, direction } = self;
        match direction {
            Direction::Forward => {
                sign_and_scale(values, signs);
                walsh_hadamard(values);
            }
            Direction::Inverse => {
                walsh_hadamard(values);
                sign_and_scale(values, signs);
            }
        }
    }
}

/// Divides by `sqrt(B)`, and turns those whose bit is set.
#[inline(always)]
fn sign_and_scale(values: &mut [f64], signs: &[u64; SIGN_WORDS]) {
    let scale = 1.0 / (values.len() as f64).sqrt();
    for (values, word) in values.chunks_mut(64).zip(signs) {
        for (bit, x) in values.iter_mut().enumerate() {
            *x = f64::from_bits((*x * scale).to_bits() ^ (word >> bit) << 63);
        }
    }
}

/// The transform without its factor, in natural order. The length is a power of two.
#[inline(always)]
fn walsh_hadamard(values: &mut [f64]) {
    let mut half = values.len() / 2;
    while half >= 8 {
        butterflies(values, half);
        half /= 2;
    }
    let (eights, rest) = values.as_chunks_mut::<8>();
    for eight in eights {
        [4, 2, 1].into_iter().for_each(|half| butterflies(eight, half));
    }
    let mut half = rest.len() / 2;
    while half > 0 {
        butterflies(rest, half);
        half /= 2;
    }
}

#[inline(always)]
fn butterflies(values: &mut [f64], half: usize) {
    for pair in values.chunks_exact_mut(2 * half) {
        let (low, high) = pair.split_at_mut(half);
        low.iter_mut().zip(high).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn norm(values: &[f32]) -> f64 {
        values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
    }

    fn rotation(byte: u8) -> Rotation {
        Rotation::of_round(RoundId([byte; 32]))
    }

    #[test]
    fn the_transform_is_that_of_the_definition() {
        for log in 0..=7 {
            let len = 1usize << log;
            let input: Vec<f64> = (0..len).map(|i| ((i * i + 3) % 17) as f64).collect();
            let mut output = input.clone();
            walsh_hadamard(&mut output);
            for (row, x) in output.iter().enumerate() {
                let sign = |column: usize| if (row & column).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                assert_eq!(*x, input.iter().enumerate().map(|(i, x)| sign(i) * x).sum::<f64>());
            }
        }
    }

    #[test]
    fn every_element_has_one_place_and_is_found_there_again() {
        for len in [1, 2, 3, 7, 650, 4095, 4096, 4097, 8191, 8192, 8193, 20_000] {
            let layout = Layout::of(len);
            let all: Vec<usize> = layout.elements(0).take(len).collect();
            let mut sorted = all.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..len), "{len}");
            for (place, &element) in all.iter().enumerate() {
                assert_eq!(layout.elements(place).next(), Some(element), "{len}, {place}");
                assert_eq!(layout.start(element % layout.windows) + element / layout.windows, place, "{len}");
            }
        }
    }

    #[test]
    fn one_large_element_is_spread_evenly_over_its_window_wherever_it_stands() {
        let len = if cfg!(miri) { 700 } else { 10_000 };
        let layout = Layout::of(len);
        for element in [0, 1, len / 2, len - 2, len - 1] {
            let mut update = vec![0.0f32; len];
            update[element] = 1.0;
            let rotated = rotation(3).rotate(&update, 1.0).unwrap();
            let largest = rotated.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            // In the overlap it is a sum of up to B random signs over B: ten deviations of that at the most.
            assert!(f64::from(largest) < 10.0 / (layout.window as f64).sqrt(), "{element}: {largest}");
            assert!(rotated.iter().filter(|x| **x != 0.0).count() >= layout.window / 2);
        }
    }

    #[test]
    fn rounds_differ_and_windows_differ() {
        let len = if cfg!(miri) { 600 } else { 8192 };
        let update = vec![1.0; len];
        let rotated = |byte| rotation(byte).rotate(&update, 1.0).unwrap().to_vec();
        assert_eq!(rotated(1), rotated(1));
        assert_ne!(rotated(1), rotated(2));
        let layout = Layout::of(len);
        assert_ne!(rotated(1)[..64], rotated(1)[layout.window.min(len - 64)..][..64]);
    }

    #[test]
    fn nothing_and_what_is_too_large_for_a_float_do_no_harm() {
        assert!(rotation(0).rotate(&[], 1.0).unwrap().is_empty());
        assert!(rotation(0).undo(Vec::new()).unwrap().is_empty());
        let rotated = rotation(0).rotate(&[f32::MAX; 64], 1.0).unwrap();
        assert!(rotated.iter().all(|x| !x.is_nan()));
        let shrunk = rotation(0).rotate(&[f32::MAX; 64], 1e-38).unwrap();
        assert!(shrunk.iter().all(|x| x.is_finite()));
    }

    fn length() -> impl Strategy<Value = usize> {
        let longest = if cfg!(miri) { 300 } else { 13_000 };
        prop_oneof![1..40usize, 1..longest, Just(4096.min(longest)), Just(4097.min(longest)), Just(8192.min(longest))]
    }

    proptest! {
        #[test]
        fn a_rotation_keeps_the_norm_is_linear_and_can_be_undone(len in length(), byte: u8, seed: u32) {
            let value = |i: usize, salt: u32| (i as u32 ^ seed ^ salt).wrapping_mul(0x9e37_79b9) as i32 as f32 / 2f32.powi(31);
            let update: Vec<f32> = (0..len).map(|i| value(i, 0)).collect();
            let other: Vec<f32> = (0..len).map(|i| value(i, 0x55)).collect();
            let rotation = rotation(byte);
            let rotated = rotation.rotate(&update, 1.0).unwrap();
            let size = norm(&update);
            // An f32 has 24 bits, and elements in the overlap are rounded twice.
            prop_assert!((norm(&rotated) - size).abs() <= 2f64.powi(-22) * size);
            let difference = |a: &[f32], b: &[f32]| norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>());
            prop_assert!(difference(&rotation.undo(rotated.to_vec()).unwrap(), &update) <= 2f64.powi(-21) * size);
            let both: Vec<f32> = update.iter().zip(&other).map(|(a, b)| a + b).collect();
            let sum: Vec<f32> = rotated.iter().zip(rotation.rotate(&other, 1.0).unwrap().iter()).map(|(a, b)| a + b).collect();
            prop_assert!(difference(&rotation.rotate(&both, 1.0).unwrap(), &sum) <= 2f64.powi(-20) * (size + norm(&other)));
        }

        #[test]
        fn an_error_in_each_rotated_element_grows_by_no_more_than_is_said(len in length(), byte: u8, at: usize) {
            // The worst errors for one element of the update: as the signs with which it goes into the rotated elements. With overlap
            // two windows make this a sum of products, whose signs are the worst as well.
            let rotation = rotation(byte);
            let mut one = vec![0.0; len];
            one[at % len] = 1.0;
            let errors: Vec<f32> = rotation.rotate(&one, 1.0).unwrap().iter().map(|x| x.signum()).collect();
            let undone = f64::from(rotation.undo(errors).unwrap()[at % len]);
            prop_assert!(undone <= Rotation::error_growth(len) * (1.0 + 1e-5), "{}", undone);
            prop_assert!(undone >= Rotation::error_growth(len) / 4.0, "{}", undone);
        }
    }
}
