//! What a round is made with: the settings are checked, and become `RoundParams`.

use unisono_protocol::degree::{Assumptions, SecurityMode};
use unisono_protocol::encoding::ClipRun;
use unisono_protocol::params::{ParamsError, RoundParams, honest, quantiser_from_wire, quantiser_to_wire};
use unisono_protocol::privacy::{Privacy as Noise, Sensitivity};
use unisono_protocol::proto;
use unisono_wire::MAX_MESSAGE_LEN;
use unisono_wire::model::Model;
use wildmatch::WildMatch;

use super::{Config, ConfigError, Metric, Privacy, Rounding};

impl Config {
    /// Checks that a round can run with these settings.
    ///
    /// # Errors
    /// [`ConfigError`] says which setting, and what would make it feasible; the first of [`Self::setting_faults`].
    pub fn check(&self) -> Result<(), ConfigError> {
        self.setting_faults().into_iter().next().map_or(Ok(()), Err)
    }

    /// Everything that is wrong with the settings, apart from the files that they name.
    pub fn setting_faults(&self) -> Vec<ConfigError> {
        let mut faults: Vec<ConfigError> =
            [self.limits.check(), self.retention.check()].into_iter().filter_map(Result::err).collect();
        faults.extend(self.listener_faults());
        let mut setting = |setting, got: &dyn ToString, allowed: &str| {
            faults.push(ConfigError::Setting { setting, got: got.to_string(), allowed: allowed.into() });
        };
        if self.max_connections == 0 {
            setting("max_connections", &0, "1 or more");
        }
        if self.task.rounds == 0 {
            setting("task.rounds", &0, "1 or more");
        }
        let deadlines = [
            ("round.advertise_ms", self.round.advertise_ms),
            ("round.share_ms", self.round.share_ms),
            ("round.mask_ms", self.round.mask_ms),
            ("round.confirm_ms", self.round.confirm_ms),
            ("round.unmask_ms", self.round.unmask_ms),
        ];
        for (name, _) in deadlines.into_iter().filter(|(_, ms)| *ms == 0) {
            setting(name, &0, "1 or more milliseconds: with 0 no device can answer in time; 60000 is usual");
        }
        let (min, max) = (self.quantiser.min_weight, self.quantiser.max_weight);
        if !(min >= 0.0 && (min <= max || max.is_nan())) {
            setting("quantiser.min_weight", &min, "0 to quantiser.max_weight");
        }
        // Also where all of them are the same: noise is made for one step size, before the tensors are known.
        if !self.quantiser.clips.is_empty() && (self.privacy.is_some() || self.quantiser.rotate) {
            let with = if self.quantiser.rotate { "rotate" } else { "[privacy]" };
            setting(
                "quantiser.clips",
                &format!("set, with {with}"),
                "one clip for all tensors, with [privacy] or rotate",
            );
        }
        if self.task.max_round_jump > 1 << 32 {
            setting("task.max_round_jump", &self.task.max_round_jump, "0 to 4294967296");
        }
        if let Err((name, got, allowed)) = self.optimizer.check() {
            setting(name, &got, allowed);
        }
        let twice = |(i, metric): (usize, &Metric)| self.metric_index(&metric.name) != Some(i);
        if let Some(i) = (0..self.metrics.len()).find(|&i| twice((i, &self.metrics[i]))) {
            setting("metric", &self.metrics[i].name, "a name for each [[metric]] that no other has");
        }
        if let Some(stop) = &self.early_stop {
            if self.metric_index(&stop.metric).is_none() {
                setting("early_stop.metric", &stop.metric, "the name of a [[metric]]");
            }
            if stop.patience == 0 {
                setting("early_stop.patience", &0, "1 or more");
            }
        }
        if let Some(privacy) = &self.privacy {
            let positive = |x: f64| x > 0.0 && x.is_finite();
            if !(privacy.delta > 0.0 && privacy.delta < 1.0) {
                setting("privacy.delta", &privacy.delta, "above 0 and below 1");
            }
            match (privacy.noise_multiplier, privacy.epsilon) {
                (Some(z), None) if positive(z) => {}
                (None, Some(epsilon)) if positive(epsilon) => {}
                (Some(z), None) => setting("privacy.noise_multiplier", &z, "a finite number above 0"),
                (None, Some(epsilon)) => setting("privacy.epsilon", &epsilon, "a finite number above 0"),
                (Some(_), Some(_)) => setting("privacy", &"both", "one of noise_multiplier and epsilon"),
                (None, None) => setting("privacy", &"neither", "one of noise_multiplier and epsilon"),
            }
        }
        if let Some(release) = &self.release
            && !(1..=36_500).contains(&release.valid_days)
        {
            setting("release.valid_days", &release.valid_days, "1 to 36500");
        }
        // What noise is made with may be among what is wrong already.
        if !faults.iter().any(|fault| fault.setting().is_some_and(|name| name.starts_with("privacy")))
            && let Err(fault) = self.check_params(1, None)
        {
            faults.push(fault);
        }
        faults
    }

