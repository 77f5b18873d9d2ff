//! What is no certificate (section 6), each refused with its own error. Where it matters the whole committee colludes: only the device
//! itself stands against the coordinator then.

use std::sync::Arc;

use unisono_crypto::kdf::label;
use unisono_protocol::client::{CertificateFault, ClientError};
use unisono_protocol::policy::ParticipationRecord;
use unisono_protocol::proto::{self, Certificate, RosterProof, server_message::View};
use unisono_protocol::roster::{HeadTerms, Roster, RosterError};
use unisono_protocol::server::{Authority, Server};
use unisono_protocol::signed::{self, SignedError};

use crate::malicious::{Attack, Stage, forty, twelve};
use crate::world::{CAST, NOW, leaf};

/// Everybody masked for everybody; the last member of the committee did not finish its upload. The victim is in the sum, and not on
/// the committee where there are such.
struct Scene<'a> {
    attack: Attack<'a>,
    victim: u32,
    good: Certificate,
}

impl<'a> Scene<'a> {
    fn new(stage: &'a Stage) -> Self {
        let graph = &stage.cohort.graph;
        let mut attack = Attack::new(stage, []);
        attack.mask_all(&stage.without([]));
        let survivors = stage.without(graph.committee().last().copied());
        graph.committee().iter().for_each(|&u| attack.ask(u, &survivors).unwrap());
        let good = attack.certificate(&stage.without([]), &survivors);
        let victim = (0..stage.n()).rfind(|&u| graph.on_committee(u).is_none()).unwrap_or(0);
        Self { attack, victim, good }
    }

    fn refuses(&mut self, certificate: Certificate) -> ClientError {
        self.attack.refuses(self.victim, View::Certificate(certificate))
    }

    /// The fault of the good certificate, changed.
    fn fault(&mut self, change: impl FnOnce(&mut Certificate)) -> CertificateFault {
        let mut certificate = self.good.clone();
        change(&mut certificate);
        match self.refuses(certificate) {
            ClientError::Certificate(fault) => fault,
            other => panic!("{other}"),
        }
    }

    /// After all that was refused, the good one is taken.
    fn ends(mut self) {
        assert_eq!(self.attack.show_certificate(self.victim, &self.good), Ok(()));
    }
}

#[test]
fn too_few_too_many_and_no_signers() {
    let stage = Stage::new(&forty());
    let mut scene = Scene::new(&stage);
    assert_eq!(scene.good.endorsements.len(), 5);
    let quorum = |have| CertificateFault::Quorum { have, need: 5 };
    assert_eq!(scene.fault(|it| it.endorsements.truncate(4)), quorum(4));
    assert_eq!(scene.fault(|it| it.endorsements.clear()), quorum(0));
    let payload =
        stage.endorsed_bytes(&stage.without([]), &stage.without(stage.cohort.graph.committee().last().copied()));
    let all = stage.cohort.graph.committee().iter().map(|&u| stage.signature(u, &payload));
    let all = stage.certificate(&stage.without([]), &stage.without([]), all).endorsements;
    assert_eq!(scene.fault(|it| it.endorsements = all), quorum(7));
    scene.ends();
}

#[test]
fn signers_that_repeat_or_stand_out_of_order() {
    let stage = Stage::new(&forty());
    let mut scene = Scene::new(&stage);
    let signers: Vec<u32> = scene.good.endorsements.iter().map(|it| it.signer).collect();
    let order = |at: usize| CertificateFault::Order { signer: signers[at] };
    assert_eq!(scene.fault(|it| it.endorsements[1] = it.endorsements[0].clone()), order(0));
    assert_eq!(scene.fault(|it| it.endorsements.swap(3, 4)), order(3));
    // One signature under the name of the next member.
    let borrowed = scene.fault(|it| it.endorsements[1].signature = it.endorsements[0].signature.clone());
    assert_eq!(borrowed, CertificateFault::Signature { signer: signers[1] });
    scene.ends();
}

