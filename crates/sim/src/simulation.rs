//! The settings of a simulation, checked once, and the loop over its rounds.

use std::num::NonZero;
use std::sync::Arc;

use unisono_protocol::degree::{Assumptions, SecurityMode, default_n_min, find};
use unisono_protocol::encoding::{Quantiser, Rounding};
use unisono_protocol::params::{MAX_COHORT, ParamsError, RoundParams, honest, quantiser_to_wire};
use unisono_protocol::privacy::{Accountant, Guarantee, Privacy, Sensitivity};
use unisono_protocol::proto;
use unisono_protocol::server::Server;

use crate::dropout::Dropout;
use crate::error::{SimError, setting};
use crate::network::Network;
use crate::observer::Observer;
use crate::population::{NOW, Population, Purpose, rng};
use crate::report::{PrivacySettings, Report, RoundPrivacy, RoundReport, Settings};
use crate::round::{Plan, play, working_set};
use crate::update::{UpdateSource, generated};
use crate::workers::Workers;

/// Most threads that can be asked for.
pub const MAX_THREADS: usize = 1024;

/// Settings of a simulation; see [`Simulation::builder`].
#[derive(Clone)]
pub struct Builder {
    clients: u32,
    dimension: u64,
    mode: SecurityMode,
    gamma: f64,
    delta: Option<f64>,
    n_min: Option<u32>,
    quantiser: Quantiser,
    /// Noise multiplier and delta.
    privacy: Option<(f64, f64)>,
    network: Network,
    dropout: Dropout,
    deadline: f64,
    rounds: u64,
    seed: u64,
    threads: usize,
    share_checks: bool,
    /// Name and source.
    update: Option<(String, UpdateSource)>,
}

