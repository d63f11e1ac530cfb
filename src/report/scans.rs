//! Which scans the files of a campaign speak of, and which of them a person means.
//!
//! A scan is named `STREAM/SCAN`, or `SCAN` alone where only one stream has it.

use super::status::Report;
use crate::campaign::{Campaign, closest};
use crate::store::requests::Asked;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Component;

/// Scans by stream.
#[derive(Debug, Clone, Default)]
pub struct Scans {
    known: BTreeMap<String, BTreeSet<String>>,
}

/// A name that no scan, or more than one, has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nobody has it.
    #[error("no scan \"{name}\" is known{}", did_you_mean(.near))]
    Unknown {
        /// As given.
        name: String,
        /// What may be meant.
        near: Vec<String>,
    },
    /// More than one has it.
    #[error("\"{name}\" is the name of {}: say which", .found.join(" and "))]
    Ambiguous {
        /// As given.
        name: String,
        /// Those that have it.
        found: Vec<String>,
    },
}

fn did_you_mean(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("; did you mean {}?", names.join(" or ")) }
}

impl Scans {
    /// Everything that records, pilots and requests name.
    pub fn of(campaign: &Campaign, report: &Report, asked: &[Asked]) -> Self {
        let mut scans = Self::default();
        campaign.streams.iter().for_each(|s| _ = scans.known.entry(s.name.clone()).or_default());
        let mut add = |stream: &str, scan: &str| {
            scans.known.entry(stream.to_owned()).or_default().insert(scan.to_owned());
        };
        report.published.iter().for_each(|p| add(&p.stream, &p.scan));
        report.quarantined.iter().for_each(|q| add(&q.stream, &q.scan));
        for pilot in &report.pilots {
            let view = &pilot.status.view;
            view.jobs.iter().for_each(|j| add(&j.stream, &j.name));
            view.ended.iter().for_each(|e| add(&e.stream, &e.name));
        }
        for request in asked.iter().filter_map(|a| a.request.as_ref()) {
            if let (stream, Some(scan)) = request.about() {
                add(stream, scan);
            }
        }
        scans
    }

    /// The scan that is meant.
    ///
    /// # Errors
    /// None or more than one is.
    pub fn find(&self, campaign: &Campaign, name: &str) -> Result<(String, String), NameError> {
        if let Some((stream, scan)) = name.split_once('/')
            && self.known.contains_key(stream)
            && self.has(campaign, stream, scan)
        {
            return Ok((stream.to_owned(), scan.to_owned()));
        }
        let found: Vec<&String> = self.known.keys().filter(|s| self.has(campaign, s, name)).collect();
        match found[..] {
            [stream] => Ok((stream.clone(), name.to_owned())),
            [] => Err(NameError::Unknown { name: name.to_owned(), near: self.near(name) }),
            _ => {
                let found = found.into_iter().map(|s| format!("{s}/{name}")).collect();
                Err(NameError::Ambiguous { name: name.to_owned(), found })
            }
        }
    }

    fn has(&self, campaign: &Campaign, stream: &str, scan: &str) -> bool {
        self.known.get(stream).is_some_and(|scans| scans.contains(scan)) || is_there(campaign, stream, scan)
    }

    fn near(&self, name: &str) -> Vec<String> {
        let all = || self.known.iter().flat_map(|(s, scans)| scans.iter().map(move |n| (s, n)));
        let mut near = BTreeSet::new();
        let bare = name.split_once('/').map_or(name, |(_, scan)| scan);
        for word in [name, bare] {
            if let Some(close) = closest(word, all().map(|(_, n)| n.as_str())) {
                near.extend(all().filter(|(_, n)| *n == close).map(|(s, n)| format!("{s}/{n}")));
            }
        }
        near.extend(all().filter(|(_, n)| n.contains(bare) && !bare.is_empty()).map(|(s, n)| format!("{s}/{n}")));
        near.into_iter().take(5).collect()
    }
}

/// A file or folder of that name is in the watched folder. Only its name is looked at.
pub fn is_there(campaign: &Campaign, stream: &str, scan: &str) -> bool {
    let plain = std::path::Path::new(scan).components().all(|c| matches!(c, Component::Normal(_)));
    let Some(stream) = campaign.stream(stream).filter(|_| plain && !scan.is_empty()) else { return false };
    stream.watch.join(scan).symlink_metadata().is_ok()
}
