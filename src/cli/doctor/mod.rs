//! `beampilot doctor`: will a run work here, what is missing, and how does one get it?
//!
//! Contract
//! - Every check ends as ok, warn or fail; warn and fail carry a remedy where there is one. Nothing panics, and one
//!   failing check does not stop the others.
//! - The JSON is stable: `schema` counts incompatible changes, and a check's `id` never changes its meaning.
//! - Nothing is written but one temporary folder each in state and output; nothing at all under a watch root.
//! - MPI is not initialised, so doctor may run on a login node and may start `mpiexec --version`.

mod folders;
mod host;
mod libraries;

use super::{Exit, OrExit, print, print_json};
use crate::campaign::Campaign;
use anyhow::{Context, bail};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Checks whether a run will work here, and says what is missing.
///
/// Looks at the build, MPI, HDF5, CUDA and the limits of this host; with a campaign also at its folders: permissions,
/// free space, and whether the filesystem keeps the promises that publishing exactly once rests on. Under mpiexec
/// every rank checks its own host, and ranks other than 0 speak only of what failed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  beampilot doctor
  beampilot doctor campaign.toml --json
  mpiexec -n 4 beampilot doctor campaign.toml")]
pub struct Args {
    /// Also check this campaign's folders.
    #[arg(value_name = "CAMPAIGN.toml")]
    pub campaign: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// A run works, but not as well as it could, or not everywhere.
    Warn,
    /// A run will not work.
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked, `topic.question`.
    pub id: &'static str,
    /// Which folder or device, where there can be several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// How it ended.
    pub grade: Grade,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    fn new(id: &'static str, grade: Grade, detail: impl Into<String>) -> Check {
        Check { id, subject: None, grade, detail: detail.into(), remedy: None }
    }

    fn ok(id: &'static str, detail: impl Into<String>) -> Check {
        Check::new(id, Grade::Ok, detail)
    }

    fn warn(id: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { remedy: Some(remedy.into()), ..Check::new(id, Grade::Warn, detail) }
    }

    fn fail(id: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { remedy: Some(remedy.into()), ..Check::new(id, Grade::Fail, detail) }
    }

    fn of(mut self, subject: impl Into<String>) -> Check {
        self.subject = Some(subject.into());
        self
    }
}

/// Everything doctor found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Version of this layout.
    pub schema: u32,
    /// Version of beampilot.
    pub version: &'static str,
    /// Identity of the build.
    pub build: &'static str,
    /// This host.
    pub host: String,
    /// Rank under mpiexec.
    pub rank: Option<u32>,
    /// The worst grade.
    pub verdict: Grade,
    /// The checks, by topic.
    pub checks: Vec<Check>,
}

/// The folders of a campaign, all that doctor needs to know of one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DoctorTargets {
    /// The state folder.
    pub state: PathBuf,
    /// The output folders.
    pub outputs: Vec<PathBuf>,
    /// Watch roots with the streams that watch them.
    pub watches: Vec<(String, PathBuf)>,
}

impl DoctorTargets {
    /// Reads only the folders out of a campaign file, so that they can be checked while the rest is still wrong.
    /// Relative paths start at the file's folder; `state` and `output` have the campaign's defaults.
    ///
    /// # Errors
    /// When the file cannot be read, is no TOML, or has no stream.
    pub fn read(campaign: &Path) -> anyhow::Result<DoctorTargets> {
        let file = campaign.display();
        let text = Campaign::text_of(campaign).with_context(|| format!("cannot read {file}"))?;
        let table: toml::Table = toml::from_str(&text).with_context(|| format!("{file} is not TOML"))?;
        let base = std::path::absolute(campaign)?.parent().map(Path::to_path_buf).unwrap_or_default();
        let text = |table: Option<&toml::Value>, key| table?.get(key)?.as_str().map(str::to_owned);
        let streams = table.get("stream").and_then(toml::Value::as_array).filter(|list| !list.is_empty());
        let Some(streams) = streams else {
            bail!("{file} has no stream; add [[stream]] with name, watch and technique");
        };
        let state = base.join(text(table.get("campaign"), "state").unwrap_or_else(|| "state".to_owned()));
        let output = |s| base.join(text(Some(s), "output").unwrap_or_else(|| "results".to_owned()));
        let outputs = streams.iter().map(output).collect::<BTreeSet<_>>().into_iter().collect();
        let watch = |s| {
            let name = text(Some(s), "name").unwrap_or_else(|| "?".to_owned());
            Some((name, base.join(text(Some(s), "watch")?)))
        };
        Ok(DoctorTargets { state, outputs, watches: streams.iter().filter_map(watch).collect() })
    }
}

