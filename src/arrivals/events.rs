//! What arrivals say and what they are told. Facts and orders only; nothing here touches a file.

use super::manifest::ManifestEntry;
use super::scan::{FileStamp, InputVersion, Scan};
use crate::campaign::{Campaign, Completeness, Pattern, RoleSource, Since, Stream, Unit};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

/// On what grounds a scan counts as complete, and what an executor still has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// It did not change for the quiet time: an executor must probe it.
    Probe,
    /// Sizes agree with a manifest: an executor must verify the hashes ([`super::manifest::verify`]).
    Manifest {
        /// The scan's files; paths relative to the scan's root.
        files: Vec<ManifestEntry>,
        /// The manifest; path relative to the scan's root.
        manifest: FileStamp,
    },
    /// Its writer said so, by a marker or by renaming; planning will read it anyway.
    Declared,
}

/// What arrivals found.
#[derive(Debug, Clone, PartialEq)]
pub enum ArrivalEvent {
    /// A scan is complete, in this version. Said once a version.
    Complete {
        /// The scan.
        scan: Scan,
        /// On what grounds.
        proof: Proof,
    },
    /// Waiting will not help: to quarantine.
    Rejected {
        /// Its stream.
        stream: String,
        /// Its name, escaped for display: the true one may not be printable.
        name: String,
        /// The version, where files could be stat'ed.
        version: Option<InputVersion>,
        /// What is wrong and what to do, for the beamline scientist.
        reason: String,
    },
    /// How many scans are in which state; sent when it changes.
    Census {
        /// The stream.
        stream: String,
        /// Not complete yet.
        settling: usize,
        /// Complete, but a companion is missing.
        waiting_role: usize,
        /// Reported, published, rejected or not wanted.
        known: usize,
        /// A folder below the watched one that cannot be listed, and why.
        unreadable: Option<String>,
    },
    /// The watched folder is missing or cannot be listed; it is tried again.
    Trouble {
        /// The stream.
        stream: String,
        /// Path and reason.
        message: String,
    },
    /// The watched folder can be listed again.
    Recovered {
        /// The stream.
        stream: String,
    },
    /// Once mode: everything was listed, and nothing that could still become complete by itself is left.
    /// Said again when it is true again after more commands.
    Idle {
        /// How many commands had been obeyed: a run ends only when that is all it sent.
        commands: u64,
        /// What is left as it is: `(stream, name, what it lacks)`.
        incomplete: Vec<(String, String, String)>,
    },
}

/// What arrivals are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArrivalCommand {
    /// The probe or the verification says that it is not complete: settle again, with back-off; after the
    /// stream's timeout without a change it is rejected for this reason.
    NotYet {
        /// Its stream.
        stream: String,
        /// Its name.
        name: String,
        /// What is missing.
        reason: String,
    },
    /// It changed while it was processed: settle again.
    Changed {
        /// Its stream.
        stream: String,
        /// Its name.
        name: String,
    },
    /// Published or quarantined in this version.
    Done {
        /// Its stream.
        stream: String,
        /// Its name.
        name: String,
        /// The version.
        version: InputVersion,
        /// Files that its files link to, as they were when it was planned; absolute.
        linked: Vec<FileStamp>,
    },
    /// Released from quarantine: what was known about it is forgotten, and it settles again.
    Forget {
        /// Its stream.
        stream: String,
        /// Its name.
        name: String,
    },
    /// A person asked for it again (reprocessing, release): it is reported once more under its rule, whatever
    /// is known about it and however old it is.
    Again {
        /// Its stream.
        stream: String,
        /// Its name.
        name: String,
    },
    /// End the thread.
    Stop,
}

/// A scan that was published or quarantined before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its stream.
    pub stream: String,
    /// Its name, as reported.
    pub name: String,
    /// Its version, companions included.
    pub version: InputVersion,
    /// Its version without companions, if the record tells ([`Scan::own_version`]): with it a scan stays
    /// known when the dark it was processed with is deleted or a later one is copied in.
    pub own: Option<InputVersion>,
    /// Files that its files link to, as they were; absolute.
    pub linked: Vec<FileStamp>,
}

/// What to watch: a [`Stream`] as far as arrivals are concerned.
#[derive(Debug, Clone)]
pub struct StreamWatch {
    /// The stream's name.
    pub name: String,
    /// The folder, absolute.
    pub root: PathBuf,
    /// What below it is (part of) a scan.
    pub pattern: Pattern,
    /// What a scan is made of.
    pub unit: Unit,
    /// When it is complete.
    pub complete: Completeness,
    /// Its companions.
    pub roles: BTreeMap<String, RoleSource>,
    /// Folders that are never entered: results and state, absolute.
    pub excluded: Vec<PathBuf>,
    /// Scans whose last byte is older are not wanted.
    pub since: Option<SystemTime>,
    /// The stream whose bundles arrive: published by a rename, which is when they arrived.
    pub from: Option<String>,
}

impl StreamWatch {
    /// What a stream watches; `since` as resolved by [`Since::resolve`].
    pub fn of(campaign: &Campaign, stream: &Stream, since: Option<SystemTime>) -> Self {
        let mut excluded: Vec<PathBuf> = campaign.streams.iter().map(Stream::results).collect();
        excluded.extend(campaign.streams.iter().map(|s| s.results().join("_live")));
        excluded.push(campaign.state.clone());
        Self {
            name: stream.name.clone(),
            root: stream.watch.clone(),
            pattern: stream.pattern.clone(),
            unit: stream.unit,
            complete: stream.complete.clone(),
            roles: stream.roles.clone(),
            excluded,
            since,
            from: stream.from.clone(),
        }
    }

    /// Every stream of a campaign.
    pub fn all(campaign: &Campaign, first_pilot: SystemTime, once: bool) -> Vec<Self> {
        let watch = |s: &Stream| Self::of(campaign, s, Since::resolve(s.since, first_pilot, once));
        campaign.streams.iter().map(watch).collect()
    }
}
