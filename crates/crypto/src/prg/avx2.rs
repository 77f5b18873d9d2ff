//! The stream with AVX2: one register holds one state word of 8 blocks, so a group is computed in two halves.
//!
//! Unsafe here: the call of a function compiled for AVX2 after the run-time check, and loads and stores within a group.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use super::schedule::Schedule;
use super::{Sign, StreamElement};

/// Whether this processor has what [`apply_groups`] needs.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2")
}

/// Adds or subtracts the groups from block `counter` on; `acc` holds whole groups.
pub(super) fn apply_groups<T: StreamElement>(key: &[u32; 8], counter: u32, sign: Sign, acc: &mut [T]) {
    assert!(available() && acc.len().is_multiple_of(T::PER_GROUP));
    // SAFETY: the processor has AVX2, as was just checked.
    unsafe {
        match (size_of::<T>(), sign) {
            (2, Sign::Add) => groups::<T, 2, true>(key, counter, acc),
            (2, Sign::Subtract) => groups::<T, 2, false>(key, counter, acc),
            (4, Sign::Add) => groups::<T, 4, true>(key, counter, acc),
            (4, Sign::Subtract) => groups::<T, 4, false>(key, counter, acc),
            (_, Sign::Add) => groups::<T, 8, true>(key, counter, acc),
            (_, Sign::Subtract) => groups::<T, 8, false>(key, counter, acc),
        }
    }
}

/// Rotates left by 16 or 8 bits with one byte shuffle, by another number with two shifts.
#[target_feature(enable = "avx2")]
#[inline]
fn rotate<const LEFT: i32, const RIGHT: i32>(x: __m256i) -> __m256i {
    let bytes = match LEFT {
        16 => _mm_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13),
        8 => _mm_setr_epi8(3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14),
        _ => return _mm256_or_si256(_mm256_slli_epi32::<LEFT>(x), _mm256_srli_epi32::<RIGHT>(x)),
    };
    _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(bytes))
}

macro_rules! step {
    ($v:ident, $left:literal, $right:literal, $(($x:literal, $y:literal, $z:literal)),*) => {
        $($v[$x] = _mm256_add_epi32($v[$x], $v[$y]);)*
        $($v[$z] = rotate::<$left, $right>(_mm256_xor_si256($v[$z], $v[$x]));)*
    };
}

macro_rules! quarter_rounds {
    ($v:ident, $(($a:literal, $b:literal, $c:literal, $d:literal)),*) => {
        step!($v, 16, 16, $(($a, $b, $d)),*);
        step!($v, 12, 20, $(($c, $d, $b)),*);
        step!($v, 8, 24, $(($a, $b, $d)),*);
        step!($v, 7, 25, $(($c, $d, $b)),*);
    };
}

macro_rules! diagonal_round {
    ($v:ident) => {
        quarter_rounds!($v, (0, 5, 10, 15), (1, 6, 11, 12));
        quarter_rounds!($v, (2, 7, 8, 13), (3, 4, 9, 14));
    };
}

#[target_feature(enable = "avx2")]
fn groups<T: StreamElement, const BYTES: usize, const ADD: bool>(key: &[u32; 8], counter: u32, acc: &mut [T]) {
    let schedule = Schedule::new(key);
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let mut counters = _mm256_add_epi32(_mm256_set1_epi32(counter as i32), lanes);
    for group in acc.chunks_exact_mut(T::PER_GROUP) {
        let start = group.as_mut_ptr().cast::<__m256i>();
        for half in 0..2 {
            let mut v: [__m256i; 16] = core::array::from_fn(|w| _mm256_set1_epi32(schedule.first[w] as i32));
            v[12] = counters;
            quarter_rounds!(v, (0, 4, 8, 12));
            diagonal_round!(v);
            for _ in 0..9 {
                quarter_rounds!(v, (0, 4, 8, 12), (1, 5, 9, 13));
                quarter_rounds!(v, (2, 6, 10, 14), (3, 7, 11, 15));
                diagonal_round!(v);
            }
            for (w, row) in v.into_iter().enumerate() {
                let initial = if w == 12 { counters } else { _mm256_set1_epi32(schedule.start[w] as i32) };
                let mask = _mm256_add_epi32(row, initial);
                // SAFETY: a group is 1024 bytes, 32 unaligned registers; `2 w + half` is below 32, and `group` is borrowed mutably.
                unsafe {
                    let at = start.add(2 * w + half);
                    _mm256_storeu_si256(at, combine::<BYTES, ADD>(_mm256_loadu_si256(at), mask));
                }
            }
            counters = _mm256_add_epi32(counters, _mm256_set1_epi32(8));
        }
    }
}

/// Adds or subtracts by elements of `BYTES` bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn combine<const BYTES: usize, const ADD: bool>(acc: __m256i, mask: __m256i) -> __m256i {
    match (BYTES, ADD) {
        (2, true) => _mm256_add_epi16(acc, mask),
        (2, false) => _mm256_sub_epi16(acc, mask),
        (4, true) => _mm256_add_epi32(acc, mask),
        (4, false) => _mm256_sub_epi32(acc, mask),
        (_, true) => _mm256_add_epi64(acc, mask),
        (_, false) => _mm256_sub_epi64(acc, mask),
    }
}
