//! A device killed at every write and at every send of a round, restarted from each state that it ever saved, and shown other
//! views than before by a coordinator that knows: it never answers twice differently, and its record comes before its bytes.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use unisono::client::Record;
use unisono_crypto::ring::RingVector;
use unisono_protocol::bitmap;
use unisono_protocol::client::{ClientError, Identity, Session, Trust};
use unisono_protocol::policy::{ParticipationRecord, RecordError, TaskEntry};
use unisono_protocol::proto::{RoundOffer, RoundParams, client_message::Step, server_message::View};
use unisono_protocol::server::{Phase, Server};

use crate::coordinator::{Forged, Member, member};
use crate::harness::{Outbox, Stage, phase_of, six};
use crate::world::{NOW, params};

/// Counts the points at which a process can be killed, and says so at one of them.
#[derive(Clone)]
struct Fuse {
    at: Rc<Cell<usize>>,
    dies_at: usize,
}

impl Fuse {
    fn burns(&self) -> bool {
        self.at.set(self.at.get() + 1);
        self.at.get() == self.dies_at
    }
}

/// Stable storage: the SDK's record in its folder, and the states that a host saved, the last one last.
struct Disk<'a> {
    folder: &'a Path,
    record: Record,
    saved: Vec<Vec<u8>>,
    fuse: Fuse,
}

impl<'a> Disk<'a> {
    fn new(folder: &'a Path, fuse: Fuse) -> Self {
        Self { folder, record: Record::open(folder).unwrap(), saved: Vec::new(), fuse }
    }

    /// The process is gone, and its handle of the record with it; the next one reads the file.
    fn reopen(&mut self) {
        self.record = Record::in_memory();
        self.record = Record::open(self.folder).unwrap();
    }

    /// A write, with a point before it, one within it, and one after.
    fn write(&mut self, write: impl FnOnce(&mut Self)) -> Result<(), RecordError> {
        let killed = || RecordError::Failed("killed".into());
        if self.fuse.burns() {
            return Err(killed());
        }
        if self.fuse.burns() {
            // A file is written under another name, and then renamed: half of it is what a kill leaves.
            std::fs::write(self.folder.join(format!(".tmp{}", self.fuse.dies_at)), br#"{"tasks":{"te"#).unwrap();
            return Err(killed());
        }
        write(self);
        if self.fuse.burns() { Err(killed()) } else { Ok(()) }
    }
}

impl ParticipationRecord for Disk<'_> {
    fn entry(&self, task: &str) -> Result<Option<TaskEntry>, RecordError> {
        self.record.entry(task)
    }

    fn replace(&mut self, task: &str, expected: Option<&TaskEntry>, next: TaskEntry) -> Result<(), RecordError> {
        self.write(|disk| disk.record.replace(task, expected, next).unwrap())
    }

    fn roster_epoch(&self) -> Result<u64, RecordError> {
        self.record.roster_epoch()
    }

    fn see_roster_epoch(&mut self, epoch: u64) -> Result<(), RecordError> {
        self.write(|disk| disk.record.see_roster_epoch(epoch).unwrap())
    }
}

/// What left the device. Before anything does, its record must be there.
struct Wire {
    outbox: Outbox,
    /// Of the masked input, by number: what was sent first.
    chunks: BTreeMap<u64, Vec<u8>>,
}

enum Stop {
    Killed,
    /// It has no way to go on in this round; nothing new leaves it.
    Refused,
}

fn stop(error: ClientError) -> Stop {
    if error == ClientError::Record(RecordError::Failed("killed".into())) { Stop::Killed } else { Stop::Refused }
}

struct Victim<'a> {
    identity: Arc<Identity>,
    trust: Trust,
    input: RingVector,
    disk: Disk<'a>,
    wire: Wire,
    /// In memory: gone with the process.
    session: Option<Session>,
    lives: u64,
    /// Whether the host saves a state before it sends what the state owes, as it should, or after.
    saves_first: bool,
    /// It has masked for the lie's set of sharers: the coordinator gets noise then.
    misled: bool,
}

