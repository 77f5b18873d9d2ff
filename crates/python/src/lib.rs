//! The extension module `unisono._unisono`: primitives, keys, releases and both sides of a round for Python.
//!
//! It holds no rule of the protocol: each function turns Python values into those of the Rust crates and their errors into
//! exceptions. Heavy calls release the GIL. Classes are frozen; a round's state lies behind a lock, is used by one call at
//! a time, and is refused in a forked process, where a copy of it could release a second share.

mod accountant;
mod arguments;
mod arrays;
mod client;
mod client_round;
mod errors;
mod keys;
mod params;
mod primitives;
mod record;
mod release;
mod rng;
mod server_round;
mod simulate;
mod state;
mod threads;

use pyo3::prelude::*;

/// What the package `unisono` re-exports; documented there and in `_unisono.pyi`.
#[pymodule(gil_used = false)]
mod _unisono {
    #[pymodule_export]
    use crate::accountant::Accountant;
    #[pymodule_export]
    use crate::client::{Client, Stop, TrainingRound};
    #[pymodule_export]
    use crate::client_round::ClientRound;
    #[pymodule_export]
    use crate::keys::{DeviceKeys, Roster, SigningKey, read_public_key, verify};
    #[pymodule_export]
    use crate::params::{
        Aggregate, Policy, Quantiser, RoundParams, Topology, default_n_min, find_degree, modulus_bits,
    };
    #[pymodule_export]
    use crate::primitives::{
        DecapsulationKey, dequantise, encapsulate, mask, pack, quantise, random_secret, rebuild_secret, ring_dtype,
        split_secret, unmask, unpack,
    };
    #[pymodule_export]
    use crate::record::StoredRecord;
    #[pymodule_export]
    use crate::release::{ContentKey, Grant, Release, grant, seal};
    #[pymodule_export]
    use crate::server_round::{Outcome, ServerRound, sender_of};
    #[pymodule_export]
    use crate::simulate::{estimate, simulate};
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
