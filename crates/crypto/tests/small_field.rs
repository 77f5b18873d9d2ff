//! Fewer than `t` shares say nothing about the secret: counted over every polynomial of a small field.
//!
//! `split` draws its coefficients as wide integers. Given small ones, its shares are the polynomial's values over the
//! integers, and these modulo a small prime are a sharing in that field: the count is of what the real code computes.

use std::collections::BTreeMap;
use std::convert::Infallible;

use rand_core::{TryCryptoRng, TryRng};
use unisono_crypto::shamir::{self, SecretScalar, Share};

const P: u64 = 5;

/// Draws of 64 bytes that are small integers.
struct Small<'a>(&'a [u64]);

impl TryRng for Small<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("coefficients are drawn as bytes")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("coefficients are drawn as bytes")
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        assert_eq!(out.len(), 64, "a coefficient is drawn as 64 bytes");
        let (first, rest) = self.0.split_first().expect("as many draws as coefficients");
        out.fill(0);
        out[..8].copy_from_slice(&first.to_le_bytes());
        self.0 = rest;
        Ok(())
    }
}

impl TryCryptoRng for Small<'_> {}

/// Shares of a small secret under small coefficients, as integers.
fn shares(secret: u64, coefficients: &[u64], abscissas: &[u32]) -> Vec<u64> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&secret.to_le_bytes());
    let secret = SecretScalar::from_canonical(&bytes).unwrap();
    let shares = shamir::split(&secret, coefficients.len() + 1, abscissas, &mut Small(coefficients)).unwrap();
    let small = |share: &Share| {
        let bytes = share.value_bytes();
        assert!(bytes[8..].iter().all(|&byte| byte == 0), "a small polynomial has small values");
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    };
    shares.iter().map(small).collect()
}

/// All lists of `len` numbers from `range`.
fn all(len: usize, range: std::ops::Range<u64>) -> Vec<Vec<u64>> {
    (0..len).fold(vec![Vec::new()], |lists, _| {
        lists.iter().flat_map(|list| range.clone().map(move |x| [list.as_slice(), &[x]].concat())).collect()
    })
}

/// How often each tuple of the shares at `seen` occurs, for each secret.
fn views(threshold: usize, seen: &[usize], range: std::ops::Range<u64>) -> Vec<BTreeMap<Vec<u64>, u32>> {
    let abscissas: Vec<u32> = (1..P as u32).collect();
    let view = |secret| {
        let mut counts = BTreeMap::new();
        for coefficients in all(threshold - 1, range.clone()) {
            let shares = shares(secret, &coefficients, &abscissas);
            *counts.entry(seen.iter().map(|&i| shares[i] % P).collect()).or_default() += 1;
        }
        counts
    };
    (0..P).map(view).collect()
}

#[test]
fn small_secrets_and_coefficients_give_the_polynomials_values() {
    for secret in 0..P {
        for c in all(2, 0..P) {
            let expected: Vec<u64> = (1..5).map(|x| secret + c[0] * x + c[1] * x * x).collect();
            assert_eq!(shares(secret, &c, &[1, 2, 3, 4]), expected);
        }
    }
}

#[test]
fn every_set_of_t_minus_1_shares_is_uniform_whatever_the_secret_and_t_shares_are_not() {
    for threshold in 1..=if cfg!(miri) { 2 } else { 4usize } {
        for subset in 0..16u32 {
            let seen: Vec<usize> = (0..4).filter(|i| subset >> i & 1 == 1).collect();
            let views = views(threshold, &seen, 0..P);
            let alike = views.iter().all(|view| *view == views[0]);
            if seen.len() < threshold {
                assert!(alike, "t = {threshold}, shares {seen:?} depend on the secret");
                let each = P.pow((threshold - 1 - seen.len()) as u32) as u32;
                assert!(views[0].len() as u64 == P.pow(seen.len() as u32) && views[0].values().all(|&n| n == each));
            } else {
                assert!(!alike, "t = {threshold}, shares {seen:?} must give the secret");
            }
        }
    }
}

#[test]
fn the_count_notices_coefficients_that_are_never_zero() {
    let views = views(2, &[0], 1..P);
    assert!(views.iter().any(|view| *view != views[0]));
}

/// Found by fuzzing: three shares of a constant and a fourth that is off, with a threshold of three, were once decoded as the
/// constant, though every three of the four have a polynomial.
#[test]
fn decoding_never_blames_more_shares_than_half_the_surplus() {
    let share = |(i, &value): (usize, &u64)| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        Share::from_bytes(i as u32 + 1, &bytes).unwrap()
    };
    let (mut decoded, mut refused) = (0, 0);
    for n in 1..=if cfg!(miri) { 3 } else { 5 } {
        for values in all(n, 0..3) {
            let shares: Vec<Share> = values.iter().enumerate().map(share).collect();
            for threshold in 1..=n {
                match shamir::decode(&shares, threshold).unwrap() {
                    Some(found) => {
                        decoded += 1;
                        assert!(
                            2 * found.wrong.len() <= n - threshold,
                            "{values:?}, t = {threshold}: {:?}",
                            found.wrong
                        );
                    }
                    None => refused += 1,
                }
            }
        }
    }
    let (many, some) = if cfg!(miri) { (50, 5) } else { (500, 300) };
    assert!(decoded > many && refused > some, "{decoded} decoded, {refused} refused");
}
