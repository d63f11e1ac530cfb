//! The command line: one file a subcommand, and the frame around them.
//!
//! Contract
//! - Standard output carries results and nothing else, through [`print()`]; logs and progress go to standard error.
//! - A reader of standard output that goes away ends the process quietly with 0.
//! - Every subcommand is an `Args` with an example in its help, and `run(args) -> anyhow::Result<Exit>`; the exit
//!   codes are [`exit`]'s. Only this folder uses `anyhow`.
//! - A panic is a bug and ends with [`Exit::Internal`].
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod bench;
pub mod bench_gpu;
pub mod calibrate;
pub mod campaign;
pub mod check;
pub mod doctor;
pub mod drain;
pub mod exit;
pub mod explain;
pub mod hidden;
pub mod host;
pub mod launch;
pub mod log;
pub mod quarantine;
pub mod reconstruct;
pub mod request;
pub mod run;
pub mod series;
pub mod shell;
pub mod status;
pub mod synth;

pub use exit::{Exit, OrExit};

use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use std::io::{self, IsTerminal, Write};
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Reconstructs scans while the experiment runs.
///
/// A campaign file names folders where scans appear. `beampilot run` watches them, reconstructs every scan that is
/// complete, on one machine or on many nodes under mpiexec, and publishes each result by one rename.
#[derive(Debug, Parser)]
#[command(
    name = "beampilot",
    version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BEAMPILOT_COMMIT"), ")"),
    propagate_version = true,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 75 try again later, 78 the configuration is wrong; docs/exit-codes.md lists all.

Examples:
  beampilot doctor campaign.toml
  beampilot check campaign.toml
  mpiexec -n 4 beampilot run campaign.toml
  beampilot launch campaign.toml
  beampilot status campaign.toml"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How to talk.
    #[command(flatten)]
    pub talk: Talk,
}

/// Options of every subcommand.
#[derive(Debug, Clone, clap::Args)]
pub struct Talk {
    /// Say more on standard error; twice for everything. BEAMPILOT_LOG (a tracing filter) overrides it.
    #[arg(short, long, global = true, help_heading = "Logging", action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Say only errors on standard error.
    #[arg(short, long, global = true, help_heading = "Logging")]
    pub quiet: bool,
    /// How log lines on standard error are written.
    #[arg(long, global = true, help_heading = "Logging", value_enum, default_value_t = LogFormat::Text)]
    #[arg(value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // Each is described at its `Args`.
pub enum Command {
    Run(run::Args),
    Launch(launch::Args),
    Status(status::Args),
    Explain(explain::Args),
    Request(request::Args),
    Quarantine(quarantine::Args),
    Drain(drain::Args),
    Check(check::Args),
    Doctor(doctor::Args),
    Reconstruct(reconstruct::Args),
    Calibrate(calibrate::Args),
    Series(series::Args),
    Synth(synth::Args),
    Bench(bench::Args),
    #[command(hide = true)]
    HostCheck(host::CheckArgs),
    #[command(hide = true)]
    Survivors(host::SurvivorsArgs),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
    #[command(hide = true)]
    Keeper(hidden::KeeperArgs),
    #[command(hide = true)]
    Executor(hidden::ExecutorArgs),
    #[command(hide = true)]
    ExecShim(hidden::ShimArgs),
}

/// Parses the command line, does it, and says how it ended.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too; whether anybody reads them is not our business.
            let _ = error.print();
            if error.use_stderr() {
                answer_refusal(Exit::Usage, error.to_string().lines().next().unwrap_or_default());
            }
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    let Cli { command, talk } = cli;
    log::start(&talk);
    match std::panic::catch_unwind(AssertUnwindSafe(|| dispatch(command, &talk))) {
        Ok(Ok(exit)) => exit.into(),
        Ok(Err(error)) if error.chain().any(|cause| cause.is::<OutputClosed>()) => Exit::Done.into(),
        Ok(Err(error)) => {
            let exit = Exit::of(&error);
            report(&talk, exit, &format!("{error:#}"));
            exit.into()
        }
        Err(_) => {
            report(&talk, Exit::Internal, "this is a bug in beampilot; the message above says where");
            Exit::Internal.into()
        }
    }
}

fn dispatch(command: Command, talk: &Talk) -> anyhow::Result<Exit> {
    match command {
        Command::Run(args) => run::run(args),
        Command::Launch(args) => launch::run(args, talk),
        Command::HostCheck(args) => host::check(args),
        Command::Survivors(args) => host::survivors(args),
        Command::Status(args) => status::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Request(args) => request::run(args),
        Command::Quarantine(args) => quarantine::run(args),
        Command::Drain(args) => drain::run(args),
        Command::Check(args) => check::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Reconstruct(args) => reconstruct::run(args),
        Command::Calibrate(args) => calibrate::run(args),
        Command::Series(args) => series::run(args),
        Command::Synth(args) => synth::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Completions(args) => shell::completions(args),
        Command::Man(args) => shell::man(args),
        Command::Keeper(args) => hidden::keeper(args),
        Command::Executor(args) => hidden::executor(args),
        Command::ExecShim(args) => hidden::shim(args),
    }
}

