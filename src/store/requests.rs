//! `requests/`: what people ask of the pilots, from any login node.
//!
//! Contract
//! - `<id>.json` is one request, made whole (written aside, then linked) and never changed. Ids begin with
//!   milliseconds since the epoch, and one that is asked later has a later id, also where its host's clock is behind
//!   ([`submit`]); so their order is the order of asking. Those that cannot have known of each other have some order,
//!   the same for every pilot. The log of all of them, folded in that order, says which streams are held and which scans
//!   are skipped ([`Fold`]), also to a pilot that starts later.
//! - `<id>.outcome.json` says what came of it. The first one is created; only `accepted` is ever replaced.
//! - A request is data: it is limited in size, unknown fields are refused, and a scan's name is only ever compared
//!   with names or escaped, never made into a path.

use super::fs::{Fs, create_whole, is_damage, replace};
use super::layout::Layout;
use super::records::now_ms;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

/// Largest request file.
pub const MAX_BYTES: u64 = 64 * 1024;
/// Version of the request files.
pub const VERSION: u32 = 1;
/// Longest scan name.
const MAX_NAME: usize = 4096;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Do a scan again, or all from now on, with these entries over the campaign's recipe.
    Reprocess {
        /// Stream.
        stream: String,
        /// Scan; `None`: every scan from now on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scan: Option<String>,
        /// Recipe entries that replace the campaign's; tables are merged.
        #[serde(default)]
        recipe: serde_json::Map<String, serde_json::Value>,
    },
    /// Before all others.
    Urgent {
        /// Stream.
        stream: String,
        /// Scan.
        scan: String,
    },
    /// Start nothing of this stream.
    Hold {
        /// Stream.
        stream: String,
    },
    /// Go on with it.
    Resume {
        /// Stream.
        stream: String,
    },
    /// Leave a scan out.
    Skip {
        /// Stream.
        stream: String,
        /// Scan.
        scan: String,
    },
    /// Take a scan out of quarantine, or skip it no longer.
    Release {
        /// Stream.
        stream: String,
        /// Scan.
        scan: String,
    },
}

impl Request {
    /// Stream, and scan where it is about one.
    pub fn about(&self) -> (&str, Option<&str>) {
        match self {
            Self::Reprocess { stream, scan, .. } => (stream, scan.as_deref()),
            Self::Hold { stream } | Self::Resume { stream } => (stream, None),
            Self::Urgent { stream, scan } | Self::Skip { stream, scan } | Self::Release { stream, scan } => {
                (stream, Some(scan))
            }
        }
    }

    /// One line for people: `reprocess s/a.h5 center=301.5`.
    pub fn line(&self) -> String {
        let verb = match self {
            Self::Reprocess { .. } => "reprocess",
            Self::Urgent { .. } => "urgent",
            Self::Hold { .. } => "hold",
            Self::Resume { .. } => "resume",
            Self::Skip { .. } => "skip",
            Self::Release { .. } => "release",
        };
        let (stream, scan) = self.about();
        let mut line = match scan {
            Some(scan) => format!("{verb} {stream}/{}", scan.escape_debug()),
            None => format!("{verb} {stream}"),
        };
        if let Self::Reprocess { scan, recipe, .. } = self {
            if scan.is_none() {
                line.push_str(" from now on");
            }
            recipe.iter().for_each(|(key, value)| line.push_str(&format!(" {key}={value}")));
        }
        line
    }

    /// What serde cannot know: names that are none.
    fn check(&self) -> Result<(), String> {
        let (stream, scan) = self.about();
        let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
        if stream.is_empty() || stream.len() > 64 || !stream.chars().all(plain) {
            return Err(format!("\"{}\" is no stream's name", stream.escape_debug()));
        }
        let Some(scan) = scan else { return Ok(()) };
        let strange = scan.is_empty() || scan.len() > MAX_NAME || scan.chars().any(char::is_control);
        if strange || scan.starts_with('/') || scan.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(format!("\"{}\" is no scan's name", scan.chars().take(80).collect::<String>().escape_debug()));
        }
        Ok(())
    }
}

/// A request file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// [`VERSION`].
    pub request_version: u32,
    /// Who asks, for people.
    #[serde(default)]
    pub by: String,
    /// What.
    pub request: Request,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// `accepted` (under way), `done` or `refused`.
    pub outcome: String,
    /// In words.
    pub text: String,
    /// When, milliseconds since the epoch.
    pub at_ms: u64,
    /// Which pilot says so.
    pub pilot: String,
}

