//! The attack of two sets: regions of the ring are told other sets of sharers, and are to reveal for other sets of survivors. It
//! broke the protocol with tags between neighbours. Then each rule that stands against it, off: the same computation finds the break.

use std::collections::BTreeSet;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use unisono_protocol::client::{CertificateFault, ClientError};
use unisono_protocol::proto;

use crate::knowledge::Seeds;
use crate::malicious::{Attack, Stage, forty, twelve};
use crate::plan::{Plan, cut, one_region, play};
use crate::world::params;

#[test]
fn both_solutions_that_broke_tags_open_nothing_now() {
    // 39 clients without a colluder, an arc of nine; 100 with five, two clients in reach of all five.
    let thirty_nine = Stage::new(&params(true, 25, 39, 0.05, 0.1, 20));
    let mut hundred = params(true, 85, 100, 0.05, 0.05, 20);
    hundred.modulus_bits = 15;
    let hundred = Stage::new(&hundred);
    for (stage, length, beside) in [(&thirty_nine, 9, "..m...m"), (&hundred, 2, "CmCmm")] {
        for start in [0, 13, 27] {
            for plan in [cut(stage, &[(start, length)], beside), one_region(cut(stage, &[(start, length)], beside))] {
                let verdict = play(stage, &plan);
                verdict.holds();
                assert!(verdict.refused(|it| matches!(it, ClientError::OtherSurvivors { .. })));
                assert!(verdict.refused(|it| matches!(it, ClientError::Certificate(CertificateFault::OtherSharers))));
            }
        }
    }
}

#[test]
fn no_arc_is_cut_off_whatever_its_size_and_its_border() {
    let stage = Stage::new(&forty());
    let mut opened = 0;
    for length in [1, 2, 9, 20] {
        for beside in ["", "mm", "mmC", "Cm.m"] {
            for arcs in [vec![(length, length)], vec![(3, length), (3 + 20, length)]] {
                // Two arcs with a colluder on each side of each would be four of them.
                if arcs.len() == 2 && beside.contains('C') || arcs.len() * length > 20 {
                    continue;
                }
                opened += usize::from(play(&stage, &cut(&stage, &arcs, beside)).holds());
                opened += usize::from(play(&stage, &one_region(cut(&stage, &arcs, beside))).holds());
            }
        }
    }
    assert!(opened > 5, "{opened} attacks left the round whole");
}

/// One false set of sharers for all, without those next to an arc: it is certified, and cuts nothing off while windows hold.
#[test]
fn a_false_set_of_sharers_that_is_certified_cuts_nothing_off() {
    let stage = Stage::new(&forty());
    for (left_out, thin) in [(vec![1, 2], false), (vec![2, 4, 5], true), (vec![1, 2, 3, 4, 5], true)] {
        let sides = left_out.into_iter().flat_map(|i| [stage.at(11, -i), stage.at(11, 8 + i)]);
        let sharers = stage.without(sides);
        let mut plan = Plan::honest(&stage, [stage.at(11, -6), stage.at(11, 14)], [sharers.clone(), sharers.clone()]);
        for u in (0..40).filter(|&u| sharers[u]) {
            plan.told[u] = sharers.clone();
        }
        let verdict = play(&stage, &plan);
        assert_eq!((verdict.holds(), verdict.certified.is_empty()), (!thin, thin));
        assert_eq!(verdict.refused(|it| matches!(it, ClientError::ThinWindow { .. })), thin);
    }
}

