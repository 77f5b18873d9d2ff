//! Participation records: the SDK's own for Python, and any object with the methods of `unisono.records.Record`.
//!
//! What a device is bound to in a task crosses the border as bytes, which a record compares and keeps and need not understand:
//! JSON with fixed fields in a fixed order, so that equal entries are equal bytes.

use std::cell::Cell;
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes};
use serde::{Deserialize, Serialize};
use unisono_client::Record;
use unisono_protocol::CohortId;
use unisono_protocol::policy::{ParticipationRecord, RecordError, Spent, TaskEntry};
use unisono_protocol::privacy::Accountant;

use crate::arguments::named;
use crate::errors;

/// A [`TaskEntry`] as JSON; hashes in hexadecimal digits.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    round: u64,
    cohort: String,
    masked_for: Option<String>,
    survivors: Option<String>,
    rounds: u64,
    last_at: u64,
    unprotected: u64,
    /// The account of the rounds with noise; empty before the first.
    account: String,
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = |i: usize| text.get(2 * i..2 * i + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Vec<u8> = (0..text.len() / 2).map_while(digits).collect();
    (to_hex(&bytes) == text).then_some(bytes)
}

fn to_bytes(entry: &TaskEntry) -> Vec<u8> {
    let hash = |hash: Option<[u8; 32]>| hash.map(|hash| to_hex(&hash));
    let TaskEntry { round, cohort, masked_for, survivors, spent } = entry;
    let Spent { rounds, last_at, unprotected, account } = spent;
    let entry = Entry {
        round: *round,
        cohort: to_hex(&cohort.0),
        masked_for: hash(*masked_for),
        survivors: hash(*survivors),
        rounds: *rounds,
        last_at: *last_at,
        unprotected: *unprotected,
        account: if *account == Accountant::new() { String::new() } else { to_hex(&account.to_bytes()) },
    };
    // Numbers and text: writing them can't fail.
    serde_json::to_vec(&entry).unwrap_or_default()
}

fn from_bytes(bytes: &[u8]) -> Result<TaskEntry, String> {
    let hash = |text: String| {
        let bytes = from_hex(&text).and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or_else(|| "a hash is not 64 hexadecimal digits".to_owned())
    };
    let Entry { round, cohort, masked_for, survivors, rounds, last_at, unprotected, account } =
        serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let account = match account.as_str() {
        "" => Some(Accountant::new()),
        digits => from_hex(digits).and_then(|bytes| Accountant::from_bytes(&bytes)),
    };
    let account = account.ok_or("the privacy account is not one")?;
    Ok(TaskEntry {
        round,
        cohort: CohortId(hash(cohort)?),
        masked_for: masked_for.map(hash).transpose()?,
        survivors: survivors.map(hash).transpose()?,
        spent: Spent { rounds, last_at, unprotected, account },
    })
}