impl Victim<'_> {
    fn rng(&self) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(1000 + self.lives)
    }

    fn save(&mut self) -> Result<(), Stop> {
        let Some(session) = &self.session else { return Ok(()) };
        let bytes = session.save().map_err(stop)?;
        self.disk.write(|disk| disk.saved.push(bytes.to_vec())).map_err(|_| Stop::Killed)
    }

    /// The record is durable before the bytes leave: asserted at every send.
    fn record_comes_first(&self, step: &Step) {
        let entry = self.disk.record.entry("test").unwrap();
        match step {
            Step::Advert(_) => {}
            Step::ShareKeys(_) => assert!(entry.is_some(), "shares leave before the record is written"),
            Step::Upload(_) => assert!(entry.unwrap().masked_for.is_some(), "an input leaves before it is spent"),
            Step::Endorsement(_) | Step::Unmask(_) => {
                assert!(entry.unwrap().survivors.is_some(), "what depends on the record leaves before it is written");
            }
        }
    }

    /// Sends what the state owes: the message, then the masked vector chunk by chunk, with a point before and after each.
    fn send(&mut self, server: &mut Server) -> Result<(), Stop> {
        let Some(session) = &self.session else { return Ok(()) };
        // Erased, it owes nothing any more.
        let message = session.message().ok_or(Stop::Refused)?.clone();
        self.record_comes_first(message.step.as_ref().unwrap());
        let fuse = self.disk.fuse.clone();
        let point = || if fuse.burns() { Err(Stop::Killed) } else { Ok(()) };
        point()?;
        self.wire.outbox.push(&message);
        let _ = server.absorb(&message, NOW);
        point()?;
        let mut upload = Vec::new();
        // (A resumed session has none.)
        for (i, chunk) in (0..session.chunks()).map_while(|i| Some((i, session.chunk(i)?))) {
            point()?;
            upload.extend_from_slice(&chunk);
            let first = self.wire.chunks.entry(i).or_insert_with(|| chunk.clone());
            assert!(*first == chunk, "two masked inputs");
            point()?;
        }
        if !upload.is_empty() {
            let _ = server.absorb_upload(self.identity.client_id, &upload);
        }
        Ok(())
    }

    fn save_and_send(&mut self, server: &mut Server) -> Result<(), Stop> {
        if self.saves_first {
            self.save()?;
            self.send(server)
        } else {
            self.send(server)?;
            self.save()
        }
    }

    fn join(&mut self, offer: &RoundOffer) -> Result<(), Stop> {
        let (identity, mut rng) = (self.identity.clone(), self.rng());
        let session = Session::join(offer, identity, &self.trust, &mut self.disk, NOW, &mut rng).map_err(stop)?;
        self.session = Some(session);
        Ok(())
    }

    /// A new process, with what an earlier one saved: `back` states before the last, or none at all.
    fn restart(&mut self, offer: &RoundOffer, back: Option<usize>) {
        self.lives += 1;
        self.session = None;
        self.disk.reopen();
        let Some(bytes) = back.and_then(|back| self.disk.saved.iter().rev().nth(back)) else { return };
        self.session = Some(Session::resume(bytes, offer, self.identity.clone(), &self.trust).unwrap());
    }

    /// Shows one view; whether the device went on by it.
    fn receive(&mut self, view: &View) -> Result<bool, Stop> {
        let mut rng = self.rng();
        let Some(session) = &mut self.session else { return Ok(false) };
        match session.receive(view, Some(self.input.clone()), &mut self.disk, NOW, &mut rng).map_err(stop) {
            Ok(()) => Ok(true),
            Err(Stop::Refused) => Ok(false),
            Err(killed) => Err(killed),
        }
    }

    /// Lives on: with everything that the coordinator has to show, the lies first once it has died.
    fn live(&mut self, server: &mut Server, views: &[[View; 2]]) -> Result<(), Stop> {
        if self.session.is_none() {
            let offer = server.offer().clone();
            self.join(&offer)?;
            self.save_and_send(server)?;
        } else {
            // What it owed may not have left.
            self.send(server)?;
        }
        for [honest, lie] in views {
            let order = if self.lives == 0 { [honest, lie] } else { [lie, honest] };
            for view in order {
                if self.receive(view)? {
                    self.misled |= matches!(view, View::Masking(_)) && std::ptr::eq(view, lie);
                    self.save_and_send(server)?;
                }
            }
        }
        Ok(())
    }
}