#[test]
fn signers_that_are_not_on_the_committee() {
    let stage = Stage::new(&forty());
    let mut scene = Scene::new(&stage);
    let graph = &stage.cohort.graph;
    let survivors = stage.without(graph.committee().last().copied());
    let payload = stage.endorsed_bytes(&stage.without([]), &survivors);
    let by = |mut signers: Vec<u32>| {
        signers.sort_unstable();
        stage.certificate(&stage.without([]), &survivors, signers.iter().map(|&u| stage.signature(u, &payload)))
    };
    let stranger = (0..40).find(|&u| graph.on_committee(u).is_none()).unwrap();
    let with_stranger = by([&graph.committee()[..4], &[stranger]].concat());
    let not_on_committee = |signer| ClientError::Certificate(CertificateFault::NotOnCommittee { signer });
    assert_eq!(scene.refuses(with_stranger), not_on_committee(stranger));
    // The committee drawn from the ring's own permutation, and a second one of those that the first left out.
    let drawn = by(stage.ring[..5].to_vec());
    let first = drawn.endorsements.iter().find(|it| graph.on_committee(it.signer).is_none()).unwrap().signer;
    assert_eq!(scene.refuses(drawn), not_on_committee(first));
    let second = by((0..40).filter(|&u| graph.on_committee(u).is_none()).take(5).collect());
    assert_eq!(scene.refuses(second), not_on_committee(stranger));
    // Beyond the cohort.
    for signer in [40, u32::MAX] {
        assert_eq!(scene.fault(|it| it.endorsements[4].signer = signer), CertificateFault::NotOnCommittee { signer });
    }
    scene.ends();
}

#[test]
fn a_signer_that_did_not_share_its_keys() {
    let stage = Stage::new(&forty());
    let absent = stage.cohort.graph.committee()[1];
    let sharers = stage.without([absent]);
    let mut attack = Attack::new(&stage, []);
    attack.mask_all(&sharers);
    let victim = stage.at(0, 0);
    let payload = stage.endorsed_bytes(&sharers, &sharers);
    let signatures = stage.cohort.graph.committee()[..5].iter().map(|&u| stage.signature(u, &payload));
    let certificate = stage.certificate(&sharers, &sharers, signatures);
    let error = attack.refuses(victim, View::Certificate(certificate));
    assert_eq!(error, ClientError::Certificate(CertificateFault::NotASharer { signer: absent }));
    attack.show_certificate(victim, &stage.by_all(&sharers, &sharers)).unwrap();
}

#[test]
fn leaves_at_another_place_of_another_roster_or_missing() {
    let stage = Stage::new(&forty());
    let mut scene = Scene::new(&stage);
    let signer = scene.good.endorsements[0].signer;
    let id = CAST.identities[signer as usize].client_id;
    let place = CertificateFault::Place { signer };
    assert_eq!(scene.fault(|it| it.endorsements[0].roster = it.endorsements[1].roster.clone()), place);
    assert_eq!(scene.fault(|it| it.endorsements[0].roster.as_mut().unwrap().index = u64::MAX), place);
    let mut leaf_fault = |change: &dyn Fn(&mut Option<RosterProof>, RosterProof)| {
        let fault = scene.fault(|it| {
            let other = it.endorsements[1].roster.clone().unwrap();
            change(&mut it.endorsements[0].roster, other);
        });
        let CertificateFault::Leaf { signer: of, why } = fault else { panic!("{fault}") };
        assert_eq!(of, signer);
        why
    };
    let malformed = |why| matches!(why, RosterError::Signed(SignedError::Malformed { .. }));
    assert!(malformed(leaf_fault(&|roster, _| *roster = None)));
    assert!(malformed(leaf_fault(&|roster, _| roster.as_mut().unwrap().leaf.clear())));
    assert!(malformed(leaf_fault(&|roster, _| roster.as_mut().unwrap().path[0].truncate(31))));
    assert_eq!(leaf_fault(&|roster, _| drop(roster.as_mut().unwrap().path.pop())), RosterError::NotInRoster(id));
    let others = leaf_fault(&|roster, other| roster.as_mut().unwrap().leaf = other.leaf);
    assert!(matches!(others, RosterError::NotInRoster(_)));
    // The next epoch, with another key for the same device at the same place: it counts for later rounds.
    let leaves = CAST.identities.iter().map(|identity| leaf(identity, NOW + 2000)).collect();
    let next =
        Roster::publish(leaves, HeadTerms::new(8, NOW), &[CAST.coordinator.verifying_key()], &[], &CAST.registrar)
            .unwrap();
    let next = next.proof(id).unwrap().unwrap();
    assert_eq!(leaf_fault(&|roster, _| *roster = Some(next.clone())), RosterError::NotInRoster(id));
    scene.ends();
}

