//! Which devices vanish, and when: constant, by phase, by device class, or from a trace.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use unisono_protocol::server::Phase;

use crate::error::{SimError, setting};
use crate::network::Network;
use crate::trace;

/// A drop-out model. A device that vanishes in a phase does not answer in it and in those after; it is back in the next round.
#[derive(Debug, Clone, PartialEq)]
pub enum Dropout {
    /// Nobody vanishes.
    None,
    /// In each phase listed, exactly this fraction of the cohort (rounded down), drawn anew each round.
    Phases(BTreeMap<Phase, f64>),
    /// A device vanishes before it uploads with the probability of its class; classes not listed stay.
    Classes(BTreeMap<String, f64>),
    /// By round (from 1) and device number (from 0).
    Trace {
        /// Where it is from, for reports.
        name: String,
        /// When each device vanishes.
        fates: BTreeMap<(u64, u64), Phase>,
    },
}

pub(crate) fn phase_of(name: &str) -> Option<Phase> {
    Phase::ALL.into_iter().find(|phase| phase.name() == name)
}

impl Dropout {
    /// Exactly `fraction` of the cohort vanish after they have shared keys, before they upload: what costs the others most.
    ///
    /// # Errors
    /// [`SimError::Setting`] unless the fraction is from 0 to below 1.
    pub fn constant(fraction: f64) -> Result<Self, SimError> {
        if fraction == 0.0 { Ok(Self::None) } else { Self::phases([(Phase::Mask, fraction)]) }
    }

    /// Exactly these fractions of the cohort vanish in these phases.
    ///
    /// # Errors
    /// [`SimError::Setting`] unless the fractions are from 0 and their sum is below 1.
    pub fn phases(fractions: impl IntoIterator<Item = (Phase, f64)>) -> Result<Self, SimError> {
        let fractions: BTreeMap<Phase, f64> = fractions.into_iter().collect();
        check(fractions.values())?;
        let sum: f64 = fractions.values().sum();
        if sum >= 1.0 {
            return Err(setting("dropout", sum, "fractions whose sum is below 1"));
        }
        Ok(Self::Phases(fractions))
    }

