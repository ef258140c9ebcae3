//! The `antumbra` command.

mod bench;
mod client;
mod ctl;
mod demo;
#[cfg(test)]
mod docs;
mod doctor;
mod dump;
mod inspect;
mod log;
mod moving;
mod node;
mod outside;
mod page;
mod predict;
mod repair;
mod scrub;
mod secret;
mod settings;
mod show;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Boxed error with a message for people.
pub type CliError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
#[command(name = "antumbra", version, about = "A storage engine that moves live data before the move is needed")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts two nodes, loads data, moves a partition under load, checks every read and write, writes a report.
    Demo(demo::DemoOptions),
    /// Runs one node.
    Node(Box<node::NodeOptions>),
    /// Shows and steers a running cluster.
    Ctl(ctl::CtlOptions),
    /// Measures the engine on this machine.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Evaluates or trains the predictor.
    #[command(subcommand)]
    Predict(predict::PredictCommand),
    /// Shows what a file of a data folder holds.
    #[command(subcommand)]
    Inspect(inspect::InspectCommand),
    /// Checks logs, manifests and tables of a data folder that no node has open.
    Verify(verify::VerifyOptions),
    /// Opens a data folder and reads all of it against its checksums, at a pace.
    Scrub(scrub::ScrubOptions),
    /// Says what keeps a data folder from opening, and repairs it when told to.
    Repair(repair::RepairOptions),
    /// Writes all live records as lines of JSON.
    Dump(dump::DumpOptions),
    /// Loads what `dump` wrote.
    Load(dump::LoadOptions),
    /// Prints completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Writes the manual pages into a folder.
    Man {
        /// The folder; created when missing.
        dir: std::path::PathBuf,
    },
    /// Says what on this machine keeps the engine from its best, and what to change.
    Doctor(doctor::DoctorOptions),
}

/// What only prints ends without a word when nobody reads on (`| head`, `| less`), as other programs do.
fn end_with_reader(command: &Command) {
    let prints = matches!(
        command,
        Command::Completions { .. } | Command::Ctl(_) | Command::Dump(_) | Command::Inspect(_) | Command::Verify(_)
    );
    if prints {
        // SAFETY: the default action has no handler whose code could be wrong; sockets are written without the signal.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
}

fn main() -> ExitCode {
    log::start();
    let cli = match settings::parse() {
        Ok(cli) => cli,
        Err(cause) => {
            eprintln!("antumbra: {cause}");
            return ExitCode::FAILURE;
        }
    };
    end_with_reader(&cli.command);
    let result = match cli.command {
        Command::Demo(options) => demo::run(options),
        Command::Node(options) => node::run(*options).map(|()| ExitCode::SUCCESS),
        Command::Ctl(options) => ctl::run(options),
        Command::Bench(command) => bench::run(&command),
        Command::Predict(command) => predict::run(command).map(|()| ExitCode::SUCCESS),
        Command::Inspect(command) => inspect::run(&command).map(|()| ExitCode::SUCCESS),
        Command::Verify(options) => verify::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Scrub(options) => scrub::run(&options),
        Command::Repair(options) => repair::run(&options),
        Command::Dump(options) => dump::run_dump(&options).map(|()| ExitCode::SUCCESS),
        Command::Load(options) => dump::run_load(&options).map(|()| ExitCode::SUCCESS),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut settings::command(), "antumbra", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => settings::write_manual(&dir).map(|()| ExitCode::SUCCESS),
        Command::Doctor(options) => doctor::run(&options),
    };
    match result {
        Ok(code) => code,
        Err(cause) => {
            eprintln!("antumbra: {cause}");
            ExitCode::FAILURE
        }
    }
}