#[test]
fn a_needless_leaf_in_a_complete_graph() {
    let stage = Stage::new(&twelve());
    let mut scene = Scene::new(&stage);
    let proof = stage.leaf(2);
    let fault = scene.fault(|it| it.endorsements[2].roster = proof);
    assert_eq!(fault, CertificateFault::NeedlessLeaf { signer: 2 });
    scene.ends();
}

/// A committee member's enrolment ends between two devices' acceptance of the cohort; each judges by its own.
#[test]
fn a_signer_whose_leaf_had_expired_when_the_cohort_was_accepted() {
    const ENDS: u64 = NOW + 10;
    let short = 0..4;
    let leaves = CAST.identities.iter().enumerate();
    let leaves = leaves.map(|(i, it)| leaf(it, if short.contains(&i) { ENDS } else { NOW + 1000 })).collect();
    let roster =
        Roster::publish(leaves, HeadTerms::new(7, NOW), &[CAST.coordinator.verifying_key()], &[], &CAST.registrar)
            .unwrap();
    let roster = Arc::new(roster);
    // Who has no such neighbour can accept late; nobody else notices.
    let late = |view: &proto::CohortView| {
        let mut seen = view.neighbours.iter().map(|it| it.index).chain([view.index]);
        seen.all(|u| !short.contains(&(u as usize)))
    };
    let stage = (0..20).find_map(|opened_at| {
        let params = proto::RoundParams { roster_root: roster.head().root.to_vec(), opened_at, ..forty() };
        let authority = Authority { signing_key: CAST.coordinator.clone(), roster: roster.clone() };
        let server = Server::open(&params, Some(authority)).unwrap();
        let stage = Stage::of(server, |view| if late(view) { ENDS + 1 } else { NOW });
        let committee = stage.cohort.graph.committee();
        (committee[0] < 4 && committee[1] >= 4 && stage.cohort_views.iter().any(late)).then_some(stage)
    });
    let stage = stage.unwrap();
    let expired = stage.cohort.graph.committee()[0];
    let everybody = stage.without([]);
    let mut attack = Attack::new(&stage, []);
    let views: Vec<(u32, bool)> = stage.cohort_views.iter().map(|view| (view.index, late(view))).collect();
    for (u, _) in views.iter() {
        attack.mask(*u, &everybody).unwrap();
    }
    let with = stage.by_all(&everybody, &everybody);
    let members = stage.cohort.graph.committee()[1..6].iter();
    let payload = stage.endorsed_bytes(&everybody, &everybody);
    let without = stage.certificate(&everybody, &everybody, members.map(|&u| stage.signature(u, &payload)));
    let client = CAST.identities[expired as usize].client_id;
    let why = RosterError::Expired { client, not_after: ENDS, now: ENDS + 1 };
    let fault = ClientError::Certificate(CertificateFault::Leaf { signer: expired, why });
    let (mut early, mut refused) = (0, 0);
    for (u, is_late) in views {
        if is_late {
            assert_eq!(attack.refuses(u, View::Certificate(with.clone())), fault);
            assert_eq!(attack.show_certificate(u, &without), Ok(()));
            refused += 1;
        } else {
            assert_eq!(attack.show_certificate(u, &with), Ok(()));
            early += 1;
        }
    }
    assert!(early > 0 && refused > 0);
}

