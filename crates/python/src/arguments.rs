//! Numbers, and byte strings of a fixed length, as arguments: what does not fit is refused with the argument's name and the
//! limit, by an exception of this package. PyO3's own conversions raise `OverflowError` or a bare `ValueError`.

use pyo3::prelude::*;

use crate::errors::class;

/// A value that can be read from an argument of the given name.
pub trait Argument<'py>: Sized {
    fn read(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Self>;
}

fn shown(object: &Bound<'_, PyAny>) -> String {
    object.repr().map(|text| text.to_string()).unwrap_or_default()
}

macro_rules! whole {
    ($($type:ty)*) => {
        $(impl<'py> Argument<'py> for $type {
            fn read(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Self> {
                object.extract().map_err(|_| {
                    let (got, largest) = (shown(object), <$type>::MAX);
                    class::ParamsError::new_err(format!(
                        "{name} is {got}; a whole number from 0 to {largest} is needed"
                    ))
                })
            }
        })*
    };
}

whole!(u32 u64 usize);

macro_rules! number {
    ($($type:ty)*) => {
        $(impl<'py> Argument<'py> for $type {
            fn read(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Self> {
                let number = object.extract::<f64>();
                // What is too large for the type becomes infinite, and is refused with the setting's own range.
                number.map(|number| number as $type).map_err(|_| {
                    class::ParamsError::new_err(format!("{name} is {}; a number is needed", shown(object)))
                })
            }
        })*
    };
}

number!(f32 f64);

impl<'py, const N: usize> Argument<'py> for [u8; N] {
    /// The bytes themselves are not shown: they may be a secret.
    fn read(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Self> {
        object.extract().map_err(|_| {
            let kind = object.get_type().name().map(|name| name.to_string()).unwrap_or_default();
            let got = object.len().map_or(format!("is a {kind}"), |length| format!("is a {kind} of length {length}"));
            class::CryptoError::new_err(format!("{name} {got}; {N} bytes are needed"))
        })
    }
}

/// A verifying key as bytes.
pub struct KeyBytes(pub Vec<u8>);

impl<'py> Argument<'py> for KeyBytes {
    fn read(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Self> {
        object.extract().map(Self).map_err(|_| {
            // Of one key in the place of a list, the first byte.
            let kind = object.get_type().name().map(|name| name.to_string()).unwrap_or_default();
            class::KeyFileError::new_err(format!(
                "{name} has a {kind} where the bytes of a verifying key are needed; a list of keys is needed, also of one: {name}=[key]"
            ))
        })
    }
}

impl<'py, T: Argument<'py>> Argument<'py> for Option<T> {
    fn read(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Self> {
        if object.is_none() { Ok(None) } else { T::read(object, name).map(Some) }
    }
}

impl<'py, T: Argument<'py>> Argument<'py> for Vec<T> {
    fn read(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Self> {
        object.try_iter()?.map(|element| T::read(&element?, name)).collect()
    }
}

impl<'py, A: Argument<'py>, B: Argument<'py>> Argument<'py> for (A, B) {
    fn read(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Self> {
        let pair: (Bound<'py, PyAny>, Bound<'py, PyAny>) = object.extract()?;
        Ok((A::read(&pair.0, name)?, B::read(&pair.1, name)?))
    }
}

/// One reader for each name of an argument, for `#[pyo3(from_py_with = named::NAME)]`.
pub mod named {
    use super::{Argument, Bound, PyAny, PyResult};

    macro_rules! readers {
        ($($name:ident)*) => {
            $(pub fn $name<'py, T: Argument<'py>>(object: &Bound<'py, PyAny>) -> PyResult<T> {
                T::read(object, stringify!($name))
            })*
        };
    }

    readers! {
        abscissas add bits chunk_elements client_id clients clip clips cohort coordinators deadline deadline_s delta devices dim
        dimension epoch gamma give_up_after issued_at l2_clip length max_delta max_dimension max_epsilon max_failures max_payload
        max_round_s max_rounds max_total_epsilon max_weight metrics min_colluders min_gamma min_honest min_interval_s min_model_version
        min_roster_epoch model_hash model_version modulus_bits n n_max n_min noise_multiplier not_after not_before now
        previous privacy_delta publishers roster_epoch round rounds secret seed seen seen_hash shares since subtract survivors threads
        threshold until valid_until version weight
    }
}