/// What the coordinator shows device 0 in this phase, and a lie that is as well-formed: another cohort, another set of
/// sharers, of survivors, another certificate.
fn honest_and_lie(stage: &Stage, adverts: &[Member]) -> [View; 2] {
    let victim = stage.devices[0].id();
    let honest = stage.server().view(victim).unwrap().view.unwrap();
    let lie = match &honest {
        View::Cohort(_) if stage.server().params().malicious() => {
            View::Cohort(Forged::new(stage.server().params(), &adverts[..5], |_| {}).view(0))
        }
        // Without signatures, the coordinator is believed about the cohort; what the record binds is bound all the same.
        View::Cohort(_) => honest.clone(),
        View::Masking(view) => {
            let mut view = view.clone();
            let mut shared = bitmap::from_bytes(&view.shared, 6).unwrap();
            shared[5] = false;
            view.shared = bitmap::to_bytes(&shared);
            view.deliveries.pop();
            View::Masking(view)
        }
        View::Survivors(view) => {
            let mut view = view.clone();
            let mut survivors = bitmap::from_bytes(&view.survivors, 6).unwrap();
            survivors[4] = false;
            view.survivors = bitmap::to_bytes(&survivors);
            View::Survivors(view)
        }
        View::Certificate(view) => {
            let mut view = view.clone();
            view.endorsements.pop();
            View::Certificate(view)
        }
    };
    [honest, lie]
}

/// One round in which device 0 is killed once, at the given point. How many points it passed, and whether it is in the sum.
fn round(wire: &RoundParams, dies_at: usize, back: Option<usize>, saves_first: bool) -> (usize, bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut stage = Stage::at(Phase::Advertise, wire, 6);
    let offer = stage.server().offer().clone();
    let fuse = Fuse { at: Rc::default(), dies_at };
    let template = &stage.devices[0];
    let mut victim = Victim {
        identity: template.identity.clone(),
        trust: template.trust.clone(),
        input: template.input.clone(),
        disk: Disk::new(folder.path(), fuse.clone()),
        wire: Wire { outbox: Outbox::default(), chunks: BTreeMap::new() },
        session: None,
        lives: 0,
        saves_first,
        misled: false,
    };
    let mut views: Vec<[View; 2]> = Vec::new();
    let outcome = loop {
        stage.step(&[0]);
        if stage.server().view(victim.identity.client_id).is_some() {
            // Adverts as they were sent first: the victim's, then the others'.
            let sent = victim.wire.outbox.0.iter().take(1).chain(&stage.outbox.0);
            let adverts: Vec<Member> =
                sent.filter(|message| phase_of(message) == Some(Phase::Advertise)).map(member).collect();
            views.push(honest_and_lie(&stage, &adverts));
        }
        while let Err(stop) = victim.live(stage.server_mut(), &views) {
            match stop {
                Stop::Killed => victim.restart(&offer, back),
                Stop::Refused => break,
            }
        }
        if let Some(outcome) = stage.close() {
            break outcome;
        }
    };

    let id = victim.identity.client_id;
    for phase in [Phase::Share, Phase::Mask, Phase::Confirm, Phase::Unmask] {
        let distinct = victim.wire.outbox.distinct(id, phase).len();
        assert!(distinct <= 1, "killed at {dies_at}, resumed {back:?}: {distinct} different answers in phase {phase}");
    }
    victim.wire.outbox.0.iter().for_each(|message| stage.outbox.push(message));
    assert!(!stage.outbox.opens_an_input(4), "killed at {dies_at}, resumed {back:?}");
    let params = unisono_protocol::params::RoundParams::from_payload(&offer.params.unwrap().payload).unwrap();
    let expected = crate::world::plain_sum(&stage.devices, &outcome.survivors, &params);
    assert!(victim.misled || outcome.sum == expected, "killed at {dies_at}, resumed {back:?}: a wrong sum");
    (fuse.at.get(), outcome.survivors.contains(&id))
}

/// A round for each point at which the device can be killed.
fn killed_everywhere(wire: &RoundParams, at_least: usize) {
    // A host that saves before it sends, and one that saves after, so that it comes back older than what it said.
    for (saves_first, backs) in [(true, [None, Some(0), Some(2)].as_slice()), (false, &[Some(0), Some(1)])] {
        let (points, in_the_sum) = round(wire, 0, None, saves_first);
        assert!(in_the_sum && points >= at_least, "{points} points");
        let mut completed = 0;
        for dies_at in 1..=points {
            for &back in backs {
                completed += usize::from(round(wire, dies_at, back, saves_first).1);
            }
        }
        // A restart costs the round only where nothing else is safe.
        assert!(completed > 0, "no restarted device ever completes");
    }
}

#[test]
fn a_device_killed_at_every_write_and_every_send_never_answers_twice_differently() {
    killed_everywhere(&six(), 40);
}

#[test]
fn a_device_killed_at_every_write_and_every_send_in_semi_honest_mode() {
    killed_everywhere(&params(false, 4, 6, 0.16, 0.2, 20), 32);
}
