//! The coordinator as a process: its log under a flood, and what it checks before it serves.

use super::*;

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// Changes the configuration file.
fn configure(deployment: &Deployment, listen: SocketAddr, more: &str) -> std::path::PathBuf {
    let path = deployment.folder().join("coordinator.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let first = text.lines().next().unwrap().to_owned();
    let text = text.replacen(&first, &format!("listen = \"{listen}\"\n{more}"), 1);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refused_calls_leaves_few_lines_in_the_log() {
    let deployment = deployment(1);
    let listen = free_address();
    let path = configure(&deployment, listen, "");
    for json in [false, true] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unisono"));
        command.args(["coordinator", "--config"]).arg(&path).args(json.then_some("--log-json"));
        let mut child = command.env("RUST_LOG", "info").stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            text
        });
        let mut stub = loop {
            match CoordinatorClient::connect(format!("http://{listen}")).await {
                Ok(stub) => break stub,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        let open = stub.get_round(ask(10_000)).await.unwrap().into_inner();
        let params = open.offer.unwrap().params.unwrap();
        let round = unisono::protocol::params::RoundParams::from_payload(&params.payload).unwrap().round_id;
        for i in 0..1_000u32 {
            let client_id = [&i.to_be_bytes()[..], &[0; 12]].concat();
            let step = Some(Step::Advert(Signed::default()));
            let message = ClientMessage { round_id: round.to_vec(), client_id, step };
            assert_eq!(reason(&stub.submit(message).await.unwrap_err()), "unknown_client");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let log = reader.join().unwrap();
        eprintln!("1000 refused calls, json {json}: {} bytes", log.len());
        assert!(log.len() < 4_000, "{} bytes:\n{log}", log.len());
        assert!(!log.contains('\x1b'), "{log}");
        let refused: Vec<&str> = log.lines().filter(|line| line.contains("call refused")).collect();
        assert_eq!(refused.len(), 3, "{log}");
        assert!(refused.iter().all(|line| line.contains("unknown_client") && line.contains("127.0.0.1")), "{log}");
        if json {
            assert!(log.lines().all(|line| line.matches("\"message\":").count() == 1), "{log}");
        }
    }
}

#[test]
fn open_files_and_limits_are_checked_before_the_service_starts() {
    let deployment = deployment(1);
    let check = |more: &str, hard: u64, soft: u64| {
        let path = configure(&deployment, free_address(), more);
        let line = format!(
            "ulimit -Sn {soft} && ulimit -Hn {hard} && exec {} coordinator --check --config {}",
            env!("CARGO_BIN_EXE_unisono"),
            path.display()
        );
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        // As it was.
        let text = std::fs::read_to_string(&path).unwrap().replacen(&format!("{more}\n"), "", 1);
        std::fs::write(&path, text).unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (good, why) = check("max_connections = 1000", 1_000, 100);
    assert!(!good && why.contains("max_connections") && why.contains("at most 744"), "{why}");
    assert_eq!(check("max_connections = 700", 1_000, 100), (true, String::new()));
    // What is not set fits what is allowed.
    assert_eq!(check("# nothing", 1_000, 100), (true, String::new()));
    let (good, why) = check("limits = { total_bytes = 1000 }\nmax_connections = 10", 1_000, 100);
    assert!(!good && why.contains("limits.total_bytes"), "{why}");
    let (good, why) = check("limits = { streams = 1 }\nmax_connections = 10", 1_000, 100);
    assert!(!good && why.contains("streams"), "{why}");
}
