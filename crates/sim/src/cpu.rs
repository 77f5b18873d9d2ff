//! Measured CPU time of the calling thread. It is the only thing in a report that differs between two runs of one seed.

/// CPU time of this thread since some moment, in seconds. Where the platform has no such clock, wall-clock time.
#[cfg(unix)]
fn thread_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(not(unix))]
fn thread_seconds() -> f64 {
    use std::sync::LazyLock;
    use std::time::Instant;
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}

/// Runs `work` on this thread and adds the CPU seconds that it took to `total`.
pub(crate) fn measure<T>(total: &mut f64, work: impl FnOnce() -> T) -> T {
    let before = thread_seconds();
    let result = work();
    *total += thread_seconds() - before;
    result
}