/// Sets, colluders and regions at random.
fn random(stage: &Stage, rng: &mut ChaCha8Rng, colluders: usize) -> Plan {
    let n = stage.n();
    let everybody: Vec<u32> = (0..n).collect();
    let colluders: Vec<u32> = everybody.sample(rng, colluders).copied().collect();
    let n_min = stage.server.params().wire.n_min as usize;
    let mut set = || loop {
        let gone = rng.random_range(0..=n as usize - n_min);
        let set = stage.without(everybody.sample(rng, gone).copied());
        if stage.cohort.graph.thin_window(&set).is_none() {
            break set;
        }
    };
    let sets = [set(), set()];
    let mut plan = Plan::honest(stage, colluders, sets);
    // Where anybody was told another set, nothing opens as a rule; so often nobody is.
    let liars = if rng.random_bool(0.5) { rng.random_range(1..=n as usize / 4) } else { 0 };
    for &u in everybody.sample(rng, liars) {
        let mut neighbours = stage.cohort.graph.neighbours(u);
        neighbours.shuffle(rng);
        let left_out = rng.random_range(0..=neighbours.len() - stage.cohort.threshold() + 1);
        plan.told[u as usize] = stage.without(neighbours[..left_out].iter().copied());
    }
    // One false set for a whole region, too.
    if liars > 0 && rng.random_bool(0.5) {
        let common = stage.without(everybody.sample(rng, 5).copied());
        let start = rng.random_range(0..n as usize);
        (0..rng.random_range(1..n as i64)).for_each(|i| plan.told[stage.at(start, i) as usize] = common.clone());
    }
    if rng.random_bool(0.5) {
        plan.region.iter_mut().for_each(|region| *region = rng.random_range(0..2));
    }
    plan
}

#[test]
fn random_sets_colluders_and_regions_open_nothing() {
    let mut rng = ChaCha8Rng::seed_from_u64(16);
    for (params, colluders) in [(forty(), 2), (twelve(), 1)] {
        let stage = Stage::new(&params);
        let (mut opened, mut certified) = (0, 0);
        for _ in 0..25 {
            let verdict = play(&stage, &random(&stage, &mut rng, colluders));
            opened += usize::from(verdict.holds());
            certified += verdict.certified.len();
        }
        assert!(certified > 5 && opened > 0, "{certified} certificates, {opened} sums: the plays are too wild");
    }
}

/// The rule off: one mask a pair, whatever its two ends were told. A cut of nine of forty opens then, under one certificate.
#[test]
fn without_the_sharers_in_the_seeds_an_arc_is_cut_off() {
    let stage = Stage::new(&forty());
    let mut cuts = 0;
    for start in (0..40).step_by(3) {
        let verdict = play(&stage, &one_region(cut(&stage, &[(start, 9)], "mmC")));
        verdict.holds();
        let mut arc: Vec<(u32, i64)> = (0..9).map(|i| (stage.at(start, i), 1)).collect();
        arc.sort_unstable();
        let knowledge = &verdict.attack.knowledge;
        let unbound = knowledge.combinations(Seeds::Unbound);
        cuts += usize::from(unbound.iter().any(|combination| knowledge.inputs_in(combination) == arc));
    }
    assert!(cuts > 3, "{cuts} cuts");
}

/// Two sets for the whole cohort, the second one without one victim; `colluders` members of the committee sign for both.
fn two_certificates(stage: &Stage, colluders: usize) -> (u32, Plan) {
    let graph = &stage.cohort.graph;
    let victim = (0..stage.n()).rfind(|&u| graph.complete() || graph.on_committee(u).is_none()).unwrap();
    let committee = graph.committee();
    let mut plan =
        Plan::honest(stage, committee[..colluders].iter().copied(), [stage.without([]), stage.without([victim])]);
    plan.region.fill(1);
    plan.region[victim as usize] = 0;
    // The honest members in two halves.
    let honest = committee[colluders..].iter().filter(|&&u| u != victim);
    let half = (committee.len() - colluders) / 2;
    honest.take(half - usize::from(graph.on_committee(victim).is_some())).for_each(|&u| plan.region[u as usize] = 0);
    (victim, plan)
}

