mod commands;

use clap::Parser;

#[derive(Parser)]
enum Command {
    Simulate(commands::simulate::Args),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Simulate(args) => commands::simulate::run(args),
    }
}
