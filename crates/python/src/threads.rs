//! The threads on which heavy calls compute. A forked process has none of its parent's, so each process gets a pool of its own;
//! rayon's global pool, which can't be replaced, is never used from here.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::errors;

/// A pool, and the process whose threads it has.
pub struct Owned {
    process: u32,
    pool: ThreadPool,
}

impl Owned {
    /// Runs `work` on the pool; what it spreads over threads stays there.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }
}

// Not behind a lock: a fork could come while another thread holds it, and it would be held forever in the child.
static POOL: ArcSwapOption<Owned> = ArcSwapOption::const_empty();

/// A new pool; `RAYON_NUM_THREADS` sets its size, which else is the number of cores.
pub fn new_pool() -> PyResult<ThreadPool> {
    let named = ThreadPoolBuilder::new().thread_name(|i| format!("unisono-{i}"));
    named.build().map_err(|error| errors::state(format!("the threads to compute on could not be started: {error}")))
}

/// The pool of this process.
pub fn pool() -> PyResult<Arc<Owned>> {
    let process = std::process::id();
    if let Some(owned) = POOL.load_full()
        && owned.process == process
    {
        return Ok(owned);
    }
    let made = Arc::new(Owned { process, pool: new_pool()? });
    // Two threads may come here at once; then the second one's pool replaces the first one's, which ends with its last call.
    if let Some(replaced) = POOL.swap(Some(made.clone()))
        && replaced.process != process
    {
        // Ending the parent's pool would wait for threads that are not in this process.
        std::mem::forget(replaced);
    }
    Ok(made)
}

/// Runs `work` on the pool of this process, without the GIL.
pub fn detach<R: Send>(py: Python<'_>, work: impl FnOnce() -> R + Send) -> PyResult<R> {
    let owned = pool()?;
    Ok(py.detach(|| owned.install(work)))
}
