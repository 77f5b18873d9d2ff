//! A model as it travels: safetensors, and the flat vector of which updates are differences.
//!
//! The vector holds all tensors of floating-point numbers in order of name, each in row-major order. They are trained in `F32`; those that
//! were `F16` or `BF16` at first are released in that type. Tensors of integers and booleans (counters, masks) stay as they are in every
//! version.

use std::borrow::Cow;
use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use unisono_crypto::kdf::{hash, label};

/// Most bytes that a model's file may have beyond the elements that are aggregated: names and shapes of its tensors, metadata, and tensors
/// that are kept as they are. Enough for a hundred thousand tensors.
pub const MAX_MODEL_HEADER: u64 = 16 << 20;
/// Name under which a safetensors header has what is no tensor.
const METADATA: &str = "__metadata__";
/// Name in the metadata under which a version that is trained has the types of the release: a JSON object of tensors' names.
const RELEASED_AS: &str = "unisono.released_as";

/// A type of which tensors are aggregated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum Float {
    F32,
    F16,
    BF16,
}

impl Float {
    fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
        }
    }

    fn read(self, data: &[u8], values: &mut Vec<f32>) {
        let pairs = data.as_chunks::<2>().0;
        match self {
            Self::F32 => values.extend(data.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes))),
            Self::F16 => values.extend(pairs.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32())),
            Self::BF16 => values.extend(pairs.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32())),
        }
    }

    /// Rounds to the nearest number of this type; what lies beyond its range becomes its largest one, and is counted.
    fn write(self, values: &[f32], data: &mut Vec<u8>) -> usize {
        let largest = match self {
            Self::F32 => f32::MAX,
            Self::F16 => f16::MAX.to_f32(),
            Self::BF16 => bf16::MAX.to_f32(),
        };
        let kept = |value: &f32| value.clamp(-largest, largest);
        match self {
            Self::F32 => data.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::F16 => data.extend(values.iter().flat_map(|value| f16::from_f32(kept(value)).to_le_bytes())),
            Self::BF16 => data.extend(values.iter().flat_map(|value| bf16::from_f32(kept(value)).to_le_bytes())),
        }
        values.iter().filter(|value| value.abs() > largest).count()
    }
}

/// Whether tensors of this type are kept as they are.
fn is_kept(dtype: Dtype) -> bool {
    use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(dtype, BOOL | I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64)
}

