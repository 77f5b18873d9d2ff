//! `unisono simulate` as one runs it: tables, JSON, CSV, pictures, sweeps, refusals, interruptions.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The command with these arguments.
fn simulate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unisono"));
    command.arg("simulate").args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    simulate(arguments).output().unwrap()
}

/// Standard output of a run that must succeed.
fn succeed(arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = run(arguments);
    assert!(status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// The message of a run that must be refused, and print nothing.
fn refused(arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = run(arguments);
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(matches!(status.code(), Some(1 | 2)), "{arguments:?}: {status}, {stderr}");
    assert!(stdout.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&stdout));
    stderr
}

struct Table {
    header: csv::StringRecord,
    rows: Vec<csv::StringRecord>,
}

impl Table {
    fn read(path: &Path) -> Self {
        let mut reader = csv::Reader::from_path(path).unwrap();
        let header = reader.headers().unwrap().clone();
        Self { header, rows: reader.records().map(Result::unwrap).collect() }
    }

    fn column(&self, name: &str) -> Vec<&str> {
        let at = self.header.iter().position(|column| column == name).unwrap();
        self.rows.iter().map(|row| &row[at]).collect()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_table_a_round_with_the_settings_above() {
    let text = succeed(&["-n", "20", "-d", "1e2", "--rounds", "2", "--dropout", "0.05", "--rotate", "--bits", "12"]);
    for words in [
        "n = 20, d = 100, malicious mode",
        "updates random, of 12 bits, rotated; drop-out 0.05, network lan, deadline 60 s",
        "round 1: exact sum of 19 of 20 clients",
        "round 2: exact sum of 19 of 20 clients",
        "client CPU",
        "unmask",
    ] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
}

#[test]
fn json_csv_and_pictures_of_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let (csv, plots) = (folder.path().join("rounds.csv"), folder.path().join("new").join("plots"));
    let text =
        succeed(&["-n", "20", "-d", "50", "--rounds", "2", "--json", "--csv", text(&csv), "--plot", text(&plots)]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["rounds"].as_array().unwrap().len(), 2);
    let settings = &json["settings"];
    assert_eq!(
        (&settings["clients"], &settings["dropout"], &settings["network"]),
        (&20.into(), &"0".into(), &"lan".into())
    );
    assert_eq!((&settings["deadline"], &settings["rounds"]), (&60.0.into(), &2.into()));
    let table = Table::read(&csv);
    assert_eq!(table.column("round"), ["1", "1", "1", "1", "1", "2", "2", "2", "2", "2"]);
    assert_eq!(table.column("phase")[..5], ["advertise", "share", "mask", "confirm", "unmask"]);
    for (column, value) in [("dropout", "0"), ("network", "lan"), ("deadline", "60.0"), ("quantiser_bits", "16")] {
        assert!(table.column(column).iter().all(|cell| *cell == value), "{column}: {:?}", table.column(column));
    }
    for name in ["phase-time", "phase-bytes"] {
        let png = std::fs::read(plots.join(format!("{name}.png"))).unwrap();
        assert!(png.starts_with(b"\x89PNG"));
        assert!(std::fs::read_to_string(plots.join(format!("{name}.svg"))).unwrap().contains("<svg"));
    }
}

#[test]
fn a_sweep_has_a_line_and_a_curve_for_each_drop_out() {
    let folder = tempfile::tempdir().unwrap();
    let (csv, plots) = (folder.path().join("sweep.csv"), folder.path().join("plots"));
    let grid = ["--sweep", "n=20,40", "--sweep", "dropout=0,0.05", "--dim", "50"];
    let text = succeed(&[&grid[..], &["--csv", text(&csv), "--plot", text(&plots)]].concat());
    assert!(text.contains("drop-out network deadline"), "{text}");
    assert_eq!(text.matches("round 1: exact sum").count(), 4);
    let table = Table::read(&csv);
    assert_eq!((table.rows.len(), table.column("dropout")[5]), (20, "0.05"));
    assert!(table.column("secaggplus_model_client_seconds")[0].parse::<f64>().unwrap() > 0.0);
    let svg = std::fs::read_to_string(plots.join("client-bytes-n.svg")).unwrap();
    for name in ["d = 50, drop-out 0, malicious", "d = 50, drop-out 0.05, malicious"] {
        assert!(svg.contains(name), "{name}");
    }
}

#[test]
fn repetitions_have_mean_and_interval_in_every_output() {
    let folder = tempfile::tempdir().unwrap();
    let [csv, summary, plots] = ["rounds.csv", "summary.csv", "plots"].map(|name| folder.path().join(name));
    // With drop-outs by chance, what a client receives depends on the seed.
    let common = [
        "--sweep",
        "n=20,40",
        "-d",
        "50",
        "--dropout",
        "share=0.1",
        "--network",
        "mixed",
        "--repeats",
        "3",
        "--seed",
        "7",
    ];
    let files = ["--csv", text(&csv), "--csv-summary", text(&summary), "--plot", text(&plots)];
    let table = succeed(&[&common[..], &files].concat());
    assert_eq!(table.matches("mean of 3 runs (seeds 7 to 9) and its 95 % confidence interval").count(), 2, "{table}");

    let rounds = Table::read(&csv);
    assert_eq!((rounds.column("seed")[0], rounds.column("seed")[5], rounds.rows.len()), ("7", "8", 30));
    let lines = Table::read(&summary);
    let line = |clients: &str, measure: &str, phase: &str| {
        let cells = |name| lines.column(name);
        let found = (0..lines.rows.len())
            .find(|i| (cells("clients")[*i], cells("measure")[*i], cells("phase")[*i]) == (clients, measure, phase));
        ["runs", "mean", "low", "high"].map(|name| cells(name)[found.unwrap()].parse::<f64>().unwrap())
    };
    let [runs, mean, low, high] = line("20", "client_seconds", "mask");
    assert!(runs == 3.0 && low < mean && mean < high && low > -mean, "{low} {mean} {high}");

    let json: serde_json::Value =
        serde_json::from_str(&succeed(&[&common[..], &["--json", "--no-timings"]].concat())).unwrap();
    let point = &json[1];
    assert_eq!((&point["seeds"], &point["settings"]["clients"]), (&serde_json::json!([7, 8, 9]), &40.into()));
    let values: Vec<f64> = (0..3)
        .map(|i| {
            let phases = point["runs"][i]["rounds"][0]["phases"].as_array().unwrap();
            phases.iter().map(|phase| phase["virtual_seconds"].as_f64().unwrap()).sum()
        })
        .collect();
    let expected = values.iter().sum::<f64>() / 3.0;
    let quantities = point["summary"].as_array().unwrap();
    let of = |measure: &str| {
        let found = quantities.iter().find(|q| q["measure"] == measure && q["phase"].is_null()).unwrap();
        ["mean", "low", "high"].map(|name| found[name].as_f64().unwrap())
    };
    let [mean, low, high] = of("virtual_seconds");
    assert!((mean - expected).abs() < 1e-9 && low < high, "{values:?}: {low} {mean} {high}");
    // What the CSV file has is the same.
    assert!((line("40", "virtual_seconds", "")[1] - expected).abs() < 1e-9);
    assert!(quantities.iter().all(|q| q["measure"] != "client_seconds"), "no times with --no-timings");

    let svg = std::fs::read_to_string(plots.join("client-time-n.svg")).unwrap();
    for words in ["mean of the seeds 7 to 9", "n = 20, 40", "share=0.1", "CPU time, seconds", "clients, n"] {
        assert!(svg.contains(words), "{words}");
    }
}

/// docs/reproduce.md, in small.
#[test]
fn the_commands_of_the_page_on_secaggplus_draw_every_picture_that_it_names() {
    const PAGE: &str = include_str!("../docs/reproduce.md");
    let folder = tempfile::tempdir().unwrap();
    let small = [("n=100,200,400", "n=20,40"), ("dim=1e4,3e4,1e5,3e5", "dim=10,20"), ("--clients 100", "--clients 20")];
    let smaller = [("--dim 1e5", "--dim 10"), ("--repeats 5", "--repeats 2")];
    let commands: Vec<&str> = PAGE.lines().filter_map(|line| line.strip_prefix("unisono simulate ")).collect();
    assert_eq!(commands.len(), 3, "{commands:?}");
    for command in commands {
        let command = small.iter().chain(&smaller).fold(command.to_owned(), |text, (from, to)| text.replace(from, to));
        let arguments: Vec<&str> = command.split_whitespace().collect();
        let Output { status, stderr, .. } = simulate(&arguments).current_dir(&folder).output().unwrap();
        assert!(status.success(), "{command}: {}", String::from_utf8_lossy(&stderr));
        let summary = arguments.iter().find(|argument| argument.ends_with(".csv")).unwrap();
        assert!(Table::read(&folder.path().join(summary)).rows.len() > 100, "{command}");
    }
    let named: Vec<&str> = PAGE.split('`').filter(|word| word.contains('/') && !word.contains([' ', '\n'])).collect();
    assert!(named.len() >= 7, "{named:?}");
    for name in named {
        assert!(folder.path().join(format!("{name}.svg")).exists(), "{name}");
    }
}

#[test]
fn without_timings_the_output_is_the_same_to_the_byte_whatever_the_threads() {
    let folder = tempfile::tempdir().unwrap();
    let run = |threads: &str, format: &[&str]| {
        let csv = folder.path().join("rounds.csv");
        let grid = ["--sweep", "n=20,40", "--dim", "50", "--dropout", "0.05", "--network", "mixed", "--seed", "3"];
        let rest = ["--no-timings", "--threads", threads, "--csv", text(&csv)];
        (succeed(&[&grid[..], &rest, format].concat()), std::fs::read_to_string(&csv).unwrap())
    };
    for format in [&[][..], &["--json"]] {
        let (first, csv) = run("1", format);
        assert_eq!((first.clone(), csv), run("3", format));
        assert!(
            first.contains("secaggplus_model") == (format == ["--json"]) && !first.contains("_seconds\": {"),
            "{first}"
        );
    }
}

#[test]
fn what_can_not_work_is_refused_before_the_first_round_with_what_would() {
    let folder = tempfile::tempdir().unwrap();
    let trace = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        format!("trace:{}", path.display())
    };
    let (binary, stranger, twice, early) = (
        trace("binary", b"\x89PNG\xff"),
        trace("stranger.csv", b"round,client,phase\n1,20,mask\n"),
        trace("twice.csv", b"round,client,phase\n1,2,mask\n1,2,share\n"),
        trace("early.csv", b"round,client,phase\n0,2,mask\n"),
    );
    let directory = format!("trace:{}", folder.path().display());
    let (unwritable, under_a_file) = (text(folder.path()), folder.path().join("binary").join("plots"));
    let cases: [(&[&str], &str); 23] = [
        (&["--repeats", "0"], "allowed is 1 to 10000"),
        (&["--repeats", "1e9"], "allowed is 1 to 10000"),
        (&["--repeats", "2", "--seed", "18446744073709551615"], "the last of --repeats 2"),
        (&["--csv-summary", unwritable], "can't write"),
        (&["--threads", "1000000"], "0 to 1024"),
        (&["--dropout", "class:mobil=0.5", "--network", "mixed"], "broadband, mobile, slow"),
        (&["--dropout", "-0.1"], "`dropout` is -0.1"),
        (&["--sweep", "dropout=-0.1"], "`dropout` is -0.1"),
        (&["--dropout", &binary], "no text"),
        (&["--network", &binary], "no text"),
        (&["--network", &directory], "directory"),
        (&["-n", "20", "--dropout", &stranger], "client 20"),
        (&["--dropout", &twice], "line 3"),
        (&["--dropout", &early], "rounds count from 1"),
        (&["--network", "latency=nan"], "latency=NaN"),
        (&["--privacy-delta", "2"], "--noise-multiplier"),
        (&["--privacy-delta", "2", "--noise-multiplier", "1", "--l2-clip", "1"], "privacy's delta"),
        (&["--clients", "-5"], "no whole number"),
        (&["--clients", "1e10"], "too large"),
        (&["--gamma", "-1"], "gamma"),
        (&["--sweep", "n=20,2e1"], "twice"),
        (&["--csv", unwritable], "can't write"),
        (&["--plot", text(&under_a_file)], "can't plot into"),
    ];
    for (arguments, words) in cases {
        let error = refused(arguments);
        assert!(error.contains(words), "{arguments:?}: {error}");
        assert!(!error.contains("panicked"), "{error}");
    }
}

#[test]
fn more_threads_than_a_batch_has_clients_are_no_trouble() {
    succeed(&["-n", "5", "-d", "10", "--threads", "600"]);
}

#[cfg(target_os = "linux")]
mod on_linux {
    use std::io::{BufRead, BufReader, Read};

    use super::*;

    #[test]
    fn a_dimension_that_does_not_fit_into_memory_is_told_and_aborts_nothing() {
        let limited = |dimension| {
            let script = format!("ulimit -v 2500000; exec \"$0\" simulate --clients 5 --dim {dimension} --threads 2");
            Command::new("sh").args(["-c", &script, env!("CARGO_BIN_EXE_unisono")]).output().unwrap()
        };
        // The second one nearly fits.
        for dimension in [1 << 28, 80_000_000] {
            let Output { status, stderr, .. } = limited(dimension);
            let stderr = String::from_utf8(stderr).unwrap();
            assert_eq!(status.code(), Some(1), "{stderr}");
            assert!(stderr.contains("GiB") && stderr.contains("smaller dimension"), "{stderr}");
        }
        assert!(limited(1000).status.success());
    }

    #[test]
    fn a_full_disk_is_an_error_and_the_other_files_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let (csv, plots) = (folder.path().join("rounds.csv"), folder.path().join("plots"));
        let full = || std::fs::File::create("/dev/full").unwrap();
        let mut command = simulate(&["-n", "20", "-d", "10", "--csv", text(&csv), "--plot", text(&plots)]);
        let Output { status, stderr, .. } = command.stdout(full()).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("can't write to standard output"), "{stderr}");
        assert_eq!(Table::read(&csv).rows.len(), 5);
        assert!(plots.join("phase-bytes.png").exists());

        // The other way round: the rounds end with the CSV file, and what was printed stays.
        let Output { status, stdout, stderr } = run(&["-n", "20", "-d", "10", "--rounds", "1e6", "--csv", "/dev/full"]);
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("can't write /dev/full"), "{stderr}");
        assert!(String::from_utf8(stdout).unwrap().contains("round 1: exact sum"));
    }

    #[test]
    fn a_reader_that_goes_away_ends_the_run_quietly() {
        let mut child = simulate(&["-n", "20", "-d", "10", "--rounds", "1e6"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("n = 20"), "{line}");
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        assert!(status.success() && stderr.is_empty(), "{status}: {}", String::from_utf8_lossy(&stderr));
    }

    /// Starts endless rounds with these arguments, sends the signal after the second round; all that came on standard output,
    /// and the exit.
    fn interrupt(arguments: &[&str], signal: &str) -> (String, std::process::ExitStatus) {
        let mut child = simulate(&[&["-n", "20", "-d", "10", "--rounds", "1e6"], arguments].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        while !text.contains("round 2:") {
            assert!(out.read_line(&mut text).unwrap() > 0, "{text}");
        }
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        out.read_to_string(&mut text).unwrap();
        (text, child.wait().unwrap())
    }

    #[test]
    fn an_interrupted_run_keeps_its_rounds_and_says_so_by_its_code() {
        let folder = tempfile::tempdir().unwrap();
        let (csv, plots) = (folder.path().join("rounds.csv"), folder.path().join("plots"));
        let (out, status) = interrupt(&["--csv", text(&csv), "--plot", text(&plots)], "-INT");
        assert_eq!(status.code(), Some(130), "{out}");
        assert!(out.contains("interrupted: the rounds above were finished"), "{out}");
        let finished = out.matches("exact sum of").count();
        assert!(finished >= 2, "{out}");
        assert_eq!(Table::read(&csv).rows.len(), 5 * finished);
        assert!(plots.join("phase-bytes.svg").exists());
    }

    #[test]
    fn an_interrupted_repetition_is_summarised_with_what_there_is() {
        let (out, status) = interrupt(&["--repeats", "3"], "-INT");
        assert_eq!(status.code(), Some(130), "{out}");
        assert!(out.contains("mean of 1 runs (seeds 0 to 0)"), "{out}");
    }

    #[test]
    fn a_killed_run_loses_no_more_than_the_round_at_hand() {
        let folder = tempfile::tempdir().unwrap();
        let csv = folder.path().join("rounds.csv");
        let (_, status) = interrupt(&["--csv", text(&csv)], "-TERM");
        assert!(!status.success());
        assert!(Table::read(&csv).rows.len() >= 5);
    }
}

#[test]
fn devices_that_learn_have_accuracy_in_every_output() {
    let folder = tempfile::tempdir().unwrap();
    let (csv, plots) = (folder.path().join("learned.csv"), folder.path().join("plots"));
    let common =
        ["-n", "12", "--learn", "--alpha", "0.5", "--rounds", "4", "--mode", "semi-honest", "--dropout", "0.1"];
    let table = succeed(&[&common[..], &["--csv", text(&csv), "--plot", text(&plots)]].concat());
    assert!(
        table.contains("d = 650,") && table.contains("updates learned from the bundled digits, Dirichlet alpha = 0.5")
    );
    assert_eq!(table.matches("on examples of no device").count(), 4, "{table}");
    let report: serde_json::Value = serde_json::from_str(&succeed(&[&common[..], &["--json"]].concat())).unwrap();
    let accuracy = |round: usize| report["rounds"][round]["learned"]["accuracy"].as_f64().unwrap();
    assert!(accuracy(3) > 0.7 && accuracy(3) > accuracy(0), "{} {}", accuracy(0), accuracy(3));
    let column = Table::read(&csv).column("accuracy").last().unwrap().parse::<f64>().unwrap();
    assert!((column - accuracy(3)).abs() < 1e-6, "the same in CSV as in JSON: {column}");
    for name in ["accuracy.png", "accuracy.svg"] {
        assert!(plots.join(name).metadata().unwrap().len() > 1000);
    }
    // Noise costs accuracy, and needs equal weights, which it gets.
    let private = ["--noise-multiplier", "2", "--l2-clip", "1"];
    let private = succeed(&[&common[..], &private, &["--json"]].concat());
    let private: serde_json::Value = serde_json::from_str(&private).unwrap();
    assert!(private["rounds"][3]["learned"]["accuracy"].as_f64().unwrap() < accuracy(3));
    for (arguments, word) in [
        (&["--learn", "-d", "100"][..], "cannot be used with"),
        (&["--learn", "--sweep", "dim=10,20"], "dim can't be swept"),
        (&["--learn", "-n", "2000"], "1438 examples can't be dealt to 2000"),
        (&["--learn", "--alpha", "-1"], "alpha"),
        (&["--alpha", "1"], "--learn"),
    ] {
        assert!(refused(arguments).contains(word), "{arguments:?}: {}", refused(arguments));
    }
}
