//! What rounds with noise have spent.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use unisono_protocol::privacy;

use crate::arguments::named;
use crate::errors;
use crate::params::{RoundParams, check_delta};

/// What rounds with noise have spent for any one device that took part in all of them: Rényi differential privacy of the
/// Skellam mechanism, composed over the rounds.
#[pyclass(frozen, module = "unisono")]
pub struct Accountant(Mutex<privacy::Accountant>);

impl Accountant {
    fn lock(&self) -> MutexGuard<'_, privacy::Accountant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Accountant {
    #[new]
    fn new() -> Self {
        Self(Mutex::new(privacy::Accountant::new()))
    }

    /// Adds `rounds` rounds with these parameters. `survivors` and `cohort` are those of the outcome
    /// (`len(outcome.survivors)`, `len(outcome.cohort)`), whose sums have more noise than the smallest; without them the
    /// smallest sum and the largest cohort are counted. ParamsError when the round has no noise, or for counts that it can't
    /// have.
    #[pyo3(signature = (params, *, survivors=None, cohort=None, rounds=1))]
    fn add(
        &self,
        params: &RoundParams,
        #[pyo3(from_py_with = named::survivors)] survivors: Option<u32>,
        #[pyo3(from_py_with = named::cohort)] cohort: Option<u32>,
        #[pyo3(from_py_with = named::rounds)] rounds: u64,
    ) -> PyResult<()> {
        let (n_min, n_max) = (params.checked.wire.n_min, params.checked.wire.n_max);
        let (survivors, cohort) = (survivors.unwrap_or(n_min), cohort.unwrap_or(n_max));
        if !(n_min <= survivors && survivors <= cohort && cohort <= n_max) {
            return Err(errors::class::ParamsError::new_err(format!(
                "{survivors} survivors of a cohort of {cohort} can't be: n_min = {n_min} <= survivors <= cohort <= n_max = {n_max}"
            )));
        }
        let guarantee = params.checked.guarantee_of(survivors, cohort).ok_or_else(|| {
            errors::class::ParamsError::new_err(
                "the round has no noise, and spends without a limit: pass noise_multiplier=.. to RoundParams",
            )
        })?;
        self.lock().add(&guarantee, rounds);
        Ok(())
    }

    /// Epsilon of all rounds so far at `privacy_delta` (above 0, below 1; else ParamsError); 0 before the first.
    #[pyo3(signature = (privacy_delta=1e-5))]
    fn epsilon(&self, #[pyo3(from_py_with = named::privacy_delta)] privacy_delta: f64) -> PyResult<f64> {
        check_delta(privacy_delta)?;
        Ok(self.lock().epsilon(privacy_delta))
    }

    /// What was spent, as bytes of one length, to be kept by who counts over restarts.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.lock().to_bytes())
    }

    /// Reads what `to_bytes` gave; ParamsError for anything else.
    #[staticmethod]
    fn from_bytes(spent: &[u8]) -> PyResult<Self> {
        let read = privacy::Accountant::from_bytes(spent).ok_or_else(|| {
            let (got, needed) = (spent.len(), privacy::Accountant::BYTES);
            errors::class::ParamsError::new_err(format!(
                "the {got} bytes are not what to_bytes() gave: {needed} bytes with divergences that are numbers from 0 and ascend"
            ))
        })?;
        Ok(Self(Mutex::new(read)))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        let (py, this) = (slf.py(), slf.get());
        Ok((py.get_type::<Self>().getattr("from_bytes")?, (this.to_bytes(py),)))
    }

    /// What was spent, as a JSON object, for `from_json`.
    fn to_json(&self) -> String {
        let spent: String = self.lock().to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{{\"unisono_accountant\": 1, \"spent\": \"{spent}\"}}")
    }

    /// Reads what `to_json` gave; ParamsError for anything else.
    #[staticmethod]
    fn from_json(py: Python<'_>, text: &str) -> PyResult<Self> {
        let refused =
            |why: &str| errors::class::ParamsError::new_err(format!("the text is not what to_json() gave: {why}"));
        let read = py.import("json")?.call_method1("loads", (text,)).map_err(|_| refused("it is no JSON"))?;
        let version = read.get_item("unisono_accountant").and_then(|version| version.extract::<u32>());
        if version.ok() != Some(1) {
            return Err(refused("\"unisono_accountant\" is not 1"));
        }
        let spent = read.get_item("spent").and_then(|spent| py.get_type::<PyBytes>().call_method1("fromhex", (spent,)));
        let spent = spent.map_err(|_| refused("\"spent\" is missing, or no hexadecimal text"))?;
        Self::from_bytes(spent.cast::<PyBytes>()?.as_bytes())
    }

    fn __repr__(&self) -> String {
        format!("Accountant(epsilon={:.4} at 1e-5)", self.lock().epsilon(1e-5))
    }
}