/// Revocation is the next epoch; a round that has begun goes on with its own. Half of the devices would refuse, else.
#[test]
fn a_signer_revoked_in_mid_round_counts_in_this_round() {
    let stage = Stage::new(&forty());
    let mut scene = Scene::new(&stage);
    scene.attack.devices[scene.victim as usize].record.see_roster_epoch(8).unwrap();
    scene.ends();
}

#[test]
fn signatures_on_anything_else() {
    let stage = Stage::new(&twelve());
    let mut scene = Scene::new(&stage);
    let (all, survivors) = (stage.without([]), stage.without([11]));
    let others = [
        stage.endorsed_bytes(&all, &stage.without([10])),
        stage.endorsed_bytes(&survivors, &survivors),
        [&[7; 32], &stage.endorsed_bytes(&all, &survivors)[32..]].concat(),
        stage.endorsed_bytes(&all, &survivors)[..96].to_vec(),
    ];
    let fault = CertificateFault::Signature { signer: 3 };
    for payload in others {
        let (_, signature) = stage.signature(3, &payload);
        assert_eq!(scene.fault(|it| it.endorsements[3].signature = signature), fault);
    }
    let payload = stage.endorsed_bytes(&all, &survivors);
    let key = Some(&CAST.identities[3].signing_key);
    let labelled = signed::sign_bytes(payload, label::SIG_UNMASK, key).signature;
    assert_eq!(scene.fault(|it| it.endorsements[3].signature = labelled), fault);
    assert_eq!(scene.fault(|it| it.endorsements[3].signature[9] ^= 1), fault);
    assert_eq!(scene.fault(|it| it.endorsements[3].signature.clear()), fault);
    assert_eq!(scene.fault(|it| it.endorsements[3].signature.push(0)), fault);
    scene.ends();
}

#[test]
fn the_certificate_of_another_cohort_round_or_task() {
    let stage = Stage::new(&twelve());
    let mut scene = Scene::new(&stage);
    for params in [
        proto::RoundParams { opened_at: 1, ..twelve() },
        proto::RoundParams { round: 2, ..twelve() },
        proto::RoundParams { task: "other".into(), ..twelve() },
    ] {
        let other = Stage::new(&params);
        let certificate = Scene::new(&other).good;
        assert_eq!(scene.refuses(certificate.clone()), ClientError::OtherCohort);
        // Under this cohort's name the first signature is wrong.
        let renamed = Certificate { cohort_id: stage.cohort.id.to_vec(), ..certificate };
        let fault = CertificateFault::Signature { signer: 0 };
        assert_eq!(scene.refuses(renamed), ClientError::Certificate(fault));
    }
    scene.ends();
}

#[test]
fn a_certificate_for_a_set_of_sharers_that_the_device_did_not_mask_for() {
    let stage = Stage::new(&forty());
    let everybody = stage.without([]);
    let mut attack = Attack::new(&stage, []);
    let victim = stage.at(0, 0);
    let told = stage.without([stage.at(0, 5)]);
    attack.mask(victim, &told).unwrap();
    let other = ClientError::Certificate(CertificateFault::OtherSharers);
    let certificate = stage.by_all(&everybody, &everybody);
    assert_eq!(attack.refuses(victim, View::Certificate(certificate.clone())), other);
    // Named as the set it masked for, the signatures are wrong; a hash of another length is none.
    let renamed = Certificate { sharers_hash: stage.by_all(&told, &told).sharers_hash, ..certificate.clone() };
    let inside = Certificate { survivors: stage.by_all(&told, &told).survivors, ..renamed };
    let error = attack.refuses(victim, View::Certificate(inside));
    assert!(matches!(error, ClientError::Certificate(CertificateFault::Signature { .. })), "{error}");
    let short = Certificate { sharers_hash: certificate.sharers_hash[..31].to_vec(), ..certificate };
    let error = attack.refuses(victim, View::Certificate(short));
    assert!(matches!(error, ClientError::Signed(SignedError::Malformed { .. })), "{error}");
    attack.show_certificate(victim, &stage.by_all(&told, &told)).unwrap();
}

