//! What coordinator and device read back from their own files: configuration, a device's record, a round's events, the account of
//! privacy.

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use prost::Message;
use unisono_client::internal::{read_record, write_record};
use unisono_coordinator::Config;
use unisono_coordinator::internal::{RecoverError, parse_config, replay};
use unisono_coordinator::learning::Watch;
use unisono_coordinator::storage::Event;
use unisono_protocol::params::RoundParams;
use unisono_protocol::policy::{ParticipationRecord, RecordError, Spent, TaskEntry};
use unisono_protocol::privacy::Accountant;
use unisono_protocol::proto;
use unisono_protocol::server::{Closed, Phase};
use unisono_protocol::{ClientId, CohortId};
use unisono_release::{Seen, VersionRecord};

use super::tamper::Tamper;
use super::world::{Device, NOW, open, params};

/// A configuration. What is accepted makes rounds that every device accepts as consistent.
pub fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let strict = toml::from_str::<Config>(&text);
    let (lenient, faults) = parse_config(&text);
    let lines = text.lines().count() + 1;
    assert!(faults.iter().all(|fault| fault.line.is_none_or(|line| line <= lines)), "a fault is in the file");
    let Ok(config) = strict else {
        assert!(!faults.is_empty(), "what can't be read is told");
        return;
    };
    assert!(faults.is_empty() && lenient.is_some(), "{faults:?}");
    if config.check().is_err() {
        return;
    }
    let roster = (0, if config.malicious() { vec![0; 32] } else { Vec::new() });
    let wire = config.params(1, 0, [0; 32], 1, roster).expect("what was checked");
    let params = RoundParams::from_payload(&wire.encode_to_vec()).expect("what was checked makes parameters");
    assert!(params.malicious() == config.malicious() && params.wire.n_min >= 2);
}

/// A device's record: what is read says the same when it is written and read again, and only goes forward.
pub fn record(bytes: &[u8]) {
    let Ok(mut record) = read_record(bytes) else { return };
    let written = write_record(&record);
    assert_eq!(write_record(&read_record(&written).expect("a written record")), written);
    let epoch = record.roster_epoch().expect("in memory");
    record.see_roster_epoch(5).expect("in memory");
    assert_eq!(record.roster_epoch().expect("in memory"), epoch.max(5));
    let (seen, latest) = (record.newest("m").expect("in memory"), record.latest_time().expect("in memory"));
    let now = Seen { version: 5, header_hash: Some([7; 32]) };
    let taken = record.see("m", now, NOW).is_ok();
    let other = seen.filter(|seen| seen.version == 5 && seen.header_hash.is_some_and(|hash| hash != [7; 32]));
    assert_eq!(taken, other.is_none(), "one release of a version");
    let after = record.newest("m").expect("in memory").expect("one was seen");
    assert_eq!(after, if taken { seen.filter(|seen| seen.version > 5).unwrap_or(now) } else { other.unwrap_or(now) });
    assert_eq!(record.latest_time().expect("in memory"), if taken { latest.max(NOW) } else { latest });
    let before = record.entry("t").expect("in memory");
    let next = TaskEntry {
        round: 9,
        cohort: CohortId([9; 32]),
        masked_for: None,
        survivors: None,
        spent: before.as_ref().map_or_else(Spent::default, |entry| entry.spent.clone()),
    };
    if before.is_some() {
        assert_eq!(record.replace("t", None, next.clone()), Err(RecordError::Changed), "not over another one's entry");
    }
    record.replace("t", before.as_ref(), next.clone()).expect("the entry that is there");
    let again = read_record(&write_record(&record)).expect("a written record");
    assert_eq!(again.entry("t"), Ok(Some(next)));
}

/// The account of privacy, and what early stop has seen.
pub fn tally(bytes: &[u8]) {
    if let Some(account) = Accountant::from_bytes(bytes) {
        assert_eq!(account.to_bytes(), bytes);
        let epsilon = account.epsilon(1e-5);
        assert!(epsilon >= 0.0 && account.epsilon(1e-3) <= epsilon, "more delta, no more epsilon");
    }
    if let Some(watch) = std::str::from_utf8(bytes).ok().and_then(Watch::from_text) {
        assert_eq!(Watch::from_text(&watch.to_text()), Some(watch.clone()));
        assert!(!watch.is_stuck(usize::MAX) && watch.is_like(&watch));
    }
}

/// A round's events as stored, with the uploads of its clients.
struct Stored {
    params: proto::RoundParams,
    events: Vec<Event>,
    uploads: Vec<(ClientId, Vec<u8>)>,
}

