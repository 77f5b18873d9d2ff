//! What a coordinator can compute from everything that it has: uploads, revealed shares, its colluders' secrets.
//!
//! An upload is an input under masks. A mask falls when its seed can be derived from known secrets, or when it cancels out in a
//! combination of uploads. So what can be learned of the inputs are exactly the combinations of uploads in which no unknown mask
//! is left: the left kernel of the matrix of uploads and unknown masks. (Each unknown mask stands in two uploads at most, with opposite
//! signs, as long as no device masks twice; such a matrix has the same kernel over the ring as over a field.)

use std::collections::BTreeMap;

use prost::Message;
use unisono_crypto::aead;
use unisono_crypto::kem::{DecapsulationKey, EncapsulationKey};
use unisono_crypto::secret::Secret32;
use unisono_crypto::shamir::{Interpolator, SecretScalar, Share};
use unisono_protocol::bitmap;
use unisono_protocol::proto::{self, SecretKind};

use crate::derivation;
use crate::malicious::Stage;

/// Coefficients by upload.
pub type Combination = BTreeMap<usize, i64>;

/// Whether `H(U1)` is in the seeds of masks, as it is, or not, as it was: then one pair has one mask, whatever each of the two was
/// told.
#[derive(Clone, Copy, PartialEq)]
pub enum Seeds {
    Bound,
    Unbound,
}

/// A masked input.
struct Upload {
    from: u32,
    /// U1 as the device was told.
    sharers: Vec<bool>,
    packed: Vec<u8>,
    /// What it hides, to compare with.
    input: Vec<u64>,
}

/// The secrets inside a saved session, of which a colluder gives its own.
#[derive(Clone, PartialEq, Message)]
struct Saved {
    #[prost(bytes = "vec", tag = "4")]
    mask_secret: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    self_secret: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    channel: Vec<u8>,
}

/// Everything that the coordinator has.
pub struct Knowledge<'a> {
    stage: &'a Stage,
    uploads: Vec<Upload>,
    /// Secrets as such, by owner.
    given: BTreeMap<(u32, SecretKind), SecretScalar>,
    /// Shares of them, by owner and holder.
    shares: BTreeMap<(u32, SecretKind), BTreeMap<u32, Share>>,
}

/// The larger of a field's numbers: 2^61 - 1.
const PRIME: i128 = (1 << 61) - 1;

type Row = BTreeMap<usize, i128>;

/// `row + factor * other` modulo [`PRIME`].
fn add_multiple(row: &mut Row, factor: i128, other: &Row) {
    for (&at, value) in other {
        let sum = (row.get(&at).unwrap_or(&0) + factor * value).rem_euclid(PRIME);
        if sum == 0 {
            row.remove(&at)
        } else {
            row.insert(at, sum)
        };
    }
}

fn inverse(value: i128) -> i128 {
    let (mut power, mut square, mut result) = (PRIME - 2, value, 1);
    while power > 0 {
        if power & 1 == 1 {
            result = result * square % PRIME;
        }
        square = square * square % PRIME;
        power >>= 1;
    }
    result
}

/// A basis of the combinations of `rows` that are zero.
fn left_kernel(rows: Vec<Row>) -> Vec<Combination> {
    let mut kernel = Vec::new();
    // By first column: the reduced row, and the combination of rows that it is.
    let mut pivots: BTreeMap<usize, (Row, Row)> = BTreeMap::new();
    for (at, mut row) in rows.into_iter().enumerate() {
        let mut combination = Row::from([(at, 1)]);
        while let Some((&column, &value)) = row.first_key_value() {
            let Some((pivot, of)) = pivots.get(&column) else {
                let scale = inverse(value);
                let scaled = |row: &Row| row.iter().map(|(&at, x)| (at, x * scale % PRIME)).collect();
                pivots.insert(column, (scaled(&row), scaled(&combination)));
                break;
            };
            add_multiple(&mut row, -value, pivot);
            add_multiple(&mut combination, -value, of);
        }
        if row.is_empty() {
            let signed = |x: i128| i64::try_from(if x > PRIME / 2 { x - PRIME } else { x }).unwrap();
            kernel.push(combination.into_iter().map(|(at, x)| (at, signed(x))).collect());
        }
    }
    kernel
}

impl<'a> Knowledge<'a> {
    pub fn new(stage: &'a Stage) -> Self {
        Self { stage, uploads: Vec::new(), given: BTreeMap::new(), shares: BTreeMap::new() }
    }

