//! NumPy arrays in and out; what does not fit is refused with what to do about it. Input is copied before it is looked at: another thread
//! may change an array while the GIL is released.

use numpy::{
    Element, PyArray1, PyArrayDescrMethods, PyArrayMethods, PyReadonlyArray1, PyReadwriteArray1, PyUntypedArray,
    PyUntypedArrayMethods, dtype,
};
use pyo3::prelude::*;
use unisono_crypto::CryptoError;
use unisono_crypto::ring::{Modulus, RingVector};

use crate::{errors, threads};

/// The array itself, if it has the dtype of `T`, one dimension and no gaps.
fn checked<'py, 'a, T: Element>(object: &'a Bound<'py, PyAny>, what: &str) -> PyResult<&'a Bound<'py, PyArray1<T>>> {
    let py = object.py();
    let wanted = dtype::<T>(py);
    let Ok(array) = object.cast::<PyUntypedArray>() else {
        let kind = object.get_type().name()?;
        return Err(errors::array(format!(
            "the {what} is a {kind}; a numpy.ndarray of {wanted} is needed: numpy.asarray(x, dtype=numpy.{wanted})"
        )));
    };
    if !array.dtype().is_equiv_to(&wanted) {
        let got = array.dtype();
        return Err(errors::array(format!("the {what} has dtype {got}; {wanted} is needed: x.astype(numpy.{wanted})")));
    }
    // A numpy.ma array: below its mask lies what must not be sent.
    if object.hasattr("mask")? {
        return Err(errors::array(format!(
            "the {what} is a masked array: x.filled(0) puts a value where it is masked"
        )));
    }
    if array.ndim() != 1 {
        let shape = array.shape();
        return Err(errors::array(format!("the {what} has shape {shape:?}; one dimension is needed: x.ravel()")));
    }
    if !array.is_c_contiguous() {
        return Err(errors::array(format!(
            "the {what} is not contiguous in memory: numpy.ascontiguousarray(x) makes one that is"
        )));
    }
    object
        .cast::<PyArray1<T>>()
        .map_err(|_| errors::array(format!("the {what} is not aligned or not in native byte order: x.copy()")))
}

/// An array to read from, as long as the GIL is held.
fn readable<'py, T: Element>(object: &Bound<'py, PyAny>, what: &str) -> PyResult<PyReadonlyArray1<'py, T>> {
    checked::<T>(object, what)?
        .try_readonly()
        .map_err(|_| errors::array(format!("the {what} is being written to by another call")))
}

/// A copy of an array, made while no Python code of another thread runs: what is checked is what is used.
pub fn copied<T: Element + Copy>(object: &Bound<'_, PyAny>, what: &str) -> PyResult<Vec<T>> {
    Ok(readable::<T>(object, what)?.as_slice().map_err(gaps)?.to_vec())
}

/// An array to change in place.
pub fn writable<'py, T: Element>(object: &Bound<'py, PyAny>, what: &str) -> PyResult<PyReadwriteArray1<'py, T>> {
    checked::<T>(object, what)?.try_readwrite().map_err(|_| {
        errors::array(format!("the {what} is read-only or in use by another call: a copy is not, x.copy()"))
    })
}

/// An array whose elements don't lie one after the other, each at a multiple of its size.
pub fn gaps(_: numpy::AsSliceError) -> PyErr {
    errors::array("the array is not aligned or not contiguous in memory: a copy is, x.copy()")
}

/// A new array of ring elements in the dtype of the modulus; NumPy owns the memory.
pub fn ring_to_array<'py>(py: Python<'py>, vector: &RingVector) -> Bound<'py, PyAny> {
    let values = (0..vector.len()).map(|i| vector.get(i).unwrap_or_default());
    match vector.modulus().bits() {
        ..=16 => PyArray1::from_iter(py, values.map(|x| x as u16)).into_any(),
        17..=32 => PyArray1::from_iter(py, values.map(|x| x as u32)).into_any(),
        _ => PyArray1::from_iter(py, values).into_any(),
    }
}

/// Ring elements from an array in the dtype of the modulus.
pub fn array_to_ring(object: &Bound<'_, PyAny>, modulus: Modulus, what: &str) -> PyResult<RingVector> {
    let py = object.py();
    macro_rules! copy {
        ($t:ty) => {{
            let values = copied::<$t>(object, what)?;
            threads::detach(py, || {
                RingVector::from_chunks(modulus, values.len(), |start, out| {
                    out.iter_mut().zip(&values[start..]).for_each(|(x, &value)| *x = value.into());
                    Ok::<_, CryptoError>(())
                })
            })
        }};
    }
    let vector = match modulus.bits() {
        ..=16 => copy!(u16),
        17..=32 => copy!(u32),
        _ => {
            let values = copied::<u64>(object, what)?;
            threads::detach(py, || RingVector::from_u64(modulus, &values))
        }
    };
    vector?.map_err(errors::crypto)
}
