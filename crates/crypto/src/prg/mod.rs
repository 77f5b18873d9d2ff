//! The mask PRG (`docs/protocol.md` section 5): ChaCha20 (RFC 8439 block function) in vertical order, fused with addition.
//!
//! Blocks are taken in groups of 16; within a group, word `w` of block `j` stands at position `16 w + j`. A SIMD register
//! then holds consecutive stream words. The backends differ in their register width alone; the output is fixed by
//! `tests/vectors/prg.json`. The fastest that the processor has is chosen once, at run time.

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod avx2;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little", not(miri)))]
mod neon;
mod portable;
#[allow(dead_code)] // in part for the vector backends alone
mod schedule;

use std::sync::OnceLock;

use zeroize::Zeroizing;

use crate::CryptoError;
use crate::kdf::{derive_secret, label};
use crate::secret::Secret32;

/// Environment variable that forces a backend: `portable`, `avx2`, `avx512` or `neon`.
pub const BACKEND_VARIABLE: &str = "UNISONO_PRG";
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
    #[doc(hidden)]
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

/// How the stream is computed. All give the same bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// Plain Rust; always there.
    Portable,
    /// x86-64 with AVX2.
    Avx2,
    /// x86-64 with AVX-512 F and BW.
    Avx512,
    /// 64-bit ARM, little-endian.
    Neon,
}

impl Backend {
    /// Every backend, the fastest last.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512];

    /// The name by which [`BACKEND_VARIABLE`] asks for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }

    /// Whether this build and this processor have it.
    pub fn available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Self::Avx2 => avx2::available(),
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Self::Avx512 => avx512::available(),
            #[cfg(all(target_arch = "aarch64", target_endian = "little", not(miri)))]
            Self::Neon => neon::available(),
            #[allow(unreachable_patterns)] // depends on the target
            _ => false,
        }
    }

    /// The fastest available backend, or the one that [`BACKEND_VARIABLE`] names; read once in a process.
    ///
    /// # Errors
    /// [`CryptoError::Backend`] when the variable names none, or one that this processor does not have.
    pub fn selected() -> Result<Self, CryptoError> {
        static SELECTED: OnceLock<Result<Backend, CryptoError>> = OnceLock::new();
        SELECTED.get_or_init(|| Self::select(std::env::var(BACKEND_VARIABLE).ok().as_deref())).clone()
    }

    fn select(wanted: Option<&str>) -> Result<Self, CryptoError> {
        let mut available = Self::ALL.into_iter().rev().filter(|backend| backend.available());
        match wanted {
            None | Some("") => Ok(available.next().unwrap_or(Self::Portable)),
            Some(name) => {
                available.find(|backend| backend.name() == name).ok_or_else(|| CryptoError::Backend(name.to_owned()))
            }
        }
    }

    /// Whole groups from block `counter` on.
    fn groups<T: StreamElement>(self, key: &[u32; 8], counter: u32, sign: Sign, acc: &mut [T]) {
        match self {
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Self::Avx2 => avx2::apply_groups(key, counter, sign, acc),
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Self::Avx512 => avx512::apply_groups(key, counter, sign, acc),
            #[cfg(all(target_arch = "aarch64", target_endian = "little", not(miri)))]
            Self::Neon => neon::apply_groups(key, counter, sign, acc),
            _ => portable::apply_groups(key, counter, sign, acc),
        }
    }

    /// [`apply`] with this backend, for tests and benches.
    ///
    /// # Errors
    /// As [`apply`]; [`CryptoError::Backend`] when it is not available. `acc` is unchanged then.
    pub fn apply<T: StreamElement>(
        self,
        seed: &Seed,
        offset: u64,
        sign: Sign,
        acc: &mut [T],
    ) -> Result<(), CryptoError> {
        check_range::<T>(offset, acc.len())?;
        if !self.available() {
            return Err(CryptoError::Backend(self.name().to_owned()));
        }
        self.apply_checked(seed, offset, sign, acc);
        Ok(())
    }

    fn apply_checked<T: StreamElement>(self, seed: &Seed, offset: u64, sign: Sign, acc: &mut [T]) {
        let key = seed.words();
        let mut index = (offset / T::PER_GROUP as u64) as u32;
        let skip = (offset % T::PER_GROUP as u64) as usize;
        let head = if skip == 0 { 0 } else { acc.len().min(T::PER_GROUP - skip) };
        let (head, rest) = acc.split_at_mut(head);
        let (whole, tail) = rest.split_at_mut(rest.len() / T::PER_GROUP * T::PER_GROUP);
        let ragged = |index: u32, skip, part: &mut [T]| {
            let mut group = Zeroizing::new([0u32; GROUP_WORDS]);
            self.groups(&key, index.wrapping_mul(16), Sign::Add, group.as_mut_slice());
            T::combine(part, &group, skip, sign);
        };
        if !head.is_empty() {
            ragged(index, skip, head);
            index = index.wrapping_add(1);
        }
        if !whole.is_empty() {
            self.groups(&key, index.wrapping_mul(16), sign, whole);
        }
        if !tail.is_empty() {
            ragged(index.wrapping_add((whole.len() / T::PER_GROUP) as u32), 0, tail);
        }
    }
}

