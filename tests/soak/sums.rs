//! What every sum must be. Each device has one example with a pixel of its own, so its update is a known function of the base model,
//! and a sum says who is in it. A version of the model must be, to the bit, the one before with the exact sum of these applied.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use unisono::crypto::ring::{Modulus, RingVector};
use unisono::examples::{DIGITS, Examples, PIXELS};
use unisono::local::TASK;
use unisono::protocol::encoding::{Contribution, Quantiser, Rounding};
use unisono::softmax::{MAX_LOSS, Sgd, Softmax};
use unisono::wire::model::Model;

use crate::world::{BITS, CLIP, DEVICES};

/// What a version of the model was made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Sum {
    pub survivors: Vec<u32>,
    pub metrics: Vec<f32>,
}

/// Device `i`'s only example as CSV: a pixel of its own, and a class.
pub fn example(i: u32) -> String {
    let row: Vec<String> = (0..PIXELS).map(|p| u8::from(p == i as usize).to_string()).collect();
    format!("{},{}\n", row.join(","), i as usize % DIGITS)
}

pub struct Sums {
    folder: PathBuf,
    quantiser: Quantiser,
    examples: Vec<Examples>,
    /// As read first; a version is final when there is a later one.
    models: BTreeMap<u64, Vec<u8>>,
    pub verified: BTreeMap<u64, Sum>,
}

impl Sums {
    /// Of the models in a coordinator's state folder.
    pub fn new(state: &Path) -> Self {
        Self {
            folder: state.join("blobs/models").join(TASK),
            quantiser: Quantiser {
                bits: BITS,
                clip: CLIP,
                clips: Vec::new(),
                l2_clip: None,
                max_weight: 1.0,
                rounding: Rounding::Deterministic,
                metric_bounds: vec![(0.0, MAX_LOSS), (0.0, 1.0)],
                privacy: None,
                rotation: None,
            },
            examples: (0..DEVICES).map(|i| Examples::from_csv(example(i).as_bytes(), 1.0).unwrap()).collect(),
            models: BTreeMap::new(),
            verified: BTreeMap::new(),
        }
    }

    fn read(&self, version: u64) -> Option<Vec<u8>> {
        std::fs::read(self.folder.join(version.to_string()).join("model.safetensors")).ok()
    }

    /// Newest version that was seen.
    pub fn newest(&self) -> Option<u64> {
        self.models.keys().next_back().copied()
    }

    pub fn model(&self, version: u64) -> Option<&[u8]> {
        self.models.get(&version).map(Vec::as_slice)
    }

    /// Looks for new versions, and verifies those that are final; with `end`, the newest too.
    ///
    /// # Errors
    /// What is wrong with a sum.
    pub fn look(&mut self, end: bool) -> Result<(), String> {
        loop {
            let next = self.newest().map_or(0, |newest| newest + 1);
            let Some(bytes) = self.read(next) else { break };
            // A kill may have come between a model and the end of its round, and then another round made that version.
            if next > 0 {
                self.refresh(next - 1);
            }
            self.models.insert(next, bytes);
            if next > 1 {
                self.verify(next - 1)?;
            }
        }
        match self.newest() {
            Some(newest) if end && newest > 0 => {
                self.refresh(newest);
                self.verify(newest)
            }
            _ => Ok(()),
        }
    }

    fn refresh(&mut self, version: u64) {
        if let Some(bytes) = self.read(version) {
            self.models.insert(version, bytes);
        }
    }

    fn verify(&mut self, version: u64) -> Result<(), String> {
        let model = |version| {
            let bytes = self.models.get(&version).ok_or(format!("version {version} of the model was not seen"))?;
            Model::from_safetensors(bytes).map_err(|error| format!("version {version} of the model: {error}"))
        };
        let (base, new) = (model(version - 1)?, model(version)?);
        let pixel = |i: u32| {
            let row = DIGITS * (1 + i as usize);
            base.values()[row..row + DIGITS].iter().zip(&new.values()[row..row + DIGITS])
        };
        let survivors: Vec<u32> =
            (0..DEVICES).filter(|&i| pixel(i).any(|(before, after)| (after - before).abs() > 1e-4)).collect();
        if survivors.len() < 3 {
            return Err(format!("version {version} of the model is the sum of {survivors:?}"));
        }
        let (mean, metrics) = self.expect(&base, &survivors)?;
        let expected = base.values().iter().zip(&mean).map(|(before, mean)| before + 1.0 * mean);
        let wrong = expected.zip(new.values()).position(|(expected, got)| expected.to_bits() != got.to_bits());
        if let Some(element) = wrong {
            let (before, got, mean) = (base.values()[element], new.values()[element], mean[element]);
            return Err(format!(
                "the sum of {survivors:?} in version {version} of the model is wrong at element {element}: {got} from {before}, \
                 with a mean of {mean}"
            ));
        }
        self.verified.insert(version, Sum { survivors, metrics });
        Ok(())
    }

