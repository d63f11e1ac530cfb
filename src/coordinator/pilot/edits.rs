//! The campaign file, edited while a pilot runs.
//!
//! Contract
//! - A valid edit is snapshotted; recipe, deadline, order and weight count from then on. What needs another pilot is
//!   named in an alarm and left as it is.
//! - An edit that is wrong raises an alarm with its mistakes, and the last good campaign runs on.
//! - A file is read when its stamp changed and stood still for one look: editors write in pieces.

use super::inbox::Inbox;
use super::{specs, validate};
use crate::campaign::{Campaign, Stream};
use crate::coordinator::event::Event;
use crate::report::status::Edition;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

type Stamp = (u64, i64, i64, u64);

/// See the module.
pub(super) struct Edits {
    /// The stamp of what was read last.
    read: Option<Stamp>,
    /// The stamp of the last look.
    looked: Option<Stamp>,
    hash: String,
}

fn stamp(file: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(file).ok()?;
    Some((meta.len(), meta.mtime_nsec() + meta.mtime() * 1_000_000_000, meta.ctime(), meta.ino()))
}

impl Edits {
    pub(super) fn new(campaign: &Campaign) -> Self {
        // Not the stamp of now: the file may have been edited since it was read.
        Self { read: None, looked: None, hash: campaign.hash.clone() }
    }

    pub(super) fn look(&mut self, inbox: &mut Inbox) {
        // A file that is away for a moment is being replaced; one that stays away is no edit.
        let Some(now) = stamp(&inbox.campaign.file) else { return };
        let stable = self.looked.replace(now) == Some(now);
        if !stable || self.read == Some(now) {
            return;
        }
        self.read = Some(now);
        let loaded = Campaign::load(&inbox.campaign.file).and_then(|c| validate(&c).map(|()| c));
        let edited = match loaded {
            Ok(edited) => edited,
            Err(errors) => {
                let text = format!("the edited campaign is wrong, the last good one runs on: {errors}");
                self.hash.clear();
                return alarm(inbox, vec![text]);
            }
        };
        if edited.hash == self.hash {
            return;
        }
        self.hash.clone_from(&edited.hash);
        apply(inbox, &edited, since_of(now));
    }
}

/// When it counts from: the later of both, because a copy may keep an old mtime. The same for every pilot.
fn since_of(stamp: Stamp) -> u64 {
    u64::try_from((stamp.1 / 1_000_000).max(stamp.2.saturating_mul(1000))).unwrap_or(0)
}

/// When the file was edited last, milliseconds since the epoch.
pub(super) fn edited_ms(file: &Path) -> Option<u64> {
    stamp(file).map(since_of)
}

/// Gives the streams of `campaign` the recipes of another edition.
pub(super) fn take_recipes(campaign: &mut Campaign, edition: &Campaign) {
    for new in &edition.streams {
        let old = campaign.streams.iter_mut().find(|s| s.name == new.name && s.technique == new.technique);
        if let Some(old) = old {
            old.recipe.clone_from(&new.recipe);
        }
    }
}

fn apply(inbox: &mut Inbox, edited: &Campaign, since_ms: u64) {
    if let Err(e) = edited.snapshot(&inbox.campaign.state) {
        tracing::warn!(error = %e, "the edited campaign could not be kept in the state folder");
    }
    let mut alarms = Vec::new();
    let fixed = needs_another_pilot(&inbox.campaign, edited);
    if !fixed.is_empty() {
        let keys = fixed.join(", ");
        alarms.push(format!("edits of {keys} take effect with the next pilot; this one runs on without them"));
    }
    alarms.extend(follow(inbox, edited, since_ms));
    let hash = edited.hash.clone();
    tracing::info!(campaign = %hash, "the campaign file was edited; it counts from now on");
    inbox.notice(|n| {
        n.editions.push(Edition { since_ms, hash: hash.clone() });
        n.campaign_hash = Some(hash);
    });
    alarm(inbox, alarms);
}

/// What a running pilot can follow of an edition; in words what of it does not fit.
pub(crate) fn follow(inbox: &mut Inbox, edited: &Campaign, since_ms: u64) -> Vec<String> {
    let mut alarms = Vec::new();
    take_recipes(&mut inbox.campaign, edited);
    for new in &edited.streams {
        if let Some(old) = inbox.campaign.streams.iter_mut().find(|s| s.name == new.name) {
            (old.deadline, old.order, old.weight) = (new.deadline, new.order, new.weight);
        }
    }
    let mut streams = match specs(&inbox.campaign) {
        Ok(streams) => streams,
        Err(e) => return vec![format!("the edited campaign cannot be used: {e}")],
    };
    for spec in &mut streams {
        // What people asked for by request stands above the file.
        match inbox.recipe(&spec.name, &inbox.standing(&spec.name)) {
            Ok(recipe) => spec.recipe = recipe,
            Err(why) => alarms.push(format!("stream {}: the requested recipe no longer fits: {why}", spec.name)),
        }
    }
    inbox.mailbox.post(Event::Campaign { streams, since_ms });
    alarms
}

/// Replaces the alarms shown, and tells each.
fn alarm(inbox: &Inbox, alarms: Vec<String>) {
    for message in &alarms {
        inbox.mailbox.post(Event::Alarm { message: message.clone() });
    }
    inbox.notice(|n| n.alarms = alarms);
}

/// Keys that differ and that a running pilot cannot follow.
fn needs_another_pilot(old: &Campaign, new: &Campaign) -> Vec<String> {
    let mut keys = Vec::new();
    if old.name != new.name {
        keys.push("campaign.name".to_owned());
    }
    if old.state != new.state {
        keys.push("campaign.state".to_owned());
    }
    for stream in &old.streams {
        match new.stream(&stream.name) {
            None => keys.push(format!("stream {} (removed)", stream.name)),
            Some(edited) => {
                let differs = fixed(stream).into_iter().zip(fixed(edited)).filter(|(a, b)| a != b);
                keys.extend(differs.map(|((key, _), _)| format!("{}.{key}", stream.name)));
            }
        }
    }
    let added = new.streams.iter().filter(|s| old.stream(&s.name).is_none());
    keys.extend(added.map(|s| format!("stream {} (added)", s.name)));
    keys
}

/// What a running pilot holds fast, in a form that can be compared.
fn fixed(s: &Stream) -> [(&'static str, String); 10] {
    [
        ("watch", format!("{:?}", s.watch)),
        ("from", format!("{:?}", s.from)),
        ("pattern", s.pattern.source().to_owned()),
        ("unit", format!("{:?}", s.unit)),
        ("since", format!("{:?}", s.since)),
        ("complete", format!("{:?}", s.complete)),
        ("roles", format!("{:?}", s.roles)),
        ("technique", s.technique.clone()),
        ("inbox", format!("{:?}", s.inbox)),
        ("output", format!("{:?}", s.output)),
    ]
}
