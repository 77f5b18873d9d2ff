//! The operators' guide runs as it is printed: its blocks, one after the other, with the built program, on free ports.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const GUIDE: &str = include_str!("../docs/operations.md");

/// The guide's blocks in a language, in order.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    GUIDE.split(fence.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// A shell with all that it started; ended together.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-9", "--", &group]).status();
        let _ = self.0.wait();
    }
}

/// Below those that the system gives to connections, which could take one before the guide does.
fn free_ports() -> [u16; 2] {
    let first = 20_000 + (std::process::id() % 10_000) as u16;
    let mut free = (first..32_000).filter(|port| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok());
    [free.next().unwrap(), free.next().unwrap()]
}

fn logs(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    let logs = entries.filter(|path| path.extension().is_some_and(|end| end == "log"));
    logs.map(|path| format!("--- {}\n{}\n", path.display(), std::fs::read_to_string(&path).unwrap_or_default()))
        .collect()
}

#[test]
fn the_guide_as_printed_gives_a_released_model_that_a_device_opens() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let [service, metrics] = free_ports();
    let fitted = |text: &str| text.replace("7700", &service.to_string()).replace("9090", &metrics.to_string());
    for block in blocks("toml") {
        let name = block.lines().next().unwrap().trim_start_matches("# ").split(':').next().unwrap();
        std::fs::write(folder.join(name), fitted(block)).unwrap();
    }
    let program = Path::new(env!("CARGO_BIN_EXE_unisono")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    // A restored coordinator has finished its task: it is there when it answers. Then it is stopped.
    let end = "sleep 2\nkill $coordinator\nwait $coordinator\necho the guide is over\n";
    let script = format!("set -eu\ndevices=\n{}{end}", fitted(&blocks("sh").concat()));
    std::fs::write(folder.join("guide.sh"), script).unwrap();
    let output = std::fs::File::create(folder.join("guide.log")).unwrap();
    let mut shell = Command::new("bash");
    shell.arg("guide.sh").current_dir(folder).env("PATH", path).env_remove("RUST_LOG").process_group(0);
    shell.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    let mut shell = Group(shell.spawn().unwrap());
    let began = Instant::now();
    let status = loop {
        if let Some(status) = shell.0.try_wait().unwrap() {
            break status;
        }
        assert!(began.elapsed() < Duration::from_secs(300), "it takes too long\n{}", logs(folder));
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(status.success(), "{status}\n{}", logs(folder));
    let log = std::fs::read_to_string(folder.join("guide.log")).unwrap();
    assert!(
        log.contains("the task is finished: 2 rounds completed") && log.ends_with("the guide is over\n"),
        "{}",
        logs(folder)
    );
    let model = std::fs::read(folder.join("model.safetensors")).unwrap();
    let model = unisono::wire::model::Model::from_safetensors(&model).unwrap();
    assert!(model.values().len() == 15 && model.values().iter().any(|x| *x != 0.0));

    // The reference has a hundred devices: nothing else is wrong with it, nor with its variant with privacy.
    let reference = std::fs::read_to_string(folder.join("reference.toml")).unwrap();
    let variant = without(&without(&reference, "[[metric]]"), "[early_stop]").replace("# l2_clip", "l2_clip");
    let variant = variant + &std::fs::read_to_string(folder.join("privacy")).unwrap();
    std::fs::write(folder.join("private.toml"), variant).unwrap();
    for name in ["reference.toml", "private.toml"] {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let (config, faults) = unisono::coordinator::Config::examine(&folder.join(name), now);
        assert!(config.is_some_and(|config| config.privacy.is_some() == (name == "private.toml")), "{faults:?}");
        assert_eq!(
            faults.iter().map(|fault| fault.setting.as_str()).collect::<Vec<_>>(),
            ["round.n_min"],
            "{faults:?}"
        );
    }
}

/// A configuration without the sections of this name.
fn without(text: &str, section: &str) -> String {
    let mut inside = false;
    let keep = |line: &&str| {
        if line.starts_with('[') {
            inside = line.starts_with(section);
        }
        !inside
    };
    text.lines().filter(keep).map(|line| format!("{line}\n")).collect()
}
