//! The campaign: what the user wrote in one TOML file, validated.
//!
//! Contract
//! - Every mistake is reported at once, each with file, line, key and remedy ([`Problem`]).
//! - Unknown keys are refused with a suggestion; defaults are written out; relative paths are relative to
//!   the folder of the campaign file.
//! - Loading looks at the text only. What depends on the machine (is the folder there, can it be written)
//!   is [`Campaign::preflight`]; what depends on the build is [`Campaign::validate_techniques`].
//! - A campaign is identified by the hash of its text; [`Campaign::snapshot`] keeps that text in the state.

mod pattern;
mod preflight;
mod problem;
mod read;
mod stream;
mod types;

#[cfg(test)]
mod tests;

pub use pattern::{Pattern, PatternError};
pub use problem::{CampaignErrors, Problem, closest};
pub use types::*;

use crate::store::claims::Observer;
use crate::store::fs::{Links, read_regular};
use crate::technique::Technique;
use problem::suggestion;
use read::{Reader, Section};
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use toml::de::DeTable;

const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// A validated campaign.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// The file it came from, absolute.
    pub file: PathBuf,
    /// As the file was named on the command line: messages use it.
    pub shown: PathBuf,
    /// What people call it; the file's stem when it says nothing.
    pub name: String,
    /// Where claims, journals and records live, absolute.
    pub state: PathBuf,
    /// Lag allowed, for streams that say nothing.
    pub deadline: Duration,
    /// How long a pilot's heartbeat may stand still before others take over what it holds.
    pub lease: Duration,
    /// A folder on every node's own disk, for scratch; `None`: scratch lies with the results.
    pub node_scratch: Option<PathBuf>,
    /// In the order of the file.
    pub streams: Vec<Stream>,
    /// The text, byte by byte.
    pub text: String,
    /// First 16 hexadecimal digits of the text's SHA-256.
    pub hash: String,
    /// What is allowed but probably not meant.
    pub warnings: Vec<Problem>,
}

