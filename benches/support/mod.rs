//! What all benches share: short measurements, and a font for criterion's plots (the one that the program carries, since the
//! plot library takes none from the system).

use std::time::Duration;

use criterion::Criterion;
use plotters::style::{FontStyle, register_font};

/// One second a measurement.
pub fn settings() -> Criterion {
    if register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular()).is_err() {
        unreachable!("the built-in font is one");
    }
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}