/// Refuses a range that reaches beyond the stream of one seed.
///
/// # Errors
/// [`CryptoError::StreamExhausted`].
pub fn check_range<T: StreamElement>(offset: u64, len: usize) -> Result<(), CryptoError> {
    let end = (u128::from(offset) + len as u128) * size_of::<T>() as u128;
    if end > STREAM_BYTES { Err(CryptoError::StreamExhausted(end)) } else { Ok(()) }
}

/// Adds the stream of `seed` to `acc` (or subtracts it), from the stream's element `offset` on, modulo the element's width.
///
/// # Errors
/// [`CryptoError::StreamExhausted`] when that reaches beyond 2^32 blocks (256 GiB), [`CryptoError::Backend`] when
/// [`BACKEND_VARIABLE`] asks for a backend that is not there; `acc` is unchanged then.
pub fn apply<T: StreamElement>(seed: &Seed, offset: u64, sign: Sign, acc: &mut [T]) -> Result<(), CryptoError> {
    Backend::selected()?.apply(seed, offset, sign, acc)
}

/// [`apply`] for many seeds. `acc` should fit the innermost caches: it stays there while all streams pass over it.
///
/// # Errors
/// As [`apply`]; `acc` is unchanged then.
pub fn apply_all<T: StreamElement>(masks: &[(Seed, Sign)], offset: u64, acc: &mut [T]) -> Result<(), CryptoError> {
    let backend = Backend::selected()?;
    check_range::<T>(offset, acc.len())?;
    masks.iter().for_each(|(seed, sign)| backend.apply_checked(seed, offset, *sign, acc));
    Ok(())
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
        portable::key_stream(&[0; 8], 0, &mut group);
        let first: Vec<u32> = (0..4).map(|w| group[16 * w]).collect();
        assert_eq!(first, [0xade0_b876, 0x903d_f1a0, 0xe56a_5d40, 0x28bd_8653]);
    }

    #[test]
    fn the_stream_is_that_of_the_chacha20_crate_transposed() {
        let seed = seed(9);
        let expected = reference(&seed, 3);
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

    fn vector_backends() -> impl Iterator<Item = Backend> {
        Backend::ALL.into_iter().filter(|b| *b != Backend::Portable && b.available())
    }

    #[test]
    fn a_backend_that_is_not_there_is_refused_by_name() {
        assert_eq!(Backend::select(Some("portable")), Ok(Backend::Portable));
        assert_eq!(Backend::select(Some("gpu")), Err(CryptoError::Backend("gpu".into())));
        assert!(Backend::select(None).unwrap().available());
        for missing in Backend::ALL.into_iter().filter(|b| !b.available()) {
            assert!(Backend::select(Some(missing.name())).is_err());
            let mut acc = [7u32; 3];
            assert!(missing.apply(&seed(1), 0, Sign::Add, &mut acc).is_err());
            assert_eq!(acc, [7; 3]);
        }
    }

    #[test]
    fn all_backends_agree_up_to_the_last_of_2_to_the_32_blocks() {
        for backend in vector_backends() {
            for len in [1usize, 15, 255, 256, 257, 700] {
                let offset = (1u64 << 36) - len as u64;
                let (mut ours, mut theirs) = (vec![5u32; len], vec![5u32; len]);
                backend.apply(&seed(8), offset, Sign::Subtract, &mut ours).unwrap();
                Backend::Portable.apply(&seed(8), offset, Sign::Subtract, &mut theirs).unwrap();
                assert_eq!(ours, theirs, "{backend:?}, {len}");
                assert!(backend.apply(&seed(8), offset + 1, Sign::Add, &mut ours).is_err());
            }
        }
    }

    /// The stream by the `chacha20` crate, put in vertical order.
    fn reference(seed: &Seed, groups: usize) -> Vec<u32> {
        let mut bytes = vec![0u8; 1024 * groups];
        ChaCha20::new(seed.0.expose().into(), &[0; 12].into()).apply_keystream(&mut bytes);
        let word = |at: usize| u32::from_le_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap());
        (0..256 * groups).map(|i| word(i / 256 * 256 + (i % 256 % 16) * 16 + i % 256 / 16)).collect()
    }

    macro_rules! agree {
        ($type:ty, $backend:ident, $seed:ident, $offset:ident, $start:ident, $len:ident, $sign:ident) => {{
            let input: Vec<$type> = (0..$start + $len + 1).map(|i| (i as $type).wrapping_mul(0x9e37)).collect();
            let (mut ours, mut theirs) = (input.clone(), input);
            // A start inside the allocation, so that the vectors are not aligned; the elements around stay as they are.
            $backend.apply(&$seed, $offset, $sign, &mut ours[$start..$start + $len]).unwrap();
            Backend::Portable.apply(&$seed, $offset, $sign, &mut theirs[$start..$start + $len]).unwrap();
            prop_assert_eq!(ours, theirs, "{:?}", $backend);
        }};
    }

    proptest! {
        #[test]
        fn every_backend_agrees_with_the_portable_one(
            byte: u8, offset in 0u64..1 << 35, start in 0usize..40, len in 0usize..2600, add: bool,
        ) {
            let (seed, sign) = (seed(byte), if add { Sign::Add } else { Sign::Subtract });
            for backend in vector_backends() {
                agree!(u16, backend, seed, offset, start, len, sign);
                agree!(u32, backend, seed, offset, start, len, sign);
                agree!(u64, backend, seed, offset, start, len, sign);
            }
        }

        #[test]
        fn every_backend_agrees_with_the_chacha20_crate(byte: u8, offset in 0usize..1100, len in 0usize..1400) {
            let expected = reference(&seed(byte), 10);
            for backend in Backend::ALL.into_iter().filter(|b| b.available()) {
                let mut ours = vec![0u32; len];
                backend.apply(&seed(byte), offset as u64, Sign::Add, &mut ours).unwrap();
                prop_assert_eq!(&ours, &expected[offset..offset + len]);
            }
        }

        #[test]
        fn many_seeds_at_once_are_each_applied(byte: u8, offset in 0u64..3000, len in 0usize..1400) {
            let masks = [(seed(byte), Sign::Add), (seed(byte ^ 1), Sign::Subtract), (seed(byte ^ 2), Sign::Add)];
            let (mut together, mut alone) = (vec![1u16; len], vec![1u16; len]);
            apply_all(&masks, offset, &mut together).unwrap();
            masks.iter().for_each(|(seed, sign)| apply(seed, offset, *sign, &mut alone).unwrap());
            prop_assert_eq!(together, alone);
        }

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
