//! A model as it travels: safetensors, and the flat vector of which updates are differences.
//!
//! The vector holds all tensors in order of name, each in row-major order. Only `F32` tensors are aggregated.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use unisono_crypto::kdf::{hash, label};

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
    /// Another number of elements.
    #[error("the vector has {got} elements, the model {expected}")]
    Length {
        /// Elements of the model.
        expected: usize,
        /// Elements found.
        got: usize,
    },
}

/// Named `f32` tensors, held as one flat vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Shape of each tensor, by name.
    shapes: BTreeMap<String, Vec<usize>>,
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
        Self::checked(shapes, values)
    }

    fn checked(shapes: BTreeMap<String, Vec<usize>>, values: Vec<f32>) -> Result<Self, ModelError> {
        if values.is_empty() {
            return Err(ModelError::Empty);
        }
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(ModelError::NonFinite { index, value: values[index].to_string() }),
            None => Ok(Self { shapes, values }),
        }
    }

    /// Reads a safetensors file.
    ///
    /// # Errors
    /// Any [`ModelError`] but `Length`.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, ModelError> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| ModelError::Format(e.to_string()))?;
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
        Self::checked(shapes, values)
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
        serialize(views, None).map_err(format)
    }

    /// All elements: tensors in order of name, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
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
        Self::checked(self.shapes.clone(), values)
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
