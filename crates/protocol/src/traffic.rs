//! What one client sends and receives in each phase, in bytes: the encoded lengths of the round's messages, computed from
//! the parameters alone.
//!
//! The messages are built with the fields' real lengths and then measured, so this can't drift from the encoding. Counted
//! is what the protocol exchanges, envelopes included; not what a transport adds (HTTP/2, TLS, upload frames, polling), and
//! not the base model.

use prost::Message;
use unisono_crypto::aead;
use unisono_crypto::kem::{CT_LEN, EK_LEN};
use unisono_crypto::sign::Level;

use crate::degree::{Assumptions, DegreeError, SecurityMode, Topology, find};
use crate::ids::{ClientId, RoundId};
use crate::pairwise::SHARE_COMMITMENT_LEN;
use crate::proto::{self, ClientMessage, ServerMessage, Signed, client_message::Step, server_message::View};
use crate::server::Phase;

const HASH_LEN: usize = 32;
/// What a member of the committee signs.
const ENDORSEMENT_LEN: usize = 100;

/// What the traffic of a round depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scenario {
    /// Clients in the cohort, n; the roster is taken to have as many leaves.
    pub clients: u32,
    /// Elements of a masked vector: the update's d, metrics, and the weight.
    pub elements: u64,
    /// Bits of one element of the ring, b.
    pub modulus_bits: u32,
    /// Assumed fractions and the security mode; they decide the number of neighbours.
    pub assumptions: Assumptions,
}

/// Bytes that one client sends and receives in one phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PhaseTraffic {
    /// Client to coordinator.
    pub sent: u64,
    /// Coordinator to client.
    pub received: u64,
}

/// Bytes of one client in a round without drop-outs.
///
/// An upper bound, and close: indices are counted with as many bytes as the largest one takes, and Merkle paths with the
/// length of the longest. A real client stays below by at most 3 bytes for each index, and 34 for each hash that its paths
/// are shorter (none when n and k are powers of two). Names and attributes are counted as short: 16 characters for the
/// task, no attributes in the roster. With drop-outs a client receives fewer deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Degree, threshold and window bound that the scenario gives.
    pub topology: Topology,
    /// By phase, in the order of [`Phase::ALL`]; the round's offer is received in the first. [`Phase::Confirm`] is for members of the
    /// committee alone: see [`Traffic::off_committee`].
    pub phases: [PhaseTraffic; 5],
}

impl Traffic {
    /// The traffic of one phase.
    pub fn of(&self, phase: Phase) -> PhaseTraffic {
        self.phases[phase as usize]
    }

    /// Of a client that is not on the committee: nothing in [`Phase::Confirm`], one round trip less.
    #[must_use]
    pub fn off_committee(mut self) -> Self {
        self.phases[Phase::Confirm as usize] = PhaseTraffic::default();
        self
    }

    /// The sum over all phases.
    pub fn total(&self) -> PhaseTraffic {
        self.phases.iter().fold(PhaseTraffic::default(), |sum, phase| PhaseTraffic {
            sent: sum.sent + phase.sent,
            received: sum.received + phase.received,
        })
    }
}

/// Computes what one client sends and receives.
///
/// # Errors
/// [`DegreeError`] when section 9 finds no graph for the scenario.
pub fn per_client(scenario: &Scenario) -> Result<Traffic, DegreeError> {
    let topology = find(scenario.clients, &scenario.assumptions)?;
    let shape = Shape { scenario, topology, malicious: scenario.assumptions.mode == SecurityMode::Malicious };
    let packed = (u128::from(scenario.elements) * u128::from(scenario.modulus_bits)).div_ceil(8) as u64;
    let mut phases = [PhaseTraffic::default(); 5];
    phases[Phase::Advertise as usize] =
        PhaseTraffic { sent: shape.step(Step::Advert(shape.advert())), received: shape.offer() };
    phases[Phase::Share as usize] = PhaseTraffic { sent: shape.share_keys(), received: shape.view(shape.cohort()) };
    phases[Phase::Mask as usize] =
        PhaseTraffic { sent: shape.upload_header(packed) + packed, received: shape.view(shape.masking()) };
    if shape.malicious {
        phases[Phase::Confirm as usize] =
            PhaseTraffic { sent: shape.confirm(), received: shape.view(shape.survivors()) };
        phases[Phase::Unmask as usize] =
            PhaseTraffic { sent: shape.unmask(), received: shape.view(shape.certificate()) };
    } else {
        phases[Phase::Unmask as usize] = PhaseTraffic { sent: shape.unmask(), received: shape.view(shape.survivors()) };
    }
    Ok(Traffic { topology, phases })
}