impl Campaign {
    /// Reads and validates a campaign file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, CampaignErrors> {
        let whole = |problem: String, remedy: &str| {
            let remedy = remedy.to_owned();
            CampaignErrors(vec![Problem { file: path.to_owned(), line: 0, key: String::new(), problem, remedy }])
        };
        let text = Self::text_of(path).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData if e.get_ref().is_some_and(|e| e.is::<std::string::FromUtf8Error>()) => {
                whole("is not UTF-8 text".into(), "save it as UTF-8")
            }
            _ => whole(format!("cannot be read ({e})"), "name a campaign file that exists and that you may read"),
        })?;
        Self::parse(&text, path)
    }

    /// The text of a campaign file: a regular file of at most 1 MiB, or a link to one. Nothing else is waited for.
    ///
    /// # Errors
    /// It cannot be read; `InvalidData` when it is no regular file or not UTF-8.
    pub fn text_of(path: &Path) -> io::Result<String> {
        let bytes = read_regular(path, MOST_BYTES, Links::Followed)?;
        String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// Validates a text as if it stood in `file`. A snapshot is read again with the file it was taken of:
    /// relative paths depend on it.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, file: &Path) -> Result<Self, CampaignErrors> {
        let reader = Reader::new(file, text);
        let (root, errors) = DeTable::parse_recoverable(text);
        for e in &errors {
            let line = e.span().map_or(0, |span| reader.line(span.start));
            let remedy = "see the campaign schema, or write the value in quotes";
            reader.report(line, "", format!("not TOML: {}", e.message().trim().replace('\n', ", ")), remedy);
        }
        if !errors.is_empty() {
            // What the parser guessed after a syntax error is not worth a second opinion.
            CampaignErrors::check(reader.take_problems())?;
        }
        let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let base = absolute.parent().unwrap_or(Path::new("/")).to_owned();
        let top = Section::new(&reader, root.get_ref(), "", 1);
        let head = top.section("campaign", "[campaign]");
        let stem = || absolute.file_stem().map_or("campaign".into(), |s| s.to_string_lossy().into_owned());
        let name = head.as_ref().and_then(|h| h.string("name", "name = \"2026-3-gup-81234\""));
        let name_line = name.as_ref().map_or(1, |n| n.line);
        let name = name.map_or_else(stem, |n| n.value);
        if name.chars().any(char::is_control) {
            // It is shown on terminals, where such characters are commands.
            let problem = format!("\"{}\" has control characters", name.escape_debug());
            reader.report(
                name_line,
                "campaign.name",
                problem,
                "write a name of one line, as in name = \"2026-3-gup-81234\"",
            );
        }
        let state = head.as_ref().and_then(|h| h.string("state", "state = \"state\""));
        let state_line = state.as_ref().map_or(1, |s| s.line);
        let state = stream::resolve(&base, &state.map_or("state".to_owned(), |s| s.value));
        let deadline = head.as_ref().and_then(|h| h.positive_duration("deadline", "15m")).map_or(DEADLINE, |d| d.value);
        let lease = head.as_ref().and_then(lease).unwrap_or(Observer::LEASE);
        let node_scratch = head.as_ref().and_then(node_scratch);
        if let Some(head) = &head {
            head.finish();
        }
        let mut streams = streams(&top, &base, deadline);
        top.finish();
        link_from(&mut streams, &reader);
        check_cycles(&streams, &reader);
        check_streams(&streams, &reader);
        check_folders(&streams, &state, state_line, &reader);
        CampaignErrors::check(reader.take_problems())?;
        let warnings = warnings(&streams, file);
        let hash = hex(&Sha256::digest(text.as_bytes()))[..16].to_owned();
        let shown = file.to_owned();
        Ok(Self {
            file: absolute,
            shown,
            name,
            state,
            deadline,
            lease,
            node_scratch,
            streams,
            text: text.to_owned(),
            hash,
            warnings,
        })
    }

    /// The folder of the campaign file: relative paths are relative to it.
    pub fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("/"))
    }

    /// The stream of that name.
    pub fn stream(&self, name: &str) -> Option<&Stream> {
        self.streams.iter().find(|s| s.name == name)
    }

    /// Checks technique names, roles and recipes against the techniques of this build.
    ///
    /// # Errors
    /// Every mistake, located in the campaign file.
    pub fn validate_techniques(
        &self,
        lookup: &dyn Fn(&str) -> Option<&'static dyn Technique>,
        known: &[&str],
    ) -> Result<(), CampaignErrors> {
        let mut problems = Vec::new();
        for stream in &self.streams {
            let mut report = |key: &str, problem: String, remedy: String| {
                let file = self.shown.clone();
                problems.push(Problem { file, line: stream.line(key), key: format!("stream.{key}"), problem, remedy });
            };
            let Some(technique) = lookup(&stream.technique) else {
                report(
                    "technique",
                    format!("unknown technique \"{}\"", stream.technique),
                    suggestion(&stream.technique, known),
                );
                continue;
            };
            let roles = technique.roles();
            for role in stream.roles.keys().filter(|role| !roles.contains(&role.as_str())) {
                let problem = format!("{} has no role \"{role}\"", stream.technique);
                report(&format!("roles.{role}"), problem, suggestion(role, roles));
            }
            let allowed = || stream.inbox.iter().flat_map(|inbox| &inbox.allow);
            for key in allowed().filter(|key| technique.file_keys().contains(&key.as_str())) {
                let problem = format!(
                    "\"{key}\" names a file: whoever may write into the inbox could have the pilot read any that it can"
                );
                report("inbox.allow", problem, "remove it; `beampilot request` can set it from a shell".to_owned());
            }
            for key in allowed().filter(|key| executes(technique, key)) {
                let problem = format!(
                    "\"{key}\" decides what is executed: whoever may write into the inbox could run anything as the pilot"
                );
                report("inbox.allow", problem, "remove it; `beampilot request` can set it from a shell".to_owned());
            }
            if let Err(e) = technique.recipe_at(&stream.recipe, self.folder()) {
                report(&format!("recipe.{}", e.key), e.problem, e.remedy);
            }
        }
        CampaignErrors::check(problems)
    }

    /// Writes the text to `<state>/campaigns/<hash>.toml`, whole or not at all; returns the path.
    ///
    /// # Errors
    /// What the filesystem says.
    pub fn snapshot(&self, state_dir: &Path) -> io::Result<PathBuf> {
        let folder = state_dir.join("campaigns");
        std::fs::create_dir_all(&folder)?;
        let target = folder.join(format!("{}.toml", self.hash));
        if read_regular(&target, MOST_BYTES, Links::Refused).is_ok_and(|old| old == self.text.as_bytes()) {
            return Ok(target);
        }
        crate::store::fs::replace(&crate::store::RealFs, &target, self.text.as_bytes())?;
        std::fs::File::open(&folder)?.sync_all()?;
        Ok(target)
    }
}

/// Largest campaign file that is read.
const MOST_BYTES: u64 = 1 << 20;

/// Does the recipe key, or the table it lies in, decide what is executed?
pub(crate) fn executes(technique: &dyn Technique, key: &str) -> bool {
    let table = key.split('.').next().unwrap_or(key);
    technique.executing_keys().contains(&table)
}

