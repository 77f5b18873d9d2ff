//! Measured CPU time, of one thread or of all. It is the only thing in a report that differs between two runs of one seed.

/// Whose CPU time.
#[derive(Clone, Copy)]
pub(crate) enum Of {
    /// The calling thread's.
    Thread,
    /// That of all threads of this process.
    Process,
}

/// CPU time since some moment, in seconds. Where the platform has no such clock, wall-clock time.
#[cfg(unix)]
fn seconds(of: Of) -> f64 {
    let clock = match of {
        Of::Thread => rustix::time::ClockId::ThreadCPUTime,
        Of::Process => rustix::time::ClockId::ProcessCPUTime,
    };
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(not(unix))]
fn seconds(_: Of) -> f64 {
    use std::sync::LazyLock;
    use std::time::Instant;
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}

/// Runs `work`, and adds the CPU seconds that it took to `total`.
pub(crate) fn measure<T>(of: Of, total: &mut f64, work: impl FnOnce() -> T) -> T {
    let before = seconds(of);
    let result = work();
    *total += seconds(of) - before;
    result
}