    /// Checks that a round on `model`, or on any of `dimension` elements, can run.
    ///
    /// # Errors
    /// [`ConfigError`] as of [`Self::params`].
    pub(super) fn check_params(&self, dimension: u64, model: Option<&Model>) -> Result<(), ConfigError> {
        let roster = (0, if self.malicious() { vec![0; 32] } else { Vec::new() });
        let mut params = self.params(1, 0, [0; 32], dimension, roster)?;
        if let Some(model) = model {
            self.set_clips(&mut params, model)?;
        }
        let params = RoundParams::proposed(&prost::Message::encode_to_vec(&params))?;
        let (chunk, limit) = (params.chunk_len(), MAX_MESSAGE_LEN - 1024);
        if chunk > limit {
            return Err(ConfigError::Setting {
                setting: "round.chunk_elements",
                got: format!("{chunk} bytes"),
                allowed: format!("at most {limit} bytes"),
            });
        }
        Ok(())
    }

    /// Parameters of a round on the model with the given version, hash and number of elements, under a roster's epoch and
    /// root. `opened_at` is left at 0.
    ///
    /// # Errors
    /// [`ConfigError::Params`] for quantiser settings out of range, or noise that can't be had with them.
    pub fn params(
        &self,
        round: u64,
        model_version: u64,
        model_hash: [u8; 32],
        dimension: u64,
        (roster_epoch, roster_root): (u64, Vec<u8>),
    ) -> Result<proto::RoundParams, ConfigError> {
        let (r, q) = (&self.round, &self.quantiser);
        let rounding = match q.rounding {
            Rounding::Stochastic => proto::Rounding::Stochastic,
            Rounding::Deterministic => proto::Rounding::Deterministic,
        };
        let mode = if self.malicious() { proto::SecurityMode::Malicious } else { proto::SecurityMode::SemiHonest };
        let metric = |m: &Metric| proto::MetricBound { lower: m.lower, upper: m.upper };
        let mut quantiser = proto::Quantiser {
            bits: q.bits,
            clip: q.clip,
            clips: Vec::new(),
            l2_clip: q.l2_clip,
            max_weight: q.max_weight,
            rounding: rounding as i32,
            metrics: self.metrics.iter().map(metric).collect(),
            privacy: None,
            rotate: q.rotate,
        };
        if let Some(privacy) = &self.privacy {
            quantiser.privacy =
                Some(proto::Privacy { noise_variance: self.noise_variance(privacy, &quantiser, dimension)? });
        }
        let modulus_bits = quantiser_from_wire(Some(&quantiser))?.modulus_bits(r.n_max).map_err(ParamsError::from)?;
        Ok(proto::RoundParams {
            task: self.task.name.clone(),
            round,
            suite: unisono_protocol::params::SUITE_V1,
            roster_epoch,
            roster_root,
            dimension,
            modulus_bits,
            quantiser: Some(quantiser),
            n_min: r.n_min,
            n_max: r.n_max,
            gamma: r.gamma,
            delta: r.delta,
            mode: mode as i32,
            deadlines: Some(proto::PhaseDeadlines {
                advertise_ms: r.advertise_ms,
                share_ms: r.share_ms,
                mask_ms: r.mask_ms,
                confirm_ms: r.confirm_ms,
                unmask_ms: r.unmask_ms,
            }),
            model_version,
            model_hash: model_hash.to_vec(),
            chunk_elements: r.chunk_elements,
            opened_at: 0,
            min_colluders: r.min_colluders,
        })
    }