#[test]
fn one_colluder_more_on_the_committee_gives_two_certificates() {
    for (params, assumed) in [(forty(), 2), (twelve(), 1)] {
        let stage = Stage::new(&params);
        let (_, plan) = two_certificates(&stage, assumed);
        let verdict = play(&stage, &plan);
        verdict.holds();
        let need = stage.cohort.graph.quorum();
        let one_short = ClientError::Certificate(CertificateFault::Quorum { have: need - 1, need });
        assert!(verdict.refused(|it| *it == one_short), "{:?}", verdict.refusals);

        let (victim, plan) = two_certificates(&stage, assumed + 1);
        let verdict = play(&stage, &plan);
        assert_eq!(verdict.certified.len(), 2);
        assert!(verdict.sums.contains(&vec![(victim, 1)]), "{:?}", verdict.sums);
    }
}

/// A victim at place `at` of the ring with `colluders` among its neighbours, one certificate. It hears that only those neighbours shared
/// that are to drop out (and the colluders); the others reveal their shares of its self-mask secret.
fn disjoint_holders(stage: &Stage, at: usize, colluders: usize) -> (u32, Plan) {
    let graph = &stage.cohort.graph;
    let victim = stage.at(at, 0);
    let reach = stage.cohort.graph.topology().degree as i64;
    let near = (1..=(reach + 1) / 2).flat_map(|i| [stage.at(at, i), stage.at(at, -i)]);
    let mut near: Vec<u32> = near.filter(|&v| v != victim && graph.adjacent(victim, v)).collect();
    let mut seen = BTreeSet::new();
    near.retain(|&v| seen.insert(v));
    let mut dropped = BTreeSet::new();
    for &v in &near {
        let more: Vec<u32> = dropped.iter().copied().chain([v]).collect();
        if dropped.len() + colluders < stage.cohort.threshold() && graph.thin_window(&stage.without(more)).is_none() {
            dropped.insert(v);
        }
    }
    let rest: Vec<u32> = near.into_iter().filter(|v| !dropped.contains(v)).collect();
    let survivors = stage.without(dropped.iter().copied());
    let mut plan = Plan::honest(stage, rest[..colluders].iter().copied(), [survivors.clone(), survivors]);
    plan.told[victim as usize] = stage.without(rest[colluders..].iter().copied());
    (victim, plan)
}

/// `2 t > k + A`: two sets of `t` holders have an honest one in common. `t` can't be made smaller, devices compute it; so there are more
/// colluders in one neighbourhood, until `2 t = k + A`.
#[test]
fn as_many_colluders_around_one_client_as_the_threshold_is_too_small_for() {
    for (params, at) in [(forty(), 0), (forty(), 17), (twelve(), 5)] {
        let stage = Stage::new(&params);
        let topology = stage.cohort.graph.topology();
        let too_many = (2 * topology.threshold - topology.degree) as usize;
        for colluders in too_many - 2..too_many {
            let (_, plan) = disjoint_holders(&stage, at, colluders);
            assert!(!play(&stage, &plan).holds(), "its neighbours' masks with it are left");
        }
        let (victim, plan) = disjoint_holders(&stage, at, too_many);
        let verdict = play(&stage, &plan);
        assert_eq!(verdict.certified.len(), 1);
        assert_eq!(verdict.sums, [vec![(victim, 1)]]);
    }
}

/// Twelve clients, of whom one colludes and four drop out after masking; the round is over. Then three are put back to before they
/// masked, with or without their record, and told a set of sharers of their own.
fn mask_again(stage: &Stage, with_record: bool) -> (Attack<'_>, Vec<bool>, Vec<ClientError>) {
    let everybody = stage.without([]);
    let (colluder, again, dropped) = (0, 1..4, 4..8);
    let mut attack = Attack::new(stage, [colluder]);
    attack.mask_all(&everybody);
    let survivors = stage.without(dropped);
    for u in attack.honest() {
        attack.ask(u, &survivors).unwrap();
    }
    let certificate = attack.certificate(&everybody, &survivors);
    for u in attack.honest() {
        let shown = attack.show_certificate(u, &certificate);
        assert_eq!(shown.err(), (!survivors[u as usize]).then_some(ClientError::CertifiedWithout));
    }
    assert_eq!(attack.sums(), [attack.sum_over(&survivors)]);
    let own = stage.without(8..12);
    let mut refusals = Vec::new();
    for u in again {
        attack.set_back(u, &stage.kept[u as usize][1], with_record);
        refusals.extend(attack.mask(u, &own).err());
    }
    (attack, survivors, refusals)
}

