//! The calls of a running coordinator, without a network: whatever comes is answered with a status, and nobody but the devices changes
//! its round. The first byte chooses a method, the second whether the rest is the message as it is or changes to a real one.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use prost::Message;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tokio::runtime::Runtime;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use unisono_coordinator::internal::{Direct, Ended};
use unisono_coordinator::{Config, Coordinator, Event};
use unisono_crypto::kdf::label;
use unisono_crypto::sign::{Level, SigningKey};
use unisono_protocol::client::{Session, Trust};
use unisono_protocol::keyfile::{self, Role};
use unisono_protocol::params::RoundParams;
use unisono_protocol::policy::{MemoryRecord, Policy};
use unisono_protocol::proto::{self, ClientMessage, Signed, client_message::Step};
use unisono_protocol::roster::{HeadTerms, Roster};
use unisono_protocol::server::Phase;
use unisono_protocol::signed;
use unisono_wire::model::Model;
use unisono_wire::proto as wire;

use super::tamper::Tamper;
use super::world::{CAST, leaf};

/// The methods of the service, and one that it has not.
pub const METHODS: [&str; 10] = [
    "GetRound",
    "Submit",
    "Poll",
    "GetUploadStatus",
    "Upload",
    "GetModel",
    "GetRelease",
    "RequestGrant",
    "Leave",
    "Unknown",
];

/// A call that waits longer than this waits for what does not come.
const PATIENCE: Duration = Duration::from_millis(20);
/// The same where the end matters, on a busy machine.
const LONG_PATIENCE: Duration = Duration::from_secs(2);
const TASK: &str = "test";
/// Where calls come from.
const STRANGER: ([u8; 4], u16) = ([203, 0, 113, 9], 1);

/// A coordinator in malicious mode in phase 0, two of whose five devices have come: too few for it to go on.
struct Home {
    runtime: Runtime,
    coordinator: Coordinator,
    events: Mutex<Receiver<Event>>,
    round_id: Vec<u8>,
    /// The steps of the two.
    adverts: Vec<ClientMessage>,
    /// Nobody's.
    stranger: SigningKey,
    model: [u8; 32],
}

static HOME: LazyLock<Home> = LazyLock::new(|| {
    let folder = folder();
    let config = configure(&folder);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let coordinator = runtime.block_on(Coordinator::start(config)).expect("a coordinator");
    let events = Mutex::new(coordinator.events());
    let mut direct = Direct::new(&coordinator, STRANGER.into());
    let request = wire::GetRoundRequest { task: TASK.into(), wait_ms: 20_000, ..Default::default() };
    let ended = runtime.block_on(direct.call("GetRound", vec![frame(&request.encode_to_vec())]));
    let open = wire::GetRoundResponse::decode(&ended.body[5..]).expect("an answer");
    let offer = open.offer.expect("a round");
    let params = RoundParams::from_payload(&offer.params.as_ref().expect("parameters").payload).expect("parameters");
    let policy = Policy { n_min: 3, min_gamma: 0.0, min_interval_s: 0, ..Policy::default() };
    let trust = Trust { registrar: Some(CAST.registrar.verifying_key()), policy };
    let join = |i: usize| {
        let (identity, mut rng) = (CAST.identities[i].clone(), ChaCha8Rng::seed_from_u64(31 + i as u64));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let session = Session::join(&offer, identity, &trust, &mut MemoryRecord::default(), now, &mut rng);
        session.expect("an honest offer").message().expect("an advert").clone()
    };
    let adverts: Vec<ClientMessage> = (0..2).map(join).collect();
    for advert in &adverts {
        let mut direct = Direct::new(&coordinator, STRANGER.into());
        let ended = runtime.block_on(direct.call("Submit", vec![frame(&advert.encode_to_vec())]));
        assert_eq!(ended.code, Some(tonic::Code::Ok), "{ended:?}");
    }
    let stranger = SigningKey::generate(Level::L44, &mut ChaCha8Rng::seed_from_u64(30));
    let mut model = [0; 32];
    model.copy_from_slice(&params.wire.model_hash);
    Home { runtime, coordinator, events, round_id: params.round_id.to_vec(), adverts, stranger, model }
});

