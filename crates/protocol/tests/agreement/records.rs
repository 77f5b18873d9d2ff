//! What the record keeps a restarted, doubled or late device from (section 8), and what a device refuses of a cohort.

use unisono_crypto::kdf::label;
use unisono_protocol::client::ClientError;
use unisono_protocol::cohort::{CohortError, Members};
use unisono_protocol::ids::CohortId;
use unisono_protocol::policy::{MemoryRecord, ParticipationRecord, RecordError, TaskEntry};
use unisono_protocol::proto::{self, CohortView, ServerMessage, client_message::Step, server_message::View};
use unisono_protocol::signed;

use crate::malicious::{Attack, Kept, Stage, forty, twelve};
use crate::world::{CAST, Device, NOW};

fn entry(record: &MemoryRecord) -> TaskEntry {
    record.entry("test").unwrap().unwrap()
}

/// Changes the entry behind the device's back.
fn rewrite(record: &mut MemoryRecord, change: impl FnOnce(&mut TaskEntry)) {
    let before = entry(record);
    let mut next = before.clone();
    change(&mut next);
    record.replace("test", Some(&before), next).unwrap();
}

/// Device 0 in each of its states, with the view that it waits for there.
fn states(stage: &Stage) -> Vec<(Kept, View)> {
    let everybody = stage.without([]);
    let mut attack = Attack::new(stage, []);
    let certificate = View::Certificate(stage.by_all(&everybody, &everybody));
    let survivors = View::Survivors(stage.survivors_view(&everybody));
    attack.mask(0, &everybody).unwrap();
    let masked = attack.keep(0);
    attack.ask(0, &everybody).unwrap();
    let confirmed = attack.keep(0);
    vec![
        (stage.kept[0][0].clone(), View::Cohort(stage.cohort_views[0].clone())),
        (stage.kept[0][1].clone(), View::Masking(stage.masking_view(0, &everybody))),
        (masked.clone(), survivors),
        (masked, certificate.clone()),
        (confirmed, certificate),
    ]
}

const OLD: fn() -> ClientError = || ClientError::OldRound { task: "test".into(), round: 1, last: 2 };
const NOT_RECORDED: fn() -> ClientError = || ClientError::NotRecorded { task: "test".into(), round: 1 };
const OTHER: fn() -> ClientError = || ClientError::OtherSurvivors { task: "test".into(), round: 1 };

#[test]
fn every_saved_state_is_closed_by_a_record_of_a_later_round() {
    let stage = Stage::new(&twelve());
    let mut attack = Attack::new(&stage, []);
    let later = entry(&stage.kept[0][1].record);
    for (kept, view) in states(&stage) {
        attack.set_back(0, &kept, true);
        let record = &mut attack.devices[0].record;
        let before = record.entry("test").unwrap();
        let next = TaskEntry { round: 2, masked_for: None, survivors: None, ..later.clone() };
        record.replace("test", before.as_ref(), next).unwrap();
        assert_eq!(attack.closes(0, view, NOW), OLD());
    }
    assert!(attack.sums().is_empty());
}

/// The round was abandoned without a quorum, as the coordinator said; the next one has begun. Then it turns up with a certificate.
#[test]
fn a_late_certificate_of_an_abandoned_round() {
    let stage = Stage::new(&twelve());
    let everybody = stage.without([]);
    let mut attack = Attack::new(&stage, []);
    attack.mask_all(&everybody);
    let next = Stage::new(&proto::RoundParams { round: 2, ..twelve() });
    for u in 0..12 {
        let mut device = next.device(u, &next.kept[u as usize][0]);
        device.record = attack.devices[u as usize].record.clone();
        let view = View::Cohort(next.cohort_views[u as usize].clone());
        device.receive(&ServerMessage { view: Some(view) }).unwrap();
        attack.devices[u as usize].record = device.record;
        let certificate = stage.by_all(&everybody, &everybody);
        assert_eq!(attack.closes(u, View::Certificate(certificate), NOW), OLD());
    }
    assert!(attack.sums().is_empty());
}

#[test]
fn a_record_that_was_lost_or_is_of_another_cohort_moves_nothing() {
    let stage = Stage::new(&twelve());
    let mut attack = Attack::new(&stage, []);
    // From the masked input on the record must know the step before.
    for (kept, view) in states(&stage).into_iter().skip(1) {
        attack.set_back(0, &kept, true);
        attack.devices[0].record = MemoryRecord::default();
        assert_eq!(attack.refuses(0, view.clone()), NOT_RECORDED());
        attack.set_back(0, &kept, true);
        rewrite(&mut attack.devices[0].record, |entry| entry.cohort = CohortId([9; 32]));
        assert_eq!(attack.refuses(0, view.clone()), NOT_RECORDED());
        if matches!(view, View::Masking(_)) {
            continue;
        }
        for masked_for in [None, Some([9; 32])] {
            attack.set_back(0, &kept, true);
            rewrite(&mut attack.devices[0].record, |entry| entry.masked_for = masked_for);
            assert_eq!(attack.refuses(0, view.clone()), NOT_RECORDED());
        }
    }
    assert!(attack.sums().is_empty());
}

