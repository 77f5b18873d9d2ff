//! What an operator does: orders, backups; and devices that are ahead of a restored state.

use super::*;

fn unisono(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unisono")).args(arguments).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_aborts_and_skips_rounds_over_the_socket() {
    let mut deployment = deployment(1);
    deployment.config.round.n_min = 5;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let folder = deployment.config.state_dir.clone();
    let mode = std::fs::metadata(folder.join("admin.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let state = folder.to_str().unwrap().to_owned();
    let admin = move |arguments: &[&str]| {
        let output = unisono(&[&["admin", "--state", &state], arguments].concat());
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    let admin = async |arguments: &'static [&'static str]| {
        let admin = admin.clone();
        tokio::task::spawn_blocking(move || admin(arguments)).await.unwrap()
    };
    let status = loop {
        let (good, status) = admin(&["status"]).await;
        assert!(good, "{status}");
        if !status.contains("\"starting\"") {
            break status;
        }
    };
    assert!(status.contains("\"phase\": \"advertise\"") && status.contains("\"answered\": 0"), "{status}");
    let (good, why) = admin(&["abort-round", "--task", "another"]).await;
    assert!(!good && why.contains("runs task \"digits\""), "{why}");
    let (good, said) = admin(&["abort-round", "--task", TASK]).await;
    assert!(good && said.contains("round 1"), "{said}");
    assert_eq!(aborted(&mut events).await, (1, "an operator aborted it".to_owned()));
    assert_eq!(opened(&mut events).await, 2);
    let (good, why) = admin(&["skip-to-round", "2"]).await;
    assert!(!good && why.contains("not above round 2"), "{why}");
    let (good, why) = admin(&["skip-to-round", "18446744073709551615"]).await;
    assert!(!good && why.contains("highest number"), "{why}");
    assert!(admin(&["skip-to-round", "50"]).await.0);
    assert_eq!(opened(&mut events).await, 50);
    // Junk on the socket is answered, and nothing else happens.
    let mut stream = std::os::unix::net::UnixStream::connect(folder.join("admin.sock")).unwrap();
    stream.write_all(b"{\"command\":\"explode\"}\n").unwrap();
    let mut answer = String::new();
    tokio::task::spawn_blocking(move || {
        BufReader::new(stream).read_line(&mut answer).unwrap();
        assert!(answer.contains("refused"), "{answer}");
    })
    .await
    .unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    assert_eq!(
        all(devices(&deployment, &endpoint, 0..5)).await,
        vec![Summary { completed: 1, missed: 0, declined: 0 }; 5]
    );
    let (good, why) = admin(&["abort-round"]).await;
    assert!(!good && why.contains("finished"), "{why}");
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_running_service_is_restored_and_its_devices_which_are_ahead_go_on() {
    let mut deployment = deployment(1_000);
    (deployment.config.round.n_min, deployment.config.round.advertise_ms) = (5, 500);
    let state = deployment.config.state_dir.clone();
    let copy = deployment.folder().join("backups/one");
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let mut set = devices(&deployment, &endpoint, 0..5);
    finished(&mut events).await;
    let (from, to) = (state.to_str().unwrap().to_owned(), copy.to_str().unwrap().to_owned());
    let made = {
        let (from, to) = (from.clone(), to.clone());
        tokio::task::spawn_blocking(move || unisono(&["backup", "--state", &from, "--out", &to])).await.unwrap()
    };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(!copy.join("blobs/uploads").exists() && !deployment.folder().join("backups/one.partial").exists());
    let again = unisono(&["backup", "--state", &from, "--out", &to]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("exists"));
    let nothing = unisono(&["backup", "--state", deployment.folder().to_str().unwrap(), "--out", "/nonexistent/x"]);
    assert!(!nothing.status.success() && String::from_utf8_lossy(&nothing.stderr).contains("no coordinator's state"));
    // Training goes on meanwhile, and then further.
    let mut last = 0;
    for _ in 0..4 {
        last = finished(&mut events).await.round;
    }
    set.shutdown().await;
    coordinator.stop().await;

    // The guide: the state away, the copy in its place, start.
    std::fs::rename(&state, deployment.folder().join("broken")).unwrap();
    let copied = Command::new("cp").args(["-a", &to, &from]).status().unwrap();
    assert!(copied.success());
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let mut set = devices(&deployment, &endpoint, 0..5);
    let (round, why) = aborted(&mut events).await;
    assert!(round <= last, "the state went back: round {round} after round {last}");
    assert!(why.contains("devices are ahead"), "{why}");
    let result = finished(&mut events).await;
    assert!(result.round > last && result.round <= last + 2, "{} after {last}", result.round);
    set.shutdown().await;
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn liars_about_their_round_move_the_number_by_a_bounded_step_at_most() {
    let mut deployment = deployment(1);
    (deployment.config.round.n_min, deployment.config.round.advertise_ms) = (5, 300);
    deployment.config.task.max_round_jump = 7;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let mut liars = JoinSet::new();
    for _ in 0..6 {
        let channel = tonic::transport::Channel::from_shared(endpoint.clone()).unwrap().connect().await.unwrap();
        let mut stub = unisono::wire::proto::coordinator_client::CoordinatorClient::new(channel);
        let request =
            GetRoundRequest { task: TASK.into(), after_round: u64::MAX, wait_ms: 20_000, ..Default::default() };
        liars.spawn(async move { stub.get_round(request).await.map(|_| ()) });
    }
    assert!(aborted(&mut events).await.1.contains("ahead"));
    assert_eq!(opened(&mut events).await, 7);
    // They lie on, and it is that round's time again and again: it stays, or a long night would take the number where no device follows.
    let more = tokio::time::timeout(Duration::from_secs(4), aborted(&mut events)).await;
    assert!(more.is_err(), "{more:?}");
    liars.shutdown().await;
    assert_eq!(all(devices(&deployment, &endpoint, 0..5)).await.len(), 5);
    coordinator.stop().await;
}
