//! Files and state that are damaged, older, or gone.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_roster_file_that_is_older_truncated_or_foreign_is_refused_and_the_last_good_one_stays() {
    let mut deployment = deployment(1);
    deployment.config.round.n_min = 4;
    let file = deployment.folder().join("roster.bin");
    let older = std::fs::read(&file).unwrap();
    let mut registrar = Registrar::open(&deployment.folder().join("registrar")).unwrap();
    let keys = deployment.config.round_keys().unwrap().unwrap();
    let publisher = deployment.config.release_keys().unwrap().unwrap().publisher.verifying_key();
    registrar.revoke(deployment.device_keys(4).client_id, now()).unwrap();
    let newer = registrar
        .publish(&[keys.signing_key.verifying_key()], std::slice::from_ref(&publisher), now())
        .unwrap()
        .to_bytes()
        .unwrap();
    let foreign = registrar
        .publish(std::slice::from_ref(&publisher), std::slice::from_ref(&publisher), now())
        .unwrap()
        .to_bytes()
        .unwrap();
    let put = |bytes: &[u8]| unisono::files::replace(&file, bytes).unwrap();
    put(&newer);
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    // Before the round's end, so that it is opened and released under the last good one.
    put(&newer[..newer.len() / 2]);
    all(devices(&deployment, &endpoint, 0..4)).await;
    coordinator.trained().await.unwrap();
    // A device in force gets its grant, the revoked one does not.
    let check = async |endpoint: &str| {
        let mut device = builder(&deployment, endpoint, 0).build(constant(0)).unwrap();
        device.open_release(TASK, 1 << 20).await.unwrap();
        let mut revoked = builder(&deployment, endpoint, 4).build(constant(4)).unwrap();
        let error = revoked.open_release(TASK, 1 << 20).await.err().unwrap();
        assert!(error.to_string().contains("unknown_client"), "{error}");
    };
    for bytes in [&older[..], &newer[..100], b"", &foreign[..], &newer[..]] {
        put(bytes);
        check(&endpoint).await;
    }
    std::fs::remove_file(&file).unwrap();
    check(&endpoint).await;
    coordinator.stop().await;
    // Also after a restart.
    put(&older);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    check(&format!("http://{}", coordinator.address())).await;
    coordinator.stop().await;
    // Without the copy that is kept, an older file is no roster at all.
    std::fs::remove_dir_all(deployment.config.state_dir.join("blobs/rosters")).unwrap();
    let error = Coordinator::start(deployment.config.clone()).await.err().unwrap();
    assert!(error.to_string().contains("a roster of epoch 2 was in force"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roster_that_is_over_stops_the_task_and_no_device_until_a_newer_one_is_published() {
    let deployment = deployment(1);
    let file = deployment.folder().join("roster.bin");
    let mut registrar = Registrar::open(&deployment.folder().join("registrar")).unwrap();
    let keys = deployment.config.round_keys().unwrap().unwrap().signing_key.verifying_key();
    let publisher = deployment.config.release_keys().unwrap().unwrap().publisher.verifying_key();
    let mut publish = |days, since| {
        let (coordinators, publishers) = ([keys.clone()], [publisher.clone()]);
        let issue =
            Issue { coordinators: &coordinators, publishers: &publishers, now: now() - since, days, after_epoch: 0 };
        registrar.publish_to(&file, &issue).unwrap();
    };
    // It is over in five seconds, while a round waits for devices.
    publish(1, 86_400 - 5);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let (number, why) = aborted(&mut coordinator.events()).await;
    assert!(number == 1 && why.contains("unisono registrar publish"), "{why}");
    let (_, faults) = Config::examine(&deployment.folder().join("coordinator.toml"), now());
    let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|fault| fault.contains("roster") && fault.contains("was valid until")), "{told:?}");
    coordinator.stop().await;
    // A restart changes nothing about it.
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let mut stub =
        unisono::wire::proto::coordinator_client::CoordinatorClient::connect(endpoint.clone()).await.unwrap();
    let status = loop {
        let request = GetRoundRequest { task: TASK.into(), after_round: 0, wait_ms: 100, ..Default::default() };
        match stub.get_round(request).await {
            Err(status) if reason(&status) == "starting" => tokio::time::sleep(Duration::from_millis(50)).await,
            answer => break answer.unwrap_err(),
        }
    };
    assert_eq!((status.code(), reason(&status)), (tonic::Code::Unavailable, "task_failed"));
    assert!(status.message().contains("(roster)"), "{}", status.message());
    let set = devices(&deployment, &endpoint, 0..5);
    publish(2, 0);
    all(set).await;
    coordinator.trained().await.unwrap();
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fails_says_unavailable_and_goes_on_when_it_is_mended() {
    let deployment = deployment(1);
    Coordinator::start(deployment.config.clone()).await.unwrap().stop().await;
    let model = deployment.config.state_dir.join("blobs/models/digits/0/model.safetensors");
    let good = std::fs::read(&model).unwrap();
    // The round that was opened is over, so that another one needs the model.
    let db = database(&deployment).await;
    sqlx::query("UPDATE rounds SET state = 'aborted'").execute(&db).await.unwrap();
    db.close().await;
    std::fs::write(&model, b"junk").unwrap();
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let channel = tonic::transport::Channel::from_shared(endpoint.clone()).unwrap().connect().await.unwrap();
    let mut stub = unisono::wire::proto::coordinator_client::CoordinatorClient::new(channel);
    let status = loop {
        let request = GetRoundRequest { task: TASK.into(), after_round: 0, wait_ms: 100, ..Default::default() };
        if let Err(status) = stub.get_round(request).await {
            break status;
        }
    };
    assert_eq!((status.code(), reason(&status)), (tonic::Code::Unavailable, "task_failed"), "{status}");
    assert!(coordinator.health().ready().unwrap_err().contains("failed"));
    let set = devices(&deployment, &endpoint, 0..5);
    tokio::time::sleep(Duration::from_secs(2)).await;
    std::fs::write(&model, good).unwrap();
    assert_eq!(all(set).await, vec![Summary { completed: 1, missed: 0, declined: 0 }; 5]);
    coordinator.trained().await.unwrap();
    assert_eq!(coordinator.health().ready(), Ok(()));
    coordinator.stop().await;
}

/// The coordinator's database, beside the coordinator.
pub async fn database(deployment: &Deployment) -> sqlx::SqlitePool {
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(deployment.config.state_dir.join("coordinator.sqlite"))
        .busy_timeout(Duration::from_secs(10));
    sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_that_fails_in_the_same_way_at_two_replays_is_aborted() {
    let deployment = deployment(1);
    Coordinator::start(deployment.config.clone()).await.unwrap().stop().await;
    // Round 1 is stored; what every replay reads is damaged.
    let db = database(&deployment).await;
    sqlx::query("INSERT INTO suspended (task, client_id, round) VALUES ('digits', x'01', 0)")
        .execute(&db)
        .await
        .unwrap();
    for restart in 0..2 {
        let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
        let state = async || -> Option<String> {
            let row = sqlx::query_scalar("SELECT reason FROM rounds WHERE number = 1");
            row.fetch_one(&db).await.unwrap()
        };
        if restart == 0 {
            // One failure in this life of the process.
            while coordinator.health().ready().is_ok_and(|()| true)
                || coordinator.health().ready() == Err("starting".into())
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(state().await, None);
        } else {
            let why = loop {
                if let Some(why) = state().await {
                    break why;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            };
            assert!(why.contains("replayed 2 times") && why.contains("does not have 16 bytes"), "{why}");
        }
        coordinator.stop().await;
    }
    sqlx::query("DELETE FROM suspended").execute(&db).await.unwrap();
    db.close().await;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    assert_eq!(
        all(devices(&deployment, &endpoint, 0..5)).await,
        vec![Summary { completed: 1, missed: 0, declined: 0 }; 5]
    );
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_upload_ends_its_round_and_a_restart_goes_on() {
    let mut deployment = deployment(1);
    (deployment.config.round.straggler_grace_ms, deployment.config.round.n_min) = (None, 5);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    // Device 4 takes a day to train: the others' uploads are in.
    let mut set = devices(&deployment, &endpoint, 0..4);
    let slow = |_: &TrainingRound| {
        std::thread::sleep(Duration::from_secs(3));
        Err("asleep".into())
    };
    let mut sleeper = builder(&deployment, &endpoint, 4).build(slow).unwrap();
    set.spawn(async move { sleeper.run().await });
    loop {
        if let Happened::Progress { phase: unisono::protocol::server::Phase::Mask, answered: 4, .. } =
            events.recv().await.unwrap()
        {
            break;
        }
    }
    set.abort_all();
    coordinator.stop().await;
    while set.join_next().await.is_some() {}
    let uploads = deployment.config.state_dir.join("blobs/uploads");
    for round in std::fs::read_dir(&uploads).unwrap() {
        let client = std::fs::read_dir(round.unwrap().path()).unwrap().next().unwrap().unwrap();
        std::fs::remove_file(client.path().join("1")).unwrap();
    }
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    assert_eq!(
        all(devices(&deployment, &endpoint, 0..5)).await,
        vec![Summary { completed: 1, missed: 0, declined: 0 }; 5]
    );
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_encryption_key_than_that_of_the_release_is_noticed_at_the_start() {
    let deployment = deployment(1);
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    all(devices(&deployment, &format!("http://{}", coordinator.address()), 0..5)).await;
    coordinator.trained().await.unwrap();
    coordinator.stop().await;
    let path = deployment.folder().join("kek.key");
    let good = std::fs::read_to_string(&path).unwrap();
    let (head, digits) = good.trim_end().rsplit_once(' ').unwrap();
    let other: String = digits.chars().rev().collect();
    std::fs::write(&path, format!("{head} {other}\n")).unwrap();
    let error = Coordinator::start(deployment.config.clone()).await.err().unwrap().to_string();
    assert!(error.contains("release.key_encryption_key") && error.contains("version 1"), "{error}");
    // `--check` tells it, too.
    let check = |config: &Path| {
        let check = ["coordinator", "--check", "--config"];
        Command::new(env!("CARGO_BIN_EXE_unisono")).args(check).arg(config).output().unwrap()
    };
    let config = deployment.folder().join("coordinator.toml");
    let told = check(&config);
    let text = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(!told.status.success() && text.contains("release.key_encryption_key"), "{text}");
    std::fs::write(&path, good).unwrap();
    let told = check(&config);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    Coordinator::start(deployment.config.clone()).await.unwrap().stop().await;
}