/// A request as found, with what came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Asked {
    /// Its id.
    pub id: String,
    /// When it was asked, milliseconds since the epoch.
    pub at_ms: u64,
    /// Who asked.
    pub by: String,
    /// What; `None` when the file is none.
    pub request: Option<Request>,
    /// Why the file is none.
    pub problem: Option<String>,
    /// What came of it; `None` while no pilot has looked.
    pub outcome: Option<Outcome>,
}

/// Milliseconds of an id `<13 digits>-<1 to 16 hexadecimal digits>`; `None` when it is none.
pub fn id_ms(id: &str) -> Option<u64> {
    let (ms, rest) = id.split_once('-')?;
    let hex = (1..=16).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_hexdigit());
    if ms.len() != 13 || !ms.bytes().all(|b| b.is_ascii_digit()) || !hex {
        return None;
    }
    ms.parse().ok()
}

fn file(layout: &Layout, id: &str) -> PathBuf {
    layout.state.join("requests").join(format!("{id}.json"))
}

fn outcome_file(layout: &Layout, id: &str) -> PathBuf {
    layout.state.join("requests").join(format!("{id}.outcome.json"))
}

/// A new id. Two people may ask in one millisecond; the digits behind it keep them apart.
fn new_id(at_ms: u64) -> String {
    use std::hash::{BuildHasher, Hasher};
    // Keys of a `RandomState` are random, and new ones each time.
    let mut hash = std::collections::hash_map::RandomState::new().build_hasher();
    hash.write_u32(std::process::id());
    format!("{at_ms:013}-{:08x}", hash.finish() >> 32)
}

/// The time of a new id: now, but after everything that is in the inbox. Login nodes' clocks differ, and a `resume` that
/// was dated before its `hold` would do nothing.
fn next_ms(now_ms: u64, asked: &BTreeSet<String>) -> u64 {
    let last = asked.last().and_then(|id| id_ms(id)).unwrap_or(0);
    // Behind the last time that an id can tell, the digits decide.
    now_ms.max(last + 1).min(9_999_999_999_999)
}

/// Puts a request into the inbox, after all that are there; returns its id.
///
/// # Errors
/// A name that is none (`InvalidInput`), or what the filesystem says.
pub fn submit(fs: &dyn Fs, layout: &Layout, by: &str, request: &Request) -> io::Result<String> {
    request.check().map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let envelope = Envelope { request_version: VERSION, by: by.to_owned(), request: request.clone() };
    let bytes = serde_json::to_vec_pretty(&envelope).map_err(io::Error::other)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("is larger than {MAX_BYTES} bytes")));
    }
    loop {
        let id = new_id(next_ms(now_ms(), &ids(fs, layout)?.0));
        if create_whole(fs, &file(layout, &id), &bytes)? {
            return Ok(id);
        }
    }
}

/// Puts a request under a given id; false when one has it already. For inboxes that more than one pilot reads.
///
/// # Errors
/// As [`submit`].
pub fn submit_as(fs: &dyn Fs, layout: &Layout, id: &str, by: &str, request: &Request) -> io::Result<bool> {
    request.check().map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let envelope = Envelope { request_version: VERSION, by: by.to_owned(), request: request.clone() };
    create_whole(fs, &file(layout, id), &serde_json::to_vec_pretty(&envelope).map_err(io::Error::other)?)
}

/// Reads one request strictly. The outer error is the filesystem's, the inner one the request's.
///
/// # Errors
/// The file cannot be read now.
pub fn read(fs: &dyn Fs, layout: &Layout, id: &str) -> io::Result<Result<Envelope, String>> {
    let path = file(layout, id);
    // A link could name any file of the account that runs the pilot, and a pipe would hold it up for ever.
    if !fs.is_plain(&path)? {
        return Ok(Err("it is no ordinary file".to_owned()));
    }
    let bytes = match fs.read(&path, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(e) if is_damage(&e) => return Ok(Err(e.to_string())),
        Err(e) => return Err(e),
    };
    Ok(parse(&bytes))
}

fn parse(bytes: &[u8]) -> Result<Envelope, String> {
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(|e| format!("it is no request: {e}"))?;
    if envelope.request_version != VERSION {
        return Err(format!("it has version {}, this beampilot knows {VERSION}", envelope.request_version));
    }
    envelope.request.check()?;
    Ok(envelope)
}

