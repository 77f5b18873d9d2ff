//! The primitives one by one: mask, quantise, pack, share a secret, encapsulate.

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use unisono_crypto::kem;
use unisono_crypto::prg::{self, Seed, Sign, StreamElement};
use unisono_crypto::ring::Modulus;
use unisono_crypto::secret::Secret32;
use unisono_crypto::shamir::{self, SecretScalar, Share};
use unisono_protocol::encoding::Contribution;

use crate::arguments::named;
use crate::params::{Aggregate, Quantiser};
use crate::rng::rng;
use crate::{arrays, errors, threads};

/// Elements that stay in cache while every mask passes over them.
const CHUNK: usize = 8192;

fn modulus(bits: u32) -> PyResult<Modulus> {
    Modulus::new(bits).map_err(errors::crypto)
}

/// Name of the dtype in which vectors modulo 2^modulus_bits are held: uint16, uint32 or uint64.
#[pyfunction]
pub fn ring_dtype(#[pyo3(from_py_with = named::modulus_bits)] modulus_bits: u32) -> PyResult<&'static str> {
    Ok(match modulus(modulus_bits)?.bits() {
        ..=16 => "uint16",
        17..=32 => "uint32",
        _ => "uint64",
    })
}

fn apply<T: StreamElement + Send>(slice: &mut [T], masks: &[(Seed, Sign)], reduce: impl Fn(&mut T)) -> PyResult<()> {
    // Refuse a vector that is too long before the first element changes.
    prg::check_range::<T>(0, slice.len()).map_err(errors::crypto)?;
    for (i, chunk) in slice.chunks_mut(CHUNK).enumerate() {
        prg::apply_all(masks, (i * CHUNK) as u64, chunk).map_err(errors::crypto)?;
        chunk.iter_mut().for_each(&reduce);
    }
    Ok(())
}

fn apply_all(
    py: Python<'_>,
    vector: &Bound<'_, PyAny>,
    modulus_bits: u32,
    add: &[[u8; 32]],
    subtract: &[[u8; 32]],
) -> PyResult<()> {
    let modulus = modulus(modulus_bits)?;
    let seeds = |seeds: &[[u8; 32]], sign| -> Vec<(Seed, Sign)> {
        seeds.iter().map(|seed| (Seed::from_secret(&Secret32::from_bytes(*seed)), sign)).collect()
    };
    let masks = [seeds(add, Sign::Add), seeds(subtract, Sign::Subtract)].concat();
    let mask = modulus.mask();
    macro_rules! run {
        ($t:ty) => {{
            let mut array = arrays::writable::<$t>(vector, "vector")?;
            let slice = array.as_slice_mut().map_err(arrays::gaps)?;
            threads::detach(py, || apply(slice, &masks, |x| *x &= mask as $t))?
        }};
    }
    match modulus.bits() {
        ..=16 => run!(u16),
        17..=32 => run!(u32),
        _ => run!(u64),
    }
}

/// Adds and subtracts the masks of the given seeds, in place and modulo 2^modulus_bits.
#[pyfunction]
#[pyo3(signature = (vector, modulus_bits, *, add=Vec::new(), subtract=Vec::new()))]
pub fn mask(
    py: Python<'_>,
    vector: &Bound<'_, PyAny>,
    #[pyo3(from_py_with = named::modulus_bits)] modulus_bits: u32,
    #[pyo3(from_py_with = named::add)] add: Vec<[u8; 32]>,
    #[pyo3(from_py_with = named::subtract)] subtract: Vec<[u8; 32]>,
) -> PyResult<()> {
    apply_all(py, vector, modulus_bits, &add, &subtract)
}

/// Undoes `mask` with the same arguments, in place.
#[pyfunction]
#[pyo3(signature = (vector, modulus_bits, *, add=Vec::new(), subtract=Vec::new()))]
pub fn unmask(
    py: Python<'_>,
    vector: &Bound<'_, PyAny>,
    #[pyo3(from_py_with = named::modulus_bits)] modulus_bits: u32,
    #[pyo3(from_py_with = named::add)] add: Vec<[u8; 32]>,
    #[pyo3(from_py_with = named::subtract)] subtract: Vec<[u8; 32]>,
) -> PyResult<()> {
    apply_all(py, vector, modulus_bits, &subtract, &add)
}

