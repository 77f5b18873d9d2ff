//! Vectors modulo 2^b (`docs/protocol.md` sections 5 and 7), b from 1 to 64, and their packing to b bits an element.
//!
//! A vector is held in the narrowest of 16, 32 and 64 bits that fits, which is also the element width of the PRG. Masks are
//! applied modulo that width, and the result is reduced modulo 2^b by masking: 2^b divides the width's modulus.
//!
//! Work on long vectors is spread over the rayon pool in which the caller runs: its size is the number of threads
//! (`RAYON_NUM_THREADS`, or `ThreadPool::install` of a pool of one on a small device). What it needs beside the vector is
//! some kilobytes a thread.

use rayon::prelude::*;
use zeroize::{Zeroize, Zeroizing};

use crate::prg::{self, Seed, Sign};
use crate::{CryptoError, bits};

/// Elements that are masked at a time, so that they stay in cache while every mask passes over them: whole groups of the PRG.
const CHUNK: usize = 8192;
/// Elements that one thread packs or unpacks at a time: a multiple of 8, so that they begin at a byte.
const PACKED_CHUNK: usize = 1 << 16;

/// The modulus 2^b.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Modulus(u32);

impl Modulus {
    /// Modulus 2^`bits`.
    ///
    /// # Errors
    /// [`CryptoError::Range`] unless `bits` is 1 to 64.
    pub fn new(bits: u32) -> Result<Self, CryptoError> {
        if (1..=64).contains(&bits) {
            Ok(Self(bits))
        } else {
            Err(CryptoError::Range { what: "modulus bits", got: bits.into(), min: 1, max: 64 })
        }
    }

    /// The exponent b, 1 to 64.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// 2^b - 1.
    pub fn mask(self) -> u64 {
        u64::MAX >> (64 - self.0)
    }

    /// Bytes of `len` packed elements: `ceil(b len / 8)`.
    pub fn packed_len(self, len: u64) -> u128 {
        (u128::from(self.0) * u128::from(len)).div_ceil(8)
    }
}

#[derive(Clone, PartialEq, Eq)]
enum Elements {
    W16(Vec<u16>),
    W32(Vec<u32>),
    W64(Vec<u64>),
}

/// Runs `$body` for the width at hand; `$v` is its slice or vector and `$t`, when asked for, its element type.
macro_rules! each_width {
    ($elements:expr, $v:ident: $t:ident => $body:expr) => {
        match $elements {
            Elements::W16($v) => {
                type $t = u16;
                $body
            }
            Elements::W32($v) => {
                type $t = u32;
                $body
            }
            Elements::W64($v) => {
                type $t = u64;
                $body
            }
        }
    };
    ($elements:expr, $v:ident => $body:expr) => {
        match $elements {
            Elements::W16($v) => $body,
            Elements::W32($v) => $body,
            Elements::W64($v) => $body,
        }
    };
}

/// A vector of elements modulo 2^b. Zeroized when dropped: it may hold an update.
#[derive(Clone, PartialEq, Eq)]
pub struct RingVector {
    modulus: Modulus,
    elements: Elements,
}

impl Drop for RingVector {
    fn drop(&mut self) {
        each_width!(&mut self.elements, v => v.zeroize());
    }
}

impl RingVector {
    /// `len` zeros.
    pub fn zeros(modulus: Modulus, len: usize) -> Self {
        let elements = match modulus.bits() {
            ..=16 => Elements::W16(vec![0; len]),
            17..=32 => Elements::W32(vec![0; len]),
            _ => Elements::W64(vec![0; len]),
        };
        Self { modulus, elements }
    }

    /// A vector of the given values, each below 2^b.
    ///
    /// # Errors
    /// [`CryptoError::Range`] for the first value that is not.
    pub fn from_u64(modulus: Modulus, values: &[u64]) -> Result<Self, CryptoError> {
        if let Some(&got) = values.iter().find(|&&value| value > modulus.mask()) {
            return Err(CryptoError::Range { what: "ring element", got, min: 0, max: modulus.mask() });
        }
        let mut vector = Self::zeros(modulus, values.len());
        each_width!(&mut vector.elements, v: T => v.iter_mut().zip(values).for_each(|(x, &value)| *x = value as T));
        Ok(vector)
    }

