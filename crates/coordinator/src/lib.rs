//! The coordinator of unisono: rounds, storage, limits, metrics.
