//! The editions of the campaign that a shift works by: which recipe counts for scans of which time.
//!
//! Contract: all pilots that live at one time give a scan the same recipe, and so the same key. A pilot that starts
//! beside others takes over their editions, with the time from which each counts, and adds the file's, if that is
//! another one, from the moment of the edit, as the others do when they notice it. A pilot that starts alone takes the
//! file as it is for everything that is not published yet. A pilot lives for this purpose unless it ended, is proven
//! dead or was not heard for two minutes.

use super::{edits, specs};
use crate::campaign::Campaign;
use crate::report::status::{Edition, PilotStatus};
use crate::store::{Fs, Layout, claims, tombstone};
use std::collections::VecDeque;

/// Older heartbeats are nobody's who works beside us, milliseconds by wall clocks, which may differ a little.
const SILENT_MS: u64 = 120_000;

/// Editions, oldest first, with the time from which each counts, milliseconds since the epoch.
pub(super) type Editions = VecDeque<(u64, Campaign)>;

/// The editions of those who work already, and the file's.
pub(super) fn of_shift(fs: &dyn Fs, layout: &Layout, campaign: &Campaign, now_ms: u64) -> Editions {
    let mut editions: Editions = running(fs, layout, now_ms)
        .into_iter()
        .filter_map(|e| Some((e.since_ms, edition(fs, layout, campaign, &e.hash)?)))
        .collect();
    if editions.back().is_none_or(|(_, last)| last.hash != campaign.hash) {
        let since_ms = if editions.is_empty() { 0 } else { edits::edited_ms(&campaign.file).unwrap_or(now_ms) };
        editions.push_back((since_ms, campaign.clone()));
    }
    editions
}

/// What the pilot says that has worked longest.
fn running(fs: &dyn Fs, layout: &Layout, now_ms: u64) -> Vec<Edition> {
    let mut oldest: Option<PilotStatus> = None;
    for name in fs.list(&layout.state.join("status")).unwrap_or_default() {
        let Some(pilot) = name.strip_suffix(".json").filter(|p| !p.starts_with('.')) else { continue };
        let Ok(beat) = claims::heartbeat(fs, layout, pilot) else { continue };
        let buried = tombstone::read(fs, layout, pilot).is_ok_and(|stone| stone.is_some());
        let silent = beat.at_ms.saturating_add(SILENT_MS) < now_ms;
        if beat.ended || buried || silent || beat.identity.is_proven_dead() {
            continue;
        }
        let status = fs.read(&layout.status(pilot), 64 << 20).ok().and_then(|b| serde_json::from_slice(&b).ok());
        let Some(status): Option<PilotStatus> = status else { continue };
        if oldest.as_ref().is_none_or(|o| status.started_ms < o.started_ms) {
            oldest = Some(status);
        }
    }
    oldest.map(|status| status.editions).unwrap_or_default()
}

/// An edition by its hash; `None` costs that scans of its time get the next one's recipe.
fn edition(fs: &dyn Fs, layout: &Layout, campaign: &Campaign, hash: &str) -> Option<Campaign> {
    if hash == campaign.hash {
        return Some(campaign.clone());
    }
    let path = layout.state.join("campaigns").join(format!("{hash}.toml"));
    let text = fs.read(&path, 16 << 20).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let parsed = text.and_then(|text| Campaign::parse(&text, &campaign.file).ok());
    // A build may no longer accept what another did.
    let parsed = parsed.filter(|edition| specs(edition).is_ok());
    if parsed.is_none() {
        tracing::warn!(file = %path.display(), "an edition that other pilots work by cannot be used");
    }
    parsed
}

/// What other pilots are told of them.
pub(super) fn told(editions: &Editions) -> Vec<Edition> {
    editions.iter().map(|(since_ms, c)| Edition { since_ms: *since_ms, hash: c.hash.clone() }).collect()
}

/// The file's campaign with the recipes of the first edition, and the editions that follow.
pub(super) fn begin(mut editions: Editions, campaign: &Campaign) -> (Campaign, Editions) {
    let mut first = campaign.clone();
    if let Some((_, oldest)) = editions.pop_front() {
        edits::take_recipes(&mut first, &oldest);
    }
    (first, editions)
}
