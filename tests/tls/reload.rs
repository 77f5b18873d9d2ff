//! Certificates that change while the coordinator runs.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::certificates::{Pair, write};
use super::*;

/// What a new connection is shown.
async fn shown(address: &str, authority: &str) -> Vec<u8> {
    raw::shown(&raw::connect(address, authority, &[]).await.unwrap())
}

fn der(pair: &Pair) -> Vec<u8> {
    unisono_tls::certificates(pair.certificate.as_bytes()).unwrap()[0].to_vec()
}

/// Longer than the files are left alone.
const LOOKED: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_get_a_new_certificate_and_old_ones_go_on() {
    let world = World::new(Terms::default());
    let coordinator = world.start().await;
    let (address, authority) = (coordinator.address().to_string(), world.authority.pem());
    let folder = world.deployment.folder();
    let mut old = raw::connect(&address, &authority, &[]).await.unwrap();
    raw::begin(&mut old).await;
    assert!(raw::answers(&mut old).await);
    let next = world.authority.issue(Terms::default());
    next.write(folder);
    let changed = async {
        while shown(&address, &authority).await != der(&next) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), changed).await.expect("the new certificate is not taken");
    assert!(raw::shown(&old) != der(&next) && raw::answers(&mut old).await);

    // Half a file, another's key, a key that others may read, no file: what was good stays.
    let third = world.authority.issue(Terms::default());
    write(&folder.join("server.pem"), &third.certificate[..third.certificate.len() / 2]);
    tokio::time::sleep(LOOKED).await;
    assert!(shown(&address, &authority).await == der(&next));
    write(&folder.join("server.pem"), &third.certificate);
    tokio::time::sleep(LOOKED).await;
    assert!(shown(&address, &authority).await == der(&next), "its key is not there yet");
    std::fs::remove_file(folder.join("server.key")).unwrap();
    tokio::time::sleep(LOOKED).await;
    assert!(shown(&address, &authority).await == der(&next));
    // Then it is whole.
    third.write(folder);
    tokio::time::sleep(LOOKED).await;
    assert!(shown(&address, &authority).await == der(&third));
    assert!(raw::answers(&mut old).await, "no connection is dropped");
    coordinator.stop().await;
}

/// A coordinator as a process of its own; killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Status line and body of a GET request over TLS.
async fn get(address: &str, authority: &str, path: &str) -> Option<String> {
    use unisono_tls::rustls::{ClientConfig, pki_types::ServerName};
    let config = ClientConfig::builder_with_provider(unisono_tls::provider().unwrap())
        .with_protocol_versions(unisono_tls::VERSIONS)
        .unwrap()
        .with_root_certificates(unisono_tls::authorities(authority.as_bytes()).unwrap())
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    Some(String::from_utf8(answer).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_that_others_can_reach_are_served_by_tls_and_tell_of_the_certificate() {
    let world = World::new(Terms::default());
    let (folder, authority) = (world.deployment.folder(), world.authority.pem());
    let (listen, metrics) = (free_port(), free_port());
    let text = std::fs::read_to_string(folder.join("coordinator.toml")).unwrap();
    let text = text.replace(
        "listen = \"127.0.0.1:0\"",
        &format!("listen = \"0.0.0.0:{listen}\"\nmetrics_listen = \"0.0.0.0:{metrics}\""),
    );
    let text = text.replace("[task]", "[tls]\ncertificate = \"server.pem\"\nkey = \"server.key\"\n\n[task]");
    std::fs::write(folder.join("open.toml"), text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_unisono"));
    command.args(["coordinator", "--config", "open.toml"]).current_dir(folder).env("RUST_LOG", "info");
    let mut process = Process(command.stderr(Stdio::piped()).spawn().unwrap());
    let log = Arc::new(Mutex::new(String::new()));
    let (stderr, written) = (process.0.stderr.take().unwrap(), log.clone());
    std::thread::spawn(move || {
        BufReader::new(stderr)
            .lines()
            .map_while(Result::ok)
            .for_each(|line| *written.lock().unwrap() += &(line + "\n"));
    });
    let metrics = format!("127.0.0.1:{metrics}");
    let tells = async |words: &str| {
        let told = async {
            while !get(&metrics, &authority, "/metrics").await.is_some_and(|text| text.contains(words)) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let late = tokio::time::timeout(Duration::from_secs(60), told).await.is_err();
        let metrics = get(&metrics, &authority, "/metrics").await;
        let log = log.lock().unwrap().clone();
        assert!(!late, "{words:?} is not told\n{log}\n{metrics:?}");
    };
    for listener in ["devices", "metrics"] {
        tells(&format!("unisono_tls_valid_until{{listener=\"{listener}\"}} 2")).await;
        tells(&format!("unisono_tls_refused{{listener=\"{listener}\"}} 0")).await;
    }
    write(&folder.join("server.pem"), "-----BEGIN CERTIFICATE-----\nhalf");
    tells("unisono_tls_refused{listener=\"devices\"} 1").await;
    let written = log.lock().unwrap().clone();
    assert!(written.contains("the last good ones stay in use"), "{written}");
    // Soon over.
    let day = 86_400;
    world
        .authority
        .issue(Terms { from: Some(-80 * day), until: Some(5 * day + 3_600), ..Terms::default() })
        .write(folder);
    tells("unisono_tls_refused{listener=\"devices\"} 0").await;
    let written = log.lock().unwrap().clone();
    assert!(written.contains("expires in 5 days") && !written.contains("PRIVATE"), "{written}");
    // Handshakes that failed are counted with the other limits.
    let _ = tokio::net::TcpStream::connect(("127.0.0.1", listen)).await.unwrap().write_all(b"SSH-2.0-x\r\n").await;
    tells("unisono_limited_total{limit=\"handshake\"} 1").await;
}