    /// The elements, each below 2^b.
    pub fn to_u64(&self) -> Vec<u64> {
        #[allow(clippy::unnecessary_cast)] // one arm of three is u64 already
        let values = each_width!(&self.elements, v => v.iter().map(|&x| x as u64).collect());
        values
    }

    /// Element `i`; `None` beyond the end.
    pub fn get(&self, i: usize) -> Option<u64> {
        #[allow(clippy::unnecessary_cast)]
        let value = each_width!(&self.elements, v => v.get(i).map(|&x| x as u64));
        value
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        each_width!(&self.elements, v => v.len())
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The modulus.
    pub fn modulus(&self) -> Modulus {
        self.modulus
    }

    /// Adds or subtracts the streams of all seeds, chunk by chunk, then reduces.
    ///
    /// # Errors
    /// [`CryptoError::StreamExhausted`] when the vector is longer than one seed may serve, [`CryptoError::Backend`] when the
    /// PRG's backend that the environment asks for is not there; the vector is unchanged then.
    pub fn apply_masks(&mut self, masks: &[(Seed, Sign)]) -> Result<(), CryptoError> {
        let mask = self.modulus.mask();
        each_width!(&mut self.elements, v: T => {
            // Refuse before the first element changes.
            prg::check_range::<T>(0, v.len())?;
            prg::Backend::selected()?;
            let one = |(i, chunk): (usize, &mut [T])| {
                prg::apply_all(masks, (i * CHUNK) as u64, chunk)?;
                chunk.iter_mut().for_each(|x| *x &= mask as T);
                Ok(())
            };
            each_chunk(v, one)
        })
    }

    /// `len` elements as `fill` gives them: it gets the place of a chunk's first element, and the chunk, all zeros.
    /// Chunks have the same places whatever the number of threads.
    ///
    /// # Errors
    /// [`CryptoError::Range`] for a value of 2^b or more, else what `fill` refuses.
    pub fn from_chunks<E: From<CryptoError> + Send>(
        modulus: Modulus,
        len: usize,
        fill: impl Fn(usize, &mut [u32]) -> Result<(), E> + Sync + Send,
    ) -> Result<Self, E> {
        let mut vector = Self::zeros(modulus, len);
        let mask = modulus.mask();
        let fill = |(i, values): (usize, &mut [u32])| -> Result<(), E> {
            fill(i * CHUNK, values)?;
            let all = values.iter().fold(0, |all, value| all | value);
            if u64::from(all) > mask {
                let got = values.iter().copied().max().unwrap_or(0).into();
                return Err(CryptoError::Range { what: "ring element", got, min: 0, max: mask }.into());
            }
            Ok(())
        };
        if let Elements::W32(v) = &mut vector.elements {
            each_chunk(v, fill)?;
            return Ok(vector);
        }
        each_width!(&mut vector.elements, v: T => each_chunk(v, |(i, chunk)| -> Result<(), E> {
            let mut values = Zeroizing::new([0u32; CHUNK]);
            fill((i, &mut values[..chunk.len()]))?;
            chunk.iter_mut().zip(&*values).for_each(|(x, &value)| *x = value as T);
            Ok(())
        }))?;
        Ok(vector)
    }

    /// Adds what `fill` gives to the first `len` elements, modulo 2^b: it gets the place of a chunk's first element, and as
    /// many zeros as the chunk is long. Chunks have the same places whatever the number of threads.
    ///
    /// # Errors
    /// [`CryptoError::Length`] when the vector is shorter than `len`; what `fill` fails with, and then some chunks are added.
    pub fn add_chunks(
        &mut self,
        len: usize,
        fill: impl Fn(usize, &mut [i64]) -> Result<(), CryptoError> + Sync + Send,
    ) -> Result<(), CryptoError> {
        if len > self.len() {
            return Err(CryptoError::Length { what: "ring vector", expected: len, got: self.len() });
        }
        let mask = self.modulus.mask();
        each_width!(&mut self.elements, v: T => each_chunk(&mut v[..len], |(i, chunk)| {
            let mut values = Zeroizing::new([0i64; CHUNK]);
            let values = &mut values[..chunk.len()];
            fill(i * CHUNK, values)?;
            // Negative numbers wrap at the width, which 2^b divides.
            chunk.iter_mut().zip(values).for_each(|(x, value)| *x = x.wrapping_add(*value as T) & mask as T);
            Ok(())
        }))
    }

    /// Adds `other`, modulo 2^b.
    ///
    /// # Errors
    /// [`CryptoError::Length`] or [`CryptoError::Range`] when lengths or moduli differ.
    pub fn add_assign(&mut self, other: &Self) -> Result<(), CryptoError> {
        if other.modulus != self.modulus {
            let bits = u64::from(self.modulus.bits());
            return Err(CryptoError::Range {
                what: "modulus bits",
                got: other.modulus.bits().into(),
                min: bits,
                max: bits,
            });
        }
        if other.len() != self.len() {
            return Err(CryptoError::Length { what: "ring vector", expected: self.len(), got: other.len() });
        }
        let mask = self.modulus.mask();
        macro_rules! add {
            ($a:expr, $b:expr, $t:ty) => {
                $a.iter_mut().zip($b).for_each(|(x, y)| *x = x.wrapping_add(*y) & mask as $t)
            };
        }
        match (&mut self.elements, &other.elements) {
            (Elements::W16(a), Elements::W16(b)) => add!(a, b, u16),
            (Elements::W32(a), Elements::W32(b)) => add!(a, b, u32),
            (Elements::W64(a), Elements::W64(b)) => add!(a, b, u64),
            _ => unreachable!("equal moduli have equal widths"),
        }
        Ok(())
    }

    /// The whole vector, `b` bits an element, least significant bit first.
    pub fn pack(&self) -> Vec<u8> {
        self.pack_bits(0, self.len())
    }

    /// Elements `start..start + len` packed. `start` is a multiple of 8, so that they begin at a byte of the whole.
    ///
    /// # Errors
    /// [`CryptoError::Range`] when the range is not within the vector or `start` is not a multiple of 8.
    pub fn pack_range(&self, start: usize, len: usize) -> Result<Vec<u8>, CryptoError> {
        let end = start.saturating_add(len);
        if end > self.len() || !start.is_multiple_of(8) {
            let what = "end of the packed range (its start a multiple of 8)";
            return Err(CryptoError::Range { what, got: end as u64, min: 0, max: self.len() as u64 });
        }
        Ok(self.pack_bits(start, len))
    }

    fn pack_bits(&self, start: usize, len: usize) -> Vec<u8> {
        let bits = self.modulus.bits() as usize;
        let mut out = vec![0; (len * bits).div_ceil(8)];
        each_width!(&self.elements, v => if len <= PACKED_CHUNK {
            bits::pack(bits, &v[start..start + len], &mut out);
        } else {
            let chunks = out.par_chunks_mut(PACKED_CHUNK / 8 * bits).zip(v[start..start + len].par_chunks(PACKED_CHUNK));
            chunks.for_each(|(out, values)| bits::pack(bits, values, out));
        });
        out
    }

    /// Reads `len` packed elements.
    ///
    /// # Errors
    /// [`CryptoError::Length`] unless `bytes` has exactly the packed length, [`CryptoError::Encoding`] when a padding bit is set.
    pub fn unpack(modulus: Modulus, len: usize, bytes: &[u8]) -> Result<Self, CryptoError> {
        check_packed(modulus, len, bytes)?;
        let mut vector = Self::zeros(modulus, len);
        vector.add_packed(bytes)?;
        Ok(vector)
    }

    /// Adds a packed vector of the same length, modulo 2^b, without unpacking it first.
    ///
    /// # Errors
    /// As [`Self::unpack`]; the vector is unchanged then.
    pub fn add_packed(&mut self, bytes: &[u8]) -> Result<(), CryptoError> {
        check_packed(self.modulus, self.len(), bytes)?;
        let bits = self.modulus.bits() as usize;
        each_width!(&mut self.elements, v => if v.len() <= PACKED_CHUNK {
            bits::add_unpacked(bits, bytes, v);
        } else {
            let chunks = v.par_chunks_mut(PACKED_CHUNK).zip(bytes.par_chunks(PACKED_CHUNK / 8 * bits));
            chunks.for_each(|(acc, bytes)| bits::add_unpacked(bits, bytes, acc));
        });
        Ok(())
    }
}

/// Runs `work` on every chunk with its number; a vector of one chunk is not worth waking other threads.
fn each_chunk<T: Send, E: Send>(
    elements: &mut [T],
    work: impl Fn((usize, &mut [T])) -> Result<(), E> + Sync + Send,
) -> Result<(), E> {
    if elements.len() <= CHUNK {
        return work((0, elements));
    }
    elements.par_chunks_mut(CHUNK).enumerate().try_for_each(work)
}

fn check_packed(modulus: Modulus, len: usize, bytes: &[u8]) -> Result<(), CryptoError> {
    let expected = modulus.packed_len(len as u64);
    if bytes.len() as u128 != expected {
        let expected = usize::try_from(expected).unwrap_or(usize::MAX);
        return Err(CryptoError::Length { what: "packed vector", expected, got: bytes.len() });
    }
    let used = (len as u128 * u128::from(modulus.bits()) % 8) as u32;
    match bytes.last() {
        Some(last) if used != 0 && last >> used != 0 => Err(CryptoError::Encoding("padding of a packed vector")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::secret::Secret32;

    fn vector(max_len: usize) -> impl Strategy<Value = (Modulus, Vec<u64>)> {
        (1u32..=64, proptest::collection::vec(any::<u64>(), 0..max_len)).prop_map(|(bits, mut values)| {
            let modulus = Modulus::new(bits).unwrap();
            values.iter_mut().for_each(|value| *value &= modulus.mask());
            (modulus, values)
        })
    }

    #[test]
    fn every_width_from_1_to_64_survives_packing() {
        for bits in 1..=64 {
            let modulus = Modulus::new(bits).unwrap();
            let values: Vec<u64> = (0..77u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) & modulus.mask()).collect();
            let vector = RingVector::from_u64(modulus, &values).unwrap();
            let packed = vector.pack();
            assert_eq!(packed.len(), (77 * bits as usize).div_ceil(8));
            assert_eq!(RingVector::unpack(modulus, 77, &packed).unwrap().to_u64(), values, "b = {bits}");
            let cut = [vector.pack_range(0, 40).unwrap(), vector.pack_range(40, 37).unwrap()].concat();
            assert_eq!(cut, packed, "b = {bits}");
        }
        assert!(Modulus::new(0).is_err() && Modulus::new(65).is_err());
    }

    #[test]
    fn packed_bytes_of_a_wrong_length_or_with_padding_are_refused() {
        let modulus = Modulus::new(3).unwrap();
        assert!(matches!(RingVector::unpack(modulus, 3, &[0]), Err(CryptoError::Length { expected: 2, got: 1, .. })));
        assert!(matches!(RingVector::unpack(modulus, 3, &[0, 2]), Err(CryptoError::Encoding(_))));
        assert!(RingVector::unpack(modulus, usize::MAX, &[]).is_err());
        assert!(RingVector::from_u64(modulus, &[8]).is_err());
        assert!(RingVector::zeros(modulus, 9).pack_range(4, 2).is_err());
        assert!(RingVector::zeros(modulus, 9).pack_range(8, usize::MAX).is_err());
    }

    #[test]
    fn numbers_of_either_sign_are_added_modulo_the_ring() {
        for bits in [1, 11, 16, 27, 32, 50, 64] {
            let modulus = Modulus::new(bits).unwrap();
            let len = if cfg!(miri) { CHUNK + 3 } else { 20_000 };
            let mut vector = RingVector::from_u64(modulus, &vec![1; len]).unwrap();
            let value = |i: usize| (i as i64 - 10_000) * 12_345_678;
            let fill = |start, out: &mut [i64]| {
                out.iter_mut().enumerate().for_each(|(i, x)| *x = value(start + i));
                Ok(())
            };
            vector.add_chunks(len - 1, fill).unwrap();
            let expected = |i: usize| (1i64.wrapping_add(value(i)) as u64) & modulus.mask();
            assert!((0..len - 1).all(|i| vector.get(i) == Some(expected(i))), "b = {bits}");
            assert_eq!(vector.get(len - 1), Some(1), "the last was not to change");
            assert!(vector.add_chunks(len + 1, fill).is_err());
        }
    }

    #[test]
    fn a_long_vector_is_masked_and_packed_alike_by_one_thread_and_by_several() {
        for bits in [11, 27, 50] {
            let modulus = Modulus::new(bits).unwrap();
            let len = if cfg!(miri) { CHUNK as u64 + 3 } else { 150_001 };
            let values: Vec<u64> = (0..len).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) & modulus.mask()).collect();
            let seeds = [1u8, 2].map(|byte| Seed::from_secret(&Secret32::from_bytes([byte; 32])));
            let masks = [(seeds[0].clone(), Sign::Add), (seeds[1].clone(), Sign::Subtract)];
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let mut vector = RingVector::from_u64(modulus, &values).unwrap();
                    vector.apply_masks(&masks).unwrap();
                    vector.pack()
                })
            };
            let packed = run(1);
            assert_eq!(packed, run(3));
            // Element by element, without chunks.
            let vector = RingVector::unpack(modulus, values.len(), &packed).unwrap();
            for at in [0, 8191, 8192, 65_535, 65_536, 131_072, 150_000].into_iter().filter(|at| *at < values.len()) {
                let mask = |seed| match bits {
                    ..=16 => stream_element::<u16>(seed, at),
                    17..=32 => stream_element::<u32>(seed, at),
                    _ => stream_element::<u64>(seed, at),
                };
                let expected = values[at].wrapping_add(mask(&seeds[0])).wrapping_sub(mask(&seeds[1]));
                assert_eq!(vector.get(at), Some(expected & modulus.mask()), "b = {bits}, element {at}");
            }
            let at = values.len() / 16 * 8;
            let cut = [vector.pack_range(0, at).unwrap(), vector.pack_range(at, values.len() - at).unwrap()].concat();
            assert!(cut == packed);
        }
    }

    fn stream_element<T: prg::StreamElement + Default + Into<u64>>(seed: &Seed, at: usize) -> u64 {
        let mut one = [T::default()];
        prg::apply(seed, at as u64, Sign::Add, &mut one).unwrap();
        one[0].into()
    }

    proptest! {
        #[test]
        fn unmasking_a_masked_vector_restores_it((modulus, values) in vector(300), byte: u8) {
            let seed = |b| Seed::from_secret(&Secret32::from_bytes([b; 32]));
            let mut x = RingVector::from_u64(modulus, &values).unwrap();
            x.apply_masks(&[(seed(byte), Sign::Add), (seed(byte ^ 1), Sign::Subtract)]).unwrap();
            prop_assert!(x.to_u64().iter().all(|&v| v <= modulus.mask()));
            x.apply_masks(&[(seed(byte), Sign::Subtract)]).unwrap();
            x.apply_masks(&[(seed(byte ^ 1), Sign::Add)]).unwrap();
            prop_assert_eq!(x.to_u64(), values);
        }

        #[test]
        fn adding_packed_is_adding((modulus, values) in vector(100)) {
            let x = RingVector::from_u64(modulus, &values).unwrap();
            let (mut packed, mut plain) = (x.clone(), x.clone());
            packed.add_packed(&x.pack()).unwrap();
            plain.add_assign(&x).unwrap();
            prop_assert_eq!(packed.to_u64(), plain.to_u64());
            let expected: Vec<u64> = values.iter().map(|v| v.wrapping_add(*v) & modulus.mask()).collect();
            prop_assert_eq!(plain.to_u64(), expected);
        }
    }
}
