//! What a lying coordinator tries with two sets of survivors, and what comes of it.

use std::collections::BTreeSet;

use unisono_protocol::client::{CertificateFault, ClientError};

use crate::malicious::{Attack, Stage};

/// What a coordinator tells whom.
pub struct Plan {
    pub colluders: BTreeSet<u32>,
    /// U1, by client.
    pub told: Vec<Vec<bool>>,
    /// Two sets of survivors.
    pub sets: [Vec<bool>; 2],
    /// The set that each client is shown first, as a member of the committee and in a certificate.
    pub region: Vec<usize>,
}

impl Plan {
    /// Everybody hears the truth, and the first set.
    pub fn honest(stage: &Stage, colluders: impl IntoIterator<Item = u32>, sets: [Vec<bool>; 2]) -> Self {
        let n = stage.n() as usize;
        Self { colluders: colluders.into_iter().collect(), told: vec![vec![true; n]; n], sets, region: vec![0; n] }
    }
}

/// What came of it.
pub struct Verdict<'a> {
    pub attack: Attack<'a>,
    /// The pairs of sets that were certified.
    pub certified: BTreeSet<(Vec<bool>, Vec<bool>)>,
    pub refusals: Vec<ClientError>,
    pub sums: Vec<Vec<(u32, i64)>>,
}

impl Verdict<'_> {
    /// One pair was certified at the most, and nothing opened but the sum over all honest members of its survivors. Gives whether it did.
    pub fn holds(&self) -> bool {
        assert!(self.certified.len() <= 1, "two certificates");
        let one = self.certified.first().map(|(_, survivors)| self.attack.sum_over(survivors));
        assert!(self.sums.iter().all(|sum| one.as_ref() == Some(sum)), "opened: {:?} beside {one:?}", self.sums);
        for refusal in &self.refusals {
            use CertificateFault::{OtherSharers, Quorum};
            use ClientError::{
                Certificate, CertifiedWithout, Erased, LeftOut, NotInU1, OtherSurvivors, ThinWindow, TooFew,
            };
            let expected = matches!(
                refusal,
                Certificate(OtherSharers | Quorum { .. })
                    | CertifiedWithout
                    | Erased
                    | LeftOut(_)
                    | NotInU1(_)
                    | OtherSurvivors { .. }
                    | ThinWindow { .. }
                    | TooFew { .. }
            );
            assert!(expected, "{refusal}");
        }
        !self.sums.is_empty()
    }

    pub fn refused(&self, with: impl Fn(&ClientError) -> bool) -> bool {
        self.refusals.iter().any(with)
    }
}

/// Plays a plan as well as it can be played: members that endorsed are put back to before and asked for the other set, each device is
/// shown each certificate, also those without a quorum, until it reveals.
pub fn play<'a>(stage: &'a Stage, plan: &Plan) -> Verdict<'a> {
    let mut attack = Attack::new(stage, plan.colluders.iter().copied());
    let graph = &stage.cohort.graph;
    let mut refusals = Vec::new();
    for u in attack.honest() {
        refusals.extend(attack.mask(u, &plan.told[u as usize]).err());
    }
    let masked: BTreeSet<u32> = attack.honest().filter(|&u| attack.devices[u as usize].upload().is_some()).collect();
    let order = |u: u32| [plan.region[u as usize], 1 - plan.region[u as usize]].map(|at| &plan.sets[at]);
    for &u in masked.iter().filter(|&&u| graph.on_committee(u).is_some()) {
        for set in order(u) {
            // Killed before it could write down what it had signed; the record could.
            let before = attack.keep(u);
            refusals.extend(attack.ask(u, set).err());
            attack.set_back(u, &before, false);
        }
    }
    let told: BTreeSet<&Vec<bool>> = plan.told.iter().collect();
    let pairs = || plan.sets.iter().flat_map(|set| told.iter().map(move |sharers| (*sharers, set)));
    let certificates: Vec<_> = pairs().map(|(sharers, set)| (set, attack.certificate(sharers, set))).collect();
    let certified = pairs().zip(&certificates).filter(|(_, (_, it))| it.endorsements.len() == graph.quorum());
    let certified: BTreeSet<_> = certified.map(|((sharers, set), _)| (sharers.clone(), set.clone())).collect();
    for &u in &masked {
        for wanted in order(u) {
            for (_, certificate) in certificates.iter().filter(|(set, _)| *set == wanted) {
                refusals.extend(attack.show_certificate(u, certificate).err());
            }
        }
    }
    let sums = attack.sums();
    Verdict { attack, certified, refusals, sums }
}

/// The arc of `length` places from `start` is to be cut off. What lies next to it outside, on each side and from the arc
/// outwards: `m` dropped out, so its mask secret is revealed; `C` colludes. Who is in the arc hears that no honest client outside shared
/// its keys, but for those that dropped out, as far as it can be told so.
pub fn cut(stage: &Stage, arcs: &[(usize, usize)], beside: &str) -> Plan {
    let inside: BTreeSet<u32> = arcs
        .iter()
        .flat_map(|&(start, length)| (0..length).map(move |i| (start, i as i64)))
        .map(|(at, i)| stage.at(at, i))
        .collect();
    let (mut dropped, mut colluders) = (BTreeSet::new(), BTreeSet::new());
    for &(start, length) in arcs {
        for (i, what) in beside.chars().enumerate() {
            for u in [stage.at(start, -1 - i as i64), stage.at(start, (length + i) as i64)] {
                match what {
                    'm' => dropped.insert(u),
                    'C' => colluders.insert(u),
                    _ => false,
                };
            }
        }
    }
    let threshold = stage.cohort.threshold();
    // The other set: as many members of the arcs dropped as the windows and n_min allow.
    let mut other = stage.without([]);
    for &u in &inside {
        other[u as usize] = false;
        let few = other.iter().filter(|&&it| it).count() < stage.server.params().wire.n_min as usize;
        other[u as usize] = few || stage.cohort.graph.thin_window(&other).is_some();
    }
    let mut plan = Plan::honest(stage, colluders.clone(), [stage.without(dropped.iter().copied()), other]);
    for &g in &inside {
        let neighbours = stage.cohort.graph.neighbours(g);
        let (strangers, mut friends): (Vec<u32>, Vec<u32>) =
            neighbours.into_iter().partition(|v| !inside.contains(v) && !dropped.contains(v) && !colluders.contains(v));
        let missing = threshold.saturating_sub(friends.len());
        friends.extend(&strangers[..missing]);
        plan.told[g as usize] = stage.without(strangers[missing..].iter().copied());
    }
    for u in 0..stage.n() {
        plan.region[u as usize] = usize::from(!inside.contains(&u));
    }
    plan
}

/// All is asked of everybody for one set: what a plan with a single certificate gives.
pub fn one_region(mut plan: Plan) -> Plan {
    plan.region.fill(0);
    plan
}
