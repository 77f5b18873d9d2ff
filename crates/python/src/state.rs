//! A round's state behind a lock: one call at a time, gone once it was taken, refused in a forked process.

use std::sync::Mutex;

use pyo3::prelude::*;

use crate::{errors, record, threads};

/// A state of which there must be one only.
pub struct Exclusive<T> {
    state: Mutex<Option<T>>,
    process: u32,
}

impl<T: Send> Exclusive<T> {
    pub fn new(state: T) -> Self {
        Self { state: Mutex::new(Some(state)), process: std::process::id() }
    }

    /// Runs `step` on the state without the GIL.
    pub fn with<R: Send>(&self, py: Python<'_>, step: impl FnOnce(&mut T) -> PyResult<R> + Send) -> PyResult<R> {
        self.replace(py, |mut state| {
            let result = step(&mut state);
            (Some(state), result)
        })
    }

    /// Takes the state, runs `step` without the GIL and keeps the state that it returns. After a panic there is none.
    pub fn replace<R: Send>(
        &self,
        py: Python<'_>,
        step: impl FnOnce(T) -> (Option<T>, PyResult<R>) + Send,
    ) -> PyResult<R> {
        if self.process != std::process::id() {
            return Err(errors::state(
                "this round was begun in another process; a forked copy of its state could release a second share: \
                 save() it there and resume() it here",
            ));
        }
        if record::asking() {
            return Err(errors::state(
                "a participation record must not use a round: one waits for the record's answer, and holds its own lock",
            ));
        }
        let pool = threads::pool()?;
        py.detach(|| {
            // Locked outside the pool: a thread of the pool that waits for others takes up their work, which may be this round's.
            let mut guard = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let state = guard.take().ok_or_else(|| errors::state("this round is over"))?;
            let (state, result) = pool.install(|| step(state));
            *guard = state;
            result
        })
    }
}
