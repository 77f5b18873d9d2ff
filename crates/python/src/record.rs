//! A participation record that Python code keeps: any object with the methods of `unisono.records.Record`.

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use unisono_protocol::CohortId;
use unisono_protocol::policy::{Commitment, Participation, ParticipationRecord, RecordError};

/// Calls into Python, attaching to the interpreter for each call.
pub struct PyRecord(pub Py<PyAny>);

fn failed(error: PyErr) -> RecordError {
    RecordError(error.to_string())
}

impl ParticipationRecord for PyRecord {
    fn last(&self, task: &str) -> Result<Option<Participation>, RecordError> {
        let last: Option<(u64, u64)> =
            Python::attach(|py| self.0.call_method1(py, "last", (task,))?.extract(py)).map_err(failed)?;
        Ok(last.map(|(round, at)| Participation { round, at }))
    }

    fn spend(&mut self, task: &str, participation: Participation) -> Result<(), RecordError> {
        let arguments = (task, participation.round, participation.at);
        Python::attach(|py| self.0.call_method1(py, "spend", arguments).map(drop)).map_err(failed)
    }

    fn commitment(&self, task: &str) -> Result<Option<Commitment>, RecordError> {
        let known: Option<(u64, [u8; 32], Option<[u8; 32]>)> =
            Python::attach(|py| self.0.call_method1(py, "commitment", (task,))?.extract(py)).map_err(failed)?;
        Ok(known.map(|(round, cohort, survivors)| Commitment { round, cohort: CohortId(cohort), survivors }))
    }

    fn commit(&mut self, task: &str, commitment: Commitment) -> Result<(), RecordError> {
        let Commitment { round, cohort, survivors } = commitment;
        let commit = |py: Python<'_>| {
            let survivors = survivors.map(|hash| PyBytes::new(py, &hash));
            self.0.call_method1(py, "commit", (task, round, PyBytes::new(py, &cohort.0), survivors)).map(drop)
        };
        Python::attach(commit).map_err(failed)
    }

    fn roster_epoch(&self) -> Result<u64, RecordError> {
        Python::attach(|py| self.0.call_method0(py, "roster_epoch")?.extract(py)).map_err(failed)
    }

    fn see_roster_epoch(&mut self, epoch: u64) -> Result<(), RecordError> {
        Python::attach(|py| self.0.call_method1(py, "see_roster_epoch", (epoch,)).map(drop)).map_err(failed)
    }
}