/// Names in the inbox: ids of requests, and ids with an outcome. One listing.
///
/// # Errors
/// The folder cannot be listed.
pub fn ids(fs: &dyn Fs, layout: &Layout) -> io::Result<(BTreeSet<String>, BTreeSet<String>)> {
    let (mut asked, mut answered) = (BTreeSet::new(), BTreeSet::new());
    for name in fs.list(&layout.state.join("requests"))? {
        let Some(stem) = name.strip_suffix(".json") else { continue };
        match stem.strip_suffix(".outcome") {
            Some(id) if id_ms(id).is_some() => answered.insert(id.to_owned()),
            None if id_ms(stem).is_some() => asked.insert(stem.to_owned()),
            _ => false,
        };
    }
    Ok((asked, answered))
}

/// Reads an outcome; `None` when there is none, or none that can be read.
pub fn outcome(fs: &dyn Fs, layout: &Layout, id: &str) -> Option<Outcome> {
    let bytes = fs.read(&outcome_file(layout, id), MAX_BYTES).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Writes an outcome. One that is there already stays, unless it only says that the request was accepted.
///
/// # Errors
/// What the filesystem says.
pub fn answer(fs: &dyn Fs, layout: &Layout, id: &str, outcome: &Outcome) -> io::Result<bool> {
    let bytes = serde_json::to_vec_pretty(outcome).map_err(io::Error::other)?;
    let path = outcome_file(layout, id);
    if create_whole(fs, &path, &bytes)? {
        return Ok(true);
    }
    let accepted = self::outcome(fs, layout, id).is_some_and(|o| o.outcome == ACCEPTED);
    if accepted && outcome.outcome != ACCEPTED {
        return replace(fs, &path, &bytes).map(|()| true);
    }
    Ok(false)
}

/// Under way.
pub const ACCEPTED: &str = "accepted";
/// Over.
pub const DONE: &str = "done";
/// Cannot be done.
pub const REFUSED: &str = "refused";

/// Every request in order, with what came of it.
///
/// # Errors
/// The folder cannot be listed. Single files that cannot be read carry their problem.
pub fn all(fs: &dyn Fs, layout: &Layout) -> io::Result<Vec<Asked>> {
    let (asked, answered) = ids(fs, layout)?;
    let one = |id: String| {
        let read = read(fs, layout, &id).unwrap_or_else(|e| Err(e.to_string()));
        let outcome = answered.contains(&id).then(|| outcome(fs, layout, &id)).flatten();
        let at_ms = id_ms(&id).unwrap_or(0);
        match read {
            Ok(e) => Asked { id, at_ms, by: e.by, request: Some(e.request), problem: None, outcome },
            Err(problem) => Asked { id, at_ms, by: String::new(), request: None, problem: Some(problem), outcome },
        }
    };
    Ok(asked.into_iter().map(one).collect())
}

/// What all requests together say, in the order of their ids. Refused ones do not count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fold {
    /// Streams that are held.
    pub held: BTreeSet<String>,
    /// Scans that nobody wants, with their streams.
    pub skipped: BTreeSet<(String, String)>,
}

impl Fold {
    /// Folds them.
    pub fn of<'r>(requests: impl IntoIterator<Item = &'r Request>) -> Self {
        let mut fold = Self::default();
        for request in requests {
            match request {
                Request::Hold { stream } => _ = fold.held.insert(stream.clone()),
                Request::Resume { stream } => _ = fold.held.remove(stream),
                Request::Skip { stream, scan } => _ = fold.skipped.insert((stream.clone(), scan.clone())),
                Request::Release { stream, scan } | Request::Reprocess { stream, scan: Some(scan), .. } => {
                    fold.skipped.remove(&(stream.clone(), scan.clone()));
                }
                Request::Urgent { .. } | Request::Reprocess { .. } => {}
            }
        }
        fold
    }
}

/// `over` laid over `base`; tables are merged, everything else is replaced.
pub fn merge(base: &toml::Table, over: &serde_json::Map<String, serde_json::Value>) -> Result<toml::Table, String> {
    let over: BTreeMap<String, toml::Value> = over
        .iter()
        .map(|(k, v)| toml::Value::try_from(v).map(|v| (k.clone(), v)).map_err(|e| format!("{k}: {e}")))
        .collect::<Result<_, _>>()?;
    fn lay(base: &mut toml::Table, over: impl IntoIterator<Item = (String, toml::Value)>) {
        for (key, value) in over {
            match (base.get_mut(&key), value) {
                (Some(toml::Value::Table(under)), toml::Value::Table(table)) => lay(under, table),
                (_, value) => _ = base.insert(key, value),
            }
        }
    }
    let mut merged = base.clone();
    lay(&mut merged, over);
    Ok(merged)
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
