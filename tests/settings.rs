//! Settings have an effect or are refused: what a task learns with does not change unnoticed, `--check` tells everything at once, and
//! secrets are their owner's alone.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use unisono::coordinator::config::{Fault, TensorClip};
use unisono::coordinator::{Config, ConfigError, Coordinator, CoordinatorError, Event, changes};
use unisono::crypto::sign::{Level, SigningKey};
use unisono::local::Deployment;
use unisono::protocol::keyfile::{self, Role};
use unisono::registrar::Registrar;
use unisono::softmax::Softmax;

#[allow(dead_code)]
mod deployed;

use deployed::{all, deployment, devices, finished};

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

async fn refused(config: &Config, accept: &[&str]) -> CoordinatorError {
    let accept: Vec<String> = accept.iter().map(|name| (*name).to_owned()).collect();
    Coordinator::start_accepting(config.clone(), &accept).await.err().expect("it is refused")
}

async fn taken(config: &Config, accept: &[&str]) -> Coordinator {
    let accept: Vec<String> = accept.iter().map(|name| (*name).to_owned()).collect();
    Coordinator::start_accepting(config.clone(), &accept).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_what_is_learned_is_refused_or_accepted_by_name() {
    let mut deployment = deployment(2);
    let coordinator = taken(&deployment.config, &[]).await;
    // A round is opened with these settings.
    let mut events = coordinator.events();
    let opened = async { while !matches!(events.recv().await.unwrap(), Event::RoundOpened { .. }) {} };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(3), opened).await;
    coordinator.stop().await;
    // As before: nothing to accept. A setting that is no part of what is learned may change.
    deployment.config.round.mask_ms += 1;
    assert_eq!(changes(&deployment.config).await.unwrap(), []);
    taken(&deployment.config, &[]).await.stop().await;

    deployment.config.quantiser.clip = 8.0;
    deployment.config.metrics.swap(0, 1);
    let CoordinatorError::Changed { changes: told, .. } = refused(&deployment.config, &[]).await else { panic!() };
    assert_eq!(told.iter().map(|c| c.setting.as_str()).collect::<Vec<_>>(), ["metric", "quantiser.clip"]);
    assert_eq!(told, changes(&deployment.config).await.unwrap(), "a check tells the same");
    let text = refused(&deployment.config, &[]).await.to_string();
    for part in
        ["stored loss from", "new accuracy from", "stored 4.0, new 8.0", "--accept-changes metric,quantiser.clip"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    let text = refused(&deployment.config, &["quantiser.clip"]).await.to_string();
    assert!(text.contains("metric: stored") && !text.contains("quantiser.clip: stored"), "{text}");
    assert!(matches!(refused(&deployment.config, &["clip"]).await, CoordinatorError::NoSuchSetting { .. }));

    // A model of other values, while nothing is learned: it is the one that is learned from, and devices get the new bound.
    let zeros =
        unisono::wire::model::Model::from_safetensors(&std::fs::read(&deployment.config.task.initial_model).unwrap())
            .unwrap();
    let ones = zeros.with_values(vec![1.0; zeros.values().len()]).unwrap();
    std::fs::write(&deployment.config.task.initial_model, ones.to_safetensors().unwrap()).unwrap();
    let text = refused(&deployment.config, &["metric", "quantiser.clip"]).await.to_string();
    assert!(text.contains("task.initial_model: stored"), "{text}");
    let coordinator = taken(&deployment.config, &["metric", "quantiser.clip", "task.initial_model"]).await;
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let set = devices(&deployment, &endpoint, 0..5);
    let result = finished(&mut events).await;
    assert_eq!(result.params.quantiser.clip, 8.0);
    let learned = unisono::wire::model::Model::from_safetensors(&result.model).unwrap();
    assert!((learned.values()[0] - 1.03).abs() < 2e-3, "{}", learned.values()[0]);
    let mut coordinator = coordinator;
    coordinator.trained().await.unwrap();
    all(set).await;
    coordinator.stop().await;

    // Accepted once is stored. Once there are rounds, no other model can be begun with; without its file the task goes on.
    taken(&deployment.config, &[]).await.stop().await;
    std::fs::write(&deployment.config.task.initial_model, zeros.to_safetensors().unwrap()).unwrap();
    let text = refused(&deployment.config, &["task.initial_model"]).await.to_string();
    assert!(text.contains("no longer possible, 2 rounds") && !text.contains("--accept-changes"), "{text}");
    std::fs::remove_file(&deployment.config.task.initial_model).unwrap();
    taken(&deployment.config, &[]).await.stop().await;
}

fn check(folder: &Path) -> Output {
    let check = ["coordinator", "--check", "--config", "coordinator.toml"];
    Command::new(env!("CARGO_BIN_EXE_unisono")).args(check).current_dir(folder).output().unwrap()
}

/// Edits the deployment's file, and checks it.
fn faults(deployment: &Deployment, edits: &[(&str, &str)]) -> Vec<Fault> {
    let path = deployment.folder().join("coordinator.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let edited = edits.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    });
    let path = path.with_file_name("edited.toml");
    std::fs::write(&path, edited).unwrap();
    Config::examine(&path, now()).1
}

#[test]
fn check_tells_everything_that_is_wrong_at_once_with_its_line() {
    let deployment = deployment(1);
    let output = check(deployment.folder());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(faults(&deployment, &[]), []);

    // A roster with a stranger's publisher and two of five devices; what only the start or the end of training would meet.
    let folder = deployment.folder();
    let mut registrar = Registrar::open(&folder.join("registrar")).unwrap();
    for i in [0, 1, 2] {
        registrar.revoke(deployment.device_keys(i).client_id, now()).unwrap();
    }
    let text = std::fs::read_to_string(folder.join("coordinator.key")).unwrap();
    let key = keyfile::signing_key_from_text(Role::Coordinator, &text).unwrap().verifying_key();
    let stranger = SigningKey::generate(Level::L65, &mut rand_core::UnwrapErr(getrandom::SysRng)).verifying_key();
    let roster = registrar.publish(std::slice::from_ref(&stranger), std::slice::from_ref(&stranger), now()).unwrap();
    std::fs::write(folder.join("roster.bin"), roster.to_bytes().unwrap()).unwrap();
    std::fs::write(folder.join("a-file"), "").unwrap();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("listen = \"{}\"", busy.local_addr().unwrap());
    let found = faults(
        &deployment,
        &[
            ("listen = \"127.0.0.1:0\"", &address),
            ("state_dir = \"state\"", "state_dir = \"a-file/state\""),
            ("[round]", "[round]\nmask_ms = 0\nshare_ms = 0\nshar_ms = 5"),
            ("bits = 16", "bits = 16\nmin_weight = -1.0"),
            ("valid_days = 30", "valid_days = 0"),
            ("[release]", "[retention]\nmodels = 3\nmoments = 20\n\n[release]"),
            ("publisher.key", "no.key"),
        ],
    );
    let text: String = found.iter().map(|fault| format!("{fault}\n")).collect();
    let named: Vec<&str> = found.iter().map(|fault| fault.setting.as_str()).collect();
    for name in [
        "shar_ms",
        "round.mask_ms",
        "round.share_ms",
        "quantiser.min_weight",
        "release.valid_days",
        "retention.moments",
        "release.publisher",
        "key",
        "round.n_min",
        "state_dir",
        "listen",
    ] {
        assert_eq!(named.iter().filter(|found| **found == name).count(), 1, "{name} in\n{text}");
    }
    assert!(found.iter().all(|fault| fault.line.is_some() && !fault.problem.is_empty()), "{text}");
    let edited = std::fs::read_to_string(folder.join("edited.toml")).unwrap();
    let line = edited.lines().position(|line| line == "mask_ms = 0").unwrap() + 1;
    assert!(text.contains(&format!("line {line}: round.mask_ms = 0: ")), "{text}");

    // A publisher that the roster does not name is told by a check and at the start, not when nobody can open the model.
    let roster = registrar.publish(&[key], std::slice::from_ref(&stranger), now()).unwrap();
    std::fs::write(folder.join("roster.bin"), roster.to_bytes().unwrap()).unwrap();
    let output = check(folder);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("release.publisher") && text.contains("round.n_min"), "{text}");
    let start = tokio::runtime::Runtime::new().unwrap().block_on(Coordinator::start(deployment.config.clone()));
    assert!(matches!(start.err().unwrap(), CoordinatorError::PublisherNotNamed { epoch: 3 }));
    // One port for both.
    let found = faults(
        &deployment,
        &[("listen = \"127.0.0.1:0\"", "listen = \"127.0.0.1:7700\"\nmetrics_listen = \"0.0.0.0:7700\"")],
    );
    assert!(found.iter().any(|fault| fault.setting == "metrics_listen" && fault.line == Some(2)), "{found:?}");
}

fn modes(folder: &Path, found: &mut Vec<(String, u32)>) {
    let mode = std::fs::metadata(folder).unwrap().permissions().mode() & 0o777;
    found.push((folder.display().to_string(), mode));
    if folder.is_dir() {
        std::fs::read_dir(folder).unwrap().for_each(|entry| modes(&entry.unwrap().path(), found));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn state_is_its_owners_alone_and_a_key_that_others_can_read_is_refused() {
    let deployment = deployment(1);
    let state = deployment.config.state_dir.clone();
    // As an earlier version left it.
    std::fs::create_dir_all(state.join("blobs/models")).unwrap();
    std::fs::write(state.join("blobs/models/old"), "").unwrap();
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut coordinator = taken(&deployment.config, &[]).await;
    let set = devices(&deployment, &format!("http://{}", coordinator.address()), 0..5);
    coordinator.trained().await.unwrap();
    all(set).await;
    let mut found = Vec::new();
    modes(&state, &mut found);
    assert!(found.iter().any(|(path, _)| path.ends_with(".usr")), "{found:?}");
    for (path, mode) in found {
        assert_eq!(mode & 0o077, 0, "{path} has mode {mode:o}");
    }
    coordinator.stop().await;
    for name in ["coordinator.key", "publisher.key", "kek.key"] {
        let path = deployment.folder().join(name);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = Coordinator::start(deployment.config.clone()).await.err().unwrap();
        assert!(matches!(&error, CoordinatorError::Config(ConfigError::Exposed { mode: 0o640, .. })), "{error}");
        assert!(error.to_string().contains(name) && error.to_string().contains("chmod 600"), "{error}");
        assert!(faults(&deployment, &[]).iter().any(|fault| fault.problem.contains("chmod 600")));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn a_model_that_is_none_is_a_fault() {
    let deployment = deployment(1);
    let model = Softmax::zeros(2, 2).to_model().unwrap().to_safetensors().unwrap();
    std::fs::write(deployment.folder().join("initial.safetensors"), &model[..20]).unwrap();
    let found = faults(&deployment, &[]);
    assert!(found.len() == 1 && found[0].setting == "task.initial_model", "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tensors_have_clips_of_their_own() {
    let mut deployment = deployment(1);
    let quantiser = &mut deployment.config.quantiser;
    quantiser.clip = 0.001;
    let of = |tensors: &str, clip| TensorClip { tensors: tensors.into(), clip };
    quantiser.clips = vec![of("b*s", 4.0), of("*", 0.001)];
    let coordinator = taken(&deployment.config, &[]).await;
    let mut events = coordinator.events();
    let set = devices(&deployment, &format!("http://{}", coordinator.address()), 0..5);
    let result = finished(&mut events).await;
    all(set).await;
    coordinator.stop().await;
    // All five send the same everywhere: 0.01 to 0.05.
    let model = unisono::wire::model::Model::from_safetensors(&result.model).unwrap();
    let near = |name: &str, wanted: f32, bound: f32| {
        let values = model.tensor(name).unwrap().1;
        assert!(values.iter().all(|value| (value - wanted).abs() < bound), "{name}: {values:?}");
    };
    near("bias", 0.03, 1e-3);
    near("weight", 0.001, 1e-6);

    let text = deployment.config.quantiser.clone();
    deployment.config.quantiser.clips = vec![of("weigths", 4.0)];
    let model = deployment.config.initial_model().unwrap();
    let mut params = result.params.wire.clone();
    let error = deployment.config.set_clips(&mut params, &model).unwrap_err().to_string();
    assert!(error.contains("weigths") && error.contains("bias, weight"), "{error}");
    deployment.config.quantiser = text;
    // It decides what is learned.
    deployment.config.quantiser.clips.truncate(1);
    let told = changes(&deployment.config).await.unwrap();
    assert_eq!(told.iter().map(|change| change.setting.as_str()).collect::<Vec<_>>(), ["quantiser.clips"]);
}

#[test]
fn a_listener_has_an_address_or_a_name_of_this_machine() {
    let listen = |text: &str| {
        let deployment = deployment(1);
        let config = deployment.folder().join("coordinator.toml");
        let file = std::fs::read_to_string(&config).unwrap();
        let line = file.lines().find(|line| line.starts_with("listen")).unwrap();
        std::fs::write(&config, file.replace(line, &format!("listen = {text:?}"))).unwrap();
        Config::load(&config).map(|config| config.listen.to_string()).map_err(|error| error.to_string())
    };
    assert_eq!(listen("localhost:7700"), Ok("127.0.0.1:7700".into()));
    assert_eq!(listen("[::1]:7700"), Ok("[::1]:7700".into()));
    for bad in ["7700", "localhost", "", "no such host:7700"] {
        let error = listen(bad).unwrap_err();
        assert!(error.contains("no address of this machine with a port"), "{bad:?}: {error}");
    }
}