impl Default for Builder {
    fn default() -> Self {
        let rounding = Rounding::Stochastic;
        let quantiser = Quantiser {
            bits: 16,
            clip: 1.0,
            clips: Vec::new(),
            l2_clip: None,
            max_weight: 1.0,
            rounding,
            metric_bounds: Vec::new(),
            privacy: None,
            rotation: None,
        };
        Self {
            clients: 100,
            dimension: 10_000,
            mode: SecurityMode::Malicious,
            gamma: 0.05,
            delta: None,
            n_min: None,
            quantiser,
            privacy: None,
            network: Network::lan(),
            dropout: Dropout::None,
            deadline: 60.0,
            rounds: 1,
            seed: 0,
            threads: 0,
            share_checks: false,
            update: None,
        }
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {
        $($(#[$doc])* #[must_use] pub fn $name(mut self, $name: $type) -> Self { self.$name = $name; self })*
    };
}

impl Builder {
    setters! {
        /// Number of devices, all of which try to take part in every round; 3 to 2^20. Default 100.
        clients: u32;
        /// Elements of an update, d. Default 10,000.
        dimension: u64;
        /// Security mode. Default malicious.
        mode: SecurityMode;
        /// Assumed adversarial fraction. Default 0.05.
        gamma: f64;
        /// Clipping, bits and rounding; with any rotation, each round uses its own. Default 16 bits, clip 1, stochastic rounding, no
        /// rotation.
        quantiser: Quantiser;
        /// Connections and devices. Default [`Network::lan`].
        network: Network;
        /// Who vanishes. Default nobody.
        dropout: Dropout;
        /// Virtual seconds after which a phase is closed without those that have not answered. Default 60.
        deadline: f64;
        /// Rounds. Default 1.
        rounds: u64;
        /// Seed of everything random. Default 0.
        seed: u64;
        /// Threads, at most [`MAX_THREADS`]; 0 for as many as there are cores. Default 0.
        threads: usize;
        /// Whether what clients verify of each other's and the coordinator's signatures after joining is verified once for all of
        /// them. Rounds take less time then, but the time of a client says less about a device. Default false: every client does
        /// all of its own work.
        share_checks: bool;
    }

    /// Assumed drop-out fraction. Default: what the drop-out model leads one to expect, at least 0.05.
    #[must_use]
    pub fn delta(mut self, delta: f64) -> Self {
        self.delta = Some(delta);
        self
    }

    /// Differential privacy: the noise of the smallest sum, less the assumed colluders' part, has `noise_multiplier` times the
    /// L2 sensitivity as standard deviation; epsilon is reported for `delta`. The quantiser needs an `l2_clip`. Default: none.
    #[must_use]
    pub fn privacy(mut self, noise_multiplier: f64, delta: f64) -> Self {
        self.privacy = Some((noise_multiplier, delta));
        self
    }

    /// Smallest number of updates whose sum may be learned. Default: the cohort less the assumed drop-outs and a tenth, or
    /// the smallest number above that which the rules allow.
    #[must_use]
    pub fn n_min(mut self, n_min: u32) -> Self {
        self.n_min = Some(n_min);
        self
    }

    /// Clients' updates. Default: uniform values within the quantiser's clip, generated from the seed.
    #[must_use]
    pub fn updates(self, update: UpdateSource) -> Self {
        self.named_updates("given", update)
    }

    /// The same, under the name that reports have for them.
    #[must_use]
    pub fn named_updates(mut self, name: impl Into<String>, update: UpdateSource) -> Self {
        self.update = Some((name.into(), update));
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`SimError`]: a setting out of range, a cohort that is infeasible, with what would be feasible, or rounds that do not fit
    /// into memory.
    pub fn build(mut self) -> Result<Simulation, SimError> {
        let Self { clients, dimension, mode, gamma, .. } = self;
        if !(3..=MAX_COHORT).contains(&clients) {
            return Err(setting("clients", clients, format!("3 to {MAX_COHORT}")));
        }
        if dimension == 0 || dimension > 1 << 30 {
            return Err(setting("dimension", dimension, format!("1 to {}", 1 << 30)));
        }
        if self.rounds == 0 {
            return Err(setting("rounds", 0, "at least 1"));
        }
        if !(self.deadline > 0.0 && self.deadline.is_finite()) {
            return Err(setting("deadline", self.deadline, "seconds above 0"));
        }
        if self.threads > MAX_THREADS {
            let allowed = format!("0 to {MAX_THREADS}; 0 means as many as there are cores");
            return Err(setting("threads", self.threads, allowed));
        }
        self.network.check()?;
        self.dropout.check(clients, &self.network)?;
        self.quantiser.validate()?;
        let expected = self.dropout.expected(clients as usize, &self.network);
        let delta = self.delta.unwrap_or_else(|| expected.max(0.05));
        let assumptions = Assumptions { gamma, delta, min_colluders: 1, mode };
        let infeasible = |source| ParamsError::Infeasible { n: clients, source }.advised(&assumptions);
        let topology = find(clients, &assumptions).map_err(infeasible)?;
        let n_min = match self.n_min {
            Some(n_min) => n_min,
            None => default_n_min(clients, &assumptions).map_err(infeasible)?,
        };
        let privacy = match self.privacy {
            Some((multiplier, delta)) => Some(self.make_private(multiplier, delta, n_min, &assumptions)?),
            None => None,
        };
        let settings = Settings {
            clients,
            dimension,
            mode: if mode == SecurityMode::Malicious { "malicious" } else { "semi-honest" }.into(),
            gamma,
            delta,
            n_min,
            quantiser_bits: self.quantiser.bits,
            rotate: self.quantiser.rotation.is_some(),
            modulus_bits: self.quantiser.modulus_bits(clients)?,
            degree: topology.degree,
            threshold: topology.threshold,
            window_bound: topology.window_bound,
            committee: topology.committee.map(|committee| committee.size),
            quorum: topology.committee.map(|committee| committee.quorum),
            tolerated_drop_outs: topology.tolerated_drop_outs(clients),
            seed: self.seed,
            shared_checks: self.share_checks,
            updates: self.update.as_ref().map_or_else(|| "random".into(), |(name, _)| name.clone()),
            rounds: self.rounds,
            dropout: self.dropout.to_string(),
            network: self.network.to_string(),
            deadline: self.deadline,
            privacy,
        };
        let update = self.update.as_ref().map(|(_, source)| source.clone()).unwrap_or_else(|| {
            let metrics = self.quantiser.metric_bounds.iter().map(|(lower, _)| *lower).collect();
            generated(self.seed, dimension as usize, self.quantiser.narrowest(), metrics, self.quantiser.max_weight)
        });
        let simulation = Simulation { builder: self, settings, update };
        // What the protocol itself has against the parameters is said now, not in the first round.
        let params = RoundParams::proposed(&prost::Message::encode_to_vec(&simulation.params(
            1,
            simulation.builder.mode == SecurityMode::Malicious,
            None,
        )))?;
        let threads = match simulation.builder.threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            threads => threads,
        };
        reserve(working_set(&params, simulation.settings.degree, threads), threads)?;
        Ok(simulation)
    }

    /// Puts the noise into the quantiser, for sums of `n_min` contributions.
    fn make_private(
        &mut self,
        multiplier: f64,
        delta: f64,
        n_min: u32,
        assumptions: &Assumptions,
    ) -> Result<PrivacySettings, SimError> {
        if !(multiplier > 0.0 && multiplier.is_finite()) {
            return Err(setting("noise multiplier", multiplier, "a finite number above 0"));
        }
        if !(delta > 0.0 && delta < 1.0) {
            return Err(setting("privacy's delta", delta, "above 0 and below 1"));
        }
        let contributions = honest(n_min, self.clients, assumptions);
        if contributions == 0 {
            return Err(setting(
                "n_min",
                n_min,
                "more than the colluders assumed in the cohort, for any noise to count",
            ));
        }
        // What privacy needs of the quantiser is said first; then the noise has its size.
        self.quantiser.privacy = Some(Privacy { noise_variance: 1.0 });
        self.quantiser.validate()?;
        let (l2_clip, sensitivity) = self
            .quantiser
            .l2_clip
            .zip(Sensitivity::of(&self.quantiser, self.dimension))
            .ok_or_else(|| setting("l2_clip", "absent", "a bound on the L2 norm of an update"))?;
        let privacy = Privacy::of_multiplier(multiplier, sensitivity, contributions);
        self.quantiser.privacy = Some(privacy);
        self.quantiser.validate()?;
        let variance = f64::from(contributions) * privacy.noise_variance;
        let epsilon = Guarantee { sensitivity, contributions, variance }.epsilon(delta);
        let noise_variance = privacy.noise_variance;
        Ok(PrivacySettings { noise_multiplier: multiplier, delta, l2_clip, noise_variance, contributions, epsilon })
    }
}

/// Tries to get so much memory, and gives it back: an allocation that fails later would end the process. What threads take
/// beside it (stacks, arenas of the allocator) is asked for too, up to a quarter.
fn reserve(bytes: u64, threads: usize) -> Result<(), SimError> {
    const THREAD: u64 = 192 << 20;
    let beside = (threads as u64 * THREAD).min(bytes / 4);
    let wanted = usize::try_from(bytes.saturating_add(beside)).map_err(|_| SimError::Memory { bytes })?;
    Vec::<u8>::new().try_reserve_exact(wanted).map_err(|_| SimError::Memory { bytes })
}

/// A simulation whose settings were checked.
pub struct Simulation {
    builder: Builder,
    settings: Settings,
    update: UpdateSource,
}

impl Simulation {
    /// A builder with its defaults: 100 clients, 10,000 elements, malicious mode, one round.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The settings, as they will be used.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Plays the rounds. A round that is aborted is reported, and the next one begins.
    ///
    /// # Errors
    /// [`SimError`] when the population or a round can't be set up.
    pub fn run(&self, observer: &mut (dyn Observer + Send)) -> Result<Report, SimError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.builder.threads)
            .build()
            .map_err(|error| SimError::Threads(error.to_string()))?;
        let workers = Workers::new(pool.current_num_threads())?;
        pool.install(|| self.run_here(&workers, observer))
    }