/// Encodes a float32 update and its weight as a vector modulo 2^modulus_bits.
#[pyfunction]
#[pyo3(signature = (update, weight, quantiser, modulus_bits, *, metrics=Vec::new(), seed=None))]
pub fn quantise<'py>(
    py: Python<'py>,
    update: &Bound<'py, PyAny>,
    #[pyo3(from_py_with = named::weight)] weight: f32,
    quantiser: &Quantiser,
    #[pyo3(from_py_with = named::modulus_bits)] modulus_bits: u32,
    #[pyo3(from_py_with = named::metrics)] metrics: Vec<f32>,
    #[pyo3(from_py_with = named::seed)] seed: Option<[u8; 32]>,
) -> PyResult<Bound<'py, PyAny>> {
    let modulus = modulus(modulus_bits)?;
    let update = arrays::copied::<f32>(update, "update")?;
    let vector = threads::detach(py, || {
        let contribution = Contribution { update: &update, metrics: &metrics, weight };
        quantiser.inner.encode(contribution, update.len(), modulus, &mut *rng(seed))
    })?
    .map_err(errors::encoding)?;
    Ok(arrays::ring_to_array(py, &vector))
}

/// Decodes the sum of `clients` encoded updates of `dimension` elements.
#[pyfunction]
pub fn dequantise(
    py: Python<'_>,
    sum: &Bound<'_, PyAny>,
    quantiser: &Quantiser,
    #[pyo3(from_py_with = named::modulus_bits)] modulus_bits: u32,
    #[pyo3(from_py_with = named::dimension)] dimension: usize,
    #[pyo3(from_py_with = named::clients)] clients: u32,
) -> PyResult<Aggregate> {
    let sum = arrays::array_to_ring(sum, modulus(modulus_bits)?, "sum")?;
    let decoded =
        threads::detach(py, || quantiser.inner.decode(&sum, dimension, clients))?.map_err(errors::encoding)?;
    Ok(Aggregate::new(py, decoded))
}

/// Packs a vector to modulus_bits bits an element.
#[pyfunction]
pub fn pack<'py>(
    py: Python<'py>,
    vector: &Bound<'py, PyAny>,
    #[pyo3(from_py_with = named::modulus_bits)] modulus_bits: u32,
) -> PyResult<Bound<'py, PyBytes>> {
    let vector = arrays::array_to_ring(vector, modulus(modulus_bits)?, "vector")?;
    let packed = threads::detach(py, || vector.pack())?;
    Ok(PyBytes::new(py, &packed))
}

/// Reads `length` packed elements.
#[pyfunction]
pub fn unpack<'py>(
    py: Python<'py>,
    packed: &[u8],
    #[pyo3(from_py_with = named::modulus_bits)] modulus_bits: u32,
    #[pyo3(from_py_with = named::length)] length: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let modulus = modulus(modulus_bits)?;
    let vector = threads::detach(py, || unisono_crypto::ring::RingVector::unpack(modulus, length, packed))?;
    Ok(arrays::ring_to_array(py, &vector.map_err(errors::crypto)?))
}

