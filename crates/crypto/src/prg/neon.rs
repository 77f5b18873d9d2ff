//! The stream with NEON: one register holds one state word of 4 blocks, so a group is computed in four quarters.
//!
//! Unsafe here: the call of a function compiled for NEON after the run-time check, and loads and stores within a group.
#![allow(unsafe_code)]

use core::arch::aarch64::*;

use super::schedule::Schedule;
use super::{Sign, StreamElement};

/// Whether this processor has what [`apply_groups`] needs.
pub(super) fn available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon")
}

/// Adds or subtracts the groups from block `counter` on; `acc` holds whole groups.
pub(super) fn apply_groups<T: StreamElement>(key: &[u32; 8], counter: u32, sign: Sign, acc: &mut [T]) {
    assert!(available() && acc.len().is_multiple_of(T::PER_GROUP));
    // SAFETY: the processor has NEON, as was just checked.
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

macro_rules! rotate {
    (16, $x:expr) => {
        vreinterpretq_u32_u16(vrev32q_u16(vreinterpretq_u16_u32($x)))
    };
    ($left:literal, $x:expr) => {{
        let x = $x;
        vsliq_n_u32::<$left>(vshrq_n_u32::<{ 32 - $left }>(x), x)
    }};
}

macro_rules! quarter_round {
    ($v:ident, $a:literal, $b:literal, $c:literal, $d:literal) => {
        $v[$a] = vaddq_u32($v[$a], $v[$b]);
        $v[$d] = rotate!(16, veorq_u32($v[$d], $v[$a]));
        $v[$c] = vaddq_u32($v[$c], $v[$d]);
        $v[$b] = rotate!(12, veorq_u32($v[$b], $v[$c]));
        $v[$a] = vaddq_u32($v[$a], $v[$b]);
        $v[$d] = rotate!(8, veorq_u32($v[$d], $v[$a]));
        $v[$c] = vaddq_u32($v[$c], $v[$d]);
        $v[$b] = rotate!(7, veorq_u32($v[$b], $v[$c]));
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

#[target_feature(enable = "neon")]
fn groups<T: StreamElement, const BYTES: usize, const ADD: bool>(key: &[u32; 8], counter: u32, acc: &mut [T]) {
    let schedule = Schedule::new(key);
    for (index, group) in acc.chunks_exact_mut(T::PER_GROUP).enumerate() {
        let start = group.as_mut_ptr().cast::<u32>();
        for quarter in 0..4 {
            let first = counter.wrapping_add(16 * index as u32 + 4 * quarter as u32);
            // SAFETY: the array has the 4 words of a register.
            let counters = unsafe { vld1q_u32([first, first + 1, first + 2, first + 3].as_ptr()) };
            let mut v: [uint32x4_t; 16] = core::array::from_fn(|w| vdupq_n_u32(schedule.first[w]));
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
            for (w, row) in v.into_iter().enumerate() {
                let initial = if w == 12 { counters } else { vdupq_n_u32(schedule.start[w]) };
                let mask = vaddq_u32(row, initial);
                // SAFETY: a group is 256 words of 4 bytes, and T is at least as aligned as a NEON load needs (its element
                // size, byte-wise for u16); `16 w + 4 quarter + 3` is below 256, and `group` is borrowed mutably.
                unsafe {
                    let at = start.add(16 * w + 4 * quarter);
                    vst1q_u8(at.cast(), combine::<BYTES, ADD>(vld1q_u8(at.cast()), vreinterpretq_u8_u32(mask)));
                }
            }
        }
    }
}

/// Adds or subtracts by elements of `BYTES` bytes.
#[target_feature(enable = "neon")]
#[inline]
fn combine<const BYTES: usize, const ADD: bool>(acc: uint8x16_t, mask: uint8x16_t) -> uint8x16_t {
    macro_rules! by {
        ($op:ident, $from:ident, $to:ident) => {
            $to($op($from(acc), $from(mask)))
        };
    }
    match (BYTES, ADD) {
        (2, true) => by!(vaddq_u16, vreinterpretq_u16_u8, vreinterpretq_u8_u16),
        (2, false) => by!(vsubq_u16, vreinterpretq_u16_u8, vreinterpretq_u8_u16),
        (4, true) => by!(vaddq_u32, vreinterpretq_u32_u8, vreinterpretq_u8_u32),
        (4, false) => by!(vsubq_u32, vreinterpretq_u32_u8, vreinterpretq_u8_u32),
        (_, true) => by!(vaddq_u64, vreinterpretq_u64_u8, vreinterpretq_u8_u64),
        (_, false) => by!(vsubq_u64, vreinterpretq_u64_u8, vreinterpretq_u8_u64),
    }
}
