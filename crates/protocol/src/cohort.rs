//! The closed cohort and its adverts (section 3), as both sides read them.

use std::collections::BTreeSet;
use std::sync::Arc;

use unisono_crypto::kdf::{hash, label};
use unisono_crypto::kem::EncapsulationKey;

use crate::degree::Topology;
use crate::graph::Graph;
use crate::ids::{ClientId, CohortId, RoundId};
use crate::params::{ParamsError, RoundParams};
use crate::proto;
use crate::signed::{self, SignedError, fixed};

/// Why a cohort was not accepted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CohortError {
    /// The bytes are not a `Cohort`, or a signature is wrong.
    #[error(transparent)]
    Signed(#[from] SignedError),
    /// It belongs to another round.
    #[error("the cohort is of another round")]
    OtherRound,
    /// Its size is outside what the round's parameters say.
    #[error("the cohort has {n} clients; the round allows {min} to {max}")]
    Size {
        /// Clients in it.
        n: u32,
        /// The round's `n_min`.
        min: u32,
        /// The round's `n_max`.
        max: u32,
    },
    /// There is no graph for it.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// Degree, threshold, window bound, committee or quorum are not those of section 9.
    #[error("the cohort's degree, threshold, window bound, committee and quorum are {got}; section 9 gives {expected}")]
    Topology {
        /// As proposed.
        got: String,
        /// As computed.
        expected: String,
    },
}

/// A cohort that fits its round's parameters.
#[derive(Debug, Clone)]
pub struct Cohort {
    /// Hash of the encoded `Cohort`.
    pub id: CohortId,
    /// Its graph.
    pub graph: Arc<Graph>,
    /// Merkle root of the adverts' payloads.
    pub adverts_root: [u8; 32],
}

impl Cohort {
    /// The message for a cohort of `n` adverts with the given root; in malicious mode, of members at these places in the roster.
    ///
    /// # Errors
    /// [`ParamsError::Infeasible`] when section 9 finds no graph for `n`.
    pub fn propose(
        params: &RoundParams,
        n: u32,
        adverts_root: [u8; 32],
        members: Option<&Members>,
    ) -> Result<proto::Cohort, ParamsError> {
        let topology = params.topology(n).map_err(|error| error.advised(&params.assumptions))?;
        Ok(proto::Cohort {
            round_id: params.round_id.to_vec(),
            n,
            degree: topology.degree,
            threshold: topology.threshold,
            window_bound: topology.window_bound,
            adverts_root: adverts_root.to_vec(),
            members_hash: members.map(|members| members.hash().to_vec()).unwrap_or_default(),
            committee: topology.committee.map_or(0, |committee| committee.size),
            quorum: topology.committee.map_or(0, |committee| committee.quorum),
        })
    }

    /// Reads a `Cohort` payload and recomputes what it says about the graph.
    ///
    /// # Errors
    /// Any [`CohortError`].
    pub fn from_payload(payload: &[u8], params: &RoundParams) -> Result<Self, CohortError> {
        let wire: proto::Cohort = signed::canonical(payload, "cohort")?;
        if wire.round_id != params.round_id.0 {
            return Err(CohortError::OtherRound);
        }
        let (n, min, max) = (wire.n, params.wire.n_min, params.wire.n_max);
        if !(min..=max).contains(&n) {
            return Err(CohortError::Size { n, min, max });
        }
        let topology = params.topology(n)?;
        let Topology { degree, threshold, window_bound, committee } = topology;
        let (size, quorum) = committee.map_or((0, 0), |committee| (committee.size, committee.quorum));
        let proposed = (wire.degree, wire.threshold, wire.window_bound, wire.committee, wire.quorum);
        let computed = (degree, threshold, window_bound, size, quorum);
        if proposed != computed {
            let (got, expected) = (format!("{proposed:?}"), format!("{computed:?}"));
            return Err(CohortError::Topology { got, expected });
        }
        Ok(Self::of_payload(payload, n, topology, fixed(&wire.adverts_root, "cohort")?))
    }

    /// The cohort of a payload whose content is known to be `n`, `topology` and `adverts_root`.
    pub(crate) fn of_payload(payload: &[u8], n: u32, topology: Topology, adverts_root: [u8; 32]) -> Self {
        let id = CohortId(hash(label::COHORT_ID, &[payload]));
        Self { id, graph: Arc::new(Graph::new(id, n, topology)), adverts_root }
    }

    /// Shares that rebuild a secret.
    pub fn threshold(&self) -> usize {
        self.graph.topology().threshold as usize
    }
}