    fn run_here(&self, workers: &Workers, observer: &mut (dyn Observer + Send)) -> Result<Report, SimError> {
        let Builder { network, dropout, seed, rounds, mode, .. } = &self.builder;
        let malicious = *mode == SecurityMode::Malicious;
        let mut population = Population::new(self.settings.clients, malicious, network, *seed)?;
        let mut report = Report { settings: self.settings.clone(), rounds: Vec::new(), interrupted: false };
        let mut spent = Accountant::new();
        for round in 1..=*rounds {
            let head = population.authority.as_ref().map(|authority| authority.roster.head());
            let params = self.params(round, malicious, head.map(|head| (head.epoch, head.root)));
            let class = |i: usize| population.devices[i].link.class;
            let mut random = rng(*seed, Purpose::Dropout, 0, round);
            let fates = dropout.draw(round, population.devices.len(), network, class, &mut random);
            let server = Server::open(&params, population.authority.clone())?;
            let checked = server.params().clone();
            let plan = Plan {
                round,
                seed: *seed,
                server,
                fates,
                compute: network.compute,
                deadline: self.builder.deadline,
                share_checks: self.builder.share_checks,
                update: &self.update,
                workers,
            };
            let Some((mut played, aggregate)) = play(plan, &mut population, observer) else {
                report.interrupted = true;
                break;
            };
            let noise_deviation = aggregate.as_ref().map(|aggregate| aggregate.noise_deviation);
            played.privacy = noise_deviation.and_then(|noise| self.account(&mut spent, &checked, &played, noise));
            observer.round_finished(&played, aggregate.as_ref());
            report.rounds.push(played);
        }
        Ok(report)
    }

