//! The stream with AVX-512 (F and BW): one register holds one state word of all 16 blocks of a group, so the 16 registers of
//! a state are a group in stream order, and the sum with the accumulator needs no buffer.
//!
//! Unsafe here: the call of a function compiled for AVX-512 after the run-time check, and loads and stores within a group.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use super::schedule::Schedule;
use super::{Sign, StreamElement};

/// Whether this processor has what [`apply_groups`] needs.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

/// Adds or subtracts the groups from block `counter` on; `acc` holds whole groups.
pub(super) fn apply_groups<T: StreamElement>(key: &[u32; 8], counter: u32, sign: Sign, acc: &mut [T]) {
    assert!(available() && acc.len().is_multiple_of(T::PER_GROUP));
    // SAFETY: the processor has AVX-512 F and BW, as was just checked.
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

macro_rules! quarter_round {
    ($v:ident, $a:literal, $b:literal, $c:literal, $d:literal) => {
        $v[$a] = _mm512_add_epi32($v[$a], $v[$b]);
        $v[$d] = _mm512_rol_epi32::<16>(_mm512_xor_si512($v[$d], $v[$a]));
        $v[$c] = _mm512_add_epi32($v[$c], $v[$d]);
        $v[$b] = _mm512_rol_epi32::<12>(_mm512_xor_si512($v[$b], $v[$c]));
        $v[$a] = _mm512_add_epi32($v[$a], $v[$b]);
        $v[$d] = _mm512_rol_epi32::<8>(_mm512_xor_si512($v[$d], $v[$a]));
        $v[$c] = _mm512_add_epi32($v[$c], $v[$d]);
        $v[$b] = _mm512_rol_epi32::<7>(_mm512_xor_si512($v[$b], $v[$c]));
    };
}

macro_rules! diagonal_round {
    ($v:ident) => {
        quarter_round!($v, 0, 5, 10, 15);
        quarter_round!($v, 1, 6, 11, 12);
        quarter_round!($v, 2, 7, 8, 13);
        quarter_round!($v, 3, 4, 9, 14);
    };
}

#[target_feature(enable = "avx512f,avx512bw")]
fn groups<T: StreamElement, const BYTES: usize, const ADD: bool>(key: &[u32; 8], counter: u32, acc: &mut [T]) {
    let schedule = Schedule::new(key);
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let mut counters = _mm512_add_epi32(_mm512_set1_epi32(counter as i32), lanes);
    for group in acc.chunks_exact_mut(T::PER_GROUP) {
        let mut v: [__m512i; 16] = core::array::from_fn(|w| _mm512_set1_epi32(schedule.first[w] as i32));
        v[12] = counters;
        quarter_round!(v, 0, 4, 8, 12);
        diagonal_round!(v);
        for _ in 0..9 {
            quarter_round!(v, 0, 4, 8, 12);
            quarter_round!(v, 1, 5, 9, 13);
            quarter_round!(v, 2, 6, 10, 14);
            quarter_round!(v, 3, 7, 11, 15);
            diagonal_round!(v);
        }
        let start = group.as_mut_ptr().cast::<__m512i>();
        for (w, row) in v.into_iter().enumerate() {
            let initial = if w == 12 { counters } else { _mm512_set1_epi32(schedule.start[w] as i32) };
            let mask = _mm512_add_epi32(row, initial);
            // SAFETY: a group is 1024 bytes, 16 unaligned registers; `w` is below 16, and `group` is borrowed mutably.
            unsafe {
                let at = start.add(w);
                _mm512_storeu_si512(at, combine::<BYTES, ADD>(_mm512_loadu_si512(at), mask));
            }
        }
        counters = _mm512_add_epi32(counters, _mm512_set1_epi32(16));
    }
}

/// Adds or subtracts by elements of `BYTES` bytes.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn combine<const BYTES: usize, const ADD: bool>(acc: __m512i, mask: __m512i) -> __m512i {
    match (BYTES, ADD) {
        (2, true) => _mm512_add_epi16(acc, mask),
        (2, false) => _mm512_sub_epi16(acc, mask),
        (4, true) => _mm512_add_epi32(acc, mask),
        (4, false) => _mm512_sub_epi32(acc, mask),
        (_, true) => _mm512_add_epi64(acc, mask),
        (_, false) => _mm512_sub_epi64(acc, mask),
    }
}
