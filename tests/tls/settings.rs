//! What a check and a start say about the settings of TLS.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use unisono::coordinator::config::{Config, ConfigError};
use unisono::coordinator::{CoordinatorError, config::Fault};

use super::certificates::write;
use super::*;

const TLS: &str = "[tls]\ncertificate = \"server.pem\"\nkey = \"server.key\"\n";

/// What a check says of the deployment's file with these lines before its sections, and a section.
fn check(world: &World, listen: &str, section: &str) -> (Vec<Fault>, Vec<String>) {
    let path = world.deployment.folder().join("coordinator.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("listen = \"127.0.0.1:0\"", listen).replace("[task]", &format!("{section}\n[task]"));
    let path = path.with_file_name("edited.toml");
    std::fs::write(&path, text).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let (config, faults) = Config::examine(&path, now);
    (faults, config.map(|config| config.warnings(now)).unwrap_or_default())
}

/// The only fault, as it is printed.
fn only(world: &World, section: &str) -> (String, String) {
    let (faults, _) = check(world, "listen = \"0.0.0.0:0\"", section);
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].line.is_some(), "{faults:?}");
    (faults[0].setting.clone(), faults[0].to_string())
}

#[test]
fn a_check_tells_each_mistake_with_its_setting_and_what_to_do() {
    let world = World::new(Terms::default());
    let folder = world.deployment.folder();
    let good = || world.authority.issue(Terms::default()).write(folder);
    assert_eq!(check(&world, "listen = \"0.0.0.0:0\"", TLS), (vec![], vec![]));
    let expect = |setting: &str, words: &str, section: &str| {
        let (found, text) = only(&world, section);
        assert!(found == setting && text.contains(words), "{setting}, {words}: {text}");
        good();
    };
    std::fs::remove_file(folder.join("server.pem")).unwrap();
    expect("tls.certificate", "can't read", TLS);
    std::fs::remove_file(folder.join("server.key")).unwrap();
    expect("tls.key", "can't read", TLS);
    write(&folder.join("server.pem"), "hello");
    expect("tls.certificate", "no certificate is in it", TLS);
    write(&folder.join("server.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n");
    expect("tls.certificate", "copied whole", TLS);
    write(&folder.join("server.key"), "hello");
    expect("tls.key", "no private key is in it", TLS);
    write(&folder.join("server.key"), &world.authority.issue(Terms::default()).key);
    expect("tls.key", "not that of the certificate", TLS);
    std::fs::set_permissions(folder.join("server.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let (setting, text) = only(&world, TLS);
    assert!(setting == "tls.key" && text.contains("chmod 600"), "{text}");
    std::fs::set_permissions(folder.join("server.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let day = 86_400;
    world.authority.issue(Terms { from: Some(-80 * day), until: Some(-3 * day), ..Terms::default() }).write(folder);
    expect("tls.certificate", "expired 3 days ago", TLS);
    world.authority.issue(Terms { from: Some(3 * day), ..Terms::default() }).write(folder);
    expect("tls.certificate", "valid only in", TLS);
    expect("tls.client_ca", "can't read", &format!("{TLS}client_ca = \"no.pem\"\n"));
    // Soon over is no fault yet.
    world
        .authority
        .issue(Terms { from: Some(-80 * day), until: Some(5 * day + 3_600), ..Terms::default() })
        .write(folder);
    let (faults, warnings) = check(&world, "listen = \"0.0.0.0:0\"", TLS);
    assert!(faults.is_empty() && warnings.len() == 1 && warnings[0].contains("expires in 5 days"), "{warnings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_for_other_machines_is_refused_unless_the_file_says_insecure() {
    let world = World::new(Terms::default());
    let (setting, text) = only(&world, "");
    assert!(setting == "listen" && text.contains("[tls]") && text.contains("insecure = true"), "{text}");
    let insecure = "listen = \"0.0.0.0:0\"\ninsecure = true";
    assert_eq!(check(&world, insecure, ""), (vec![], vec![]));
    let (faults, _) = check(&world, insecure, TLS);
    assert!(faults.len() == 1 && faults[0].setting == "insecure", "{faults:?}");
    let (faults, _) = check(&world, "listen = \"127.0.0.1:0\"\nmetrics_listen = \"0.0.0.0:0\"", "");
    assert!(faults.len() == 1 && faults[0].setting == "metrics_listen", "{faults:?}");

    let mut config = world.deployment.config.clone();
    (config.tls, config.listen) = (None, "0.0.0.0:0".parse().unwrap());
    let error = Coordinator::start(config.clone()).await.err().unwrap();
    assert!(matches!(error, CoordinatorError::Config(ConfigError::NoTls { setting: "listen", .. })), "{error}");
    config.insecure = true;
    Coordinator::start(config).await.unwrap().stop().await;
}

#[test]
fn the_log_says_at_each_start_that_it_is_insecure() {
    let world = World::new(Terms::default());
    let folder = world.deployment.folder();
    let text = std::fs::read_to_string(folder.join("coordinator.toml")).unwrap();
    let text = text.replace("listen = \"127.0.0.1:0\"", "listen = \"0.0.0.0:0\"\ninsecure = true");
    std::fs::write(folder.join("open.toml"), text).unwrap();
    for _ in 0..2 {
        // It is stopped by a signal once it serves.
        let script = format!(
            ": > log; {} coordinator --config open.toml 2> log & p=$!; while ! grep -q serving log; do sleep 0.1; done; kill $p; wait $p",
            env!("CARGO_BIN_EXE_unisono")
        );
        let status = Command::new("bash").args(["-c", &script]).current_dir(folder).env("RUST_LOG", "info").status();
        assert!(status.unwrap().success());
        let log = std::fs::read_to_string(folder.join("log")).unwrap();
        let line = log.lines().find(|line| line.contains("insecure = true")).unwrap_or_default();
        assert!(line.contains("WARN") && line.contains("plain HTTP"), "{log}");
    }
}