thread_local! {
    /// Whether this thread asks a record, which must not use a round meanwhile: the round that asks is locked.
    static ASKING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a method of a record.
pub fn asking() -> bool {
    ASKING.get()
}

/// A record that Python code keeps. Calls attach to the interpreter, one at a time.
pub struct PyRecord(pub Py<PyAny>);

impl PyRecord {
    fn ask<T>(&self, question: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>) -> Result<T, RecordError> {
        let before = ASKING.replace(true);
        let answer = Python::attach(|py| question(self.0.bind(py)));
        ASKING.set(before);
        answer.map_err(|error| RecordError::Failed(error.to_string()))
    }
}

fn read(what: &str, bytes: Option<Vec<u8>>) -> PyResult<Option<TaskEntry>> {
    let entry = bytes.map(|bytes| from_bytes(&bytes)).transpose();
    entry.map_err(|why| {
        errors::class::RecordError::new_err(format!(
            "{what} is no entry of a participation record ({why}); it is kept as the bytes that replace() was given"
        ))
    })
}

impl ParticipationRecord for PyRecord {
    fn entry(&self, task: &str) -> Result<Option<TaskEntry>, RecordError> {
        self.ask(|record| read("what entry() returned", record.call_method1("entry", (task,))?.extract()?))
    }

    fn replace(&mut self, task: &str, expected: Option<&TaskEntry>, next: TaskEntry) -> Result<(), RecordError> {
        let replaced = self.ask(|record| {
            let bytes = |entry: &TaskEntry| PyBytes::new(record.py(), &to_bytes(entry));
            let answer = record.call_method1("replace", (task, expected.map(bytes), bytes(&next)))?;
            let Ok(replaced) = answer.cast::<PyBool>() else {
                let kind = answer.get_type().name()?;
                return Err(errors::class::RecordError::new_err(format!(
                    "replace() returned a {kind}; True when the entry was replaced, False when it was not the expected one, \
                     is needed"
                )));
            };
            Ok(replaced.is_true())
        })?;
        if replaced { Ok(()) } else { Err(RecordError::Changed) }
    }

    fn roster_epoch(&self) -> Result<u64, RecordError> {
        self.ask(|record| record.call_method0("roster_epoch")?.extract())
    }

    fn see_roster_epoch(&mut self, epoch: u64) -> Result<(), RecordError> {
        self.ask(|record| record.call_method1("see_roster_epoch", (epoch,)).map(drop))
    }
}

/// The SDK's record, in a folder or in memory. See `unisono.FileRecord` and `unisono.MemoryRecord`.
#[pyclass(frozen, module = "unisono", subclass)]
pub struct StoredRecord {
    record: Record,
    process: u32,
}

impl StoredRecord {
    /// Runs `step` on a handle of the record without the GIL, in the process that opened it.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        step: impl FnOnce(&mut Record) -> Result<T, RecordError> + Send,
    ) -> PyResult<T> {
        if self.process != std::process::id() {
            return Err(errors::state(
                "this record was opened in another process, which holds its lock; a forked copy of it would allow a round to \
                 be answered twice: open it in one process, after the fork",
            ));
        }
        let mut record = self.record.clone();
        py.detach(|| step(&mut record)).map_err(|error| errors::class::RecordError::new_err(error.to_string()))
    }
}

#[pymethods]
impl StoredRecord {
    #[new]
    #[pyo3(signature = (folder=None))]
    fn new(py: Python<'_>, folder: Option<PathBuf>) -> PyResult<Self> {
        let record = match folder {
            Some(folder) => py
                .detach(|| Record::open(&folder))
                .map_err(|error| errors::class::RecordError::new_err(error.to_string()))?,
            None => Record::in_memory(),
        };
        Ok(Self { record, process: std::process::id() })
    }

    /// What the last successful `replace` for `task` stored; None before the first.
    fn entry<'py>(&self, py: Python<'py>, task: &str) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let entry = self.with(py, |record| record.entry(task))?;
        Ok(entry.map(|entry| PyBytes::new(py, &to_bytes(&entry))))
    }

    /// Stores `new` for `task` if its entry still is `expected` (None: if there is none), and returns whether it did.
    #[pyo3(signature = (task, expected, new))]
    fn replace(&self, py: Python<'_>, task: &str, expected: Option<Vec<u8>>, new: Vec<u8>) -> PyResult<bool> {
        let expected = read("`expected`", expected)?;
        let Some(new) = read("`new`", Some(new))? else { return Ok(false) };
        self.with(py, |record| match record.replace(task, expected.as_ref(), new) {
            Ok(()) => Ok(true),
            Err(RecordError::Changed) => Ok(false),
            Err(error) => Err(error),
        })
    }

    /// The highest roster epoch seen; 0 before the first.
    fn roster_epoch(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |record| record.roster_epoch())
    }

    /// Notes a roster epoch; a lower one than the highest changes nothing.
    fn see_roster_epoch(&self, py: Python<'_>, #[pyo3(from_py_with = named::epoch)] epoch: u64) -> PyResult<()> {
        self.with(py, |record| record.see_roster_epoch(epoch))
    }
}
