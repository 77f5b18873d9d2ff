//! Packing to b bits an element, least significant bit first: 8 elements are b bytes.
//!
//! The width is a constant of each instance, so that all shifts are constants and the compiler unrolls a block of 8.

/// An element that holds `b` bits, as 64 of them.
pub(crate) trait Element: Copy {
    fn widen(self) -> u64;
    /// `(self + value) mod 2^b`, `mask` being `2^b - 1`.
    fn add(self, value: u64, mask: u64) -> Self;
}

macro_rules! element {
    ($($type:ty),*) => {$(
        impl Element for $type {
            #[inline(always)]
            fn widen(self) -> u64 {
                self.into()
            }

            #[inline(always)]
            fn add(self, value: u64, mask: u64) -> Self {
                self.wrapping_add(value as $type) & mask as $type
            }
        }
    )*};
}

element!(u16, u32, u64);

/// Calls the instance for a width of 1 to 64 bits.
macro_rules! with_bits {
    ($bits:expr, $function:ident, $from:expr, $to:expr; $($n:literal)*) => {
        match $bits {
            $($n => $function::<$n, _>($from, $to),)*
            _ => unreachable!("a modulus has 1 to 64 bits"),
        }
    };
    ($bits:expr, $function:ident, $from:expr, $to:expr) => {
        with_bits!($bits, $function, $from, $to;
            1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32
            33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64)
    };
}

/// Packs elements below `2^bits` into `ceil(bits len / 8)` bytes; `bits` is 1 to 64.
pub(crate) fn pack<T: Element>(bits: usize, values: &[T], out: &mut [u8]) {
    with_bits!(bits, pack_by, values, out);
}

/// Adds packed elements to `acc`, modulo `2^bits`; `bytes` has their packed length.
pub(crate) fn add_unpacked<T: Element>(bits: usize, bytes: &[u8], acc: &mut [T]) {
    with_bits!(bits, add_unpacked_by, bytes, acc);
}

fn pack_by<const B: usize, T: Element>(values: &[T], out: &mut [u8]) {
    let (blocks, rest) = values.as_chunks::<8>();
    let (whole, tail) = out.split_at_mut(blocks.len() * B);
    for (block, out) in blocks.iter().zip(whole.chunks_exact_mut(B)) {
        out.copy_from_slice(&pack_block::<B, T>(block)[..B]);
    }
    if let Some(last) = rest.first() {
        let mut block = [*last; 8];
        block[..rest.len()].copy_from_slice(rest);
        let bytes = pack_block::<B, T>(&block);
        tail.copy_from_slice(&bytes[..tail.len()]);
        // The last byte holds bits of the filling: clear them.
        if let Some(byte) = tail.last_mut().filter(|_| !(rest.len() * B).is_multiple_of(8)) {
            *byte &= (1 << (rest.len() * B % 8)) - 1;
        }
    }
}

#[inline(always)]
fn pack_block<const B: usize, T: Element>(block: &[T; 8]) -> [u8; 64] {
    let (mask, mut words) = (u64::MAX >> (64 - B), [0u64; 8]);
    for (i, value) in block.iter().enumerate() {
        let (word, shift) = (i * B / 64, i * B % 64);
        // Whatever an element is, it stays in its own place.
        let value = value.widen() & mask;
        words[word] |= value << shift;
        if shift + B > 64 {
            words[word + 1] |= value >> (64 - shift);
        }
    }
    let mut bytes = [0; 64];
    bytes.as_chunks_mut::<8>().0.iter_mut().zip(words).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
    bytes
}

fn add_unpacked_by<const B: usize, T: Element>(bytes: &[u8], acc: &mut [T]) {
    let (blocks, rest) = acc.as_chunks_mut::<8>();
    let (whole, tail) = bytes.split_at(blocks.len() * B);
    for (block, bytes) in blocks.iter_mut().zip(whole.chunks_exact(B)) {
        add_block::<B, T>(bytes, block);
    }
    add_block::<B, T>(tail, rest);
}

#[inline(always)]
fn add_block<const B: usize, T: Element>(bytes: &[u8], block: &mut [T]) {
    let mask = u64::MAX >> (64 - B);
    let mut padded = [0u8; 64];
    padded[..bytes.len()].copy_from_slice(bytes);
    let mut words = [0u64; 8];
    words.iter_mut().zip(padded.as_chunks::<8>().0).for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
    for (i, x) in block.iter_mut().enumerate().take(8) {
        let (word, shift) = (i * B / 64, i * B % 64);
        let mut value = words[word] >> shift;
        if shift + B > 64 {
            value |= words[word + 1] << (64 - shift);
        }
        *x = x.add(value & mask, mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_that_is_too_large_stays_in_its_own_place() {
        for bits in [1usize, 5, 13, 17, 31, 33, 47, 63] {
            let mask = u64::MAX >> (64 - bits);
            let values: Vec<u64> = (0..19u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) & mask).collect();
            let mut packed = vec![0; (19 * bits).div_ceil(8)];
            pack(bits, &values, &mut packed);
            for large in [0, 7, 8, 18] {
                let mut changed = values.clone();
                changed[large] |= !mask;
                let mut again = vec![0; packed.len()];
                pack(bits, &changed, &mut again);
                assert_eq!(again, packed, "{bits} bits, element {large}");
            }
        }
    }
}
