//! The stream in plain Rust, in arrays of 16 lanes: what every other backend is tested against.

use zeroize::Zeroizing;

use super::schedule::initial;
use super::{GROUP_WORDS, Sign, StreamElement};

type Lanes = [u32; 16];

/// Adds or subtracts the groups from block `counter` on; `acc` holds whole groups.
pub(super) fn apply_groups<T: StreamElement>(key: &[u32; 8], counter: u32, sign: Sign, acc: &mut [T]) {
    let mut group = Zeroizing::new([0; GROUP_WORDS]);
    for (index, elements) in acc.chunks_mut(T::PER_GROUP).enumerate() {
        key_stream(key, counter.wrapping_add(16 * index as u32), &mut group);
        T::combine(elements, &group, 0, sign);
    }
}

/// Sixteen blocks from `counter` on, in vertical order.
pub(super) fn key_stream(key: &[u32; 8], counter: u32, out: &mut [u32; GROUP_WORDS]) {
    let mut start = initial(key).map(|word| [word; 16]);
    start[12] = std::array::from_fn(|lane| counter.wrapping_add(lane as u32));
    let mut state = start;
    for _ in 0..10 {
        for [a, b, c, d] in [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]] {
            quarter_round(&mut state, a, b, c, d);
        }
        for [a, b, c, d] in [[0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]] {
            quarter_round(&mut state, a, b, c, d);
        }
    }
    for (w, row) in out.chunks_exact_mut(16).enumerate() {
        for (lane, word) in row.iter_mut().enumerate() {
            *word = state[w][lane].wrapping_add(start[w][lane]);
        }
    }
}

#[inline(always)]
fn quarter_round(state: &mut [Lanes; 16], a: usize, b: usize, c: usize, d: usize) {
    for (x, y, z, turn) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
        #[allow(clippy::needless_range_loop)] // three rows of one array at once
        for lane in 0..16 {
            state[x][lane] = state[x][lane].wrapping_add(state[y][lane]);
            state[z][lane] = (state[z][lane] ^ state[x][lane]).rotate_left(turn);
        }
    }
}