    /// What a round that gave a sum has spent, alone and with those before; `None` without privacy.
    fn account(
        &self,
        spent: &mut Accountant,
        params: &RoundParams,
        played: &RoundReport,
        noise_deviation: f64,
    ) -> Option<RoundPrivacy> {
        let delta = self.settings.privacy.as_ref()?.delta;
        let guarantee = params.guarantee_of(played.survivors as u32, played.cohort as u32)?;
        spent.add(&guarantee, 1);
        Some(RoundPrivacy { epsilon: guarantee.epsilon(delta), total_epsilon: spent.epsilon(delta), noise_deviation })
    }

    fn params(&self, round: u64, malicious: bool, roster: Option<(u64, [u8; 32])>) -> proto::RoundParams {
        let Settings { clients, dimension, n_min, modulus_bits, gamma, delta, .. } = self.settings;
        let mode = if malicious { proto::SecurityMode::Malicious } else { proto::SecurityMode::SemiHonest };
        let deadline_ms = (self.builder.deadline * 1e3) as u64;
        let (roster_epoch, root) = roster.unwrap_or_default();
        proto::RoundParams {
            task: "simulation".into(),
            round,
            suite: 1,
            roster_epoch,
            roster_root: if malicious { root.to_vec() } else { Vec::new() },
            dimension,
            modulus_bits,
            quantiser: Some(quantiser_to_wire(&self.builder.quantiser)),
            n_min,
            n_max: clients,
            gamma,
            delta,
            mode: mode as i32,
            deadlines: Some(proto::PhaseDeadlines {
                advertise_ms: deadline_ms,
                share_ms: deadline_ms,
                mask_ms: deadline_ms,
                confirm_ms: deadline_ms,
                unmask_ms: deadline_ms,
            }),
            model_version: round - 1,
            model_hash: vec![0; 32],
            chunk_elements: 1 << 16,
            opened_at: NOW + round,
            min_colluders: 1,
        }
    }
}

/// A source of updates from a closure; see [`UpdateSource`].
pub fn updates(source: impl Fn(u32, u64) -> crate::Update + Send + Sync + 'static) -> UpdateSource {
    Arc::new(source)
}
