//! What a coordinator can make up with its own, genuine signing key: cohorts of any adverts in any order.

use prost::Message;
use unisono_crypto::kdf::label;
use unisono_crypto::merkle;
use unisono_protocol::cohort::{self, Cohort};
use unisono_protocol::graph::Graph;
use unisono_protocol::params::RoundParams;
use unisono_protocol::proto::{
    self, ClientMessage, CohortView, NeighbourAdvert, RosterProof, Signed, client_message::Step,
};
use unisono_protocol::{ClientId, CohortId, signed};

use crate::world::{CAST, Device};

/// One place of a cohort.
#[derive(Clone)]
pub struct Member {
    pub advert: Signed,
    pub roster: Option<RosterProof>,
}

/// The member that an advert makes.
pub fn member(message: &ClientMessage) -> Member {
    let Some(Step::Advert(advert)) = &message.step else { panic!("it has not advertised, or has gone on") };
    Member {
        advert: advert.clone(),
        roster: CAST.roster.proof(ClientId::from_slice(&message.client_id).unwrap()).unwrap(),
    }
}

/// The advert that a device has made.
pub fn advert_of(device: &Device) -> Signed {
    member(device.message().unwrap()).advert
}

/// The honest members, in order.
pub fn members(devices: &[Device]) -> Vec<Member> {
    devices.iter().map(|device| member(device.message().unwrap())).collect()
}

/// A signed cohort over `members`, and what each of them is shown.
pub struct Forged {
    signed: Signed,
    graph: Graph,
    listed: cohort::Members,
    tree: merkle::Tree,
    members: Vec<Member>,
}

impl Forged {
    /// `change` may lie about the cohort before it is signed.
    pub fn new(params: &RoundParams, members: &[Member], change: impl FnOnce(&mut proto::Cohort)) -> Self {
        let n = members.len() as u32;
        let tree = merkle::Tree::new(label::TREE_ADVERTS, members.iter().map(|member| &member.advert.payload));
        // Where a member's leaf is not where the order asks for it, the list says what an honest one would.
        let mut listed: Vec<u64> = Vec::new();
        for member in members {
            let after = listed.last().map_or(0, |last| last + 1);
            listed.push(member.roster.as_ref().map_or(after, |proof| proof.index.max(after)));
        }
        let listed = cohort::Members::new(listed).unwrap();
        let mut cohort = Cohort::propose(params, n, tree.root(), Some(&listed)).unwrap();
        change(&mut cohort);
        let signed = signed::sign(&cohort, label::SIG_COHORT, Some(&CAST.coordinator));
        let id = CohortId(unisono_crypto::kdf::hash(label::COHORT_ID, &[&signed.payload]));
        let graph = Graph::new(id, n, params.topology(n).unwrap());
        Self { signed, graph, listed, tree, members: members.to_vec() }
    }

    /// What the member at `index` is shown.
    pub fn view(&self, index: u32) -> CohortView {
        let path = |i: u32| self.tree.path(i as usize).unwrap().iter().map(|hash| hash.to_vec()).collect();
        let neighbour = |i: u32| NeighbourAdvert {
            index: i,
            advert: Some(self.members[i as usize].advert.clone()),
            advert_path: path(i),
            roster: self.members[i as usize].roster.clone(),
        };
        let neighbours = self.graph.neighbours(index).into_iter().map(neighbour).collect();
        let members = self.listed.to_wire();
        let own_roster = self.members[index as usize].roster.clone();
        CohortView { cohort: Some(self.signed.clone()), index, own_path: path(index), neighbours, members, own_roster }
    }
}

/// Changes an advert's payload and leaves its signature.
pub fn altered(advert: &Signed, change: impl FnOnce(&mut proto::Advert)) -> Signed {
    let mut message = proto::Advert::decode(advert.payload.as_slice()).unwrap();
    change(&mut message);
    Signed { payload: message.encode_to_vec(), signature: advert.signature.clone() }
}
