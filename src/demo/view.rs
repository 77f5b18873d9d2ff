//! The live view: a bar for each phase of the round at hand, a line for each round that is over. On standard error; without
//! a terminal the lines alone.

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use unisono::protocol::server::Phase;

use super::Args;
use super::summary::{Round, Summary};

pub struct View {
    bars: MultiProgress,
    phases: Vec<ProgressBar>,
    rounds: u64,
    terminal: bool,
}

impl View {
    pub fn new(args: &Args) -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let style = ProgressStyle::with_template("  {prefix:<16} {bar:32.cyan/blue} {pos:>3} of {len} {msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─");
        let bar = |phase: Phase| {
            let bar = bars.add(ProgressBar::new(u64::from(args.clients)).with_style(style.clone()));
            bar.with_prefix(format!("{} {}", phase as usize, phase.name()))
        };
        let phases = if terminal { Phase::ALL.map(bar).to_vec() } else { Vec::new() };
        Self { bars, phases, rounds: args.rounds, terminal }
    }

    pub fn line(&self, text: impl AsRef<str>) {
        if self.terminal {
            let _ = self.bars.println(text);
        } else {
            eprintln!("{}", text.as_ref());
        }
    }

    /// A round begins.
    pub fn round(&self, round: u64) {
        for bar in &self.phases {
            bar.set_position(0);
            bar.set_message(String::new());
        }
        if let Some(bar) = self.phases.first() {
            bar.set_message(format!("round {round}"));
        }
    }

    pub fn progress(&self, _: u64, phase: Phase, answered: usize, expected: usize) {
        if let Some(bar) = self.phases.get(phase as usize) {
            bar.set_length(expected as u64);
            bar.set_position(answered as u64);
        }
    }

    /// A round gave a sum.
    pub fn finished(&self, round: &Round) {
        let missing: Vec<String> = round.missing.iter().map(|(phase, count)| format!("{phase} {count}")).collect();
        let missing = if missing.is_empty() { "nobody".into() } else { missing.join(", ") };
        let exact = if round.exact_sum { "sum exact" } else { "SUM WRONG" };
        let seconds: f64 = round.seconds.values().sum();
        self.line(format!(
            "round {:>2} of {}  cohort {:>3}  in the sum {:>3}  {exact}  accuracy {:.3}  {seconds:>4.1} s  gone: {missing}",
            round.round, self.rounds, round.cohort, round.survivors, round.accuracy,
        ));
    }

    pub fn end(&self, summary: &Summary) {
        self.phases.iter().for_each(ProgressBar::finish_and_clear);
        let rounds = summary.rounds.len();
        let exact = summary.rounds.iter().filter(|round| round.exact_sum).count();
        self.line(format!("{exact} of {rounds} sums equal the survivors' plaintext sum exactly"));
        self.line(format!(
            "accuracy {:.3} on held-out digits; the same model trained centrally: {:.3}",
            summary.accuracy, summary.central_accuracy
        ));
        let bytes = summary.rounds.iter().map(|round| (round.bytes_per_client.up, round.bytes_per_client.down));
        let (up, down) = bytes.fold((0, 0), |sum, bytes| (sum.0 + bytes.0, sum.1 + bytes.1));
        let mean = |bytes: u64| HumanBytes(bytes / rounds.max(1) as u64);
        self.line(format!("a client sends {} and receives {} a round", mean(up), mean(down)));
        let release = &summary.release;
        self.line(format!("release {} ({}), sealed and signed", release.version, HumanBytes(release.bytes as u64)));
        match &release.open_error {
            None => self.line("  an enrolled client opens it"),
            Some(error) => self.line(format!("  an enrolled client can't open it: {error}")),
        }
        match &release.refused_to_stranger {
            Some(refusal) => self.line(format!("  a stranger is told: {refusal}")),
            None => self.line("  a stranger opens it"),
        }
        self.line(format!("{:.1} s in all", summary.seconds));
    }
}