/// A device that is killed before it has written its new state, and starts again from the one before. Its record is right.
#[test]
fn a_restart_before_each_step_repeats_it_for_the_same_sets_only() {
    let stage = Stage::new(&twelve());
    let everybody = stage.without([]);
    let others = stage.without([11]);
    let mut attack = Attack::new(&stage, []);
    let own = entry(&stage.kept[0][1].record);

    // Before the shares.
    attack.set_back(0, &stage.kept[0][0], true);
    attack.devices[0].record = stage.kept[0][1].record.clone();
    let again = attack.closes(0, View::Cohort(stage.cohort_views[0].clone()), NOW);
    assert_eq!(again, ClientError::OldRound { task: "test".into(), round: 1, last: 1 });
    // Before the masked input: not even for the same set.
    attack.set_back(0, &stage.kept[0][1], true);
    attack.mask(0, &everybody).unwrap();
    let masked = attack.keep(0);
    for sharers in [&everybody, &others] {
        attack.set_back(0, &stage.kept[0][1], false);
        let view = View::Masking(stage.masking_view(0, sharers));
        let once = ClientError::AlreadyMasked { task: "test".into(), round: 1 };
        assert_eq!(attack.refuses(0, view), once);
    }
    // Before the endorsement: the same set again, no other.
    attack.set_back(0, &masked, true);
    let signed = |attack: &Attack<'_>| match &attack.devices[0].message().unwrap().step {
        Some(Step::Endorsement(signed)) => signed.payload.clone(),
        _ => panic!("no endorsement"),
    };
    attack.ask(0, &everybody).unwrap();
    let (first, confirmed) = (signed(&attack), attack.keep(0));
    attack.set_back(0, &masked, false);
    assert_eq!(attack.refuses(0, View::Survivors(stage.survivors_view(&others))), OTHER());
    attack.ask(0, &everybody).unwrap();
    assert_eq!(signed(&attack), first);
    // Before the shares are revealed, from both states: the same set, no other, were it certified.
    for kept in [&masked, &confirmed] {
        attack.set_back(0, kept, false);
        let other = View::Certificate(stage.by_all(&everybody, &others));
        assert_eq!(attack.refuses(0, other), OTHER());
        attack.show_certificate(0, &stage.by_all(&everybody, &everybody)).unwrap();
        attack.set_back(0, kept, false);
        attack.show_certificate(0, &stage.by_all(&everybody, &everybody)).unwrap();
    }
    let now = entry(&attack.devices[0].record);
    assert_eq!((now.round, now.cohort, now.spent.rounds), (1, own.cohort, 1));
}

/// A record that another session of the same device writes to, between this one's reading and writing.
struct Raced {
    record: MemoryRecord,
    other: Option<TaskEntry>,
}

impl ParticipationRecord for Raced {
    fn entry(&self, task: &str) -> Result<Option<TaskEntry>, RecordError> {
        self.record.entry(task)
    }

    fn replace(&mut self, task: &str, expected: Option<&TaskEntry>, next: TaskEntry) -> Result<(), RecordError> {
        if let Some(other) = self.other.take() {
            let before = self.record.entry(task)?;
            self.record.replace(task, before.as_ref(), other)?;
        }
        self.record.replace(task, expected, next)
    }

    fn roster_epoch(&self) -> Result<u64, RecordError> {
        self.record.roster_epoch()
    }

    fn see_roster_epoch(&mut self, epoch: u64) -> Result<(), RecordError> {
        self.record.see_roster_epoch(epoch)
    }
}

#[test]
fn of_two_sessions_of_one_device_one_goes_on() {
    let stage = Stage::new(&twelve());
    let shared = entry(&stage.kept[0][1].record);
    let other = CohortId([9; 32]);
    for (at, (kept, view)) in states(&stage).into_iter().take(4).enumerate() {
        let Device { session, record, input, .. } = stage.device(0, &kept);
        let mut session = session.unwrap();
        let theirs = match at {
            0 => TaskEntry { cohort: other, ..shared.clone() },
            1 => TaskEntry { masked_for: Some([9; 32]), ..shared.clone() },
            _ => TaskEntry { survivors: Some([9; 32]), ..entry(&record) },
        };
        let mut raced = Raced { record, other: Some(theirs.clone()) };
        let before = session.message().cloned();
        let mut rng = rand::rng();
        let lost = session.receive(&view, Some(input.clone()), &mut raced, NOW, &mut rng);
        assert_eq!(lost, Err(ClientError::Record(RecordError::Changed)));
        assert!(session.message().cloned() == before && raced.record.entry("test").unwrap() == Some(theirs));
        // The next try reads what the other wrote.
        let next = session.receive(&view, Some(input), &mut raced, NOW, &mut rng).unwrap_err();
        match at {
            0 => assert!(matches!(next, ClientError::OldRound { last: 1, .. })),
            1 => assert!(matches!(next, ClientError::AlreadyMasked { .. })),
            _ => assert_eq!(next, OTHER()),
        }
    }
}