/// Why bytes are no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// Not a safetensors file.
    #[error("this is no safetensors file: {0}")]
    Format(String),
    /// A tensor of another type.
    #[error(
        "tensor {name:?} is {dtype}; F32, F16 and BF16 tensors are aggregated, those of integers and booleans are kept: convert it"
    )]
    Dtype {
        /// Its name.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// The types of the release, in the metadata of a version that is trained.
    #[error("the metadata's {RELEASED_AS:?} does not fit the tensors: {0}")]
    ReleasedAs(String),
    /// More names, shapes and metadata than a device takes.
    #[error(
        "names, shapes and metadata of the model, and its tensors of integers, take {length} bytes; at most {MAX_MODEL_HEADER} are taken"
    )]
    Header {
        /// Bytes beyond the elements that are aggregated.
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

/// A tensor that is aggregated.
#[derive(Debug, Clone, PartialEq)]
struct Aggregated {
    shape: Vec<usize>,
    released_as: Float,
}

impl Aggregated {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A tensor that is the same in every version: integers or booleans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Kept {
    /// Its type's name in safetensors, `I64` for instance.
    pub fn dtype(&self) -> String {
        format!("{:?}", self.dtype)
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its elements, row-major, little-endian.
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

/// Named `f32` tensors, held as one flat vector, with what travels beside them.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// By name.
    tensors: BTreeMap<String, Aggregated>,
    kept: BTreeMap<String, Kept>,
    /// What the file says about itself, as `format: pt`.
    metadata: BTreeMap<String, String>,
    values: Vec<f32>,
}

/// A model's file in the types of its release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released<'a> {
    /// A safetensors file.
    pub file: Cow<'a, [u8]>,
    /// Elements that were beyond the range of their type, and are its largest number.
    pub beyond: usize,
}

impl Model {
    /// A model of the given tensors: name, shape, row-major elements.
    ///
    /// # Errors
    /// [`ModelError::Length`] when a shape and its elements disagree, [`ModelError::Empty`], [`ModelError::NonFinite`].
    pub fn new<'a>(tensors: impl IntoIterator<Item = (&'a str, Vec<usize>, Vec<f32>)>) -> Result<Self, ModelError> {
        let mut sorted = BTreeMap::new();
        for (name, shape, values) in tensors {
            let tensor = Aggregated { shape, released_as: Float::F32 };
            if values.len() != tensor.len() {
                return Err(ModelError::Length { expected: tensor.len(), got: values.len() });
            }
            sorted.insert(name.to_owned(), (tensor, values));
        }
        let values = sorted.values().flat_map(|(_, values)| values.iter().copied()).collect();
        let tensors = sorted.into_iter().map(|(name, (tensor, _))| (name, tensor)).collect();
        Self { tensors, kept: BTreeMap::new(), metadata: BTreeMap::new(), values }.checked()
    }

    fn checked(self) -> Result<Self, ModelError> {
        if self.values.is_empty() {
            return Err(ModelError::Empty);
        }
        match self.values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(ModelError::NonFinite { index, value: self.values[index].to_string() }),
            None => Ok(self),
        }
    }

    /// Reads a safetensors file.
    ///
    /// # Errors
    /// Any [`ModelError`] but `Length`, `Names` and `Shape`.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, ModelError> {
        let format = |e: safetensors::SafeTensorError| ModelError::Format(e.to_string());
        let (start, header) = SafeTensors::read_metadata(bytes).map_err(format)?;
        // Eight bytes say how long the header is.
        let mut length = start as u64 + 8;
        let metadata = header.metadata().iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect();
        let file = SafeTensors::deserialize(bytes).map_err(format)?;
        let mut views: Vec<(String, TensorView<'_>)> = file.tensors();
        views.sort_by(|a, b| a.0.cmp(&b.0));
        let mut model = Self { tensors: BTreeMap::new(), kept: BTreeMap::new(), metadata, values: Vec::new() };
        for (name, view) in views {
            let (dtype, shape) = (view.dtype(), view.shape().to_vec());
            if let Some(float) = Float::of(dtype) {
                float.read(view.data(), &mut model.values);
                model.tensors.insert(name, Aggregated { shape, released_as: float });
            } else if is_kept(dtype) {
                length += view.data().len() as u64;
                model.kept.insert(name, Kept { dtype, shape, data: view.data().to_vec() });
            } else {
                return Err(ModelError::Dtype { name, dtype: format!("{dtype:?}") });
            }
        }
        if length > MAX_MODEL_HEADER {
            return Err(ModelError::Header { length });
        }
        if let Some(types) = model.metadata.remove(RELEASED_AS) {
            let bad = |why: String| ModelError::ReleasedAs(why);
            let types: BTreeMap<String, Float> = serde_json::from_str(&types).map_err(|e| bad(e.to_string()))?;
            for (name, released_as) in types {
                match model.tensors.get_mut(&name) {
                    Some(tensor) if tensor.released_as == Float::F32 => tensor.released_as = released_as,
                    _ => return Err(bad(format!("{name:?} is no F32 tensor of it"))),
                }
            }
        }
        model.checked()
    }

    /// The model as a safetensors file, all that is aggregated as `F32`; the same model gives the same bytes.
    ///
    /// # Errors
    /// [`ModelError::Format`] when a tensor can't be written, [`ModelError::Header`] when its names and types take more than is read.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, ModelError> {
        let types = self.tensors.iter().filter(|(_, tensor)| tensor.released_as != Float::F32);
        let types: BTreeMap<&String, Float> = types.map(|(name, tensor)| (name, tensor.released_as)).collect();
        let mut metadata = self.metadata.clone();
        if !types.is_empty() {
            let types = serde_json::to_string(&types).map_err(|e| ModelError::Format(e.to_string()))?;
            metadata.insert(RELEASED_AS.into(), types);
        }
        let file = self.write(&metadata, |_| Float::F32)?.0;
        let kept: u64 = self.kept.values().map(|kept| kept.data.len() as u64).sum();
        let header = file.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
        let length = header.saturating_add(8 + kept);
        if length > MAX_MODEL_HEADER { Err(ModelError::Header { length }) } else { Ok(file) }
    }

    /// A stored version's file in the types that the initial model had.
    ///
    /// # Errors
    /// As [`Self::from_safetensors`] and [`Self::to_safetensors`].
    pub fn released(file: &[u8]) -> Result<Released<'_>, ModelError> {
        let (_, header) = SafeTensors::read_metadata(file).map_err(|e| ModelError::Format(e.to_string()))?;
        if !header.metadata().iter().flatten().any(|(name, _)| name == RELEASED_AS) {
            return Ok(Released { file: file.into(), beyond: 0 });
        }
        let model = Self::from_safetensors(file)?;
        let (file, beyond) = model.write(&model.metadata, |tensor| tensor.released_as)?;
        Ok(Released { file: file.into(), beyond })
    }

    /// The file, and how many elements were beyond the range of the type that `types` gives.
    fn write(
        &self,
        metadata: &BTreeMap<String, String>,
        types: impl Fn(&Aggregated) -> Float,
    ) -> Result<(Vec<u8>, usize), ModelError> {
        let format = |e: safetensors::SafeTensorError| ModelError::Format(e.to_string());
        let (mut data, mut places, mut beyond) = (Vec::new(), Vec::new(), 0);
        for ((name, shape, values), tensor) in self.tensors().zip(self.tensors.values()) {
            let (float, start) = (types(tensor), data.len());
            beyond += float.write(values, &mut data);
            places.push((name, float.dtype(), shape, start..data.len()));
        }
        let aggregated = places
            .into_iter()
            .map(|(name, dtype, shape, place)| Ok((name, TensorView::new(dtype, shape.to_vec(), &data[place])?)));
        let kept = self
            .kept
            .iter()
            .map(|(name, kept)| Ok((name.as_str(), TensorView::new(kept.dtype, kept.shape.clone(), &kept.data)?)));
        let views: Vec<_> = aggregated.chain(kept).collect::<Result<_, _>>().map_err(format)?;
        let file = serialize(views, None).map_err(format)?;
        Ok((with_metadata(file, metadata)?, beyond))
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
        self.tensors.iter().map(move |(name, tensor)| {
            let (now, later) = rest.split_at(tensor.len());
            rest = later;
            (name.as_str(), tensor.shape.as_slice(), now)
        })
    }

    /// Tensors that are the same in every version, in order of name.
    pub fn kept(&self) -> impl Iterator<Item = (&str, &Kept)> {
        self.kept.iter().map(|(name, kept)| (name.as_str(), kept))
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
            if !self.tensors.contains_key(name) || given.insert(name, (shape, values)).is_some() {
                unknown.push(name.to_owned());
            }
        }
        let missing: Vec<String> =
            self.tensors.keys().filter(|name| !given.contains_key(name.as_str())).cloned().collect();
        if !missing.is_empty() || !unknown.is_empty() {
            return Err(ModelError::Names { missing, unknown });
        }
        let mut flat = Vec::with_capacity(self.values.len());
        for (name, (shape, values)) in given {
            let expected = self.tensors.get(name).map_or(&[][..], |tensor| &tensor.shape);
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
        let tensor = self.tensors.get(name)?;
        let before = self.tensors.iter().take_while(|(other, _)| other.as_str() < name);
        let start: usize = before.map(|(_, tensor)| tensor.len()).sum();
        Some((&tensor.shape, &self.values[start..start + tensor.len()]))
    }

    /// The same tensors with other elements.
    ///
    /// # Errors
    /// [`ModelError::Length`] or [`ModelError::NonFinite`].
    pub fn with_values(&self, values: Vec<f32>) -> Result<Self, ModelError> {
        if values.len() != self.values.len() {
            return Err(ModelError::Length { expected: self.values.len(), got: values.len() });
        }
        let (tensors, kept, metadata) = (self.tensors.clone(), self.kept.clone(), self.metadata.clone());
        Self { tensors, kept, metadata, values }.checked()
    }
}