#[test]
fn devices_that_mask_twice_because_their_record_was_set_back_are_read() {
    let stage = Stage::new(&twelve());
    let (attack, survivors, refusals) = mask_again(&stage, true);
    assert_eq!(refusals, []);
    assert_eq!(attack.sums(), [attack.sum_over(&survivors), vec![(1, 1), (2, 1), (3, 1)]]);

    let (attack, survivors, refusals) = mask_again(&stage, false);
    let again = ClientError::AlreadyMasked { task: "test".into(), round: 1 };
    assert_eq!(refusals, [again.clone(), again.clone(), again]);
    assert_eq!(attack.sums(), [attack.sum_over(&survivors)]);
}

#[test]
fn a_second_input_for_the_same_set_would_give_the_difference() {
    let stage = Stage::new(&twelve());
    let everybody = stage.without([]);
    for with_record in [true, false] {
        let mut attack = Attack::new(&stage, []);
        attack.mask_all(&everybody);
        attack.devices[5].input = attack.devices[6].input.clone();
        attack.set_back(5, &stage.kept[5][1], with_record);
        let again = attack.mask(5, &everybody);
        if with_record {
            assert_eq!((again, attack.sums()), (Ok(()), vec![vec![(5, -1), (5, 1)]]));
        } else {
            let refused = ClientError::AlreadyMasked { task: "test".into(), round: 1 };
            assert_eq!((again, attack.sums()), (Err(refused), vec![]));
        }
    }
}

/// A member whose record was set back endorses a second set: it counts as a colluder.
#[test]
fn a_member_that_endorses_twice_because_its_record_was_set_back() {
    let stage = Stage::new(&forty());
    let (victim, mut plan) = two_certificates(&stage, 2);
    plan.region[victim as usize] = 0;
    let [all, rest] = plan.sets.clone();
    let members: Vec<u32> = stage.cohort.graph.committee()[2..].to_vec();
    for with_record in [true, false] {
        let mut attack = Attack::new(&stage, plan.colluders.iter().copied());
        attack.mask_all(&stage.without([]));
        let twice = attack.keep(members[0]);
        members[..3].iter().for_each(|&u| attack.ask(u, &all).unwrap());
        members[3..].iter().for_each(|&u| attack.ask(u, &rest).unwrap());
        attack.set_back(members[0], &twice, with_record);
        let again = attack.ask(members[0], &rest);
        assert_eq!(again.is_ok(), with_record);
        let certificates = [&all, &rest].map(|set| attack.certificate(&stage.without([]), set));
        attack.show_certificate(victim, &certificates[0]).unwrap();
        for u in attack.honest().filter(|&u| u != victim) {
            let short = ClientError::Certificate(CertificateFault::Quorum { have: 4, need: 5 });
            let other = ClientError::OtherSurvivors { task: "test".into(), round: 1 };
            let expected = match members[1..3].contains(&u) {
                _ if !with_record => Err(short),
                true => Err(other),
                false => Ok(()),
            };
            assert_eq!(attack.show_certificate(u, &certificates[1]), expected);
        }
        assert_eq!(attack.sums().contains(&vec![(victim, 1)]), with_record);
        assert!(with_record || attack.sums().is_empty());
    }
}

/// The other solutions of today's regime, larger: where more are assumed in all than in a neighbourhood or on the committee.
#[test]
fn the_sizes_that_the_plans_stand_on() {
    let sizes = |params: &proto::RoundParams| {
        let round = crate::world::open(params);
        let topology = round.params().topology(params.n_max).unwrap();
        (topology.degree, topology.threshold, topology.window_bound, topology.committee.map(|it| (it.size, it.quorum)))
    };
    assert_eq!(sizes(&forty()), (10, 7, Some(2), Some((7, 5))));
    assert_eq!(sizes(&twelve()), (11, 7, None, Some((12, 7))));
}
