//! The coordinator as a process: what it tells on its listeners, and how it stops.

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::*;

/// A coordinator as a process of its own; killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Changes lines of the configuration, and starts it.
fn process(deployment: &Deployment, listen: &str, more: &str) -> Process {
    let path = deployment.folder().join("coordinator.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{listen}\"\n{more}"));
    std::fs::write(&path, text).unwrap();
    let command = Command::new(env!("CARGO_BIN_EXE_unisono"))
        .args(["coordinator", "--config"])
        .arg(&path)
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn();
    Process(command.unwrap())
}

fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// Status line and body of a GET request.
fn get(address: &str, path: &str) -> Option<(String, String)> {
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.lines().next()?.to_owned(), body.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_listener_tells_whether_the_process_lives_and_is_ready() {
    let deployment = deployment(1);
    let (listen, metrics) = (free_address(), free_address());
    let mut process = process(&deployment, &listen, &format!("metrics_listen = \"{metrics}\""));
    let stderr = process.0.stderr.take().unwrap();
    std::thread::spawn(move || BufReader::new(stderr).lines().for_each(drop));
    let ready = loop {
        if let Some((status, body)) = get(&metrics, "/readyz")
            && body == "ready\n"
        {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(ready.contains("200"), "{ready}");
    assert!(get(&metrics, "/livez").unwrap().0.contains("200"));
    assert!(get(&metrics, "/other").unwrap().0.contains("404"));
    all(devices(&deployment, &format!("http://{listen}"), 0..5)).await;
    let (_, text) = get(&metrics, "/metrics").unwrap();
    for line in [
        "unisono_phase_seconds_bucket{phase=\"mask\",le=\"10\"} 1",
        "unisono_rounds_total{result=\"sum\"} 1",
        "unisono_task_failed 0",
        "unisono_phase_answered 0",
        "unisono_roster_epoch 1",
        "unisono_devices_ahead 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_standard_health_service_tells_whether_devices_can_be_served() {
    let deployment = deployment(1);
    Coordinator::start(deployment.config.clone()).await.unwrap().stop().await;
    // Another round needs the model.
    let model = deployment.config.state_dir.join("blobs/models/digits/0/model.safetensors");
    let good = std::fs::read(&model).unwrap();
    let db = state::database(&deployment).await;
    sqlx::query("UPDATE rounds SET state = 'aborted'").execute(&db).await.unwrap();
    db.close().await;
    std::fs::write(&model, b"junk").unwrap();
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let channel = tonic::transport::Channel::from_shared(endpoint).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel);
    let request = |service: &str| HealthCheckRequest { service: service.into() };
    let mut changes = health.watch(request("unisono.v1.Coordinator")).await.unwrap().into_inner();
    let mut next = async || changes.message().await.unwrap().unwrap().status();
    assert_eq!(next().await, ServingStatus::NotServing);
    std::fs::write(&model, good).unwrap();
    assert_eq!(next().await, ServingStatus::Serving);
    assert_eq!(health.check(request("")).await.unwrap().into_inner().status(), ServingStatus::Serving);
    let unknown = health.check(request("unisono.v1.Registrar")).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    // A watch ends by itself: nobody holds a place for ever.
    let ended = tokio::time::timeout(Duration::from_secs(40), changes.message()).await.expect("it ends");
    assert_eq!(ended.unwrap_err().code(), tonic::Code::Unavailable);
    coordinator.stop().await;
}

#[test]
fn sigterm_while_the_coordinator_loads_is_a_clean_stop() {
    let deployment = deployment(1);
    // Reading the roster does not end.
    let roster = deployment.folder().join("roster.bin");
    std::fs::remove_file(&roster).unwrap();
    assert!(Command::new("mkfifo").arg(&roster).status().unwrap().success());
    let mut process = process(&deployment, &free_address(), "");
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(process.0.try_wait().unwrap().is_none(), "it loads");
    assert!(Command::new("kill").arg(process.0.id().to_string()).status().unwrap().success());
    for _ in 0..200 {
        if let Some(status) = process.0.try_wait().unwrap() {
            assert_eq!(status.code(), Some(0), "{status}");
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("it did not stop");
}

#[tokio::test]
async fn a_runtime_of_one_thread_serves_a_round_and_its_release() {
    let deployment = deployment(1);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let set = devices(&deployment, &format!("http://{}", coordinator.address()), 0..5);
    assert_eq!(all(set).await, vec![Summary { completed: 1, missed: 0, declined: 0 }; 5]);
    coordinator.stop().await;
}