    /// Gives the model's tensors the bounds that `quantiser.clips` has for them.
    ///
    /// # Errors
    /// [`ConfigError::Setting`] for names that no tensor has; [`ConfigError::Params`] for bounds that can't be had.
    pub fn set_clips(&self, params: &mut proto::RoundParams, model: &Model) -> Result<(), ConfigError> {
        let of_config = &self.quantiser.clips;
        if of_config.is_empty() {
            return Ok(());
        }
        let patterns: Vec<_> = of_config.iter().map(|of| (WildMatch::new(&of.tensors), of.clip)).collect();
        let names = || model.tensors().map(|(name, ..)| name);
        if let Some((pattern, _)) = patterns.iter().find(|(pattern, _)| !names().any(|name| pattern.matches(name))) {
            return Err(ConfigError::Setting {
                setting: "quantiser.clips",
                got: format!("for tensors {pattern}"),
                allowed: format!("names of the model's tensors: {}", names().take(5).collect::<Vec<_>>().join(", ")),
            });
        }
        let mut quantiser = quantiser_from_wire(params.quantiser.as_ref())?;
        quantiser.set_clips(model.tensors().map(|(name, _, values)| ClipRun {
            elements: values.len() as u64,
            clip: patterns.iter().find(|(it, _)| it.matches(name)).map_or(self.quantiser.clip, |(_, clip)| *clip),
        }));
        params.quantiser = Some(quantiser_to_wire(&quantiser));
        Ok(())
    }

    /// Variance of each client's noise, so that a sum of `n_min` less the assumed colluders' part has what is asked for.
    fn noise_variance(
        &self,
        privacy: &Privacy,
        quantiser: &proto::Quantiser,
        dimension: u64,
    ) -> Result<f64, ConfigError> {
        let mut quantiser = quantiser_from_wire(Some(quantiser))?;
        // What privacy needs of the quantiser is said first; then the noise has its size.
        quantiser.privacy = Some(Noise { noise_variance: 1.0 });
        quantiser.validate().map_err(ParamsError::from)?;
        let missing = ConfigError::Missing { setting: "quantiser.l2_clip", why: "noise for privacy is made for it" };
        let sensitivity = Sensitivity::of(&quantiser, dimension).ok_or(missing)?;
        let mode = if self.malicious() { SecurityMode::Malicious } else { SecurityMode::SemiHonest };
        let assumptions = Assumptions {
            gamma: self.round.gamma,
            delta: self.round.delta,
            min_colluders: self.round.min_colluders,
            mode,
        };
        let contributions = honest(self.round.n_min, self.round.n_max, &assumptions);
        let noise = match (privacy.noise_multiplier, privacy.epsilon) {
            (Some(multiplier), _) => Some(Noise::of_multiplier(multiplier, sensitivity, contributions)),
            (None, epsilon) => {
                let epsilon = epsilon.unwrap_or_default();
                Noise::of_epsilon(epsilon, privacy.delta, self.task.rounds, sensitivity, contributions)
            }
        };
        let noise = noise.ok_or_else(|| ConfigError::Setting {
            setting: "privacy.epsilon",
            got: privacy.epsilon.unwrap_or_default().to_string(),
            allowed: format!("what {} rounds can keep to with any noise", self.task.rounds),
        })?;
        Ok(noise.noise_variance)
    }
}
