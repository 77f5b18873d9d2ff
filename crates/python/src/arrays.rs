//! NumPy arrays as slices, without a copy; what does not fit is refused with what to do about it.

use std::fmt::Display;

use numpy::{
    Element, PyArray1, PyArrayDescrMethods, PyArrayMethods, PyReadonlyArray1, PyReadwriteArray1, PyUntypedArray,
    PyUntypedArrayMethods, dtype,
};
use pyo3::prelude::*;
use unisono_crypto::ring::{Modulus, RingVector};

use crate::errors;

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

/// A whole number that `T` can hold; anything else is refused with its name and the limits.
pub fn whole<'py, T>(object: &Bound<'py, PyAny>, name: &str, largest: T) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py> + PartialOrd + Display,
{
    let found: Option<T> = object.extract().ok();
    found.filter(|number| *number <= largest).ok_or_else(|| {
        let got = object.repr().map(|text| text.to_string()).unwrap_or_default();
        errors::class::ParamsError::new_err(format!("{name} is {got}; a whole number from 0 to {largest} is needed"))
    })
}

/// An array to read from.
pub fn readable<'py, T: Element>(object: &Bound<'py, PyAny>, what: &str) -> PyResult<PyReadonlyArray1<'py, T>> {
    checked::<T>(object, what)?
        .try_readonly()
        .map_err(|_| errors::array(format!("the {what} is being written to by another call")))
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
    let values = vector.to_u64();
    match vector.modulus().bits() {
        ..=16 => PyArray1::from_iter(py, values.iter().map(|&x| x as u16)).into_any(),
        17..=32 => PyArray1::from_iter(py, values.iter().map(|&x| x as u32)).into_any(),
        _ => PyArray1::from_vec(py, values).into_any(),
    }
}

/// Ring elements from an array in the dtype of the modulus.
pub fn array_to_ring(object: &Bound<'_, PyAny>, modulus: Modulus, what: &str) -> PyResult<RingVector> {
    let values: Vec<u64> = match modulus.bits() {
        ..=16 => readable::<u16>(object, what)?.as_slice().map_err(gaps)?.iter().map(|&x| x.into()).collect(),
        17..=32 => readable::<u32>(object, what)?.as_slice().map_err(gaps)?.iter().map(|&x| x.into()).collect(),
        _ => readable::<u64>(object, what)?.as_slice().map_err(gaps)?.to_vec(),
    };
    RingVector::from_u64(modulus, &values).map_err(errors::crypto)
}