    /// A device masked `input` for `sharers`, and uploaded.
    pub fn upload(&mut self, from: u32, sharers: &[bool], packed: Vec<u8>, input: Vec<u64>) {
        self.uploads.push(Upload { from, sharers: sharers.to_vec(), packed, input });
    }

    /// Client `u` colludes: its secrets are known, and all shares that were dealt to it. `saved` is its session.
    pub fn corrupt(&mut self, u: u32, saved: &[u8]) {
        let saved = Saved::decode(saved).unwrap();
        let secret = |bytes: Vec<u8>| Secret32::from_bytes(bytes.try_into().unwrap());
        for (kind, bytes) in [(SecretKind::SelfMask, saved.self_secret), (SecretKind::Mask, saved.mask_secret)] {
            self.given.insert((u, kind), SecretScalar::from_canonical(secret(bytes).expose()).unwrap());
        }
        let channel = DecapsulationKey::from_seed(&secret(saved.channel));
        let (stage, cohort_id) = (self.stage, self.stage.cohort.id.0);
        let end = |of: u32| {
            let advert = &stage.adverts[of as usize];
            derivation::End(of, &advert.client_id, &advert.channel_ek)
        };
        for v in stage.cohort.graph.neighbours(u) {
            let message = &stage.messages[&(v, u)];
            let received = channel.decapsulate(&message.channel_ct).unwrap();
            let key = derivation::share_key(&received, &cohort_id, end(v), end(u));
            let pair = aead::open(&key, &cohort_id, &message.sealed).unwrap();
            let pair = proto::SharePair::decode(pair.as_slice()).unwrap();
            self.share(v, SecretKind::SelfMask, u, &pair.self_mask_share);
            self.share(v, SecretKind::Mask, u, &pair.mask_share);
        }
    }

    fn share(&mut self, of: u32, kind: SecretKind, holder: u32, value: &[u8]) {
        let share = Share::from_bytes(holder + 1, value.try_into().unwrap()).unwrap();
        self.shares.entry((of, kind)).or_default().insert(holder, share);
    }

    /// A device revealed its shares.
    pub fn revealed(&mut self, unmask: &proto::UnmaskShares) {
        for share in &unmask.shares {
            self.share(share.of, share.kind(), unmask.from, &share.value);
        }
        let own = SecretScalar::from_canonical(unmask.self_mask_secret.as_slice().try_into().unwrap()).unwrap();
        self.given.insert((unmask.from, SecretKind::SelfMask), own);
    }

    /// All secrets that are given or have enough shares. Each fits its owner's advert.
    fn secrets(&self) -> BTreeMap<(u32, SecretKind), SecretScalar> {
        let mut secrets = self.given.clone();
        for (&name, held) in &self.shares {
            let some: Vec<Share> = held.values().take(self.stage.cohort.threshold()).cloned().collect();
            if some.len() == self.stage.cohort.threshold() && !secrets.contains_key(&name) {
                let abscissas: Vec<u32> = some.iter().map(Share::abscissa).collect();
                secrets.insert(name, Interpolator::new(&abscissas).unwrap().reconstruct(&some).unwrap());
            }
        }
        let round_id = self.stage.server.params().round_id.0;
        for (&(of, kind), secret) in &secrets {
            let advert = &self.stage.adverts[of as usize];
            if kind == SecretKind::SelfMask {
                assert_eq!(derivation::commitment(secret, &round_id, &advert.client_id), *advert.self_mask_commitment);
            } else {
                let key = DecapsulationKey::from_seed(&derivation::mask_key_seed(secret, &round_id));
                assert_eq!(key.encapsulation_key().as_bytes(), advert.mask_ek);
            }
        }
        secrets
    }

    /// The neighbours with which an upload has a mask.
    fn partners(&self, upload: &Upload) -> Vec<u32> {
        let neighbours = self.stage.cohort.graph.neighbours(upload.from);
        neighbours.into_iter().filter(|&v| upload.sharers[v as usize]).collect()
    }

