//! Threads on which clients compute, one client at a time on each.
//!
//! The protocol spreads long vectors over the rayon pool in which it is called. Within a pool of one thread a client computes
//! alone, as it would on one core, and its CPU time is that thread's; a pool of several would mix clients on one thread.

use std::sync::Mutex;

use crate::error::SimError;

pub(crate) struct Workers(Vec<rayon::ThreadPool>);

impl Workers {
    /// `threads` threads.
    pub fn new(threads: usize) -> Result<Self, SimError> {
        let one = || rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let pools = (0..threads).map(|_| one()).collect::<Result<_, _>>();
        pools.map(Self).map_err(|error| SimError::Threads(error.to_string()))
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Applies `work` to every item; the results are in the items' order.
    pub fn map<T: Send, R: Send>(&self, items: impl Iterator<Item = T> + Send, work: impl Fn(T) -> R + Sync) -> Vec<R> {
        let queue = Mutex::new(items.enumerate());
        let next = || queue.lock().ok().and_then(|mut queue| queue.next());
        let busy = || std::iter::from_fn(next).map(|(i, item)| (i, work(item))).collect::<Vec<_>>();
        let mut results: Vec<(usize, R)> = std::thread::scope(|scope| {
            let (first, others) = self.0.split_at(self.0.len().min(1));
            // A pool that gets no thread to wait for it leaves its work to the others.
            let spawn =
                |pool| std::thread::Builder::new().spawn_scoped(scope, move || rayon::ThreadPool::install(pool, busy));
            let threads: Vec<_> = others.iter().filter_map(|pool| spawn(pool).ok()).collect();
            let mut results: Vec<(usize, R)> = first.iter().flat_map(|pool| pool.install(busy)).collect();
            // A panic of a client is a bug, and goes on here.
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            results.extend(threads.into_iter().flat_map(join));
            results
        });
        results.sort_unstable_by_key(|(i, _)| *i);
        results.into_iter().map(|(_, result)| result).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_items_order_from_threads_that_work_alone() {
        let workers = Workers::new(3).unwrap();
        let results = workers.map(0..100, |i| (i * i, rayon::current_num_threads()));
        assert!(results.iter().enumerate().all(|(i, result)| *result == (i * i, 1)));
    }
}