/// A folder of this process. Statics are never dropped: what earlier processes left is deleted here.
fn folder() -> PathBuf {
    let above = std::env::temp_dir();
    const BEGIN: &str = "unisono-fuzz-";
    for entry in std::fs::read_dir(&above).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let process = name.strip_prefix(BEGIN).and_then(|number| number.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let folder = above.join(format!("{BEGIN}{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).expect("a folder");
    folder
}

fn configure(folder: &Path) -> Config {
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("a file of its own");
    };
    let (registrar, coordinator) = (&CAST.registrar, &CAST.coordinator);
    let leaves = CAST.identities.iter().take(5).map(|identity| leaf(identity, u64::MAX)).collect();
    let roster = Roster::publish(leaves, HeadTerms::new(7, 1), &[coordinator.verifying_key()], &[], registrar)
        .expect("a roster");
    put("roster", &roster.to_bytes().expect("in memory"));
    put("registrar", keyfile::verifying_key_to_text(Role::Registrar, &registrar.verifying_key()).as_bytes());
    put("key", keyfile::signing_key_to_text(Role::Coordinator, coordinator).as_bytes());
    let model = Model::new([("a", vec![20], vec![0.5; 20])]).expect("a model");
    put("model", &model.to_safetensors().expect("a model"));
    let text = format!(
        r#"
        listen = "127.0.0.1:0"
        state_dir = "state"
        registrar = "registrar"
        roster = "roster"
        key = "key"
        [task]
        name = "{TASK}"
        rounds = 1
        initial_model = "model"
        [round]
        n_min = 3
        n_max = 5
        gamma = 0.0
        delta = 0.25
        chunk_elements = 8
        [quantiser]
        bits = 8
        clip = 1.0
        max_weight = 1.0
        [limits]
        calls_per_address = 1000000
        calls_per_device = 1000000
        "#
    );
    put("config", text.as_bytes());
    Config::load(&folder.join("config")).expect("a configuration")
}

/// A message as gRPC carries it.
fn frame(message: &[u8]) -> Vec<u8> {
    [&[0], (message.len() as u32).to_be_bytes().as_slice(), message].concat()
}

/// A real message of a method, changed: signed with a device's own key, or a stranger's; and whether a device has signed it.
fn real(method: &str, u: &mut Unstructured<'_>) -> Result<(Vec<u8>, bool)> {
    let home = &*HOME;
    let who = usize::from(u.arbitrary::<u8>()? % 3);
    let own = who < 2;
    let (client_id, key) = match CAST.identities[..2].get(who) {
        Some(identity) => (identity.client_id.to_vec(), &identity.signing_key),
        None => (vec![0xee; 16], &home.stranger),
    };
    let sign = |payload, label| signed::sign_bytes(payload, label, Some(key));
    let round_id = home.round_id.clone();
    let wait_ms = 0;
    let mut bytes = match method {
        "GetRound" => {
            let after_round = u.arbitrary::<u8>()? / 128;
            let (task, missed) = (TASK.into(), "late".into());
            wire::GetRoundRequest { task, after_round: after_round.into(), wait_ms, missed }.encode_to_vec()
        }
        "Submit" => {
            let advert = &home.adverts[who % 2];
            let Some(Step::Advert(Signed { payload, .. })) = &advert.step else { unreachable!("phase 0") };
            let mut payload = payload.clone();
            u.arbitrary::<Tamper>()?.apply(&mut payload);
            let step = match u.arbitrary::<u8>()? % 6 {
                0 | 1 => Step::Advert(sign(payload, label::SIG_ADVERT)),
                2 => Step::ShareKeys(proto::ShareKeys {
                    root: Some(sign(payload, label::SIG_SHARES)),
                    ..Default::default()
                }),
                3 => Step::Upload(sign(payload, label::SIG_UPLOAD)),
                4 => Step::Endorsement(sign(payload, label::SIG_ENDORSEMENT)),
                _ => Step::Unmask(sign(payload, label::SIG_UNMASK)),
            };
            ClientMessage { round_id, client_id, step: Some(step) }.encode_to_vec()
        }
        "Poll" => {
            let phase = wire::RoundPhase::from(Phase::ALL[usize::from(u.arbitrary::<u8>()?) % Phase::ALL.len()]) as i32;
            wire::PollRequest { round_id, client_id, phase, wait_ms }.encode_to_vec()
        }
        "GetUploadStatus" => wire::UploadStatusRequest { round_id, client_id }.encode_to_vec(),
        "Upload" => {
            let index = u.arbitrary::<u8>()?.into();
            wire::UploadChunk { round_id, client_id, upload_hash: vec![1; 32], index, data: vec![7; 8] }.encode_to_vec()
        }
        "GetModel" => {
            let (version, offset) = ((u.arbitrary::<u8>()? / 128).into(), u.arbitrary::<u16>()?.into());
            wire::GetModelRequest { task: TASK.into(), version, offset, ..Default::default() }.encode_to_vec()
        }
        "Leave" => {
            // For another round.
            let word = [&[9; 32][..], &client_id].concat();
            let signature = sign(word, label::SIG_LEAVE).signature;
            wire::LeaveRequest { round_id, client_id, signature }.encode_to_vec()
        }
        "GetRelease" => wire::GetReleaseRequest { model_id: "digits".into(), ..Default::default() }.encode_to_vec(),
        _ => {
            let requested_at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let body = wire::GrantRequestBody {
                client_id,
                header_hash: home.model.to_vec(),
                release_key: vec![6; 1216],
                requested_at: requested_at.map_or(0, |time| time.as_secs()),
            };
            let mut payload = body.encode_to_vec();
            u.arbitrary::<Tamper>()?.apply(&mut payload);
            let request = Some(sign(payload, label::SIG_CLIENT_REQUEST));
            wire::GrantRequest { request }.encode_to_vec()
        }
    };
    u.arbitrary::<Tamper>()?.apply(&mut bytes);
    Ok((bytes, own))
}

/// One call; `None`: it waits.
fn called(bytes: &[u8], patience: Duration) -> Result<Option<Ended>> {
    let mut u = Unstructured::new(bytes);
    let method = METHODS[usize::from(u.arbitrary::<u8>()?) % METHODS.len()];
    let kind = u.arbitrary::<u8>()?;
    let (pieces, own) = match kind % 4 {
        // The body as it is.
        0 => (vec![u.take_rest().to_vec()], false),
        // The message as it is.
        1 => (vec![frame(u.take_rest())], false),
        how => {
            let (message, own) = real(method, &mut u)?;
            let mut body = frame(&message);
            if how == 3 {
                u.arbitrary::<Tamper>()?.apply(&mut body);
            }
            // In two pieces, or twice.
            let at = usize::from(u.arbitrary::<u8>()?);
            let mut pieces = vec![body.split_off(at.min(body.len()))];
            pieces.insert(0, body);
            if at == 255 {
                pieces.push(frame(&message));
            }
            (pieces, own)
        }
    };
    let home = &*HOME;
    let address: SocketAddr = STRANGER.into();
    let mut direct = Direct::new(&home.coordinator, address);
    let mut events = home.events.lock().unwrap_or_else(PoisonError::into_inner);
    while !matches!(events.try_recv(), Err(TryRecvError::Empty | TryRecvError::Closed)) {}
    let ended = home.runtime.block_on(async { tokio::time::timeout(patience, direct.call(method, pieces)).await });
    assert!(own || !direct.is_known(), "a stranger is taken for a device");
    loop {
        match events.try_recv() {
            Ok(Event::Refused { .. }) => {}
            Ok(event) => panic!("the round was changed by {method}: {event:?}"),
            Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    Ok(ended.ok().inspect(|ended| assert!(ended.code.is_some(), "{method} has no status")))
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let _ = called(data, PATIENCE);
}

/// How an input ends: the status, or the short name of the refusal.
pub fn outcome(bytes: &[u8]) -> String {
    match called(bytes, LONG_PATIENCE) {
        Ok(Some(Ended { code, reason, .. })) if reason.is_empty() => format!("{:?}", code.expect("a status")),
        Ok(Some(Ended { reason, .. })) => reason,
        Ok(None) => "waits".into(),
        Err(_) => "short".into(),
    }
}

/// Seeds by name; behind the last dash, how they end.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let method = |name: &str| METHODS.iter().position(|known| *known == name).unwrap_or_default() as u8;
    // A real message: who sends it (2: a stranger), then what the method draws and the change.
    let real = |name: &str, drawn: &[u8]| [&[method(name), 2], drawn].concat();
    // The whole body changed as well.
    let body = |name: &str, drawn: &[u8]| [&[method(name), 3], drawn].concat();
    let message = |name: &str, bytes: &[u8]| [&[method(name), 1], bytes].concat();
    let raw = |name: &str, bytes: &[u8]| [&[method(name), 0], bytes].concat();
    let other_task = wire::GetRoundRequest { task: "other".into(), ..Default::default() }.encode_to_vec();
    let waits = wire::GetRoundRequest { task: TASK.into(), after_round: 1, wait_ms: 20_000, ..Default::default() };
    let other_round = wire::PollRequest { round_id: vec![1; 32], client_id: vec![0; 16], phase: 1, wait_ms: 0 };
    let short = wire::UploadStatusRequest { round_id: vec![1; 31], client_id: vec![0; 16] }.encode_to_vec();
    let model = wire::GetModelRequest { task: "other".into(), ..Default::default() }.encode_to_vec();
    let mut seeds = vec![
        ("round-Ok", real("GetRound", &[2, 0])),
        ("round-later-Ok", real("GetRound", &[2, 128])),
        ("round-waits", message("GetRound", &waits.encode_to_vec())),
        ("round-no_such_task", message("GetRound", &other_task)),
        ("advert-again-Ok", real("Submit", &[0, 0, 0, 0])),
        ("advert-changed-conflict", real("Submit", &[0, 4, 60, 0, 1, 0])),
        ("advert-of-a-stranger-unknown_client", real("Submit", &[2, 0, 0])),
        ("advert-of-another-unknown_client", real("Submit", &[2, 4, 40, 0, 1, 0])),
        ("shares-wrong_phase", real("Submit", &[0, 0, 2])),
        ("upload-wrong_phase", real("Submit", &[0, 0, 3])),
        ("endorsement-wrong_phase", real("Submit", &[0, 0, 4])),
        ("unmask-wrong_phase", real("Submit", &[0, 0, 5])),
        ("poll-Ok", real("Poll", &[0, 1])),
        ("poll-of-a-stranger-unknown_client", real("Poll", &[2, 1])),
        ("poll-of-another-round-Ok", message("Poll", &other_round.encode_to_vec())),
        ("poll-no-phase-malformed", message("Poll", &[])),
        ("status-malformed", message("GetUploadStatus", &short)),
        ("status-incomplete", real("GetUploadStatus", &[0])),
        ("chunk-incomplete", real("Upload", &[0, 0])),
        ("chunk-of-a-stranger-unknown_client", real("Upload", &[2, 0])),
        ("no-chunk-malformed", raw("Upload", &[])),
        ("model-Ok", real("GetModel", &[2, 0, 0, 0])),
        ("model-at-the-end-Ok", real("GetModel", &[2, 0, 200, 0])),
        ("model-behind-the-end-malformed", real("GetModel", &[2, 0, 0xff, 0xff])),
        ("model-of-another-version-no_such_model", real("GetModel", &[2, 128, 0, 0])),
        ("model-of-another-task-no_such_model", message("GetModel", &model)),
        ("release-no_such_release", real("GetRelease", &[2])),
        ("grant-of-another-key-release_key", real("RequestGrant", &[0])),
        ("grant-of-a-stranger-unknown_client", real("RequestGrant", &[2])),
        ("grant-changed-unknown_client", real("RequestGrant", &[0, 4, 3, 0, 1])),
        ("leave-signature", real("Leave", &[0])),
        ("leave-of-a-stranger-unknown_client", real("Leave", &[2])),
        ("leave-malformed", message("Leave", &[])),
        ("two-pieces-Ok", real("GetRound", &[2, 0, 0, 3])),
        ("twice-Ok", real("GetRound", &[2, 0, 0, 255])),
        ("long-too_large", body("GetRound", &[2, 0, 0, 4, 1, 0, 0xff])),
        ("compressed-Internal", body("GetRound", &[2, 0, 0, 4, 0, 0, 1])),
        ("cut-Internal", body("GetRound", &[2, 0, 0, 6, 7, 0])),
        ("no-message-Internal", raw("RequestGrant", &[])),
        ("not-decoded-Internal", message("RequestGrant", &[0xff; 9])),
        ("unknown-Unimplemented", message("Unknown", &[])),
    ];
    seeds.sort_by_key(|(_, bytes)| bytes[0]);
    seeds.into_iter().map(|(name, bytes)| (format!("{:02}-{name}", bytes[0]), bytes)).collect()
}