/// Where a cohort's members stand among the leaves of the roster, in order of index: strictly ascending, so that no client has two
/// places in the cohort, whichever few of them a client is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members(Vec<u64>);

impl Members {
    /// Takes places; `None` unless they are strictly ascending.
    pub fn new(places: Vec<u64>) -> Option<Self> {
        places.windows(2).all(|pair| pair[0] < pair[1]).then_some(Self(places))
    }

    /// Reads the first place and the distances, as they travel. `None` for a place twice, or at or beyond `roster_size`.
    pub fn from_wire(steps: &[u64], roster_size: u64) -> Option<Self> {
        let mut places = Vec::with_capacity(steps.len());
        for &step in steps {
            let place = places.last().map_or(Some(step), |last: &u64| last.checked_add(step))?;
            places.push(place);
        }
        Self::new(places).filter(|members| members.0.last().is_none_or(|&last| last < roster_size))
    }

    /// The first place, then the distances.
    pub fn to_wire(&self) -> Vec<u64> {
        let before = std::iter::once(0).chain(self.0.iter().copied());
        self.0.iter().zip(before).map(|(place, before)| place - before).collect()
    }

    /// Hash over the places, 64 bits little-endian each.
    pub fn hash(&self) -> [u8; 32] {
        let bytes: Vec<u8> = self.0.iter().flat_map(|place| place.to_le_bytes()).collect();
        hash(label::MEMBERS, &[&bytes])
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The place of the member with the given index.
    pub fn place(&self, index: u32) -> Option<u64> {
        self.0.get(index as usize).copied()
    }
}

/// A parsed advert. Its keys were checked to be well-formed.
#[derive(Debug, Clone, PartialEq)]
pub struct Advert {
    /// The sender.
    pub client_id: ClientId,
    /// The mask key.
    pub mask_ek: EncapsulationKey,
    /// The channel key.
    pub channel_ek: EncapsulationKey,
    /// Commitment to the self-mask secret.
    pub commitment: [u8; 32],
}

impl Advert {
    /// Reads an `Advert` payload of the given round.
    ///
    /// # Errors
    /// [`SignedError::Malformed`] for a wrong length, a key that is none, or another round.
    pub fn from_payload(payload: &[u8], round: RoundId) -> Result<Self, SignedError> {
        const WHAT: &str = "advert";
        let wire: proto::Advert = signed::canonical(payload, WHAT)?;
        if wire.round_id != round.0 {
            return Err(SignedError::malformed(WHAT, "it is of another round"));
        }
        let key = |bytes: &[u8]| EncapsulationKey::from_bytes(bytes).map_err(|e| SignedError::malformed(WHAT, e));
        Ok(Self {
            client_id: ClientId(fixed(&wire.client_id, WHAT)?),
            mask_ek: key(&wire.mask_ek)?,
            channel_ek: key(&wire.channel_ek)?,
            commitment: fixed(&wire.self_mask_commitment, WHAT)?,
        })
    }

    /// Adds both keys to `seen`; whether neither was there before.
    pub(crate) fn insert_keys(&self, seen: &mut BTreeSet<Vec<u8>>) -> bool {
        // Both are inserted whatever the first says, so that no short circuit hides one.
        let mask = seen.insert(self.mask_ek.as_bytes().to_vec());
        let channel = seen.insert(self.channel_ek.as_bytes().to_vec());
        mask && channel
    }

    /// Undoes [`Self::insert_keys`].
    pub(crate) fn remove_keys(&self, seen: &mut BTreeSet<Vec<u8>>) {
        seen.remove(self.mask_ek.as_bytes());
        seen.remove(self.channel_ek.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_survive_their_steps_and_a_place_twice_or_beyond_the_roster_is_none() {
        for places in [vec![], vec![0], vec![3, 4, 9, 1 << 40]] {
            let members = Members::new(places.clone()).unwrap();
            assert_eq!(Members::from_wire(&members.to_wire(), (1 << 40) + 1), Some(members));
            assert!(
                places.is_empty()
                    || Members::from_wire(&Members(places.clone()).to_wire(), places[places.len() - 1]).is_none()
            );
        }
        assert_eq!(Members::new(vec![3, 3]), None);
        assert_eq!(Members::from_wire(&[3, 0, 1], 9), None);
        assert_eq!(Members::from_wire(&[3, u64::MAX], u64::MAX), None);
        assert_ne!(Members(vec![1, 2]).hash(), Members(vec![1, 3]).hash());
    }
}
