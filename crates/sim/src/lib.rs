//! Thousands of clients in one process, without a network: the protocol's own state machines on a virtual clock.
//!
//! Our protocol is not modelled. Every client runs [`unisono_protocol::client`], the coordinator
//! [`unisono_protocol::server`], with real keys and signatures; only sockets and waiting are left out. Two kinds of time
//! come out, and are kept apart:
//!
//! - *virtual* time, from the models of latency, bandwidth, computing speed and drop-outs ([`Network`], [`Dropout`]);
//!   it is the same for the same seed;
//! - *measured* CPU time of each client's and the coordinator's computing in this process ([`Timing`]).
//!
//! Clients' updates are generated when they are needed and never stored, and what many clients know in common is held
//! once, so that 10,000 clients with 100,000 elements fit in a few GiB.
//!
//! ```
//! use unisono_sim::{Dropout, Simulation};
//!
//! let simulation = Simulation::builder().clients(20).dimension(500).dropout(Dropout::constant(0.1)?).build()?;
//! let report = simulation.run(&mut ())?;
//! assert_eq!(report.rounds[0].survivors, 18);
//! assert_eq!(report.rounds[0].exact_sum, Some(true));
//! # Ok::<(), unisono_sim::SimError>(())
//! ```
//!
//! Researchers bring their own updates with [`updates`] and apply each round's mean in [`Observer::round_finished`].
//! [`secaggplus`] puts a model of SecAgg+'s costs beside a report; that one is a model.

mod client;
mod cpu;
mod dropout;
mod error;
mod network;
mod observer;
mod population;
mod report;
mod round;
pub mod secaggplus;
mod simulation;
mod summary;
mod trace;
mod update;
mod workers;

pub use dropout::Dropout;
pub use error::SimError;
pub use network::{Compute, DeviceClass, Network};
pub use observer::Observer;
pub use report::{
    Learned, PhaseReport, PhaseTiming, PrivacySettings, Report, RoundPrivacy, RoundReport, Settings, Spread, Timing,
};
pub use simulation::{Builder, MAX_THREADS, Simulation, updates};
pub use summary::{Estimate, Measure, Quantity, counted, summarise};
pub use update::{Update, UpdateSource};
