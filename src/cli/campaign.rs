//! What the subcommands that look at a campaign's state have in common.

use super::{Exit, OrExit};
use crate::campaign::Campaign;
use crate::report::scans::{NameError, Scans};
use crate::report::status::{self, Report};
use crate::store::requests::{self, Asked};
use crate::store::{Layout, RealFs};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The campaign, for subcommands that are about a scan.
#[derive(Debug, Clone, clap::Args)]
pub struct CampaignArg {
    /// The campaign file.
    #[arg(short, long, global = true, value_name = "CAMPAIGN.toml", default_value = "campaign.toml")]
    pub campaign: PathBuf,
}

/// A campaign with its state.
pub struct Opened {
    /// The campaign.
    pub campaign: Campaign,
    /// Its state.
    pub layout: Layout,
}

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Reads a campaign whose pilots have run.
///
/// # Errors
/// The file is wrong (78), or no pilot has run yet (75).
pub fn open(file: &Path) -> anyhow::Result<Opened> {
    let campaign = Campaign::load(file).or_exit(Exit::Config)?;
    let layout = Layout { state: campaign.state.clone() };
    if !campaign.state.join("FORMAT").exists() {
        let what = anyhow::anyhow!(
            "{}: no pilot of this campaign has run yet; start one with `beampilot run {}`",
            campaign.state.display(),
            file.display()
        );
        return Err(what).or_exit(Exit::TryLater);
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
        Ok(requests::all(&RealFs, &self.layout)?)
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
