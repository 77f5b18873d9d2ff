//! A model as it travels: safetensors, and the flat vector of which updates are differences.
//!
//! The vector holds all tensors in order of name, each in row-major order. Only `F32` tensors are aggregated.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use unisono_crypto::kdf::{hash, label};

/// Most bytes that a model's file may have beyond its elements: names and shapes of its tensors, and metadata. Enough for a hundred
/// thousand tensors.
pub const MAX_MODEL_HEADER: u64 = 16 << 20;
/// Name under which a safetensors header has what is no tensor.
const METADATA: &str = "__metadata__";

/// Why bytes are no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// Not a safetensors file.
    #[error("this is no safetensors file: {0}")]
    Format(String),
    /// A tensor of another type.
    #[error("tensor {name:?} is {dtype}; only F32 tensors are aggregated: convert it")]
    Dtype {
        /// Its name.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// More names, shapes and metadata than a device takes.
    #[error(
        "names, shapes and metadata of the model's tensors take {length} bytes; at most {MAX_MODEL_HEADER} are taken"
    )]
    Header {
        /// Bytes beyond the elements.
        length: u64,
    },
    /// No elements at all.
    #[error("the model has no elements")]
    Empty,
    /// A value that is no number.
    #[error("element {index} of the model is {value}")]
    NonFinite {
        /// Place in the flat vector.
        index: usize,
        /// The value.
        value: String,
    },
    /// Tensors that are not those of the model.
    #[error("the tensors are not those of the model: {}", differences(missing, unknown))]
    Names {
        /// Of the model, and not there.
        missing: Vec<String>,
        /// There, and not of the model, or there twice.
        unknown: Vec<String>,
    },
    /// A tensor of another shape.
    #[error("tensor {name:?} has shape {got:?}, the model's {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Its shape.
        got: Vec<usize>,
        /// That of the model's.
        expected: Vec<usize>,
    },
    /// Another number of elements.
    #[error("the vector has {got} elements, the model {expected}")]
    Length {
        /// Elements of the model.
        expected: usize,
        /// Elements found.
        got: usize,
    },
}

/// Of tensors that are missing and that are unknown, the first names.
fn differences(missing: &[String], unknown: &[String]) -> String {
    let names = |what: &str, names: &[String]| match names.len() {
        0 => None,
        count => {
            let first: Vec<_> = names.iter().take(5).map(|name| format!("{name:?}")).collect();
            let more = if count > 5 { format!(" and {} more", count - 5) } else { String::new() };
            Some(format!("{what} {}{more}", first.join(", ")))
        }
    };
    [names("missing are", missing), names("unknown are", unknown)].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// Named `f32` tensors, held as one flat vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Shape of each tensor, by name.
    shapes: BTreeMap<String, Vec<usize>>,
    /// What the file says about itself, as `format: pt`.
    metadata: BTreeMap<String, String>,
    values: Vec<f32>,
}