    /// Reads a model: `0.1`, or `share=0.02,mask=0.05,unmask=0.01`, or `class:mobile=0.2,broadband=0.01`, or `trace:FILE`
    /// (columns `round,client,phase` with a header line).
    ///
    /// # Errors
    /// [`SimError::Setting`] says what is not understood, [`SimError::Trace`] what is wrong with the file.
    pub fn parse(text: &str) -> Result<Self, SimError> {
        const ALLOWED: &str = "a fraction from 0 to below 1, PHASE=FRACTION,.. (advertise, share, mask, confirm, unmask), \
                               class:NAME=FRACTION,.. or trace:FILE";
        if let Ok(fraction) = text.parse() {
            return Self::constant(fraction);
        }
        if let Some(path) = text.strip_prefix("trace:") {
            return Self::from_trace(Path::new(path));
        }
        let (classes, list) = text.strip_prefix("class:").map_or((false, text), |list| (true, list));
        let mut pairs = Vec::new();
        for part in list.split(',') {
            let pair = part.split_once('=').and_then(|(name, value)| Some((name.trim(), value.trim().parse().ok()?)));
            pairs.push(pair.ok_or_else(|| setting("dropout", part, ALLOWED))?);
        }
        if classes {
            check(pairs.iter().map(|(_, value)| value))?;
            return Ok(Self::Classes(once(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)))?));
        }
        let phase = |(name, value)| Ok((phase_of(name).ok_or_else(|| setting("dropout", name, ALLOWED))?, value));
        let phases = pairs.into_iter().map(phase).collect::<Result<Vec<_>, SimError>>()?;
        Self::phases(once(phases)?)
    }

    /// Reads a trace with the columns `round,client,phase`.
    ///
    /// # Errors
    /// [`SimError::Trace`] with the line.
    pub fn from_trace(path: &Path) -> Result<Self, SimError> {
        let name = format!("trace:{}", path.display());
        trace::dropouts(path).map(|fates| Self::Trace { name, fates })
    }

    /// Checks the fractions, and that every class and client there is named exists.
    pub(crate) fn check(&self, clients: u32, network: &Network) -> Result<(), SimError> {
        match self {
            Self::None => Ok(()),
            Self::Phases(fractions) => Self::phases(fractions.clone()).map(drop),
            Self::Classes(classes) => {
                check(classes.values())?;
                let known: BTreeSet<&str> = network.classes.iter().map(|class| class.name.as_str()).collect();
                let Some(unknown) = classes.keys().find(|name| !known.contains(name.as_str())) else { return Ok(()) };
                let known: Vec<&str> = known.into_iter().collect();
                let allowed = format!("the network's classes: {}", known.join(", "));
                Err(setting("dropout", format!("class:{unknown}"), allowed))
            }
            Self::Trace { name, fates } => {
                let wrong = |(round, client): &&(u64, u64)| *round == 0 || *client >= u64::from(clients);
                let Some((round, client)) = fates.keys().find(wrong) else { return Ok(()) };
                let allowed = format!("rounds from 1 and clients from 0 to {}", clients.saturating_sub(1));
                Err(setting("dropout", format!("{name} with round {round}, client {client}"), allowed))
            }
        }
    }

    /// Fraction of the cohort that is expected to vanish in a round of `clients`.
    pub fn expected(&self, clients: usize, network: &Network) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Phases(fractions) => fractions.values().sum(),
            Self::Classes(classes) => {
                let total = network.total_weight();
                let of = |name: &str| classes.get(name).copied().unwrap_or(0.0);
                network.classes.iter().map(|class| of(&class.name) * class.weight / total).sum()
            }
            Self::Trace { fates, .. } => {
                let mut rounds: BTreeMap<u64, usize> = BTreeMap::new();
                fates.keys().for_each(|(round, _)| *rounds.entry(*round).or_default() += 1);
                rounds.into_values().max().unwrap_or(0) as f64 / clients as f64
            }
        }
    }

    /// The phase in which each device vanishes in `round`, if any. `class` gives the class of a device.
    pub(crate) fn draw(
        &self,
        round: u64,
        clients: usize,
        network: &Network,
        class: impl Fn(usize) -> usize,
        rng: &mut ChaCha8Rng,
    ) -> Vec<Option<Phase>> {
        let mut fates = vec![None; clients];
        match self {
            Self::None => {}
            Self::Phases(fractions) => {
                let mut order: Vec<usize> = (0..clients).collect();
                order.shuffle(rng);
                let mut order = order.into_iter();
                for (&phase, &fraction) in fractions {
                    let count = (fraction * clients as f64 + 1e-9).floor() as usize;
                    order.by_ref().take(count).for_each(|i| fates[i] = Some(phase));
                }
            }
            Self::Classes(classes) => {
                for (i, fate) in fates.iter_mut().enumerate() {
                    let probability = classes.get(&network.classes[class(i)].name).copied().unwrap_or(0.0);
                    *fate = rng.random_bool(probability).then_some(Phase::Mask);
                }
            }
            Self::Trace { fates: trace, .. } => {
                for (i, fate) in fates.iter_mut().enumerate() {
                    *fate = trace.get(&(round, i as u64)).copied();
                }
            }
        }
        fates
    }
}

/// As [`Dropout::parse`] reads it.
impl fmt::Display for Dropout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<'a, N: fmt::Display + 'a>(pairs: impl Iterator<Item = (N, &'a f64)>) -> String {
            pairs.map(|(name, fraction)| format!("{name}={fraction}")).collect::<Vec<_>>().join(",")
        }
        match self {
            Self::None => f.write_str("0"),
            Self::Phases(fractions) => match (fractions.get(&Phase::Mask), fractions.len()) {
                (Some(fraction), 1) => write!(f, "{fraction}"),
                _ => f.write_str(&list(fractions.iter().map(|(phase, fraction)| (phase.name(), fraction)))),
            },
            Self::Classes(classes) => write!(f, "class:{}", list(classes.iter())),
            Self::Trace { name, .. } => f.write_str(name),
        }
    }
}