/// The whole committee signs; each set is refused by the device itself, and by an honest member that is asked to endorse it.
#[test]
fn sets_of_survivors_that_no_device_reveals_for() {
    let stage = Stage::new(&forty());
    let victim = stage.at(0, 0);
    let absent = stage.at(0, 20);
    let sharers = stage.without([absent]);
    let near = |offsets: &[i64]| stage.without(offsets.iter().map(|&i| stage.at(0, i)).chain([absent]));
    let few: Vec<i64> = (6..19).step_by(3).flat_map(|i| [i, -i, i + 1]).collect();
    let few = near(&few[..10]);
    let place = stage.cohort.graph.thin_window(&near(&[6, 7, 8])).unwrap();
    let refused_by_all = [
        (stage.without([]), ClientError::NotInU1(absent)),
        (few, ClientError::TooFew { what: "survive", have: 29, need: 30 }),
        (near(&[6, 7, 8]), ClientError::ThinWindow { place }),
    ];
    let mut attack = Attack::new(&stage, []);
    attack.mask_all(&sharers);
    let member = *stage.cohort.graph.committee().iter().find(|&&u| u != victim && u != absent).unwrap();
    for (survivors, error) in refused_by_all {
        let certificate = stage.by_all(&sharers, &survivors);
        assert_eq!(attack.refuses(victim, View::Certificate(certificate)), error);
        assert_eq!(attack.refuses(member, View::Survivors(stage.survivors_view(&survivors))), error);
    }
    // All windows hold, but too few of the victim's own neighbours are left.
    let thinned = near(&[-4, -2, 2, 4]);
    let error = attack.refuses(victim, View::Certificate(stage.by_all(&sharers, &thinned)));
    assert_eq!(error, ClientError::TooFew { what: "of this device's neighbours survive", have: 6, need: 7 });
    // Nothing was recorded for what was refused.
    attack.show_certificate(victim, &stage.by_all(&sharers, &sharers)).unwrap();
}

#[test]
fn a_device_that_is_not_in_the_certified_set_erases_its_secrets() {
    let stage = Stage::new(&forty());
    let victim = (0..40).find(|&u| stage.cohort.graph.on_committee(u).is_none()).unwrap();
    let member = stage.cohort.graph.committee()[6];
    let everybody = stage.without([]);
    let survivors = stage.without([victim, member]);
    let mut attack = Attack::new(&stage, []);
    attack.mask_all(&everybody);
    // A member signs for a set without itself: it may have been slow.
    attack.ask(member, &survivors).unwrap();
    let mut unsigned = stage.by_all(&everybody, &survivors);
    unsigned.endorsements[0].signature[0] ^= 1;
    let certificate = stage.by_all(&everybody, &survivors);
    for u in [victim, member] {
        // On a valid certificate alone: anybody could end a round, else.
        let error = attack.refuses(u, View::Certificate(unsigned.clone()));
        assert!(matches!(error, ClientError::Certificate(CertificateFault::Signature { .. })), "{error}");
        let error = attack.closes(u, View::Certificate(certificate.clone()), NOW);
        assert_eq!(error, ClientError::CertifiedWithout);
    }
    assert!(attack.sums().is_empty());
}

#[test]
fn who_is_not_on_the_committee_endorses_nothing() {
    let stage = Stage::new(&forty());
    let everybody = stage.without([]);
    let mut attack = Attack::new(&stage, []);
    let others: Vec<u32> = (0..40).filter(|&u| stage.cohort.graph.on_committee(u).is_none()).collect();
    assert_eq!(others.len(), 33);
    for u in others {
        attack.mask(u, &everybody).unwrap();
        let error = attack.refuses(u, View::Survivors(stage.survivors_view(&everybody)));
        assert_eq!(error, ClientError::NotOnCommittee);
    }
}
