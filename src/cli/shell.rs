//! `beampilot completions` and `beampilot man`: generated from the same definitions as the help.

use super::{Cli, Exit, OrExit, print};
use anyhow::Context;
use clap::CommandFactory;
use std::path::PathBuf;

/// Prints a completion script for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  beampilot completions bash > ~/.local/share/bash-completion/completions/beampilot")]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// Writes the manual pages.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  beampilot man ~/.local/share/man/man1")]
pub struct ManArgs {
    /// The folder that gets one page a subcommand; made where it is missing.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// Prints the script.
///
/// # Errors
/// When standard output cannot be written.
pub fn completions(args: CompletionsArgs) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "beampilot", &mut script);
    print(&String::from_utf8(script)?)?;
    Ok(Exit::Done)
}

/// Writes the pages.
///
/// # Errors
/// When the folder cannot be written.
pub fn man(args: ManArgs) -> anyhow::Result<Exit> {
    std::fs::create_dir_all(&args.dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &args.dir))
        .with_context(|| format!("cannot write manual pages into {}", args.dir.display()))
        .or_exit(Exit::CannotCreate)?;
    Ok(Exit::Done)
}
