//! Unsigned fixed-point numbers with 64 bits before the point and 192 after it. Every operation rounds down, and none of
//! them takes or makes a floating-point number, so all platforms agree.

/// A number; the first limb is the whole part. The order of the limbs makes the derived order that of the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wide(pub [u64; 4]);

impl Wide {
    pub const ZERO: Self = Self::whole(0);
    pub const ONE: Self = Self::whole(1);
    /// The largest number below 1.
    pub const BELOW_ONE: Self = Self([0, u64::MAX, u64::MAX, u64::MAX]);
    pub const LN_2: Self = Self([0, 0xb172_17f7_d1cf_79ab, 0xc9e3_b398_03f2_f6af, 0x40f3_4326_7298_b62d]);
    const LOG2_E: Self = Self([1, 0x7154_7652_b82f_e177, 0x7d0f_fda0_d23a_7d11, 0xd6ae_f551_bad2_b4b1]);

    pub const fn whole(number: u64) -> Self {
        Self([number, 0, 0, 0])
    }

    /// The first 64 bits after the point.
    pub fn head(self) -> u64 {
        self.0[1]
    }

    pub fn plus(self, other: Self) -> Self {
        let mut carry = 0;
        let mut out = [0; 4];
        for i in (0..4).rev() {
            let sum = u128::from(self.0[i]) + u128::from(other.0[i]) + carry;
            (out[i], carry) = (sum as u64, sum >> 64);
        }
        debug_assert_eq!(carry, 0);
        Self(out)
    }

    /// `self - other`, which must not be negative.
    pub fn minus(self, other: Self) -> Self {
        let mut borrow = false;
        let mut out = [0; 4];
        for i in (0..4).rev() {
            let (x, first) = self.0[i].overflowing_sub(other.0[i]);
            let (x, second) = x.overflowing_sub(borrow.into());
            (out[i], borrow) = (x, first | second);
        }
        debug_assert!(!borrow);
        Self(out)
    }

    /// `self - other`, or 0 where that is negative.
    pub fn minus_or_zero(self, other: Self) -> Self {
        if self > other { self.minus(other) } else { Self::ZERO }
    }

    /// Exact.
    pub fn times_whole(self, factor: u64) -> Self {
        let mut carry = 0;
        let mut out = [0; 4];
        for i in (0..4).rev() {
            let product = u128::from(self.0[i]) * u128::from(factor) + carry;
            (out[i], carry) = (product as u64, product >> 64);
        }
        debug_assert_eq!(carry, 0);
        Self(out)
    }

    pub fn over_whole(self, divisor: u64) -> Self {
        let mut rest = 0u128;
        Self(self.0.map(|limb| {
            let number = rest << 64 | u128::from(limb);
            rest = number % u128::from(divisor);
            (number / u128::from(divisor)) as u64
        }))
    }

    pub fn times(self, other: Self) -> Self {
        // Limb i of either number counts 2^(-64 i), so products of limbs i and j belong to limb i + j.
        let mut sum = [0u64; 8];
        for i in (0..4).rev() {
            let mut carry = 0;
            for j in (0..4).rev() {
                let place = &mut sum[i + j + 1];
                let product = u128::from(self.0[i]) * u128::from(other.0[j]) + u128::from(*place) + carry;
                (*place, carry) = (product as u64, product >> 64);
            }
            sum[i] = carry as u64;
        }
        debug_assert_eq!(sum[0], 0);
        Self([sum[1], sum[2], sum[3], sum[4]])
    }

    /// Divided by 2^bits.
    pub fn down(self, bits: u32) -> Self {
        let (limbs, bits) = ((bits / 64) as usize, bits % 64);
        let (mut out, mut upper) = ([0; 4], 0);
        for (place, limb) in out.iter_mut().skip(limbs).zip(self.0) {
            *place = ((u128::from(upper) << 64 | u128::from(limb)) >> bits) as u64;
            upper = limb;
        }
        Self(out)
    }