/// The first key in a recipe, dotted below tables, that names a file to be read.
pub(crate) fn file_key(
    technique: &dyn Technique,
    recipe: &serde_json::Map<String, serde_json::Value>,
) -> Option<&'static str> {
    technique.file_keys().iter().copied().find(|key| {
        let (first, rest) = key.split_once('.').map_or((*key, None), |(first, rest)| (first, Some(rest)));
        let below = |rest: &str| rest.split('.').try_fold(recipe.get(first)?, |at, name| at.get(name));
        recipe.contains_key(*key) || rest.map_or(recipe.contains_key(first), |rest| below(rest).is_some())
    })
}

fn lease(head: &Section<'_, '_, '_>) -> Option<Duration> {
    let at = head.positive_duration("lease", "60s")?;
    let (least, most) = Observer::LEASES;
    if !(least..=most).contains(&at.value) {
        let problem = format!("{} is out of range", humantime::format_duration(at.value));
        head.report(at.line, "lease", problem, "write 5s to 10m; 60s suits a shared filesystem that stalls at times");
        return None;
    }
    Some(at.value)
}

/// The folder is another one on each node, so that nothing can be said of it here but its name.
fn node_scratch(head: &Section<'_, '_, '_>) -> Option<PathBuf> {
    let at = head.string("node_scratch", "node_scratch = \"/local/scratch\"")?;
    let path = PathBuf::from(&at.value);
    let plain = |c| matches!(c, Component::RootDir | Component::Normal(_));
    if path.is_absolute() && path.components().all(plain) {
        return Some(path);
    }
    let problem = format!("{:?} is no absolute path", at.value);
    let remedy =
        "name a folder that exists on every node's own disk, as in node_scratch = \"/local/scratch\", or leave it away";
    head.report(at.line, "node_scratch", problem, remedy);
    None
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn streams(top: &Section<'_, '_, '_>, base: &Path, deadline: Duration) -> Vec<Stream> {
    let Some(list) = top.get("stream") else {
        top.reader.report(1, "stream", "is missing", "add a [[stream]] with name, watch and technique");
        return Vec::new();
    };
    let Some(list_of) = list.value.as_array() else {
        top.mistyped(&list, "stream", "an array of tables", "[[stream]] with two brackets");
        return Vec::new();
    };
    let mut streams = Vec::new();
    for item in list_of.iter() {
        let line = top.reader.line(item.span().start);
        match item.get_ref().as_table() {
            Some(table) => {
                streams.extend(stream::read(&Section::new(top.reader, table, "stream", line), base, deadline))
            }
            None => top.reader.report(line, "stream", "expected a table", "write [[stream]]"),
        }
    }
    if list_of.is_empty() {
        top.reader.report(list.line, "stream", "is empty", "add a [[stream]] with name, watch and technique");
    }
    streams
}

/// Fills in `watch` where it is another stream's results.
fn link_from(streams: &mut [Stream], reader: &Reader<'_>) {
    let results: Vec<(String, PathBuf)> = streams.iter().map(|s| (s.name.clone(), s.results())).collect();
    let names: Vec<&str> = results.iter().map(|(name, _)| name.as_str()).collect();
    for stream in streams {
        let Some(from) = &stream.from else { continue };
        match results.iter().find(|(name, _)| name == from && *name != stream.name) {
            Some((_, path)) => stream.watch = path.clone(),
            None => {
                let others: Vec<&str> = names.iter().copied().filter(|n| *n != stream.name).collect();
                let problem = format!("no other stream is called \"{}\"", from.escape_debug());
                reader.report(stream.line("from"), "stream.from", problem, suggestion(from, &others));
            }
        }
    }
}

/// Streams that feed each other would never end.
fn check_cycles(streams: &[Stream], reader: &Reader<'_>) {
    for stream in streams {
        let mut chain = vec![stream.name.as_str()];
        let mut at = stream;
        while let Some(from) = &at.from {
            if *from == stream.name && chain.len() > 1 {
                let problem = format!("{} feed each other in a circle", chain.join(" ← "));
                let remedy = "let one of them watch a folder";
                reader.report(stream.line("from"), "stream.from", problem, remedy);
                break;
            }
            // A circle that this stream only leads to is reported for those in it.
            let next = streams.iter().find(|s| s.name == *from && !chain.contains(&s.name.as_str()));
            let Some(next) = next else { break };
            chain.push(&next.name);
            at = next;
        }
    }
}

fn check_streams(streams: &[Stream], reader: &Reader<'_>) {
    for (i, stream) in streams.iter().enumerate() {
        let before = &streams[..i];
        if let Some(first) = before.iter().find(|s| s.name == stream.name) {
            let problem = format!("\"{}\" is also the name of the stream in line {}", stream.name, first.line);
            reader.report(stream.line("name"), "stream.name", problem, "give every stream a name of its own");
        }
        if let Some(first) = before.iter().find(|s| {
            // Two streams may well go on from one's results: each has a technique or recipe of its own.
            let chained = s.from.is_some() && stream.from.is_some();
            !chained && s.watch == stream.watch && s.pattern == stream.pattern
        }) {
            let problem = format!("watches the same files as \"{}\" in line {}", first.name, first.line);
            reader.report(stream.line("watch"), "stream.watch", problem, "change watch or pattern of one of them");
        }
    }
}

/// A result must never be an arrival, unless `from` says so.
fn check_folders(streams: &[Stream], state: &Path, state_line: usize, reader: &Reader<'_>) {
    let real_state = preflight::real(state);
    // Without a folder: what `from` says was wrong, and was reported.
    for watcher in streams.iter().filter(|s| s.from.is_none() && !s.watch.as_os_str().is_empty()) {
        let watch = preflight::real(&watcher.watch);
        for owner in streams {
            // The stream's own folder there may be a link to somewhere else.
            let (output, results) = (owner.output.clone(), owner.results());
            let overlaps = |folder: &PathBuf| {
                let real = preflight::real(folder);
                real.starts_with(&watch) || watch.starts_with(&real)
            };
            let Some(folder) = [output, results].into_iter().find(overlaps) else { continue };
            let problem = format!(
                "\"{}\" overlaps \"{}\", which stream \"{}\" watches: results would arrive as scans",
                folder.display(),
                watcher.watch.display(),
                watcher.name
            );
            reader.report(owner.line("output"), "stream.output", problem, "write results to a folder beside it");
        }
        if real_state.starts_with(&watch) || watch.starts_with(&real_state) {
            let problem = format!("\"{}\" overlaps \"{}\", which is watched", state.display(), watcher.watch.display());
            reader.report(state_line, "campaign.state", problem, "keep the state in a folder beside it");
        }
    }
    for follower in streams.iter().filter(|s| s.from.is_some() && !s.watch.as_os_str().is_empty()) {
        let watch = preflight::real(&follower.watch);
        for owner in streams.iter().filter(|s| follower.from.as_ref() != Some(&s.name)) {
            let results = preflight::real(&owner.results());
            if !results.starts_with(&watch) && !watch.starts_with(&results) {
                continue;
            }
            let problem = format!(
                "results of \"{}\" would lie in \"{}\", whose bundles arrive at \"{}\"",
                owner.name,
                follower.watch.display(),
                follower.name
            );
            reader.report(owner.line("output"), "stream.output", problem, "write results to a folder beside it");
        }
    }
    for owner in streams {
        check_inbox(owner, streams, &real_state, reader);
        let results = preflight::real(&owner.results());
        if real_state.starts_with(&results) || results.starts_with(&real_state) {
            let problem = format!("\"{}\" overlaps the state folder", owner.output.display());
            reader.report(owner.line("output"), "stream.output", problem, "write results to a folder beside it");
        }
    }
}

/// Requests must not arrive as scans, nor answers stand among results or in the state.
fn check_inbox(owner: &Stream, streams: &[Stream], real_state: &Path, reader: &Reader<'_>) {
    let Some(inbox) = &owner.inbox else { return };
    let path = preflight::real(&inbox.path);
    let watched = streams.iter().filter(|s| s.from.is_none()).map(|s| preflight::real(&s.watch));
    let others = watched.chain(streams.iter().map(|s| preflight::real(&s.results()))).chain([real_state.to_owned()]);
    for other in others {
        if path.starts_with(&other) || other.starts_with(&path) {
            let problem = format!("\"{}\" overlaps {}", inbox.path.display(), other.display());
            let remedy = "use a folder beside watched folders, results and state";
            reader.report(owner.line("inbox.path"), "stream.inbox.path", problem, remedy);
            return;
        }
    }
}

fn warnings(streams: &[Stream], file: &Path) -> Vec<Problem> {
    let hasty = |s: &&Stream| matches!(s.complete.rule, Rule::Settled { quiet } if quiet < Duration::from_secs(1));
    let warn = |s: &Stream| Problem {
        file: file.to_owned(),
        line: s.line("complete.quiet"),
        key: "stream.complete.quiet".into(),
        problem: "is shorter than a second: a slow writer looks finished".into(),
        remedy: "write 60s for files that come over the network".into(),
    };
    streams.iter().filter(hasty).map(warn).collect()
}
