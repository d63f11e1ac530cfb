//! What the subcommands that look at a campaign's state have in common.

use super::exit::coded;
use super::{Exit, OrExit};
use crate::campaign::Campaign;
use crate::report::scans::{NameError, Scans};
use crate::report::status::{self, Report};
use crate::store::layout::LayoutError;
use crate::store::records::now_ms;
use crate::store::requests::{self, Asked};
use crate::store::{Layout, RealFs};
use anyhow::Context;
use std::path::{Path, PathBuf};

/// The campaign, for subcommands that are about a scan.
#[derive(Debug, Clone, clap::Args)]
pub struct CampaignArg {
    /// The campaign file.
    #[arg(short, long, global = true, value_name = "CAMPAIGN.toml", default_value = "campaign.toml")]
    pub campaign: PathBuf,
}

/// Folders of the state without which nothing true can be said of a campaign.
const NEEDED: [&str; 4] = ["claims", "published", "quarantine", "status"];

/// A campaign with its state.
pub struct Opened {
    /// The campaign.
    pub campaign: Campaign,
    /// Its state.
    pub layout: Layout,
}

/// Reads a campaign; one that was edited and is wrong now is read as pilots run it: in the last good edition, which
/// they keep in the state folder. A mistake in an editor must not take the sight from those who look.
///
/// # Errors
/// It is wrong (78), and no good edition is known.
pub fn load(file: &Path) -> anyhow::Result<Campaign> {
    Campaign::load(file).or_else(|errors| match last_good(file) {
        Some(campaign) => {
            tracing::warn!("the campaign file is wrong; this is the last good edition of it: {errors}");
            Ok(campaign)
        }
        None => Err(errors).or_exit(Exit::Config),
    })
}

fn last_good(file: &Path) -> Option<Campaign> {
    let table: toml::Table = Campaign::text_of(file).ok()?.parse().unwrap_or_default();
    let state = table.get("campaign").and_then(|c| c.get("state")).and_then(|s| s.as_str()).unwrap_or("state");
    let folder = std::path::absolute(file).ok()?.parent()?.join(state).join("campaigns");
    let editions =
        std::fs::read_dir(folder).ok()?.flatten().filter(|e| e.path().extension().is_some_and(|e| e == "toml"));
    let newest = editions.max_by_key(|e| e.metadata().and_then(|m| m.modified()).ok())?;
    Campaign::parse(&Campaign::text_of(&newest.path()).ok()?, file).ok()
}

/// The exit code of a state folder that cannot be used.
pub(super) fn exit_of(error: &LayoutError) -> Exit {
    match error {
        e if e.is_permission() => Exit::Permission,
        e if e.is_storage() => Exit::TryLater,
        _ => Exit::Config,
    }
}

/// An error with that code.
pub(super) fn unusable(error: LayoutError) -> anyhow::Error {
    coded(exit_of(&error), error.into())
}

/// Reads a campaign whose pilots have run.
///
/// # Errors
/// The file is wrong, or the state is of a newer format or damaged (78); the state may not be read (77), or a folder of
/// it is missing (74); no pilot has run yet (75).
pub fn open(file: &Path) -> anyhow::Result<Opened> {
    let campaign = load(file)?;
    let Some(layout) = Layout::existing(&RealFs, &campaign.state).map_err(unusable)? else {
        let what = anyhow::anyhow!(
            "{}: no pilot of this campaign has run yet; start one with `beampilot run {}`",
            campaign.state.display(),
            file.display()
        );
        return Err(what).or_exit(Exit::TryLater);
    };
    if let Some(gone) = NEEDED.iter().map(|f| layout.state.join(f)).find(|f| !f.exists()) {
        let what = anyhow::anyhow!(
            "{}: this folder of the state is missing; a pilot that starts makes it again, empty",
            gone.display()
        );
        return Err(what).or_exit(Exit::Io);
    }
    Ok(Opened { campaign, layout })
}

impl Opened {
    /// What pilots and records say.
    ///
    /// # Errors
    /// The state cannot be listed.
    pub fn report(&self) -> anyhow::Result<Report> {
        Ok(status::report(&RealFs, &self.layout, &self.campaign.name, now_ms())?)
    }

    /// What people asked for.
    ///
    /// # Errors
    /// The inbox cannot be listed.
    pub fn asked(&self) -> anyhow::Result<Vec<Asked>> {
        requests::all(&RealFs, &self.layout).with_context(|| self.layout.state.join("requests").display().to_string())
    }

    /// The scan that a person means.
    ///
    /// # Errors
    /// No scan has that name (66), or more than one (2).
    pub fn scan(&self, name: &str, report: &Report, asked: &[Asked]) -> anyhow::Result<(String, String)> {
        let found = Scans::of(&self.campaign, report, asked).find(&self.campaign, name);
        let exit = if matches!(found, Err(NameError::Ambiguous { .. })) { Exit::Usage } else { Exit::NoInput };
        found.or_exit(exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_state_that_cannot_be_used_has_the_code_of_its_reason() {
        let io = |errno| LayoutError::Io { path: "s".into(), source: io::Error::from_raw_os_error(errno) };
        let (eacces, erofs, enotdir) = (13, 30, 20);
        assert_eq!(exit_of(&io(eacces)), Exit::Permission);
        assert_eq!(exit_of(&io(erofs)), Exit::TryLater);
        assert_eq!(exit_of(&io(enotdir)), Exit::Config);
        assert_eq!(exit_of(&LayoutError::Newer { path: "s".into(), found: "2".into() }), Exit::Config);
        assert_eq!(exit_of(&LayoutError::Damaged { path: "s".into(), what: "", remedy: "" }), Exit::Config);
    }
}
