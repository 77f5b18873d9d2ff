//! The mask PRG (`docs/protocol.md` section 5): ChaCha20 (RFC 8439 block function) in vertical order, fused with addition.
//!
//! Blocks are taken in groups of 16; within a group, word `w` of block `j` stands at position `16 w + j`. A SIMD register
//! then holds consecutive stream words. This is the portable version, written in arrays of 16 lanes; its output is fixed
//! by `tests/vectors/prg.json`.

use zeroize::Zeroizing;

use crate::CryptoError;
use crate::kdf::{derive_secret, label};
use crate::secret::Secret32;

/// 32-bit words of one group of 16 blocks.
const GROUP_WORDS: usize = 256;
/// Bytes that one seed may serve: 2^32 blocks of 64 bytes.
const STREAM_BYTES: u128 = 1 << 38;

/// A PRG seed, already turned into the ChaCha20 key.
#[derive(Clone)]
pub struct Seed(Secret32);

impl Seed {
    /// The stream of `secret`: key = `KDF(secret)`, nonce 0, counter from 0.
    pub fn from_secret(secret: &Secret32) -> Self {
        Self(derive_secret(label::PRG, secret.expose(), &[]))
    }

    fn words(&self) -> Zeroizing<[u32; 8]> {
        let mut words = Zeroizing::new([0; 8]);
        for (word, bytes) in words.iter_mut().zip(self.0.expose().chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        words
    }
}

/// Whether a mask is added to or subtracted from the accumulator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sign {
    /// Add.
    Add,
    /// Subtract.
    Subtract,
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// An element of the stream: 16, 32 or 64 bits, little-endian.
pub trait StreamElement: sealed::Sealed + Copy {
    /// Elements in one group of 16 blocks.
    const PER_GROUP: usize;

    /// Adds or subtracts the elements from place `skip` of a group, modulo the element's width.
    fn combine(acc: &mut [Self], group: &[u32; GROUP_WORDS], skip: usize, sign: Sign);
}

macro_rules! stream_element {
    ($type:ty, $per:expr, |$group:ident, $i:ident| $get:expr) => {
        impl StreamElement for $type {
            const PER_GROUP: usize = $per;

            fn combine(acc: &mut [Self], $group: &[u32; GROUP_WORDS], skip: usize, sign: Sign) {
                let places = acc.iter_mut().zip(skip..$per);
                match sign {
                    Sign::Add => places.for_each(|(x, $i)| *x = x.wrapping_add($get)),
                    Sign::Subtract => places.for_each(|(x, $i)| *x = x.wrapping_sub($get)),
                }
            }
        }
    };
}

stream_element!(u16, 2 * GROUP_WORDS, |group, i| (group[i / 2] >> (16 * (i % 2))) as u16);
stream_element!(u32, GROUP_WORDS, |group, i| group[i]);
stream_element!(u64, GROUP_WORDS / 2, |group, i| u64::from(group[2 * i]) | u64::from(group[2 * i + 1]) << 32);

/// Adds the stream of `seed` to `acc` (or subtracts it), from the stream's element `offset` on, modulo the element's width.
///
/// # Errors
/// [`CryptoError::StreamExhausted`] when that reaches beyond 2^32 blocks (256 GiB); `acc` is unchanged then.
pub fn apply<T: StreamElement>(seed: &Seed, offset: u64, sign: Sign, acc: &mut [T]) -> Result<(), CryptoError> {
    let end = (u128::from(offset) + acc.len() as u128) * size_of::<T>() as u128;
    if end > STREAM_BYTES {
        return Err(CryptoError::StreamExhausted(end));
    }
    let key = seed.words();
    let mut group = Zeroizing::new([0; GROUP_WORDS]);
    let mut index = (offset / T::PER_GROUP as u64) as u32;
    let mut skip = (offset % T::PER_GROUP as u64) as usize;
    let mut rest = acc;
    while !rest.is_empty() {
        let (now, later) = rest.split_at_mut(rest.len().min(T::PER_GROUP - skip));
        key_stream(&key, index * 16, &mut group);
        T::combine(now, &group, skip, sign);
        (rest, skip, index) = (later, 0, index + 1);
    }
    Ok(())
}

type Lanes = [u32; 16];

/// Sixteen blocks from `counter` on, in vertical order.
fn key_stream(key: &[u32; 8], counter: u32, out: &mut [u32; GROUP_WORDS]) {
    let mut start = [[0u32; 16]; 16];
    let constants = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];
    for (row, &word) in start.iter_mut().zip(constants.iter().chain(key.iter())) {
        *row = [word; 16];
    }
    start[12] = std::array::from_fn(|lane| counter + lane as u32);
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

#[cfg(test)]
mod tests {
    use chacha20::ChaCha20;
    use chacha20::cipher::{KeyIvInit, StreamCipher};
    use proptest::prelude::*;