/// A map of pairs whose names are all different.
fn once<N: Ord + fmt::Display>(pairs: impl IntoIterator<Item = (N, f64)>) -> Result<BTreeMap<N, f64>, SimError> {
    let mut map = BTreeMap::new();
    for (name, fraction) in pairs {
        if map.contains_key(&name) {
            return Err(setting("dropout", format!("{name} given twice"), "each name once"));
        }
        map.insert(name, fraction);
    }
    Ok(map)
}

fn check<'a>(fractions: impl IntoIterator<Item = &'a f64>) -> Result<(), SimError> {
    match fractions.into_iter().find(|fraction| !(0.0..1.0).contains(*fraction)) {
        Some(bad) => Err(setting("dropout", bad, "fractions from 0 to below 1")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn draw(model: &str, clients: usize) -> Vec<Option<Phase>> {
        let network = Network::parse("mixed").unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        Dropout::parse(model).unwrap().draw(1, clients, &network, |i| i % 3, &mut rng)
    }

    #[test]
    fn a_constant_fraction_is_exact() {
        assert_eq!(draw("0.1", 1000).into_iter().flatten().count(), 100);
        assert_eq!(draw("0", 1000).into_iter().flatten().count(), 0);
        let fates = draw("share=0.02,unmask=0.05", 100);
        assert_eq!(fates.iter().filter(|fate| **fate == Some(Phase::Share)).count(), 2);
        assert_eq!(fates.iter().filter(|fate| **fate == Some(Phase::Unmask)).count(), 5);
    }

    #[test]
    fn only_devices_of_a_listed_class_vanish() {
        let fates = draw("class:mobile=0.5", 3000);
        assert!(fates.iter().enumerate().all(|(i, fate)| fate.is_none() || i % 3 == 0));
        assert!((400..600).contains(&fates.iter().flatten().count()));
    }

    #[test]
    fn what_is_no_model_is_refused() {
        for bad in [
            "1",
            "-0.1",
            "nan",
            "",
            "lunch=0.1",
            "mask=0.6,unmask=0.5",
            "mask",
            "class:a=2",
            "mask=0.1,mask=0.2",
            "class:a=0.1,a=0.2",
        ] {
            assert!(Dropout::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn classes_and_clients_that_do_not_exist_are_refused() {
        let mixed = Network::parse("mixed").unwrap();
        let check = |dropout: Dropout| dropout.check(10, &mixed).map_err(|error| error.to_string());
        let fates = |round, client| [((1, 3), Phase::Mask), ((round, client), Phase::Mask)].into();
        let trace = |round, client| Dropout::Trace { name: "trace:x".into(), fates: fates(round, client) };
        assert_eq!(check(Dropout::parse("class:mobile=0.5,slow=0.1").unwrap()), Ok(()));
        assert_eq!(check(trace(2, 9)), Ok(()));
        let unknown = check(Dropout::parse("class:mobil=0.5").unwrap()).unwrap_err();
        assert!(unknown.contains("mobil") && unknown.contains("broadband, mobile, slow"), "{unknown}");
        for (round, client) in [(0, 1), (1, 10)] {
            let error = check(trace(round, client)).unwrap_err();
            assert!(error.contains(&format!("round {round}, client {client}")), "{error}");
        }
        assert!(check(Dropout::Classes([("slow".into(), 2.0)].into())).is_err());
        assert!(check(Dropout::Phases([(Phase::Mask, f64::NAN)].into())).is_err());
    }

    #[test]
    fn a_model_is_told_as_it_is_read() {
        for text in ["0", "0.1", "share=0.02,mask=0.05", "unmask=0.5", "class:mobile=0.2,slow=0.1"] {
            assert_eq!(Dropout::parse(text).unwrap().to_string(), text);
        }
    }
}