    /// Multiplied by 2^bits, at most 63 of them.
    pub fn up(self, bits: u32) -> Self {
        self.times_whole(1 << bits)
    }

    /// `1 / self`, for numbers from 1 on, below 2^63.
    pub fn reciprocal(self) -> Self {
        let (mut rest, mut quotient) = (Self::ONE, Self::ZERO);
        for _ in 0..=192 {
            quotient = quotient.up(1);
            if rest >= self {
                rest = rest.minus(self);
                quotient.0[3] |= 1;
            }
            rest = rest.up(1);
        }
        quotient
    }

    /// `exp(-self)` within 2^-180, for numbers below 2^7.
    ///
    /// Both constants are rounded down, so the whole number `n` is at most `self / ln 2`, and what is left is neither negative
    /// nor 1 or more; it is off by less than `(n + 1) 2^-192`. The series is cut after 50 terms, which leaves less than
    /// `1 / 51! < 2^-219`, and its roundings are less than 100 units of the last place.
    pub fn exp_minus(self) -> Self {
        let n = self.times(Self::LOG2_E).0[0];
        let rest = self.minus(Self::LN_2.times_whole(n));
        let series = (1..=50).rev().fold(Self::ONE, |sum, i| Self::ONE.minus(rest.times(sum).over_whole(i)));
        series.down(n as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: Wide, b: Wide, bits: u32) -> bool {
        a.max(b).minus(a.min(b)) <= Wide::ONE.down(bits)
    }

    #[test]
    fn constants_are_what_their_series_say() {
        // ln 2 = sum of 1 / (n 2^n).
        let ln = (1..=200).map(|n| Wide::ONE.down(n).over_whole(n.into())).fold(Wide::ZERO, Wide::plus);
        assert!(near(ln, Wide::LN_2, 183) && ln <= Wide::LN_2);
        assert!(near(Wide::LN_2.times(Wide::LOG2_E), Wide::ONE, 190));
        assert!(Wide::LN_2.times(Wide::LOG2_E) < Wide::ONE);
    }

    #[test]
    fn operations_agree_with_each_other_and_with_doubles() {
        let third = Wide::ONE.over_whole(3);
        assert!(near(third.times_whole(3), Wide::ONE, 190));
        assert!(near(third.times(third), Wide::ONE.over_whole(9), 190));
        assert_eq!(Wide::whole(10).times(Wide::whole(77)), Wide::whole(770));
        assert_eq!(third.up(20).down(20).head(), third.head());
        assert_eq!(Wide::whole(5).down(64 + 1), Wide([0, 2, 1 << 63, 0]));
        assert_eq!(Wide::ONE.down(193), Wide::ZERO);
        assert_eq!(Wide::ONE.down(1000), Wide::ZERO);
        assert_eq!(Wide::ONE.reciprocal(), Wide::ONE);
        let number = Wide::whole(80).plus(third);
        assert!(near(number.reciprocal().times(number), Wide::ONE, 180));
        assert!(Wide::ONE.minus(Wide([0, 0, 0, 1])) == Wide::BELOW_ONE);
        assert_eq!(third.minus_or_zero(Wide::ONE), Wide::ZERO);
        let double = |x: Wide| x.0.iter().zip(0..).map(|(&limb, i)| limb as f64 * 2f64.powi(-64 * i)).sum::<f64>();
        for x in [Wide::ZERO, third, Wide::LN_2, Wide::whole(1), Wide::whole(7).plus(third), Wide::whole(40)] {
            let (got, expected) = (double(x.exp_minus()), (-double(x)).exp());
            assert!((got - expected).abs() <= 1e-13 * expected, "{got} {expected}");
            // exp(-x) = exp(-x/2)^2.
            let half = x.down(1).exp_minus();
            assert!(near(half.times(half), x.exp_minus(), 178));
        }
    }
}