    use super::*;

    fn seed(byte: u8) -> Seed {
        Seed::from_secret(&Secret32::from_bytes([byte; 32]))
    }

    #[test]
    fn one_block_is_that_of_rfc_8439_section_2_3_2_with_its_key_and_nonce_zero() {
        // Appendix A.1, test vector 1: key 0, nonce 0, counter 0.
        let mut group = [0; GROUP_WORDS];
        key_stream(&[0; 8], 0, &mut group);
        let first: Vec<u32> = (0..4).map(|w| group[16 * w]).collect();
        assert_eq!(first, [0xade0_b876, 0x903d_f1a0, 0xe56a_5d40, 0x28bd_8653]);
    }

    #[test]
    fn the_stream_is_that_of_the_chacha20_crate_transposed() {
        let seed = seed(9);
        let mut bytes = vec![0u8; 3 * 1024];
        ChaCha20::new(seed.0.expose().into(), &[0; 12].into()).apply_keystream(&mut bytes);
        let word = |at: usize| u32::from_le_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap());
        let expected: Vec<u32> = (0..768).map(|i| word(i / 256 * 256 + (i % 256 % 16) * 16 + i % 256 / 16)).collect();
        let mut ours = vec![0u32; 768];
        apply(&seed, 0, Sign::Add, &mut ours).unwrap();
        assert_eq!(ours, expected);
        let mut halves = vec![0u16; 1536];
        apply(&seed, 0, Sign::Add, &mut halves).unwrap();
        assert!(halves.chunks(2).zip(&expected).all(|(h, &w)| u32::from(h[0]) | u32::from(h[1]) << 16 == w));
        let mut doubles = vec![0u64; 384];
        apply(&seed, 0, Sign::Add, &mut doubles).unwrap();
        assert!(doubles.iter().zip(expected.chunks(2)).all(|(&d, w)| d == u64::from(w[0]) | u64::from(w[1]) << 32));
    }

    #[test]
    fn a_seed_ends_after_2_to_the_32_blocks() {
        let last = (1u64 << 38) / 8 - 1;
        let mut one = [0u64];
        assert_eq!(apply(&seed(1), last, Sign::Add, &mut one), Ok(()));
        let before = one;
        assert!(matches!(apply(&seed(1), last + 1, Sign::Add, &mut one), Err(CryptoError::StreamExhausted(_))));
        assert!(apply(&seed(1), u64::MAX, Sign::Add, &mut one).is_err());
        assert_eq!(one, before);
    }

    proptest! {
        #[test]
        fn any_cut_of_the_stream_gives_the_same_elements(cut in 0usize..1500, byte: u8) {
            let mut whole = vec![0u16; 1500];
            apply(&seed(byte), 0, Sign::Add, &mut whole).unwrap();
            let mut parts = vec![0u16; 1500];
            apply(&seed(byte), 0, Sign::Add, &mut parts[..cut]).unwrap();
            apply(&seed(byte), cut as u64, Sign::Add, &mut parts[cut..]).unwrap();
            prop_assert_eq!(whole, parts);
        }

        #[test]
        fn subtracting_what_was_added_restores_the_input(input in proptest::collection::vec(any::<u64>(), 0..400), offset in 0u64..1000) {
            let mut acc = input.clone();
            apply(&seed(3), offset, Sign::Add, &mut acc).unwrap();
            apply(&seed(3), offset, Sign::Subtract, &mut acc).unwrap();
            prop_assert_eq!(acc, input);
        }
    }
}