#[test]
fn a_device_stops_at_its_own_deadline_in_every_phase() {
    // 2 times the sum of 10, 20, 30 and 40 seconds and a minute after the cohort was accepted.
    let deadlines = proto::PhaseDeadlines {
        advertise_ms: 7_000,
        share_ms: 10_000,
        mask_ms: 20_000,
        confirm_ms: 30_000,
        unmask_ms: 40_000,
    };
    let stage = Stage::new(&proto::RoundParams { deadlines: Some(deadlines), ..twelve() });
    let erase_at = NOW + 260;
    let mut attack = Attack::new(&stage, []);
    for (kept, view) in states(&stage).into_iter().skip(1) {
        attack.set_back(0, &kept, true);
        assert_eq!(attack.devices[0].session.as_ref().unwrap().erase_at(), Some(erase_at));
        let late = ClientError::Expired { erase_at, now: erase_at + 1 };
        assert_eq!(attack.closes(0, view.clone(), erase_at + 1), late);
        attack.set_back(0, &kept, true);
        assert_eq!(attack.show_at(0, view, erase_at), Ok(()));
    }
}

/// The view of device `u` with a changed cohort, signed by the coordinator.
fn forged(stage: &Stage, u: u32, change: impl FnOnce(&mut proto::Cohort, &mut CohortView)) -> View {
    use prost::Message;
    let mut view = stage.cohort_views[u as usize].clone();
    let mut cohort = proto::Cohort::decode(view.cohort.as_ref().unwrap().payload.as_slice()).unwrap();
    change(&mut cohort, &mut view);
    view.cohort = Some(signed::sign(&cohort, label::SIG_COHORT, Some(&CAST.coordinator)));
    View::Cohort(view)
}

/// The device, which has advertised, refuses the view; then it takes the right one.
fn refuses_cohort(stage: &Stage, u: u32, view: View) -> ClientError {
    let mut attack = Attack::new(stage, []);
    attack.set_back(u, &stage.kept[u as usize][0], true);
    let error = attack.refuses(u, view);
    assert_eq!(attack.show(u, View::Cohort(stage.cohort_views[u as usize].clone())), Ok(()));
    error
}

#[test]
fn a_cohort_with_another_committee_quorum_or_threshold() {
    let stage = Stage::new(&forty());
    let changes: [fn(&mut proto::Cohort); 6] = [
        |cohort| cohort.quorum -= 1,
        |cohort| cohort.committee -= 1,
        |cohort| (cohort.committee, cohort.quorum) = (40, 5),
        |cohort| (cohort.committee, cohort.quorum) = (0, 0),
        |cohort| cohort.threshold -= 1,
        |cohort| cohort.window_bound = Some(1),
    ];
    for change in changes {
        let error = refuses_cohort(&stage, 3, forged(&stage, 3, |cohort, _| change(cohort)));
        assert!(matches!(error, ClientError::Cohort(CohortError::Topology { .. })), "{error}");
    }
}

#[test]
fn a_list_of_members_that_has_another_client_at_this_devices_place() {
    let stage = Stage::new(&forty());
    let relisted = |places: Vec<u64>| {
        let members = Members::new(places).unwrap();
        forged(&stage, 3, |cohort, view| {
            (cohort.members_hash, view.members) = (members.hash().to_vec(), members.to_wire())
        })
    };
    // All one place further; and this device's place given to a stranger alone.
    assert_eq!(refuses_cohort(&stage, 3, relisted((1..41).collect())), ClientError::OwnPlace(3));
    assert_eq!(
        refuses_cohort(&stage, 39, {
            let members = Members::new((0..39).chain([77]).collect()).unwrap();
            forged(&stage, 39, |cohort, view| {
                (cohort.members_hash, view.members) = (members.hash().to_vec(), members.to_wire());
            })
        }),
        ClientError::OwnPlace(39)
    );
    // Another client's leaf, at the place that the list gives, is not this device's.
    let view = forged(&stage, 3, |_, view| view.own_roster = stage.leaf(4));
    assert_eq!(refuses_cohort(&stage, 3, view), ClientError::OwnPlace(3));
    let view = forged(&stage, 3, |_, view| view.own_roster = None);
    assert_eq!(refuses_cohort(&stage, 3, view), ClientError::Missing("roster leaf of this device in the view"));
}