/// The last line of a run that went wrong, on standard error.
fn report(talk: &Talk, exit: Exit, message: &str) {
    let line = match talk.log_format {
        LogFormat::Text => format!("beampilot: error: {message}\n"),
        LogFormat::Json => {
            format!("{}\n", serde_json::json!({ "level": "ERROR", "exit": exit.code(), "message": message }))
        }
    };
    // When standard error is closed too there is nobody left to tell.
    let _ = io::stderr().lock().write_all(line.as_bytes());
    answer_refusal(exit, message);
}

/// Has anything been written to standard output?
static ANSWERED: AtomicBool = AtomicBool::new(false);

/// Who asked with `--json` gets one document also when the command is refused, unless there is one already.
fn answer_refusal(exit: Exit, message: &str) {
    let asked = std::env::args_os().take_while(|a| a != "--").any(|a| a == "--json");
    if asked && !ANSWERED.load(Ordering::Relaxed) {
        // A closed standard output: the message stands on standard error.
        let _ = print_json(&serde_json::json!({ "exit": exit.code(), "error": message }));
    }
}

/// Should progress be drawn on standard error? Only for a person who looks, and did not ask for quiet.
pub fn shows_progress() -> bool {
    io::stderr().is_terminal() && tracing::enabled!(tracing::Level::INFO)
}

/// A technique's fault as an error with its exit code.
pub(crate) fn fault(fault: &crate::technique::Fault) -> anyhow::Error {
    use crate::technique::Fault;
    let exit = match fault {
        Fault::Input(_) => Exit::Data,
        Fault::NotYet(_) | Fault::InputChanged(_) => Exit::TryLater,
        Fault::Storage(_) => Exit::Io,
        Fault::Task(_) => Exit::Failed,
    };
    exit::coded(exit, anyhow::anyhow!("{fault}"))
}

/// Standard output was closed by its reader; nothing to complain about.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
struct OutputClosed;

/// Writes results to standard output, as they are.
///
/// # Errors
/// A closed pipe ends the process with 0 when it is passed on; other failures are I/O errors.
pub fn print(text: &str) -> anyhow::Result<()> {
    ANSWERED.store(true, Ordering::Relaxed);
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        Err(e) => Err(anyhow::Error::new(e).context("cannot write to standard output")),
    }
}

/// Writes one JSON document, indented, to standard output.
///
/// # Errors
/// As [`print()`].
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn every_command(command: &clap::Command, path: &str, visit: &mut dyn FnMut(&str, &clap::Command)) {
        visit(path, command);
        for sub in command.get_subcommands().filter(|s| s.get_name() != "help") {
            every_command(sub, &format!("{path} {}", sub.get_name()), visit);
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_long_help_has_an_example_of_itself() {
        let mut command = Cli::command();
        command.build();
        every_command(&command, "beampilot", &mut |path, command| {
            let help = command.clone().render_long_help().to_string();
            let examples = help.split_once("Example").map(|(_, rest)| rest);
            // `propagate_version` and the global options make clap print the path with its parents.
            assert!(examples.is_some_and(|e| e.contains(path)), "{path}: no example of it in its help:\n{help}");
        });
    }

    #[test]
    fn help_wraps_and_every_option_is_described() {
        let mut command = Cli::command().term_width(100);
        command.build();
        every_command(&command, "beampilot", &mut |path, command| {
            let help = command.clone().term_width(100).render_long_help().to_string();
            for line in help.lines() {
                assert!(line.chars().count() <= 100, "{path}: this line does not fit 100 columns:\n{line}");
            }
            assert!(command.get_about().is_some(), "{path}: says not what it is");
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{path}: {} is not described", arg.get_id());
            }
        });
    }

    #[test]
    fn the_promised_command_lines_parse() {
        for line in [
            "run c.toml --once --workers 3",
            "synth tomography o.h5 --size 64 --angles 90 --slices 8 --range 360 --center 31.5 --layout nxtomo \
             --noise 1e4 --rings --seed 7 --truth t.h5 --slow 8",
            "synth laue p --aperture wire --frames 9 --step 1 --rows 8 --columns 8 --spots 2 --counts 50 --background 0 --depths -5 5 \
             --width 2 --dead 0 --saturated 1 --sample -1 2 3 --number 7 --split --configuration g.xml --truth t.json --seed 4",
            "calibrate p.h5 --recipe configuration=c.yml calibrate.film_um=0 --picture o.svg --json",
            "series results/34ide",
            "reconstruct tomography s.h5 --output out --recipe center=31.5 algorithm=fbp",
            "run c.toml --until +30m",
            "launch c.toml --site polaris --hosts a,b --ranks-per-node 4 --until 2026-11-25T14:00:00Z --dry-run --json",
            "status c.toml --json -q",
            "check c.toml",
            "explain a.h5",
            "explain s/a.h5 -c c.toml --json",
            "request reprocess a.h5 center=301.5 filter=hann --campaign c.toml --wait",
            "request reprocess --from-now-on s center=1",
            "request -c c.toml urgent a.h5",
            "request hold s",
            "request resume s",
            "request skip s/a.h5",
            "request release a.h5 --json",
            "request list --json",
            "quarantine list -c c.toml --json",
            "quarantine release a.h5 --wait",
            "drain c.toml",
            "drain c.toml --pilot x --wait",
            "drain c.toml --all --cancel --json",
            "doctor",
            "doctor c.toml --json",
            "bench dispatch --json",
            "completions bash",
            "man target/man",
        ] {
            let words = std::iter::once("beampilot").chain(line.split_whitespace());
            Cli::try_parse_from(words).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }
}
