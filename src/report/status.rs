//! `status/<pilot>.json`, replaced every second, and the merge that `beampilot status` shows.
//!
//! Everything is read from files, on any node, while pilots run or long after. A pilot's own words are its status
//! file; what is published or in quarantine comes from the records, which outlive pilots.

use crate::coordinator::view::View;
use crate::store::claims::{self, Heartbeat, Identity};
use crate::store::records::{self, Published, Quarantined};
use crate::store::{Fs, Layout, fs};
use serde::{Deserialize, Serialize};
use std::io;

/// What a pilot says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PilotStatus {
    /// Version of this schema.
    pub status_version: u32,
    /// Who.
    pub identity: Identity,
    /// Campaign name.
    pub campaign: String,
    /// Hash of the campaign's snapshot.
    pub campaign_hash: String,
    /// The editions it works by, oldest first: pilots that start beside it do, too.
    #[serde(default)]
    pub editions: Vec<Edition>,
    /// `embedded` or `MPI`.
    pub transport: String,
    /// Start, milliseconds since the epoch.
    pub started_ms: u64,
    /// Written, milliseconds since the epoch.
    pub written_ms: u64,
    /// `running`, `draining` or `ended`.
    pub state: String,
    /// What a person should know: an edited campaign that is wrong, or that needs another pilot.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// What arrivals see, by stream.
    pub arrivals: Vec<ArrivalsView>,
    /// What the core sees.
    pub view: View,
}

/// An edition of the campaign file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edition {
    /// Its recipes count for scans whose last byte is not older, milliseconds since the epoch; 0 for the first.
    pub since_ms: u64,
    /// Of its snapshot.
    pub hash: String,
}

/// A stream as arrivals see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrivalsView {
    /// Stream.
    pub stream: String,
    /// Scans not complete yet.
    pub settling: usize,
    /// Complete, waiting for a companion.
    pub waiting_role: usize,
    /// Known.
    pub known: usize,
    /// The watched folder, or one below it, cannot be listed.
    pub trouble: Option<String>,
}

/// Version of [`PilotStatus`] and [`Report`].
pub const VERSION: u32 = 1;

/// Replaces a pilot's status file.
pub fn write(fs: &dyn Fs, layout: &Layout, status: &PilotStatus) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(status).map_err(io::Error::other)?;
    fs::replace(fs, &layout.status(&status.identity.pilot), &bytes)
}

/// A pilot, and whether it lives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PilotReport {
    /// `alive`, `ended`, `dead` (proven) or `silent` (its last beat is old; it may be on another host).
    pub life: String,
    /// Seconds since its last beat, by this host's clock.
    pub silent_s: f64,
    /// Its own words.
    pub status: PilotStatus,
}

/// A campaign at a glance: what `beampilot status --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this schema.
    pub status_version: u32,
    /// Campaign.
    pub campaign: String,
    /// State folder.
    pub state: String,
    /// Pilots, latest first.
    pub pilots: Vec<PilotReport>,
    /// Everything published, in order of publication.
    pub published: Vec<Published>,
    /// Everything in quarantine, in order.
    pub quarantined: Vec<Quarantined>,
}

/// A beat older than this is called silent.
const SILENT_S: f64 = 10.0;

/// Merges a state folder into a report.
///
/// # Errors
/// The state folder cannot be listed. Damaged single files are left out with a warning.
pub fn report(fs: &dyn Fs, layout: &Layout, campaign: &str, now_ms: u64) -> io::Result<Report> {
    let mut pilots = Vec::new();
    for name in at(layout, "status", fs.list(&layout.state.join("status")))? {
        let Some(pilot) = name.strip_suffix(".json").filter(|p| !p.starts_with('.')) else { continue };
        let read = fs.read(&layout.status(pilot), 64 << 20);
        let status: PilotStatus = match read.and_then(|b| serde_json::from_slice(&b).map_err(io::Error::other)) {
            Ok(status) => status,
            Err(e) => {
                tracing::warn!(pilot, error = %e, "a status file cannot be read");
                continue;
            }
        };
        let beat = claims::heartbeat(fs, layout, pilot).ok();
        let silent_s = beat.as_ref().map_or(f64::MAX, |b| now_ms.saturating_sub(b.at_ms) as f64 * 1e-3);
        pilots.push(PilotReport { life: life(beat.as_ref(), &status, silent_s).to_owned(), silent_s, status });
    }
    pilots.sort_by_key(|p| std::cmp::Reverse(p.status.started_ms));
    let mut published: Vec<Published> = at(layout, "published", records::all(fs, layout, "published"))?;
    published.sort_by(|a, b| (a.published_ms, &a.key).cmp(&(b.published_ms, &b.key)));
    let mut quarantined: Vec<Quarantined> = at(layout, "quarantine", records::all(fs, layout, "quarantine"))?;
    quarantined.sort_by(|a, b| (a.at_ms, &a.key).cmp(&(b.at_ms, &b.key)));
    let state = layout.state.display().to_string();
    Ok(Report { status_version: VERSION, campaign: campaign.to_owned(), state, pilots, published, quarantined })
}

/// An error with the folder that it is about.
fn at<T>(layout: &Layout, folder: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", layout.state.join(folder).display())))
}

fn life(beat: Option<&Heartbeat>, status: &PilotStatus, silent_s: f64) -> &'static str {
    let Some(beat) = beat else { return "silent" };
    if beat.ended {
        "ended"
    } else if status.identity.is_proven_dead() {
        "dead"
    } else if silent_s > SILENT_S {
        "silent"
    } else {
        "alive"
    }
}
