//! Labelled examples from CSV, and the bundled digits.

use std::io::Read;

use ndarray::{Array2, ArrayView1};
use rand::RngExt;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::seq::SliceRandom;
use rand_distr::Gamma;

/// Number of digits.
pub const DIGITS: usize = 10;
/// Pixels of an image of a digit, 8 by 8.
pub const PIXELS: usize = 64;

/// Why examples can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ExamplesError {
    /// The CSV can't be read.
    #[error("the examples can't be read: {0}")]
    Csv(#[from] csv::Error),
    /// A value.
    #[error("line {line}, column {column}: {value:?} is not {expected}")]
    Value {
        /// Line in the file, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What stands there.
        value: String,
        /// What is wanted.
        expected: &'static str,
    },
    /// No rows, or rows without a feature.
    #[error("there are no examples: each line has one number or more, then the label")]
    Empty,
    /// More owners than examples.
    #[error("{examples} examples can't be dealt to {parts}: each needs one")]
    TooFew {
        /// How many there are.
        examples: usize,
        /// Owners.
        parts: usize,
    },
    /// A concentration.
    #[error("the concentration alpha of a Dirichlet split is {0}; allowed is a finite number above 0")]
    Alpha(f64),
}

/// Rows of numbers, each with a class.
#[derive(Debug, Clone, PartialEq)]
pub struct Examples {
    /// One row an example.
    features: Array2<f32>,
    /// One class an example, from 0.
    labels: Vec<usize>,
}

impl Examples {
    /// Reads CSV without a header: finite numbers, and the class in the last column. Numbers are divided by `scale`.
    ///
    /// # Errors
    /// [`ExamplesError`] names line, column and value.
    pub fn from_csv(reader: impl Read, scale: f32) -> Result<Self, ExamplesError> {
        let mut csv = csv::ReaderBuilder::new().has_headers(false).trim(csv::Trim::All).from_reader(reader);
        let (mut values, mut labels, mut columns) = (Vec::new(), Vec::new(), 0);
        for (line, row) in csv.records().enumerate() {
            let row = row?;
            columns = row.len().saturating_sub(1);
            let error = |column: usize, expected| ExamplesError::Value {
                line: line + 1,
                column: column + 1,
                value: row.get(column).unwrap_or_default().to_owned(),
                expected,
            };
            for (column, text) in row.iter().take(columns).enumerate() {
                let number = text.parse::<f32>().ok().filter(|x| x.is_finite());
                values.push(number.ok_or_else(|| error(column, "a finite number"))? / scale);
            }
            let label = row.get(columns).and_then(|text| text.parse::<usize>().ok()).filter(|&label| label < 1 << 16);
            labels.push(label.ok_or_else(|| error(columns, "a class from 0 to 65535"))?);
        }
        if labels.is_empty() || columns == 0 {
            return Err(ExamplesError::Empty);
        }
        let features = Array2::from_shape_vec((labels.len(), columns), values).map_err(|_| ExamplesError::Empty)?;
        Ok(Self { features, labels })
    }