impl Model {
    /// A model of the given tensors: name, shape, row-major elements.
    ///
    /// # Errors
    /// [`ModelError::Length`] when a shape and its elements disagree, [`ModelError::Empty`], [`ModelError::NonFinite`].
    pub fn new<'a>(tensors: impl IntoIterator<Item = (&'a str, Vec<usize>, Vec<f32>)>) -> Result<Self, ModelError> {
        let mut sorted = BTreeMap::new();
        for (name, shape, values) in tensors {
            let expected = shape.iter().product();
            if values.len() != expected {
                return Err(ModelError::Length { expected, got: values.len() });
            }
            sorted.insert(name.to_owned(), (shape, values));
        }
        let values = sorted.values().flat_map(|(_, values)| values.iter().copied()).collect();
        let shapes = sorted.into_iter().map(|(name, (shape, _))| (name, shape)).collect();
        Self::checked(shapes, BTreeMap::new(), values)
    }

    fn checked(
        shapes: BTreeMap<String, Vec<usize>>,
        metadata: BTreeMap<String, String>,
        values: Vec<f32>,
    ) -> Result<Self, ModelError> {
        if values.is_empty() {
            return Err(ModelError::Empty);
        }
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(ModelError::NonFinite { index, value: values[index].to_string() }),
            None => Ok(Self { shapes, metadata, values }),
        }
    }

    /// Reads a safetensors file.
    ///
    /// # Errors
    /// Any [`ModelError`] but `Length`.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, ModelError> {
        let format = |e: safetensors::SafeTensorError| ModelError::Format(e.to_string());
        let (start, header) = SafeTensors::read_metadata(bytes).map_err(format)?;
        // Eight bytes say how long the header is.
        let length = start as u64 + 8;
        if length > MAX_MODEL_HEADER {
            return Err(ModelError::Header { length });
        }
        let metadata = header.metadata().iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect();
        let file = SafeTensors::deserialize(bytes).map_err(format)?;
        let mut tensors: Vec<(String, TensorView<'_>)> = file.tensors();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let (mut shapes, mut values) = (BTreeMap::new(), Vec::new());
        for (name, tensor) in tensors {
            if tensor.dtype() != Dtype::F32 {
                return Err(ModelError::Dtype { name, dtype: format!("{:?}", tensor.dtype()) });
            }
            let elements = tensor.data().as_chunks::<4>().0;
            values.extend(elements.iter().map(|&bytes| f32::from_le_bytes(bytes)));
            shapes.insert(name, tensor.shape().to_vec());
        }
        Self::checked(shapes, metadata, values)
    }

    /// The model as a safetensors file; the same model gives the same bytes.
    ///
    /// # Errors
    /// [`ModelError::Format`] when a tensor can't be written.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, ModelError> {
        let format = |e: safetensors::SafeTensorError| ModelError::Format(e.to_string());
        let bytes: Vec<u8> = self.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut views = Vec::with_capacity(self.shapes.len());
        let mut rest = bytes.as_slice();
        for (name, shape) in &self.shapes {
            let (now, later) = rest.split_at(4 * shape.iter().product::<usize>());
            views.push((name, TensorView::new(Dtype::F32, shape.clone(), now).map_err(format)?));
            rest = later;
        }
        let file = serialize(views, None).map_err(format)?;
        self.with_metadata(file)
    }

    /// Puts the metadata before the tensors of a file that has none, in order of name: the library's own order is another one each
    /// time.
    fn with_metadata(&self, file: Vec<u8>) -> Result<Vec<u8>, ModelError> {
        if self.metadata.is_empty() {
            return Ok(file);
        }
        let broken = || ModelError::Format("the file that was just written is none".into());
        let (length, rest) = file.split_first_chunk::<8>().ok_or_else(broken)?;
        let (header, elements) = rest.split_at_checked(u64::from_le_bytes(*length) as usize).ok_or_else(broken)?;
        let tensors = header.trim_ascii_end().strip_prefix(b"{").ok_or_else(broken)?;
        let metadata = serde_json::to_string(&self.metadata).map_err(|e| ModelError::Format(e.to_string()))?;
        let mut header = format!("{{\"{METADATA}\":{metadata},").into_bytes();
        header.extend_from_slice(tensors);
        header.resize(header.len().next_multiple_of(8), b' ');
        Ok([&(header.len() as u64).to_le_bytes(), header.as_slice(), elements].concat())
    }

    /// What the file says about itself, by name.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All elements: tensors in order of name, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Each tensor in order of name: its name, shape and row-major elements.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize], &[f32])> {
        let mut rest = self.values.as_slice();
        self.shapes.iter().map(move |(name, shape)| {
            let (now, later) = rest.split_at(shape.iter().product());
            rest = later;
            (name.as_str(), shape.as_slice(), now)
        })
    }

    /// Puts tensors with this model's names and shapes, in any order, into the order of [`Self::values`]: an update, for instance.
    ///
    /// # Errors
    /// [`ModelError::Names`], [`ModelError::Shape`], and [`ModelError::Length`] when a shape and its elements disagree.
    pub fn flatten<'a>(
        &self,
        tensors: impl IntoIterator<Item = (&'a str, &'a [usize], &'a [f32])>,
    ) -> Result<Vec<f32>, ModelError> {
        let (mut given, mut unknown) = (BTreeMap::new(), Vec::new());
        for (name, shape, values) in tensors {
            if !self.shapes.contains_key(name) || given.insert(name, (shape, values)).is_some() {
                unknown.push(name.to_owned());
            }
        }
        let missing: Vec<String> =
            self.shapes.keys().filter(|name| !given.contains_key(name.as_str())).cloned().collect();
        if !missing.is_empty() || !unknown.is_empty() {
            return Err(ModelError::Names { missing, unknown });
        }
        let mut flat = Vec::with_capacity(self.values.len());
        for (name, (shape, values)) in given {
            let expected = self.shapes.get(name).map_or(&[][..], Vec::as_slice);
            if shape != expected {
                let (name, got) = (name.to_owned(), shape.to_vec());
                return Err(ModelError::Shape { name, got, expected: expected.to_vec() });
            }
            let expected = shape.iter().product();
            if values.len() != expected {
                return Err(ModelError::Length { expected, got: values.len() });
            }
            flat.extend_from_slice(values);
        }
        Ok(flat)
    }

    /// The elements of one tensor with its shape.
    pub fn tensor(&self, name: &str) -> Option<(&[usize], &[f32])> {
        let shape = self.shapes.get(name)?;
        let before = self.shapes.iter().take_while(|(other, _)| other.as_str() < name);
        let start: usize = before.map(|(_, shape)| shape.iter().product::<usize>()).sum();
        Some((shape, &self.values[start..start + shape.iter().product::<usize>()]))
    }

    /// The same tensors with other elements.
    ///
    /// # Errors
    /// [`ModelError::Length`] or [`ModelError::NonFinite`].
    pub fn with_values(&self, values: Vec<f32>) -> Result<Self, ModelError> {
        if values.len() != self.values.len() {
            return Err(ModelError::Length { expected: self.values.len(), got: values.len() });
        }
        Self::checked(self.shapes.clone(), self.metadata.clone(), values)
    }
}