/// Puts metadata before the tensors of a file that has none, in order of name: the library's own order is another one each time.
fn with_metadata(file: Vec<u8>, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>, ModelError> {
    if metadata.is_empty() {
        return Ok(file);
    }
    let broken = || ModelError::Format("the file that was just written is none".into());
    let (length, rest) = file.split_first_chunk::<8>().ok_or_else(broken)?;
    let (header, elements) = rest.split_at_checked(u64::from_le_bytes(*length) as usize).ok_or_else(broken)?;
    let tensors = header.trim_ascii_end().strip_prefix(b"{").ok_or_else(broken)?;
    let metadata = serde_json::to_string(metadata).map_err(|e| ModelError::Format(e.to_string()))?;
    let mut header = format!("{{\"{METADATA}\":{metadata},").into_bytes();
    header.extend_from_slice(tensors);
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes(), header.as_slice(), elements].concat())
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
    fn half_precision_is_trained_in_single_and_released_as_it_was() {
        let halves: Vec<u8> = [1.0, -2.5, 65504.0].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let brains: Vec<u8> = [0.5, 3.0e38].iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        let counter = 7i64.to_le_bytes();
        let views = || {
            [
                ("b.half", TensorView::new(Dtype::F16, vec![3], &halves).unwrap()),
                ("a.brain", TensorView::new(Dtype::BF16, vec![1, 2], &brains).unwrap()),
                ("c.single", TensorView::new(Dtype::F32, vec![1], &[0, 0, 128, 63]).unwrap()),
                ("a.counter", TensorView::new(Dtype::I64, vec![], &counter).unwrap()),
                ("d.mask", TensorView::new(Dtype::BOOL, vec![2], &[1, 0]).unwrap()),
            ]
        };
        let file = serialize(views(), Some([("format".to_owned(), "pt".to_owned())].into())).unwrap();
        let model = Model::from_safetensors(&file).unwrap();
        assert_eq!(model.values(), [0.5, bf16::from_f32(3.0e38).to_f32(), 1.0, -2.5, 65504.0, 1.0]);
        assert_eq!(model.tensor("b.half"), Some(([3].as_slice(), [1.0, -2.5, 65504.0].as_slice())));
        let kept: Vec<_> = model.kept().map(|(name, kept)| (name, kept.dtype(), kept.data().to_vec())).collect();
        assert_eq!(kept, [("a.counter", "I64".into(), counter.to_vec()), ("d.mask", "BOOL".into(), vec![1, 0])]);
        // What devices train on is single precision, and says what it will be.
        let trained = model.to_safetensors().unwrap();
        assert_eq!(Model::from_safetensors(&trained).unwrap(), model);
        let shown = SafeTensors::deserialize(&trained).unwrap();
        assert_eq!(shown.tensor("b.half").unwrap().dtype(), Dtype::F32);
        assert_eq!(shown.tensor("a.counter").unwrap().data(), counter);
        // A step that half precision could not hold is not lost between two versions.
        let mut values = model.values().to_vec();
        for _ in 0..1000 {
            values[3] += 1e-5;
            values = Model::from_safetensors(&model.with_values(values).unwrap().to_safetensors().unwrap())
                .unwrap()
                .values()
                .to_vec();
        }
        // Beyond the range of half precision.
        values[4] = 70_000.0;
        let stored = model.with_values(values).unwrap().to_safetensors().unwrap();
        let Released { file, beyond } = Model::released(&stored).unwrap();
        assert_eq!(beyond, 1);
        let (_, header) = SafeTensors::read_metadata(&file).unwrap();
        assert_eq!(header.metadata().clone().unwrap(), [("format".to_owned(), "pt".to_owned())].into());
        let released = SafeTensors::deserialize(&file).unwrap();
        for (name, view) in views() {
            let tensor = released.tensor(name).unwrap();
            assert_eq!((tensor.dtype(), tensor.shape()), (view.dtype(), view.shape()), "{name}");
        }
        let half = Model::from_safetensors(&file).unwrap();
        let moved = half.tensor("b.half").unwrap().1;
        assert!((moved[1] + 2.49).abs() < 2e-3 && moved[2] == 65504.0, "{moved:?}");
        assert_eq!(released.tensor("d.mask").unwrap().data(), [1, 0]);
        // Without such tensors nothing is rewritten.
        let single = Model::new([("w", vec![1], vec![1.0])]).unwrap().to_safetensors().unwrap();
        assert!(matches!(Model::released(&single).unwrap().file, Cow::Borrowed(file) if file == single));
    }

    #[test]
    fn kept_tensors_are_bounded_with_the_header() {
        let zeros = vec![0; MAX_MODEL_HEADER as usize];
        let views = [
            ("n", TensorView::new(Dtype::U8, vec![zeros.len()], &zeros).unwrap()),
            ("w", TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap()),
        ];
        let file = serialize(views, None).unwrap();
        assert!(matches!(Model::from_safetensors(&file), Err(ModelError::Header { .. })));
        // What would be written, with the types of the release, is more than what was read.
        let file = |kept: usize| {
            let views = [
                ("n", TensorView::new(Dtype::U8, vec![kept], &zeros[..kept]).unwrap()),
                ("w", TensorView::new(Dtype::F16, vec![1], &[0; 2]).unwrap()),
            ];
            serialize(views, None).unwrap()
        };
        let header = SafeTensors::read_metadata(&file(zeros.len() - 1000)).unwrap().0;
        let model = Model::from_safetensors(&file(zeros.len() - 8 - header)).unwrap();
        assert!(matches!(model.to_safetensors(), Err(ModelError::Header { .. })));
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
        for (dtype, bytes) in [(Dtype::F64, 8), (Dtype::C64, 8), (Dtype::F8_E4M3, 1)] {
            let zeros = vec![0; bytes];
            let file = serialize([("h", TensorView::new(dtype, vec![1], &zeros).unwrap())], None).unwrap();
            assert!(matches!(Model::from_safetensors(&file), Err(ModelError::Dtype { .. })), "{dtype:?}");
        }
        // What is kept alone is nothing to learn.
        let file = serialize([("n", TensorView::new(Dtype::I64, vec![1], &[0; 8]).unwrap())], None).unwrap();
        assert_eq!(Model::from_safetensors(&file), Err(ModelError::Empty));
        for types in ["{}x", r#"{"w":"F64"}"#, r#"{"v":"F16"}"#, r#"["w"]"#] {
            let view = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
            let file = serialize([("w", view)], Some([(RELEASED_AS.to_owned(), types.to_owned())].into())).unwrap();
            assert!(matches!(Model::from_safetensors(&file), Err(ModelError::ReleasedAs(_))), "{types}");
        }
        assert_eq!(
            Model::new([("a", vec![1], vec![f32::NAN])]).unwrap_err().to_string(),
            "element 0 of the model is NaN"
        );
        assert_eq!(Model::new([]), Err(ModelError::Empty));
        let model = Model::new([("a", vec![1], vec![0.0])]).unwrap();
        assert_eq!(model.with_values(vec![]), Err(ModelError::Length { expected: 1, got: 0 }));
    }
}