/// Runs it.
///
/// # Errors
/// When the campaign cannot be read or the report cannot be written.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let targets = args.campaign.as_deref().map(DoctorTargets::read).transpose().or_exit(Exit::Config)?;
    let report = examine(targets.as_ref());
    if args.json {
        print_json(&report)?;
    } else if report.rank.unwrap_or(0) == 0 {
        print(&report.text())?;
    } else {
        for check in report.checks.iter().filter(|c| c.grade == Grade::Fail) {
            tracing::error!(host = report.host, rank = report.rank, check = check.id, "{}", check.detail);
        }
    }
    Ok(if report.verdict == Grade::Fail { Exit::Unavailable } else { Exit::Done })
}

/// Makes every check.
pub fn examine(targets: Option<&DoctorTargets>) -> Report {
    let launched = libraries::Launched::from_environment();
    let mut checks = host::checks();
    checks.extend(libraries::checks(launched.as_ref()));
    if let Some(targets) = targets {
        checks.extend(folders::checks(targets));
    }
    Report {
        schema: 1,
        version: crate::VERSION,
        build: crate::BUILD,
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        rank: launched.map(|l| l.rank),
        verdict: checks.iter().map(|c| c.grade).max().unwrap_or(Grade::Ok),
        checks,
    }
}

impl Report {
    /// The report as people read it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let width = self.checks.iter().map(|c| c.id.len()).max().unwrap_or(0);
        for check in &self.checks {
            let grade = match check.grade {
                Grade::Ok => "ok  ",
                Grade::Warn => "WARN",
                Grade::Fail => "FAIL",
            };
            let subject = check.subject.as_ref().map(|s| format!("{s}: ")).unwrap_or_default();
            let _ = writeln!(text, "{grade}  {:width$}  {subject}{}", check.id, check.detail);
            if let Some(remedy) = &check.remedy {
                let _ = writeln!(text, "      {:width$}  -> {remedy}", "");
            }
        }
        let count = |grade| self.checks.iter().filter(|c| c.grade == grade).count();
        let verdict = match self.verdict {
            Grade::Ok => "all is well",
            Grade::Warn => "a run will work; see the warnings",
            Grade::Fail => "a run will not work; see what failed",
        };
        let (all, warn, fail) = (self.checks.len(), count(Grade::Warn), count(Grade::Fail));
        let _ = writeln!(text, "\n{}: {verdict} ({all} checks, {warn} warnings, {fail} failed)", self.host);
        text
    }
}

/// `1.5 GiB`.
fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} PiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_found_although_the_rest_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        let text = "[campaign]\nstate = 'st'\nnonsense = 3\n[[stream]]\nname = 'tomo'\nwatch = 'in'\noutput = '/out'
            [[stream]]\nname = 'next'\nfrom = 'tomo'\n";
        std::fs::write(&file, text).unwrap();
        let got = DoctorTargets::read(&file).unwrap();
        assert_eq!(got.state, dir.path().join("st"));
        assert_eq!(got.outputs, [PathBuf::from("/out"), dir.path().join("results")]);
        assert_eq!(got.watches, [("tomo".to_owned(), dir.path().join("in"))]);
    }

    #[test]
    fn a_campaign_without_a_stream_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "[campaign]\nstate = 'st'\n").unwrap();
        let message = format!("{:#}", DoctorTargets::read(&file).unwrap_err());
        assert!(message.contains("[[stream]]") && message.contains("c.toml"), "{message}");
    }

    #[test]
    fn the_json_layout_is_fixed() {
        let report = Report {
            schema: 1,
            version: "1.2.3",
            build: "b",
            host: "h".into(),
            rank: None,
            verdict: Grade::Warn,
            checks: vec![Check::ok("a.b", "fine"), Check::warn("c.d", "poor", "do this").of("/x")],
        };
        let want = serde_json::json!({
            "schema": 1, "version": "1.2.3", "build": "b", "host": "h", "rank": null, "verdict": "warn",
            "checks": [
                { "id": "a.b", "grade": "ok", "detail": "fine" },
                { "id": "c.d", "subject": "/x", "grade": "warn", "detail": "poor", "remedy": "do this" },
            ],
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), want);
    }

    #[test]
    fn every_complaint_has_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let targets = DoctorTargets {
            state: dir.path().join("st"),
            outputs: vec!["/proc/no".into()],
            watches: vec![("s".into(), dir.path().join("missing"))],
        };
        let report = examine(Some(&targets));
        assert_eq!(report.verdict, Grade::Fail);
        for check in report.checks.iter().filter(|c| c.grade != Grade::Ok) {
            assert!(check.remedy.is_some(), "{check:?}");
        }
        assert!(report.text().contains("FAIL"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "doctor left something behind");
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
    }
}
