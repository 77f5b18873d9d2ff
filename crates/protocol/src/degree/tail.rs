//! Tails of the hypergeometric distribution, for section 9.
//!
//! Two platforms must find the same sizes, or devices refuse each other's cohorts. So nothing here calls a function of the
//! platform (`exp`, `ln`, `powf`): there are additions, multiplications, divisions and comparisons of IEEE 754 only, whose
//! results are specified to the last bit, in a fixed order.
//!
//! Rounding errs far too little to matter. A term of a tail is a product of at most 2 * 1,025 factors, each rounded at most
//! four times, and tails add at most 1,025 positive terms, so their relative error is below 10,000 * 2^-53 < 2^-39: a bound
//! of 2^-102 is held up to 2^-141. A test compares quantiles with those of exact integers.

/// Probabilities are kept as multiples of a power of `1 / BLOCK`, so that none under- or overflows.
const BLOCK: f64 = power_of_two(512);

/// `2^exponent`, for exponents of -1022 to 1023.
const fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

/// The probability `2^-bits / clients`; at most 400 bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    pub bits: u32,
    pub clients: u32,
}

impl Bound {
    /// Half to the power of `bits`.
    fn power(self) -> f64 {
        debug_assert!(self.bits <= 400, "beyond what one block of the scale tells apart");
        power_of_two(-(self.bits as i32))
    }
}

/// `value / BLOCK^blocks`; the value is at most about 1 where there are blocks.
struct Scaled {
    value: f64,
    blocks: u32,
}

/// `factor` times the probability that all of `draws` are marked; `draws <= marked <= population`.
fn all_marked(factor: f64, population: u32, marked: u32, draws: u32) -> Scaled {
    let mut scaled = Scaled { value: factor, blocks: 0 };
    for i in 0..draws {
        scaled.value *= f64::from(marked - i) / f64::from(population - i);
        if scaled.value < 1.0 / BLOCK {
            scaled.value *= BLOCK;
            scaled.blocks += 1;
        }
    }
    scaled
}

/// Whether `factor` times the probability that all of `draws` are marked is below `2^-bits`.
pub(super) fn all_marked_below(factor: f64, population: u32, marked: u32, draws: u32, bits: u32) -> bool {
    let Scaled { value, blocks } = all_marked(factor, population, marked, draws);
    blocks > 0 || value < Bound { bits, clients: 1 }.power()
}

/// Smallest `x` with `P[X > x] <= bound`, where X counts the marked among `draws` of `population`; both at most `population`,
/// and one of them at most 1,025.
pub(super) fn upper_quantile(population: u32, marked: u32, draws: u32, bound: Bound) -> u32 {
    // X is the same with draws and marks exchanged: the larger is what all draws of the smaller hit at the top.
    let (fewer, more) = (marked.min(draws), marked.max(draws));
    let least = more.saturating_sub(population - fewer);
    let Scaled { value: mut term, mut blocks } = all_marked(f64::from(bound.clients), population, more, fewer);
    let (limit, spare) = (bound.power(), f64::from(population) - f64::from(more) - f64::from(fewer));
    let (mut x, mut tail) = (fewer, 0.0);
    while x > least {
        tail += term;
        // Below the first block, all terms together are under 2^-500.
        if blocks == 0 && tail > limit {
            break;
        }
        // P[X = x - 1] / P[X = x].
        let at = f64::from(x);
        term *= at * (spare + at) / (f64::from(more - x + 1) * f64::from(fewer - x + 1));
        if blocks > 0 && term > 1.0 {
            term /= BLOCK;
            tail /= BLOCK;
            blocks -= 1;
        }
        x -= 1;
    }
    x
}

/// Largest `x` with `P[X < x] <= bound`: as many as are drawn, less the upper quantile of those that are not marked.
pub(super) fn lower_quantile(population: u32, marked: u32, draws: u32, bound: Bound) -> u32 {
    draws - upper_quantile(population, population - marked, draws, bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_bigint::BigUint;

    fn choose(n: u32, k: u32) -> BigUint {
        (0..k).fold(BigUint::from(1u32), |product, i| product * (n - i) / (i + 1))
    }

    /// The upper quantile of each bound.
    fn exact(population: u32, marked: u32, draws: u32, bounds: &[Bound]) -> Vec<u32> {
        let total = choose(population, draws);
        let (high, least) = (marked.min(draws), (marked + draws).saturating_sub(population));
        // Terms in order of falling x, each from the last: the products are divided without rest.
        let mut term = choose(marked, high) * choose(population - marked, draws - high);
        let (mut tail, mut quantiles) = (BigUint::ZERO, vec![least; bounds.len()]);
        for x in (least + 1..=high).rev() {
            tail += &term;
            for (quantile, bound) in quantiles.iter_mut().zip(bounds) {
                if *quantile == least && (&tail * bound.clients) << bound.bits > total {
                    *quantile = x;
                }
            }
            term = term * x * (population + x - marked - draws) / ((marked - x + 1) * (draws - x + 1));
        }
        quantiles
    }

    #[test]
    fn quantiles_are_those_of_exact_integers() {
        let populations: &[u32] = if cfg!(miri) { &[12] } else { &[3, 12, 39, 99, 1000, 4999, 65_536] };
        for &population in populations {
            let bounds: Vec<Bound> = [10, 20, 42, 82, 102, 257]
                .into_iter()
                .flat_map(|bits| [1, population + 1].map(|clients| Bound { bits, clients }))
                .collect();
            for percent in [0, 1, 5, 10, 20, 33, 60, 95, 100] {
                let marked = (population * percent / 100).max(1);
                for draws in [1, 2, 11, 16, 45, 58, 124, 300, 1024].into_iter().filter(|&draws| draws <= population) {
                    // Exact integers of a thousand factors take a while.
                    if draws > 300 && ![1, 33].contains(&percent) {
                        continue;
                    }
                    let upper = exact(population, marked, draws, &bounds);
                    let lower = exact(population, population - marked, draws, &bounds);
                    for ((&bound, upper), lower) in bounds.iter().zip(upper).zip(lower) {
                        let case = format!("{marked} of {population}, {draws} draws, {bound:?}");
                        assert_eq!(upper_quantile(population, marked, draws, bound), upper, "{case}");
                        assert_eq!(lower_quantile(population, marked, draws, bound), draws - lower, "{case}");
                    }
                }
            }
        }
    }

    #[test]
    fn tails_beyond_the_range_of_floating_point_are_told_from_nought() {
        // That all of 1,024 draws hit one half of a million has a probability near 2^-1,026.
        assert!(all_marked_below(1.0, 1_000_000, 500_000, 1024, 400));
        assert!(!all_marked_below(1.0, 1_000_000, 500_000, 300, 301));
        let bound = Bound { bits: 257, clients: 1_000_000 };
        let x = upper_quantile(1_000_000, 500_000, 1024, bound);
        assert!((700..1024).contains(&x), "{x}");
        assert_eq!(upper_quantile(1_000_000, 1_000_000, 1024, bound), 1024);
        assert_eq!(upper_quantile(1_000_000, 0, 1024, bound), 0);
    }

    #[test]
    fn the_powers_of_two_are_exact() {
        assert_eq!(power_of_two(0), 1.0);
        assert_eq!(power_of_two(-3), 0.125);
        assert_eq!(BLOCK * power_of_two(-511), 2.0);
    }
}