    /// A basis of the combinations of uploads in which all masks fall.
    pub fn combinations(&self, seeds: Seeds) -> Vec<Combination> {
        let secrets = self.secrets();
        let mut columns: BTreeMap<(u32, u32, Vec<bool>), usize> = BTreeMap::new();
        let mut rows = Vec::new();
        for upload in &self.uploads {
            let u = upload.from;
            let mut row = Row::new();
            let mut unknown = |ends: (u32, u32), value: i128| {
                let sharers = if seeds == Seeds::Bound { upload.sharers.clone() } else { Vec::new() };
                let next = columns.len();
                row.insert(*columns.entry((ends.0, ends.1, sharers)).or_insert(next), value.rem_euclid(PRIME));
            };
            if !secrets.contains_key(&(u, SecretKind::SelfMask)) {
                unknown((u, u), 1);
            }
            for v in self.partners(upload) {
                if ![u, v].iter().any(|&end| secrets.contains_key(&(end, SecretKind::Mask))) {
                    let sign = if self.stage.cohort.graph.encapsulates(u, v) { 1 } else { -1 };
                    unknown((u.min(v), u.max(v)), sign);
                }
            }
            rows.push(row);
        }
        left_kernel(rows)
    }

    /// Which inputs a combination adds up, by client.
    pub fn inputs_in(&self, combination: &Combination) -> Vec<(u32, i64)> {
        let mut inputs: Vec<(u32, i64)> =
            combination.iter().map(|(&at, &factor)| (self.uploads[at].from, factor)).collect();
        inputs.sort_unstable();
        inputs
    }

    /// The combination of inputs, from uploads and known secrets alone; compared with what it must be.
    pub fn read(&self, combination: &Combination) {
        let secrets = self.secrets();
        let params = self.stage.server.params();
        let (modulus, len) = (params.modulus, params.vector_len());
        let mut read = vec![0u64; len];
        let mut plain = vec![0u64; len];
        let scaled = |values: &[u64], factor: i64| -> Vec<u64> {
            values.iter().map(|x| x.wrapping_mul(factor as u64) & modulus.mask()).collect()
        };
        for (&at, &factor) in combination {
            let upload = &self.uploads[at];
            let bytes = bitmap::to_bytes(&upload.sharers);
            let mut values = derivation::unpack(&upload.packed, modulus, len);
            let cohort_id = self.stage.cohort.id.0;
            let sharers = derivation::sharers_hash(&bytes);
            if let Some(own) = secrets.get(&(upload.from, SecretKind::SelfMask)) {
                let mask = derivation::mask(&derivation::self_mask_seed(own, &cohort_id, &sharers), modulus, len);
                derivation::add(&mut values, &mask, false, modulus);
            }
            for v in self.partners(upload) {
                if let Some(pair) = self.pair(&secrets, upload.from, v, &sharers) {
                    let added = self.stage.cohort.graph.encapsulates(upload.from, v);
                    derivation::add(&mut values, &derivation::mask(&pair, modulus, len), !added, modulus);
                }
            }
            derivation::add(&mut read, &scaled(&values, factor), true, modulus);
            derivation::add(&mut plain, &scaled(&upload.input, factor), true, modulus);
        }
        assert_eq!(read, plain, "the computation of {:?} is wrong", self.inputs_in(combination));
    }

    /// The seed of a pair's mask, when the mask secret of one of them is known.
    fn pair(
        &self,
        secrets: &BTreeMap<(u32, SecretKind), SecretScalar>,
        u: u32,
        v: u32,
        sharers: &[u8; 32],
    ) -> Option<Secret32> {
        let (from, to) = if self.stage.cohort.graph.encapsulates(u, v) { (u, v) } else { (v, u) };
        let cohort_id = self.stage.cohort.id.0;
        let round_id = self.stage.server.params().round_id.0;
        let ek = |of: u32| self.stage.adverts[of as usize].mask_ek.as_slice();
        let ct = &self.stage.messages[&(from, to)].mask_ct;
        let shared = if let Some(secret) = secrets.get(&(from, SecretKind::Mask)) {
            let coins = derivation::mask_coins(secret, &cohort_id, to, ek(to));
            let (again, shared) = EncapsulationKey::from_bytes(ek(to)).unwrap().encapsulate_with_coins(&coins);
            assert_eq!(&again, ct);
            shared
        } else {
            let secret = secrets.get(&(to, SecretKind::Mask))?;
            DecapsulationKey::from_seed(&derivation::mask_key_seed(secret, &round_id)).decapsulate(ct).unwrap()
        };
        Some(derivation::pair_secret(&shared, (&cohort_id, sharers), [(from, ek(from)), (to, ek(to))], ct))
    }
}
