//! What all groups of one seed share: the initial state, and as much of the first column round as does not depend on the
//! block counter. Columns 1 to 3 do not, so they are computed once a call and not once a block.

use zeroize::{Zeroize, ZeroizeOnDrop};

/// State words of the vector backends; word 12, the counter, is theirs to set.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Schedule {
    /// The initial state, added at the end of a block.
    pub start: [u32; 16],
    /// The initial state with the quarter rounds of columns 1, 2 and 3 done.
    pub first: [u32; 16],
}

/// The initial state (RFC 8439, 2.3): constants, key, counter 0, nonce 0.
pub(super) fn initial(key: &[u32; 8]) -> [u32; 16] {
    let mut state = [0; 16];
    state[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    state[4..12].copy_from_slice(key);
    state
}

impl Schedule {
    pub fn new(key: &[u32; 8]) -> Self {
        let start = initial(key);
        let mut first = start;
        for column in 1..4 {
            let (a, b, c, d) = (column, column + 4, column + 8, column + 12);
            for (x, y, z, turn) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
                first[x] = first[x].wrapping_add(first[y]);
                first[z] = (first[z] ^ first[x]).rotate_left(turn);
            }
        }
        Self { start, first }
    }
}