/// A malicious and a semi-honest round up to the last phase, closed by nobody.
static ROUNDS: LazyLock<[Stored; 2]> = LazyLock::new(|| {
    [true, false].map(|malicious| {
        let wire = params(malicious, 3, 5, 0.0, 0.25, 20);
        let mut server = open(&wire);
        let mut devices: Vec<Device> = (0..5).map(|i| Device::new(i, &server, 13)).collect();
        let (mut events, mut uploads) = (Vec::new(), Vec::new());
        loop {
            for device in &mut devices {
                match server.view(device.id()) {
                    Some(view) => device.receive(&view).expect("an honest view"),
                    None if server.phase() == Phase::Advertise => {
                        device.join(server.offer()).expect("an honest offer");
                    }
                    None => continue,
                }
                let message = device.message().expect("a step").clone();
                server.absorb(&message, NOW).expect("an honest step");
                events.push(Event::Message(message.encode_to_vec(), NOW));
                if let Some(upload) = device.upload() {
                    server.absorb_upload(device.id(), &upload).expect("an honest upload");
                    events.push(Event::Upload(device.id()));
                    uploads.push((device.id(), upload.to_vec()));
                }
            }
            if server.phase() == Phase::Unmask {
                return Stored { params: wire, events, uploads };
            }
            match server.close().expect("an honest round") {
                Closed::Next(next) => server = *next,
                Closed::Finished(_) => unreachable!("the last phase is not closed"),
            }
            events.push(Event::Close(NOW * 1000));
        }
    })
});

/// The stored rows are left out, doubled, exchanged and changed; then the round is brought to where they say that it was, and closed
/// as far as it goes.
fn replayed(bytes: &[u8]) -> Result<&'static str> {
    let mut u = Unstructured::new(bytes);
    let stored = &ROUNDS[usize::from(u.arbitrary::<u8>()? % 2)];
    let mut rows: Vec<_> = stored.events.iter().map(Event::to_row).collect();
    let mut uploads = stored.uploads.clone();
    let mut spoilt = false;
    // So many rows were stored before the kill; zero: all.
    match usize::from(u.arbitrary::<u8>()?) {
        0 => {}
        most => rows.truncate(most),
    }
    for _ in 0..4 {
        if u.is_empty() || rows.is_empty() {
            break;
        }
        let (op, count) = (u.arbitrary::<u8>()? % 6, rows.len());
        let a = usize::from(u.arbitrary::<u8>()?) % count;
        match op {
            0 => drop(rows.remove(a)),
            1 => rows.insert(usize::from(u.arbitrary::<u8>()?) % count, rows[a].clone()),
            2 => rows.swap(a, usize::from(u.arbitrary::<u8>()?) % count),
            3 => u.arbitrary::<Tamper>()?.apply(&mut rows[a].1),
            4 => rows[a].0 = u.arbitrary::<i8>()?.into(),
            _ => {
                let at = a % uploads.len();
                let before = uploads[at].1.clone();
                u.arbitrary::<Tamper>()?.apply(&mut uploads[at].1);
                spoilt |= before != uploads[at].1;
            }
        }
    }
    let events = rows.iter().map(|(kind, body, at)| Event::from_row(*kind, body.clone(), *at));
    let Ok(events) = events.collect::<std::result::Result<Vec<Event>, _>>() else { return Ok("Damaged") };
    assert!(events.iter().map(Event::to_row).eq(rows.iter().map(|(kind, body, at)| match kind {
        1 => (1, body.clone(), 0),
        2 => (2, Vec::new(), *at),
        _ => (*kind, body.clone(), *at),
    })));
    let again = || {
        events.iter().try_fold(open(&stored.params), |server, event| {
            let upload = uploads.iter().find(|(owner, _)| matches!(event, Event::Upload(client) if client == owner));
            replay(server, event, upload.map_or(&[], |(_, upload)| upload))
        })
    };
    let server = match again() {
        Ok(server) => server,
        Err(RecoverError::Diverged(_)) => {
            assert!(spoilt || !stored.events.starts_with(&events), "a genuine round is refused");
            return Ok("Diverged");
        }
        Err(error) => panic!("{error}"),
    };
    let closes = events.iter().filter(|event| matches!(event, Event::Close(_))).count();
    let order: Vec<Phase> =
        Phase::ALL.into_iter().filter(|&phase| server.params().malicious() || phase != Phase::Confirm).collect();
    assert_eq!(server.phase(), order[closes], "each close begins a phase");
    let twin = again().unwrap_or_else(|error| panic!("the second time: {error}"));
    assert!(twin.progress() == server.progress() && twin.phase() == server.phase(), "the same from the same");
    let mut at = Some(server);
    while let Some(server) = at.take() {
        match server.close() {
            Ok(Closed::Next(next)) => at = Some(*next),
            Ok(Closed::Finished(outcome)) => {
                assert!(outcome.survivors.len() >= 3, "never of fewer than n_min");
                return Ok("Finished");
            }
            Err(_) => return Ok("Aborted"),
        }
    }
    unreachable!("a server that is closed goes on or ends")
}

/// A reader of [`super::files`].
pub fn events(bytes: &[u8]) {
    let _ = replayed(bytes);
}