    /// The bundled handwritten digits (see `data/README.md`): 1,797 rows of 64 pixels from 0 to 1, classes 0 to 9.
    ///
    /// # Errors
    /// None with an intact binary.
    pub fn digits() -> Result<Self, ExamplesError> {
        let packed = include_bytes!("../data/digits.csv.gz");
        Self::from_csv(flate2::read::GzDecoder::new(packed.as_slice()), 16.0)
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Features of an example.
    pub fn columns(&self) -> usize {
        self.features.ncols()
    }

    /// Largest class + 1.
    pub fn classes(&self) -> usize {
        self.labels.iter().max().map_or(0, |&label| label + 1)
    }

    /// One example.
    pub fn get(&self, i: usize) -> (ArrayView1<'_, f32>, usize) {
        (self.features.row(i), self.labels[i])
    }

    /// The examples with the given indices.
    pub fn select(&self, indices: &[usize]) -> Self {
        let labels = indices.iter().map(|&i| self.labels[i]).collect();
        Self { features: self.features.select(ndarray::Axis(0), indices), labels }
    }

    /// Shuffles, and splits off a fraction as held-out part: `(training, held out)`.
    pub fn split(&self, held_out: f64, rng: &mut impl RngExt) -> (Self, Self) {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.shuffle(rng);
        let (out, training) = order.split_at((self.len() as f64 * held_out.clamp(0.0, 1.0)) as usize);
        (self.select(training), self.select(out))
    }

    /// Deals the examples to `parts` owners, unevenly: an owner gets up to five times as many as another, and more of three
    /// classes of its own. Every owner gets at least one where there are enough.
    pub fn deal(&self, parts: usize, rng: &mut impl RngExt) -> Vec<Self> {
        let classes = self.classes().max(1);
        let owners: Vec<(f64, [usize; 3])> = (0..parts)
            .map(|_| (rng.random_range(0.4..2.0), std::array::from_fn(|_| rng.random_range(0..classes))))
            .collect();
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.shuffle(rng);
        let mut dealt: Vec<Vec<usize>> = vec![Vec::new(); parts];
        for (turn, &i) in order.iter().enumerate() {
            let weight = |(size, own): &(f64, [usize; 3])| size * if own.contains(&self.labels[i]) { 3.0 } else { 1.0 };
            let owner = match WeightedIndex::new(owners.iter().map(weight)) {
                Ok(weights) if turn >= parts => weights.sample(rng),
                _ => turn % parts.max(1),
            };
            dealt[owner].push(i);
        }
        dealt.iter().map(|indices| self.select(indices)).collect()
    }

    /// Deals the examples to `parts` owners, class by class with shares from a symmetric Dirichlet distribution (Hsu, Qi and
    /// Brown 2019): with a small `alpha` an owner has few classes, with a large one all owners look alike. Who has nothing
    /// gets one example of whoever has most, where there are enough.
    ///
    /// # Errors
    /// [`ExamplesError::Alpha`] unless `alpha` is finite and above 0.
    pub fn deal_dirichlet(&self, parts: usize, alpha: f64, rng: &mut impl RngExt) -> Result<Vec<Self>, ExamplesError> {
        let gamma = Gamma::new(alpha, 1.0).ok().filter(|_| alpha.is_finite()).ok_or(ExamplesError::Alpha(alpha))?;
        let mut dealt: Vec<Vec<usize>> = vec![Vec::new(); parts.max(1)];
        for class in 0..self.classes() {
            let shares: Vec<f64> = (0..dealt.len()).map(|_| gamma.sample(rng)).collect();
            // All shares can be too small for a number; then the class has one owner.
            let only = rng.random_range(0..dealt.len());
            let owners = WeightedIndex::new(&shares);
            for i in (0..self.len()).filter(|&i| self.labels[i] == class) {
                let owner = owners.as_ref().map_or(only, |owners| owners.sample(rng));
                dealt[owner].push(i);
            }
        }
        while let Some(none) = dealt.iter().position(Vec::is_empty) {
            match dealt.iter_mut().max_by_key(|owned| owned.len()).filter(|owned| owned.len() > 1).and_then(Vec::pop) {
                Some(i) => dealt[none].push(i),
                None => break,
            }
        }
        Ok(dealt.iter().map(|indices| self.select(indices)).collect())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn the_bundled_digits_are_1797_images_of_ten_classes() {
        let digits = Examples::digits().unwrap();
        assert_eq!((digits.len(), digits.columns(), digits.classes()), (1797, PIXELS, DIGITS));
        let (pixels, label) = digits.get(0);
        assert!(label == 0 && pixels.iter().all(|x| (0.0..=1.0).contains(x)));
    }

    #[test]
    fn a_bad_line_is_named_by_place_and_value() {
        let read = |text: &str| Examples::from_csv(text.as_bytes(), 1.0).unwrap_err().to_string();
        assert_eq!(read("1,2,0\n1,x,1\n"), "line 2, column 2: \"x\" is not a finite number");
        assert_eq!(read("1,NaN,0\n"), "line 1, column 2: \"NaN\" is not a finite number");
        assert_eq!(read("1,2,-1\n"), "line 1, column 3: \"-1\" is not a class from 0 to 65535");
        assert!(read("1,2,0\n1,0\n").contains("fields"));
        assert!(read("").contains("no examples") && read("3\n").contains("no examples"));
    }

    #[test]
    fn a_dirichlet_split_deals_every_example_and_a_small_alpha_few_classes() {
        let digits = Examples::digits().unwrap();
        let classes = |alpha| {
            let parts = digits.deal_dirichlet(30, alpha, &mut ChaCha8Rng::seed_from_u64(2)).unwrap();
            assert_eq!(parts.iter().map(Examples::len).sum::<usize>(), digits.len());
            assert!(parts.iter().all(|part| !part.is_empty()));
            let distinct = |part: &Examples| part.labels.iter().collect::<std::collections::BTreeSet<_>>().len();
            parts.iter().map(distinct).sum::<usize>() as f64 / 30.0
        };
        let (few, all) = (classes(0.05), classes(100.0));
        assert!(few < 4.0 && all > 9.5, "{few} {all}");
        for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let refused = digits.deal_dirichlet(3, alpha, &mut ChaCha8Rng::seed_from_u64(2));
            assert!(matches!(refused, Err(ExamplesError::Alpha(_))), "{alpha}");
        }
    }

    #[test]
    fn every_example_is_dealt_once_and_unevenly() {
        let digits = Examples::digits().unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (training, held_out) = digits.split(0.2, &mut rng);
        assert_eq!((training.len(), held_out.len()), (1438, 359));
        let parts = training.deal(20, &mut rng);
        let sizes: Vec<usize> = parts.iter().map(Examples::len).collect();
        assert_eq!(sizes.iter().sum::<usize>(), training.len());
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!(*least >= 1 && *most > 2 * *least, "{sizes:?}");
    }
}
