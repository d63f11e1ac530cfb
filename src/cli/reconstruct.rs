//! `beampilot reconstruct`: one scan, here and now, without a campaign.

use super::exit::coded;
use super::{Exit, OrExit};
use crate::publish;
use crate::technique::tomography::reconstruct::{Progress, ReconstructError, ReconstructOptions, reconstruct};
use crate::technique::{Fault, JobContext, TaskContext, TaskKind, TaskOutput, TaskSpec};
use crate::worker::topology;
use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::sync::Arc;

/// Reconstructs one scan on this machine.
///
/// The same plan, tasks and bundle as in a campaign, with no watching and no state folder.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  beampilot reconstruct tomography scan_001.h5 --output results
  beampilot reconstruct tomography scan_001.h5 --output results \\
      --recipe center=127.5 filter=hann
  beampilot reconstruct laue point_001.h5 --output results \\
      --recipe configuration=config.yml")]
pub struct Args {
    /// The technique.
    #[arg(value_name = "TECHNIQUE")]
    pub technique: String,
    /// The scan: a file or a folder.
    #[arg(value_name = "SCAN")]
    pub scan: PathBuf,
    /// The folder that gets the bundle.
    #[arg(long, short, value_name = "DIR")]
    pub output: PathBuf,
    /// Recipe entries. A value is read as TOML, or as text where it is none; dots in the key reach into tables.
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., value_parser = entry)]
    pub recipe: Vec<(String, toml::Value)>,
}

impl Args {
    /// The entries as the table a campaign file would have; a later entry replaces an earlier one.
    pub fn recipe_table(&self) -> toml::Table {
        recipe_table(&self.recipe)
    }
}

/// Entries as the table a campaign file would have; a later one replaces an earlier one.
pub(super) fn recipe_table(entries: &[(String, toml::Value)]) -> toml::Table {
    let mut recipe = toml::Table::new();
    for (key, value) in entries {
        let mut table = &mut recipe;
        let mut keys = key.split('.').peekable();
        while let Some(part) = keys.next() {
            if keys.peek().is_none() {
                table.insert(part.to_owned(), value.clone());
                break;
            }
            let slot = table.entry(part).or_insert_with(|| toml::Table::new().into());
            if !slot.is_table() {
                *slot = toml::Table::new().into();
            }
            let Some(next) = slot.as_table_mut() else { break };
            table = next;
        }
    }
    recipe
}

/// `key=value`, the value read as TOML where that works.
pub(super) fn entry(text: &str) -> Result<(String, toml::Value), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    if key.is_empty() || key.split('.').any(|part| part.trim() != part || part.is_empty()) {
        return Err(format!("`{key}` is no recipe key"));
    }
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}")).ok().and_then(|mut table| {
        let value = table.remove("v")?;
        table.is_empty().then_some(value)
    });
    Ok((key.to_owned(), parsed.unwrap_or_else(|| toml::Value::String(value.to_owned()))))
}

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    if !["tomography", "laue"].contains(&args.technique.as_str()) {
        let what = anyhow!("technique `{}` cannot be run on one scan; `tomography` and `laue` can", args.technique);
        return Err(what).or_exit(Exit::Usage);
    }
    if !args.scan.exists() {
        let what = anyhow!("{}: there is no such file", args.scan.display());
        return Err(what).or_exit(Exit::NoInput);
    }
    let bar = if super::shows_progress() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    bar.set_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let options = ReconstructOptions {
        recipe: args.recipe_table(),
        technique: &args.technique,
        scan: args.scan.clone(),
        output: args.output,
        seal: Some(&|_, job, output| seal(job, output)),
        ..ReconstructOptions::default()
    };
    let done = reconstruct(&options, &mut |progress| match progress {
        Progress::Planned(summary, tasks) => {
            tracing::info!("{summary}");
            bar.set_length(*tasks as u64);
        }
        Progress::Done(label, n, _) => {
            bar.set_message(label.clone());
            bar.set_position(*n as u64);
        }
    });
    bar.finish_and_clear();
    let done = done.map_err(failed)?;
    super::print(&format!("{}\n", done.bundle.display()))?;
    Ok(Exit::Done)
}

/// An error with its exit code.
pub(super) fn failed(error: ReconstructError) -> anyhow::Error {
    let exit = match &error {
        ReconstructError::Recipe(_) => Exit::Config,
        ReconstructError::Output { kind: std::io::ErrorKind::PermissionDenied, .. } => Exit::Permission,
        ReconstructError::Output { .. } => Exit::CannotCreate,
        ReconstructError::Fault(fault) => return super::fault(fault),
    };
    coded(exit, error.into())
}

fn seal(job: &JobContext, output: &TaskOutput) -> Result<(), Fault> {
    let task = TaskSpec { label: "finish".into(), kind: TaskKind::Finish, params: Vec::new(), cost: 1.0, bytes_in: 0 };
    let job = Arc::new(job.clone());
    let context = TaskContext { job, task, attempt: 0, host: topology::host(), rank: 0, cancelled: Default::default() };
    publish::seal(&context, output.clone()).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[&str]) -> toml::Table {
        Args {
            technique: "tomography".into(),
            scan: "s".into(),
            output: "o".into(),
            recipe: entries.iter().map(|e| entry(e).unwrap()).collect(),
        }
        .recipe_table()
    }

    #[test]
    fn entries_read_as_in_a_campaign_file() {
        let got = table(&["center=127.5", "algorithm=fbp", "rings.width=9", "rings.on=true", "rows=[0, 8]", "a=b=c"]);
        let want: toml::Table = toml::from_str(
            "center = 127.5\nalgorithm = 'fbp'\nrows = [0, 8]\na = 'b=c'\n[rings]\nwidth = 9\non = true\n",
        )
        .unwrap();
        assert_eq!(got, want);
    }

    #[test]
    fn a_later_entry_replaces_an_earlier_one() {
        assert_eq!(table(&["a=1", "a.b=2"]), toml::from_str("a.b = 2").unwrap());
    }

    #[test]
    fn a_value_cannot_smuggle_in_another_key() {
        assert_eq!(table(&["a=1\nb = 2"])["a"].as_str(), Some("1\nb = 2"));
        assert!(entry("a").is_err() && entry("=1").is_err() && entry("a..b=1").is_err());
    }
}