    /// Mean and metrics of the exact sum of these devices' updates of `base`.
    fn expect(&self, base: &Model, survivors: &[u32]) -> Result<(Vec<f32>, Vec<f32>), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let dimension = base.values().len();
        let count = survivors.len() as u32;
        let modulus = Modulus::new(self.quantiser.modulus_bits(DEVICES).unwrap()).unwrap();
        let sgd = Sgd { epochs: 1, ..Sgd::default() };
        let rng = &mut ChaCha8Rng::seed_from_u64(0);
        let mut total = vec![0; dimension + 3];
        for &i in survivors {
            let examples = &self.examples[i as usize];
            let mut softmax = Softmax::from_model(base).ok_or("the model has another shape")?;
            let (loss, accuracy) = softmax.evaluate(examples);
            softmax.train(examples, &sgd, rng);
            let update: Vec<f32> = softmax.values().iter().zip(base.values()).map(|(new, old)| new - old).collect();
            let metrics = [loss.min(MAX_LOSS), accuracy];
            let contribution = Contribution { update: &update, metrics: &metrics, weight: 1.0 };
            let encoded = self.quantiser.encode(contribution, dimension, modulus, rng).map_err(|e| text(&e))?;
            total.iter_mut().zip(encoded.to_u64()).for_each(|(sum, x)| *sum += x);
        }
        let sum = RingVector::from_u64(modulus, &total).map_err(|e| text(&e))?;
        let decoded = self.quantiser.decode(&sum, dimension, count).map_err(|e| text(&e))?;
        Ok((decoded.mean, decoded.metrics))
    }
}

/// Compares what the coordinator has stored about its rounds, once it is stopped, with the sums.
///
/// # Errors
/// What does not fit.
pub fn check_rounds(state: &Path, sums: &Sums) -> Result<u64, String> {
    let text = |error: rusqlite::Error| error.to_string();
    let database = rusqlite::Connection::open(state.join("coordinator.sqlite")).map_err(text)?;
    let query = "SELECT number, model_version, survivors, metrics FROM rounds WHERE state = 'finished' ORDER BY number";
    let mut rows = database.prepare(query).map_err(text)?;
    let rows = rows.query_map([], |row| {
        Ok((
            row.get::<_, i64>(0)?,
            row.get::<_, i64>(1)? as u64,
            row.get::<_, u32>(2)? as usize,
            row.get::<_, String>(3)?,
        ))
    });
    let (mut last, mut checked) = (None, 0);
    for row in rows.map_err(text)? {
        let (number, version, survivors, metrics) = row.map_err(text)?;
        if last.is_some_and(|last| version != last + 1) {
            return Err(format!("round {number} made version {version} of the model, after version {last:?}"));
        }
        last = Some(version);
        let metrics: Vec<f32> = serde_json::from_str(&metrics).map_err(|error| error.to_string())?;
        let sum = sums.verified.get(&version).ok_or(format!("version {version} was not verified"))?;
        if (survivors, &metrics) != (sum.survivors.len(), &sum.metrics) {
            return Err(format!(
                "round {number}: {survivors} survivors and metrics {metrics:?} are stored, {sum:?} is summed"
            ));
        }
        checked += 1;
    }
    if last != sums.newest().filter(|newest| *newest > 0) {
        return Err(format!("the last finished round made version {last:?}, the newest is {:?}", sums.newest()));
    }
    Ok(checked)
}

#[test]
fn a_sum_that_is_wrong_by_one_step_or_by_one_device_is_noticed() {
    let state = tempfile::tempdir().unwrap();
    let put = |version: u64, model: &Model| {
        let folder = state.path().join("blobs/models").join(TASK).join(version.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("model.safetensors"), model.to_safetensors().unwrap()).unwrap();
    };
    let base = Softmax::zeros(PIXELS, DIGITS).to_model().unwrap();
    put(0, &base);
    let sums = Sums::new(state.path());
    let after = |of: &[u32]| {
        let mean = sums.expect(&base, of).unwrap().0;
        base.with_values(base.values().iter().zip(&mean).map(|(x, mean)| x + mean).collect()).unwrap()
    };
    let all: Vec<u32> = (0..DEVICES - 2).collect();
    let verified = |model: &Model| {
        put(1, model);
        let mut sums = Sums::new(state.path());
        sums.look(true).map(|()| sums.verified[&1].survivors.clone())
    };
    assert_eq!(verified(&after(&all)), Ok(all.clone()));
    assert_eq!(verified(&after(&all[3..])), Ok(all[3..].to_vec()));
    // One device twice; one quantised step at one element that no device's own pixel is at, and at one where it is.
    let twice = verified(&after(&[&all[..], &[4]].concat()));
    assert!(twice.as_ref().is_err_and(|error| error.contains("wrong at element")), "{twice:?}");
    for element in [0, DIGITS + 3, DIGITS * (1 + DEVICES as usize) + 5] {
        let good = after(&all);
        let mut values = good.values().to_vec();
        values[element] += 2.0 * CLIP / 65_535.0 / all.len() as f32;
        let wrong = verified(&good.with_values(values).unwrap());
        assert!(wrong.as_ref().is_err_and(|error| error.contains("wrong at element")), "{element}: {wrong:?}");
    }
    assert!(verified(&base).is_err(), "nobody's sum");
}