/// How an input of [`events`] ends.
pub fn events_outcome(bytes: &[u8]) -> String {
    replayed(bytes).unwrap_or("TooShort").to_owned()
}

/// Seeds of [`events`] by name; behind the last dash, how they end.
pub fn events_seeds() -> Vec<(String, Vec<u8>)> {
    let seeds: [(&str, &[u8]); 16] = [
        ("malicious-Finished", &[0, 0]),
        ("semi-honest-Finished", &[1, 0]),
        ("twice-Finished", &[0, 0, 1, 2, 3]),
        ("one-fewer-revealed-Finished", &[1, 27]),
        ("masks-alone-Aborted", &[1, 22]),
        ("adverts-alone-Aborted", &[1, 5]),
        ("shares-alone-Aborted", &[1, 11]),
        ("too-few-revealed-Aborted", &[1, 23]),
        ("without-a-close-Diverged", &[1, 0, 0, 5]),
        ("without-an-advert-Diverged", &[0, 0, 0, 0]),
        ("close-first-Diverged", &[1, 0, 2, 0, 5]),
        ("signed-Diverged", &[0, 0, 3, 0, 4, 90, 0, 1]),
        ("not-decoded-Diverged", &[1, 0, 3, 0, 6, 9, 0]),
        ("upload-Diverged", &[1, 0, 5, 1, 4, 3, 0, 1]),
        ("kind-Damaged", &[1, 0, 4, 0, 9]),
        ("no-client-Damaged", &[1, 0, 4, 0, 1]),
    ];
    seeds.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).into()
}

/// A configuration that sets most of what can be set, and one that sets little.
pub const CONFIGURATIONS: [(&str, &str); 3] = [
    (
        "malicious",
        r#"listen = "127.0.0.1:7700"
metrics_listen = "127.0.0.1:7701"
state_dir = "state"
registrar = "registrar.pub"
roster = "roster"
key = "coordinator.key"
[task]
name = "digits"
rounds = 10
initial_model = "initial.safetensors"
[round]
n_min = 40
n_max = 100
gamma = 0.05
delta = 0.1
advertise_ms = 30000
straggler_grace_ms = 500
[quantiser]
bits = 8
clip = 0.5
l2_clip = 1.0
max_weight = 100.0
[privacy]
noise_multiplier = 1.0
delta = 1e-6
[[metric]]
name = "loss"
lower = 0.0
upper = 10.0
[optimizer]
kind = "fedadam"
[early_stop]
metric = "loss"
better = "lower"
patience = 3
min_improvement = 0.001
[release]
model_id = "digits"
publisher = "publisher.key"
key_encryption_key = "kek.key"
valid_days = 90
[limits]
calls_per_address = 50
"#,
    ),
    (
        "semi-honest",
        r#"listen = "127.0.0.1:0"
state_dir = "state"
token = "token"
[task]
name = "t"
rounds = 1
initial_model = "m"
[round]
mode = "semi-honest"
n_min = 3
n_max = 5
gamma = 0.05
delta = 0.2
[quantiser]
bits = 8
clip = 1.0
max_weight = 1.0
"#,
    ),
    (
        "faulty",
        r#"listen = "nowhere"
state_dir = 5
[task]
name = "t"
rounds = "many"
ronds = 1
[round]
mode = "honest"
n_min = 3
gamma = 0.05
[[metric]]
name = 'ä'
[unknown]
a = [1,
2]
"#,
    ),
];

/// Records as devices write them, and one of an earlier version.
pub fn records() -> Vec<(&'static str, Vec<u8>)> {
    let mut record = unisono_client::Record::in_memory();
    let spent = Spent { rounds: 2, last_at: NOW, unprotected: 1, account: Accountant::new() };
    let (cohort, masked_for) = (CohortId([1; 32]), Some([2; 32]));
    let entry = TaskEntry { round: 4, cohort, masked_for, survivors: Some([3; 32]), spent };
    record.replace("t", None, entry).expect("in memory");
    record.see_roster_epoch(7).expect("in memory");
    record.see("m", Seen { version: 5, header_hash: Some([6; 32]) }, NOW - 1).expect("in memory");
    let earlier = br#"{"tasks":{},"roster_epoch":3,"models":{"m":5}}"#;
    vec![("one-task", write_record(&record)), ("earlier", earlier.to_vec())]
}

/// An account of nothing, one of something, and what early stop has seen.
pub fn tallies() -> Vec<(&'static str, Vec<u8>)> {
    let orders = Accountant::BYTES / 8;
    let spent: Vec<u8> = (1..=orders).flat_map(|i| (i as f64 / 64.0).to_le_bytes()).collect();
    let watch = r#"{"metric":"loss","better":"lower","min_improvement":0.001,"since":2,"seen":9,"best":[4,0.25]}"#;
    vec![("nothing", Accountant::new().to_bytes()), ("spent", spent), ("watch", watch.as_bytes().to_vec())]
}
