//! The stream in plain Rust, in arrays of 4 lanes: what every other backend is tested against.

use zeroize::Zeroizing;

use super::schedule::initial;
use super::{GROUP_WORDS, Sign, StreamElement};

/// Blocks that are computed at once: what the compiler makes four-lane registers of, wherever there are such.
const LANES: usize = 4;
type Lanes = [u32; LANES];

macro_rules! quarter_round {
    ($v:ident, $a:literal, $b:literal, $c:literal, $d:literal) => {
        $v[$a] = add($v[$a], $v[$b]);
        $v[$d] = xor_rotate($v[$d], $v[$a], 16);
        $v[$c] = add($v[$c], $v[$d]);
        $v[$b] = xor_rotate($v[$b], $v[$c], 12);
        $v[$a] = add($v[$a], $v[$b]);
        $v[$d] = xor_rotate($v[$d], $v[$a], 8);
        $v[$c] = add($v[$c], $v[$d]);
        $v[$b] = xor_rotate($v[$b], $v[$c], 7);
    };
}

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
    let words = initial(key);
    for quarter in 0..16 / LANES {
        let mut start = words.map(|word| [word; LANES]);
        start[12] = std::array::from_fn(|lane| counter.wrapping_add((LANES * quarter + lane) as u32));
        let mut v = start;
        for _ in 0..10 {
            quarter_round!(v, 0, 4, 8, 12);
            quarter_round!(v, 1, 5, 9, 13);
            quarter_round!(v, 2, 6, 10, 14);
            quarter_round!(v, 3, 7, 11, 15);
            quarter_round!(v, 0, 5, 10, 15);
            quarter_round!(v, 1, 6, 11, 12);
            quarter_round!(v, 2, 7, 8, 13);
            quarter_round!(v, 3, 4, 9, 14);
        }
        for (w, row) in out.chunks_exact_mut(16).enumerate() {
            row[LANES * quarter..][..LANES].copy_from_slice(&add(v[w], start[w]));
        }
    }
}

#[inline(always)]
fn add(a: Lanes, b: Lanes) -> Lanes {
    std::array::from_fn(|lane| a[lane].wrapping_add(b[lane]))
}

#[inline(always)]
fn xor_rotate(a: Lanes, b: Lanes, turn: u32) -> Lanes {
    std::array::from_fn(|lane| (a[lane] ^ b[lane]).rotate_left(turn))
}