/// Hash by which round parameters name a base model.
pub fn model_hash(safetensors: &[u8]) -> [u8; 32] {
    hash(label::MODEL_HASH, &[safetensors])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_survives_its_file_and_its_vector_is_in_order_of_name() {
        let tensors = [("b", vec![2], vec![5.0, 6.0]), ("a", vec![2, 2], vec![1.0, 2.0, 3.0, 4.0])];
        let model = Model::new(tensors).unwrap();
        assert_eq!(model.values(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(model.tensor("b"), Some(([2].as_slice(), [5.0, 6.0].as_slice())));
        assert_eq!(model.tensor("c"), None);
        let bytes = model.to_safetensors().unwrap();
        assert_eq!(Model::from_safetensors(&bytes).unwrap(), model);
        assert_eq!(model.to_safetensors().unwrap(), bytes);
    }

    #[test]
    fn tensors_in_any_order_are_put_into_the_models_and_others_are_refused() {
        let names = ["layer.10.bias", "layer.10.weight", "layer.9.bias"];
        let model = Model::new([
            (names[0], vec![2], vec![1.0, 2.0]),
            (names[1], vec![1, 2], vec![3.0, 4.0]),
            (names[2], vec![], vec![5.0]),
        ])
        .unwrap();
        assert_eq!(
            model.tensors().map(|(name, _, values)| (name, values.len())).collect::<Vec<_>>(),
            [(names[0], 2), (names[1], 2), (names[2], 1)]
        );
        // As a state dictionary has them: weight before bias, layer 9 before layer 10.
        let given: [(&str, &[usize], &[f32]); 3] =
            [(names[2], &[], &[0.5]), (names[1], &[1, 2], &[0.3, 0.4]), (names[0], &[2], &[0.1, 0.2])];
        assert_eq!(model.flatten(given).unwrap(), [0.1, 0.2, 0.3, 0.4, 0.5]);
        let told =
            model.flatten([given[0], given[2], ("layer.10.weigth", &[1, 2], &[0.3, 0.4])]).unwrap_err().to_string();
        assert!(told.contains(r#"missing are "layer.10.weight"; unknown are "layer.10.weigth""#), "{told}");
        let twice = model.flatten([given[0], given[1], given[2], given[2]]).unwrap_err();
        assert_eq!(twice, ModelError::Names { missing: vec![], unknown: vec![names[0].into()] });
        let turned = model.flatten([given[0], (names[1], &[2, 1], &[0.3, 0.4]), given[2]]).unwrap_err();
        assert_eq!(turned.to_string(), r#"tensor "layer.10.weight" has shape [2, 1], the model's [1, 2]"#);
        let short = model.flatten([given[0], (names[1], &[1, 2], &[0.3]), given[2]]).unwrap_err();
        assert_eq!(short, ModelError::Length { expected: 2, got: 1 });
    }

    #[test]
    fn what_a_file_says_about_itself_stays_in_every_version() {
        let view = TensorView::new(Dtype::F32, vec![1], &[0, 0, 128, 63]).unwrap();
        let words = [("format", "pt"), ("author", "a \"quoted\" name\n"), ("z", "ü"), ("a", "")];
        let metadata = words.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let file = serialize([("w", view)], Some(metadata.clone().into())).unwrap();
        let model = Model::from_safetensors(&file).unwrap();
        assert_eq!(model.metadata(), &BTreeMap::from(metadata));
        let next = model.with_values(vec![2.0]).unwrap();
        let bytes = next.to_safetensors().unwrap();
        assert!((0..20).all(|_| next.to_safetensors().unwrap() == bytes), "the same bytes each time");
        // For any reader, aligned.
        assert_eq!(SafeTensors::read_metadata(&bytes).unwrap().0 % 8, 0);
        let read = SafeTensors::read_metadata(&bytes).unwrap().1;
        assert_eq!(read.metadata().as_ref().unwrap()["format"], "pt");
        assert_eq!(Model::from_safetensors(&bytes).unwrap(), next);
    }

    #[test]
    fn twenty_thousand_tensors_are_a_model_and_a_header_without_end_is_none() {
        let names: Vec<String> = (0..20_000).map(|i| format!("model.layers.{i}.self_attention.query.weight")).collect();
        let model = Model::new(names.iter().map(|name| (name.as_str(), vec![1], vec![1.0]))).unwrap();
        let bytes = model.to_safetensors().unwrap();
        assert!(bytes.len() > 1 << 20);
        assert_eq!(Model::from_safetensors(&bytes).unwrap(), model);
        let view = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
        let long = "x".repeat(MAX_MODEL_HEADER as usize);
        let file = serialize([("w", view)], Some([("note".to_owned(), long)].into())).unwrap();
        assert!(matches!(Model::from_safetensors(&file), Err(ModelError::Header { .. })));
    }

    #[test]
    fn bytes_that_are_no_model_are_refused() {
        assert!(matches!(Model::from_safetensors(b"{}"), Err(ModelError::Format(_))));
        let half = serialize([("h", TensorView::new(Dtype::F16, vec![1], &[0, 0]).unwrap())], None).unwrap();
        assert!(matches!(Model::from_safetensors(&half), Err(ModelError::Dtype { .. })));
        assert_eq!(
            Model::new([("a", vec![1], vec![f32::NAN])]).unwrap_err().to_string(),
            "element 0 of the model is NaN"
        );
        assert_eq!(Model::new([]), Err(ModelError::Empty));
        let model = Model::new([("a", vec![1], vec![0.0])]).unwrap();
        assert_eq!(model.with_values(vec![]), Err(ModelError::Length { expected: 1, got: 0 }));
    }
}