/// A uniformly random secret that `split_secret` takes: a scalar of the Ristretto group, 32 bytes.
#[pyfunction]
#[pyo3(signature = (*, seed=None))]
pub fn random_secret(py: Python<'_>, #[pyo3(from_py_with = named::seed)] seed: Option<[u8; 32]>) -> Bound<'_, PyBytes> {
    PyBytes::new(py, SecretScalar::random(&mut *rng(seed)).to_secret().expose())
}

/// Splits a secret into one share of 32 bytes for each abscissa; any `threshold` of them rebuild it.
#[pyfunction]
#[pyo3(signature = (secret, threshold, abscissas, *, seed=None))]
pub fn split_secret<'py>(
    py: Python<'py>,
    #[pyo3(from_py_with = named::secret)] secret: [u8; 32],
    #[pyo3(from_py_with = named::threshold)] threshold: usize,
    #[pyo3(from_py_with = named::abscissas)] abscissas: Vec<u32>,
    #[pyo3(from_py_with = named::seed)] seed: Option<[u8; 32]>,
) -> PyResult<Vec<(u32, Bound<'py, PyBytes>)>> {
    let secret = SecretScalar::from_canonical(&secret).map_err(errors::crypto)?;
    let shares = threads::detach(py, || shamir::split(&secret, threshold, &abscissas, &mut *rng(seed)))?
        .map_err(errors::crypto)?;
    Ok(shares.iter().map(|share| (share.abscissa(), PyBytes::new(py, share.value_bytes().as_slice()))).collect())
}

/// Rebuilds a secret from `threshold` or more shares, of which up to `(len(shares) - threshold) // 2` may be wrong.
/// Returns the secret and the abscissas of the wrong shares.
#[pyfunction]
pub fn rebuild_secret<'py>(
    py: Python<'py>,
    #[pyo3(from_py_with = named::shares)] shares: Vec<(u32, [u8; 32])>,
    #[pyo3(from_py_with = named::threshold)] threshold: usize,
) -> PyResult<(Bound<'py, PyBytes>, Vec<u32>)> {
    let shares: Result<Vec<Share>, _> = shares.iter().map(|(at, value)| Share::from_bytes(*at, value)).collect();
    let shares = shares.map_err(errors::crypto)?;
    let decoded = threads::detach(py, || shamir::decode(&shares, threshold))?.map_err(errors::crypto)?;
    let decoded = decoded.ok_or_else(|| {
        errors::class::CryptoError::new_err("too many of the shares are wrong: no secret fits enough of them")
    })?;
    Ok((PyBytes::new(py, decoded.secret.to_secret().expose()), decoded.wrong))
}

/// Encapsulates a fresh secret to an X-Wing key: the ciphertext (1120 bytes) and the secret (32 bytes).
#[pyfunction]
#[pyo3(signature = (encapsulation_key, *, seed=None))]
pub fn encapsulate<'py>(
    py: Python<'py>,
    encapsulation_key: &[u8],
    #[pyo3(from_py_with = named::seed)] seed: Option<[u8; 32]>,
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let key = kem::EncapsulationKey::from_bytes(encapsulation_key).map_err(errors::crypto)?;
    let (ciphertext, secret) = threads::detach(py, || key.encapsulate(&mut *rng(seed)))?;
    Ok((PyBytes::new(py, &ciphertext), PyBytes::new(py, secret.expose())))
}

/// An X-Wing (X25519 and ML-KEM-768) secret key.
#[pyclass(frozen, module = "unisono")]
pub struct DecapsulationKey(kem::DecapsulationKey);

#[pymethods]
impl DecapsulationKey {
    /// A fresh key, or that of a 32-byte seed.
    #[staticmethod]
    #[pyo3(signature = (seed=None))]
    fn generate(#[pyo3(from_py_with = named::seed)] seed: Option<[u8; 32]>) -> Self {
        Self(match seed {
            Some(seed) => kem::DecapsulationKey::from_seed(&Secret32::from_bytes(seed)),
            None => kem::DecapsulationKey::generate(&mut *rng(None)),
        })
    }

    /// The 32 secret bytes from which the key is made, for storage.
    fn seed<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.seed().expose())
    }

    /// The public half, 1216 bytes.
    #[getter]
    fn encapsulation_key<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.encapsulation_key().as_bytes())
    }

    /// The secret in a ciphertext; of a ciphertext to another key, an unrelated one.
    fn decapsulate<'py>(&self, py: Python<'py>, ciphertext: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let secret = threads::detach(py, || self.0.decapsulate(ciphertext))?.map_err(errors::crypto)?;
        Ok(PyBytes::new(py, secret.expose()))
    }

    fn __repr__(&self) -> &'static str {
        "DecapsulationKey(..)"
    }
}