/// Length of the longest path of a tree with `leaves` leaves.
fn depth(leaves: u32) -> usize {
    leaves.next_power_of_two().trailing_zeros() as usize
}

fn path(leaves: u32) -> Vec<Vec<u8>> {
    vec![vec![0; HASH_LEN]; depth(leaves)]
}

struct Shape<'a> {
    scenario: &'a Scenario,
    topology: Topology,
    malicious: bool,
}

impl Shape<'_> {
    /// The largest index, which takes the most bytes.
    fn index(&self) -> u32 {
        self.scenario.clients - 1
    }

    fn degree(&self) -> usize {
        self.topology.degree as usize
    }

    fn signed(&self, message: &impl Message, level: Level) -> Signed {
        let len = if self.malicious { level.signature_len() } else { 0 };
        Signed { payload: message.encode_to_vec(), signature: vec![0; len] }
    }

    fn step(&self, step: Step) -> u64 {
        let (round_id, client_id) = (vec![0; RoundId::LEN], vec![0; ClientId::LEN]);
        ClientMessage { round_id, client_id, step: Some(step) }.encoded_len() as u64
    }

    fn view(&self, view: View) -> u64 {
        ServerMessage { view: Some(view) }.encoded_len() as u64
    }

    fn offer(&self) -> u64 {
        let mode = if self.malicious { proto::SecurityMode::Malicious } else { proto::SecurityMode::SemiHonest };
        let Scenario { clients, elements, modulus_bits, assumptions } = *self.scenario;
        let params = proto::RoundParams {
            task: "t".repeat(16),
            round: 1,
            suite: 1,
            roster_epoch: u64::from(self.malicious),
            roster_root: if self.malicious { vec![0; HASH_LEN] } else { Vec::new() },
            dimension: elements,
            modulus_bits,
            quantiser: Some(proto::Quantiser {
                bits: 16,
                clip: 1.0,
                clips: Vec::new(),
                l2_clip: None,
                max_weight: 1.0,
                rounding: proto::Rounding::Stochastic as i32,
                metrics: Vec::new(),
                privacy: None,
                rotate: false,
            }),
            n_min: clients,
            n_max: clients,
            gamma: assumptions.gamma,
            delta: assumptions.delta,
            mode: mode as i32,
            deadlines: Some(proto::PhaseDeadlines {
                advertise_ms: 60_000,
                share_ms: 60_000,
                mask_ms: 60_000,
                confirm_ms: 60_000,
                unmask_ms: 60_000,
            }),
            model_version: 1,
            model_hash: vec![0; HASH_LEN],
            chunk_elements: 1 << 16,
            opened_at: 1_800_000_000,
            min_colluders: assumptions.min_colluders,
        };
        let head = proto::RosterHead {
            epoch: 1,
            root: vec![0; HASH_LEN],
            size: clients.into(),
            issued_at: 1_800_000_000,
            coordinator_keys: vec![vec![0; Level::L65.verifying_key_len()]],
            publisher_keys: Vec::new(),
            valid_until: 1_800_000_000,
        };
        let roster_head = self.malicious.then(|| self.signed(&head, Level::L65));
        proto::RoundOffer { params: Some(self.signed(&params, Level::L65)), roster_head, base_model: None }
            .encoded_len() as u64
    }

    fn advert(&self) -> Signed {
        let advert = proto::Advert {
            round_id: vec![0; RoundId::LEN],
            client_id: vec![0; ClientId::LEN],
            mask_ek: vec![0; EK_LEN],
            channel_ek: vec![0; EK_LEN],
            self_mask_commitment: vec![0; HASH_LEN],
        };
        self.signed(&advert, Level::L44)
    }

    fn cohort(&self) -> View {
        let n = self.scenario.clients;
        let cohort = proto::Cohort {
            round_id: vec![0; RoundId::LEN],
            n,
            degree: self.topology.degree,
            threshold: self.topology.threshold,
            window_bound: self.topology.window_bound,
            adverts_root: vec![0; HASH_LEN],
            members_hash: vec![0; if self.malicious { HASH_LEN } else { 0 }],
            committee: self.topology.committee.map_or(0, |committee| committee.size),
            quorum: self.topology.committee.map_or(0, |committee| committee.quorum),
        };
        let roster = self.malicious.then(|| self.roster_proof());
        let own_roster = roster.clone();
        let neighbour =
            proto::NeighbourAdvert { index: self.index(), advert: Some(self.advert()), advert_path: path(n), roster };
        View::Cohort(proto::CohortView {
            cohort: Some(self.signed(&cohort, Level::L65)),
            index: self.index(),
            own_path: path(n),
            neighbours: vec![neighbour; self.degree()],
            // A cohort that is most of its roster.
            members: if self.malicious { vec![1; n as usize] } else { Vec::new() },
            own_roster,
        })
    }

    fn roster_proof(&self) -> proto::RosterProof {
        let leaf = proto::RosterLeaf {
            client_id: vec![0; ClientId::LEN],
            identity_key: vec![0; Level::L44.verifying_key_len()],
            release_key_hash: vec![0; HASH_LEN],
            not_before: 1_800_000_000,
            not_after: 1_900_000_000,
            attributes: Vec::new(),
        };
        proto::RosterProof { leaf: leaf.encode_to_vec(), index: self.index().into(), path: path(self.scenario.clients) }
    }

    fn message(&self, encapsulates: bool) -> Vec<u8> {
        let pair = proto::SharePair {
            from: self.index(),
            to: self.index(),
            self_mask_share: vec![0; HASH_LEN],
            mask_share: vec![0; HASH_LEN],
        };
        let message = proto::NeighbourShares {
            from: self.index(),
            to: self.index(),
            channel_ct: vec![0; CT_LEN],
            sealed: vec![0; pair.encoded_len() + aead::TAG_LEN],
            mask_ct: vec![0; if encapsulates { CT_LEN } else { 0 }],
            self_mask_commitment: vec![0; SHARE_COMMITMENT_LEN],
            mask_commitment: vec![0; SHARE_COMMITMENT_LEN],
        };
        message.encode_to_vec()
    }

    /// Half of the neighbours get a mask ciphertext, and the others send one; of an odd number, the larger half.
    fn messages(&self) -> impl Iterator<Item = Vec<u8>> {
        (0..self.degree()).map(|i| self.message(i % 2 == 0))
    }

    fn shares_root(&self) -> Signed {
        let root = proto::SharesRoot {
            cohort_id: vec![0; HASH_LEN],
            from: self.index(),
            count: self.topology.degree,
            root: vec![0; HASH_LEN],
        };
        self.signed(&root, Level::L44)
    }

    fn share_keys(&self) -> u64 {
        let shares = proto::ShareKeys { root: Some(self.shares_root()), messages: self.messages().collect() };
        self.step(Step::ShareKeys(shares))
    }

    fn bitmap(&self) -> Vec<u8> {
        vec![0; self.scenario.clients.div_ceil(8) as usize]
    }

    fn masking(&self) -> View {
        let root = self.shares_root();
        let delivery = |message| proto::DeliveredShares {
            root: Some(root.clone()),
            message,
            position: self.topology.degree - 1,
            path: path(self.topology.degree),
        };
        View::Masking(proto::MaskingView {
            cohort_id: vec![0; HASH_LEN],
            shared: self.bitmap(),
            deliveries: self.messages().map(delivery).collect(),
        })
    }

    fn upload_header(&self, packed: u64) -> u64 {
        let header = proto::UploadHeader {
            cohort_id: vec![0; HASH_LEN],
            from: self.index(),
            length: packed,
            hash: vec![0; HASH_LEN],
        };
        self.step(Step::Upload(self.signed(&header, Level::L44)))
    }

    fn survivors(&self) -> View {
        View::Survivors(proto::SurvivorsView { cohort_id: vec![0; HASH_LEN], survivors: self.bitmap() })
    }

    fn confirm(&self) -> u64 {
        let signature = vec![0; Level::L44.signature_len()];
        self.step(Step::Endorsement(Signed { payload: vec![0; ENDORSEMENT_LEN], signature }))
    }

    fn certificate(&self) -> View {
        let complete = self.degree() >= self.index() as usize;
        let endorsement = proto::Endorsement {
            signer: self.index(),
            signature: vec![0; Level::L44.signature_len()],
            roster: (!complete).then(|| self.roster_proof()),
        };
        let quorum = self.topology.committee.map_or(0, |committee| committee.quorum as usize);
        View::Certificate(proto::Certificate {
            cohort_id: vec![0; HASH_LEN],
            sharers_hash: vec![0; HASH_LEN],
            survivors: self.bitmap(),
            endorsements: vec![endorsement; quorum],
        })
    }

    fn unmask(&self) -> u64 {
        let share = proto::RevealedShare {
            of: self.index(),
            kind: proto::SecretKind::SelfMask as i32,
            value: vec![0; HASH_LEN],
        };
        let unmask = proto::UnmaskShares {
            cohort_id: vec![0; HASH_LEN],
            from: self.index(),
            shares: vec![share; self.degree()],
            unreadable: Vec::new(),
            self_mask_secret: vec![0; HASH_LEN],
        };
        self.step(Step::Unmask(self.signed(&unmask, Level::L44)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(clients: u32, mode: SecurityMode) -> Scenario {
        let assumptions = Assumptions { gamma: 0.05, delta: 0.1, min_colluders: 1, mode };
        Scenario { clients, elements: 100_001, modulus_bits: 26, assumptions }
    }

    #[test]
    fn signatures_roster_and_certificate_cost_only_malicious_rounds() {
        let malicious = per_client(&scenario(100, SecurityMode::Malicious)).unwrap();
        let semi_honest = per_client(&scenario(100, SecurityMode::SemiHonest)).unwrap();
        assert_eq!(semi_honest.of(Phase::Confirm), PhaseTraffic::default());
        assert!(malicious.of(Phase::Confirm).sent > 0);
        assert!(malicious.off_committee().total().sent < malicious.total().sent);
        let (malicious, semi_honest) = (malicious.total(), semi_honest.total());
        assert!(malicious.sent > semi_honest.sent && malicious.received > semi_honest.received);
    }

    #[test]
    fn the_vector_dominates_what_a_client_sends() {
        let traffic = per_client(&scenario(1000, SecurityMode::SemiHonest)).unwrap();
        assert!(traffic.of(Phase::Mask).sent >= (100_001 * 26u64).div_ceil(8));
        assert!(traffic.of(Phase::Mask).sent > traffic.total().sent / 2);
    }

    #[test]
    fn an_infeasible_scenario_is_an_error() {
        let assumptions = Assumptions { gamma: 0.3, delta: 0.4, min_colluders: 1, mode: SecurityMode::Malicious };
        assert!(per_client(&Scenario { clients: 10, elements: 1, modulus_bits: 16, assumptions }).is_err());
    }
}
