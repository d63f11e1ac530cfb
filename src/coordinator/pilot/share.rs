//! Inboxes in the share: small files that people without a shell put there become requests.
//!
//! Contract
//! - Names and contents are untrusted: only regular files of at most 64 KiB are read, links are not followed, unknown
//!   fields and recipe keys that the campaign does not allow are refused, only `reprocess` and `urgent` can be asked.
//! - A file counts once a version. All pilots make the same id of it, so that it becomes one request.
//! - Recipe keys that decide what is executed cannot be set, whatever the campaign allows.
//! - The file is left as it is. What came of it is written beside it as `<name>.outcome.json`, where that is possible; a
//!   name of more than 200 bytes is cut there, and digits of the whole name follow.

use super::inbox::Inbox;
use crate::campaign::{ShareInbox, Stream};
use crate::store::requests::{self, ACCEPTED, Outcome, REFUSED, Request};
use crate::store::temporary::Sweep;
use crate::store::{fs, records};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Between two looks: shares may be slow.
const PERIOD: Duration = Duration::from_secs(5);
/// Files looked at in one inbox.
const MAX_FILES: usize = 1000;
const OUTCOME: &str = ".outcome.json";
/// Longest name, bytes, behind which [`OUTCOME`] still makes a name that every filesystem takes.
const LONGEST_NAME: usize = 200;
const EXAMPLE: &str = r#"{ "request": "reprocess", "scan": "scan_001.h5", "recipe": { "center": 301.5 } }"#;

/// What people write: `{ "request": "reprocess", "scan": "a.h5", "recipe": { "center": 301.5 } }`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    request: Verb,
    scan: String,
    #[serde(default)]
    recipe: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verb {
    Reprocess,
    Urgent,
}

/// See the module.
#[derive(Default)]
pub(super) struct Share {
    looked: Option<Instant>,
    /// Versions of files that need no second look.
    seen: BTreeSet<String>,
    /// Requests under way, and the files they came from.
    open: BTreeMap<String, PathBuf>,
    trouble: bool,
}

impl Share {
    /// One look at every inbox of the campaign.
    pub(super) fn look(&mut self, inbox: &Inbox) {
        if self.looked.is_some_and(|at| at.elapsed() < PERIOD) {
            return;
        }
        let first = self.looked.replace(Instant::now()).is_none();
        let mut fine = true;
        for stream in &inbox.campaign.streams {
            let Some(share) = &stream.inbox else { continue };
            if first {
                // Answers that dead pilots did not finish writing.
                Sweep::new(&*inbox.disk.fs, &*inbox.disk.host, &inbox.disk.layout).folder(&share.path);
            }
            match self.look_at(inbox, stream, share) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    fine = false;
                    if !self.trouble {
                        tracing::warn!(inbox = %share.path.display(), error = %e, "cannot be read; tried again");
                    }
                }
                _ => {}
            }
        }
        self.trouble = !fine;
        self.close(inbox);
    }

    fn look_at(&mut self, inbox: &Inbox, stream: &Stream, share: &ShareInbox) -> io::Result<()> {
        for entry in std::fs::read_dir(&share.path)?.take(MAX_FILES) {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let kind = [".json", ".toml"].into_iter().find(|e| name.ends_with(e));
            let Some(kind) = kind.filter(|_| !name.starts_with('.') && !name.ends_with(OUTCOME)) else { continue };
            let path = share.path.join(&name);
            let Ok(meta) = path.symlink_metadata() else { continue };
            if !meta.is_file() || fresh(&meta) {
                continue;
            }
            let id = id_of(&stream.name, &name, &meta);
            if !self.seen.insert(id.clone()) {
                continue;
            }
            let request = read(&path).and_then(|text| understand(&text, kind, stream, share));
            let by = format!("{} in the share", name.escape_debug().to_string().chars().take(100).collect::<String>());
            let (store, layout) = (&*inbox.disk.fs, &inbox.disk.layout);
            let told = request.and_then(|r| match requests::submit_as(store, layout, &id, &by, &r) {
                Ok(_) => Ok(()),
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => Err(e.to_string()),
                Err(e) => {
                    tracing::warn!(error = %e, "a request from the share could not be kept; tried again");
                    self.seen.remove(&id);
                    Ok(())
                }
            });
            match told {
                Ok(()) => _ = self.open.insert(id, path),
                Err(why) if !is_answered(&path, &meta) => {
                    let at_ms = records::now_ms();
                    let pilot = inbox.disk.me.pilot.clone();
                    answer(&path, &Outcome { outcome: REFUSED.to_owned(), text: why, at_ms, pilot });
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Writes beside each file what came of it.
    fn close(&mut self, inbox: &Inbox) {
        let (store, layout) = (&*inbox.disk.fs, &inbox.disk.layout);
        self.open.retain(|id, path| match requests::outcome(store, layout, id) {
            Some(outcome) if outcome.outcome != ACCEPTED => {
                answer(path, &outcome);
                false
            }
            _ => true,
        });
    }
}

/// It may still be written: a person's editor or a transfer needs a moment.
fn fresh(meta: &std::fs::Metadata) -> bool {
    let age = meta.modified().ok().and_then(|m| SystemTime::now().duration_since(m).ok());
    age.is_some_and(|age| age < Duration::from_secs(2))
}

/// The id of this version of this file, the same for every pilot. Times of change come from the filesystem.
fn id_of(stream: &str, name: &str, meta: &std::fs::Metadata) -> String {
    let ms = meta.ctime().saturating_mul(1000).saturating_add(meta.ctime_nsec() / 1_000_000);
    let text = format!("{stream}\0{name}\0{}\0{}\0{}\0{}", meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ino());
    format!("{:013}-{:08x}", ms.clamp(0, 9_999_999_999_999), crc32fast::hash(text.as_bytes()))
}

fn read(path: &Path) -> Result<String, String> {
    let no = |e: io::Error| format!("it cannot be read: {e}");
    // Between the look at it and here it may have become a link or a pipe.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).map_err(|e| e.to_string())?;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(no)?;
    if !file.metadata().map_err(no)?.is_file() {
        return Err("it is no ordinary file".to_owned());
    }
    let mut text = String::new();
    file.take(requests::MAX_BYTES + 1).read_to_string(&mut text).map_err(no)?;
    if text.len() as u64 > requests::MAX_BYTES {
        return Err(format!("it is larger than {} KiB", requests::MAX_BYTES >> 10));
    }
    Ok(text)
}

fn understand(text: &str, kind: &str, stream: &Stream, share: &ShareInbox) -> Result<Request, String> {
    let note: Note = match kind {
        ".toml" => toml::from_str(text).map_err(|e| format!("it is no request: {}", e.message()))?,
        // Serde would take a list for the fields in their order.
        _ if !text.trim_start().starts_with('{') => {
            return Err(format!("it is no request; write {EXAMPLE}"));
        }
        _ => serde_json::from_str(text).map_err(|e| format!("it is no request: {e}; write {EXAMPLE}"))?,
    };
    let technique = crate::technique::registry(&stream.technique);
    if let Some(key) = note.recipe.keys().find(|k| technique.is_some_and(|t| crate::campaign::executes(t, k))) {
        return Err(format!(
            "the recipe key \"{}\" decides what is executed; it cannot be set here",
            key.escape_debug()
        ));
    }
    if let Some(key) = technique.and_then(|t| crate::campaign::file_key(t, &note.recipe)) {
        return Err(format!("the recipe key \"{key}\" names a file; it cannot be set here"));
    }
    if let Some(key) = note.recipe.keys().find(|k| !share.allow.contains(k)) {
        let allowed = if share.allow.is_empty() { "none is".to_owned() } else { share.allow.join(", ") };
        return Err(format!("the recipe key \"{}\" is not allowed here; allowed: {allowed}", key.escape_debug()));
    }
    let (stream, scan) = (stream.name.clone(), note.scan);
    match note.request {
        Verb::Urgent if !note.recipe.is_empty() => Err("urgent takes no recipe; ask to reprocess".to_owned()),
        Verb::Urgent => Ok(Request::Urgent { stream, scan }),
        Verb::Reprocess => Ok(Request::Reprocess { stream, scan: Some(scan), recipe: note.recipe }),
    }
}

fn outcome_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if name.len() > LONGEST_NAME {
        let digits = crc32fast::hash(name.as_bytes());
        let cut = (0..=LONGEST_NAME - 9).rev().find(|&n| name.is_char_boundary(n)).unwrap_or(0);
        name.truncate(cut);
        name.push_str(&format!("-{digits:08x}"));
    }
    path.with_file_name(format!("{name}{OUTCOME}"))
}

/// An answer stands beside it that is not older than the file.
fn is_answered(path: &Path, meta: &std::fs::Metadata) -> bool {
    let answered = outcome_path(path).symlink_metadata();
    answered.is_ok_and(|a| (a.ctime(), a.ctime_nsec()) >= (meta.ctime(), meta.ctime_nsec()))
}

fn answer(path: &Path, outcome: &Outcome) {
    // Written aside and renamed: a link that somebody put there is replaced, not followed.
    let written = serde_json::to_vec_pretty(outcome)
        .map_err(io::Error::other)
        .and_then(|bytes| fs::replace(&crate::store::RealFs, &outcome_path(path), &bytes));
    if let Err(e) = written {
        tracing::info!(file = %path.display(), error = %e, "its answer could not be written beside it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campaign::Campaign;

    fn stream() -> Stream {
        let text = "[[stream]]\nname = \"s\"\nwatch = \"in\"\ntechnique = \"t\"\n\
                    [stream.inbox]\npath = \"asks\"\nallow = [\"center\"]\n";
        Campaign::parse(text, Path::new("/w/c.toml")).unwrap().streams.remove(0)
    }

    #[test]
    fn notes_are_understood_and_only_what_is_allowed() {
        let stream = stream();
        let share = stream.inbox.clone().unwrap();
        assert_eq!(share.path, Path::new("/w/asks"));
        let ask = |text: &str, kind| understand(text, kind, &stream, &share).map(|r| r.line());
        let json = |text: &str| ask(text, ".json");
        assert_eq!(
            json("{\"request\":\"reprocess\",\"scan\":\"a.h5\",\"recipe\":{\"center\":301.5}}").unwrap(),
            "reprocess s/a.h5 center=301.5"
        );
        assert_eq!(ask("request = \"urgent\"\nscan = \"a.h5\"", ".toml").unwrap(), "urgent s/a.h5");
        for (text, want) in [
            ("{\"request\":\"reprocess\",\"scan\":\"a\",\"recipe\":{\"filter\":\"hann\"}}", "not allowed"),
            ("{\"request\":\"hold\",\"scan\":\"a\"}", "unknown variant"),
            ("{\"request\":\"urgent\",\"scan\":\"a\",\"stream\":\"t\"}", "unknown field"),
            ("{\"request\":\"urgent\",\"scan\":\"a\",\"recipe\":{\"center\":1}}", "no recipe"),
            ("", "no request; write {"),
            ("[\"urgent\",\"a\",{}]", "no request; write {"),
        ] {
            let why = json(text).unwrap_err();
            assert!(why.contains(want), "{text}: {why}");
        }
    }

    #[test]
    fn what_is_executed_cannot_be_asked_for_even_if_allowed() {
        let mut stream = stream();
        stream.technique = "command".to_owned();
        let share = ShareInbox { path: "/w/asks".into(), allow: vec!["set".into(), "unit".into()] };
        let ask = |recipe: &str| {
            let text = format!("{{\"request\":\"reprocess\",\"scan\":\"a\",\"recipe\":{recipe}}}");
            understand(&text, ".json", &stream, &share)
        };
        assert!(ask("{\"set\":{\"PATH\":\"evil\"}}").unwrap_err().contains("decides what is executed"));
        assert!(ask("{\"unit\":\"x\"}").is_ok());
    }

    #[test]
    fn no_file_can_be_named_even_if_its_table_is_allowed() {
        let mut stream = stream();
        stream.technique = "laue".to_owned();
        let share = ShareInbox { path: "/w/asks".into(), allow: vec!["mask".into(), "geometry".into()] };
        let ask = |recipe: &str| {
            let text = format!("{{\"request\":\"reprocess\",\"scan\":\"a\",\"recipe\":{recipe}}}");
            understand(&text, ".json", &stream, &share)
        };
        assert!(ask("{\"mask\":{\"code\":\"/etc/shadow\"}}").unwrap_err().contains("names a file"));
        assert!(ask("{\"geometry\":\"/etc/shadow\"}").unwrap_err().contains("names a file"));
        assert!(ask("{\"mask\":{\"widening_um\":0.2}}").is_ok());
    }

    #[test]
    fn links_pipes_and_floods_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("big.json"), " ".repeat(70_000)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("link.json")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe.json"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        for name in ["big.json", "link.json", "pipe.json", "none.json"] {
            assert!(read(&at(name)).is_err(), "{name}");
        }
        std::fs::write(at("fine.json"), "{}").unwrap();
        assert_eq!(read(&at("fine.json")).unwrap(), "{}");
        let long = |end: &str| at(&format!("{}{end}.json", "é".repeat(120)));
        std::fs::write(long("a"), "{}").unwrap();
        answer(&long("a"), &Outcome { outcome: REFUSED.into(), text: "x".into(), at_ms: 0, pilot: String::new() });
        assert!(outcome_path(&long("a")).exists() && outcome_path(&long("a")) != outcome_path(&long("b")));
        // An answer goes where a link stood, and not through it.
        std::fs::write(at("victim"), "x").unwrap();
        std::os::unix::fs::symlink(at("victim"), at("fine.json.outcome.json")).unwrap();
        let outcome = Outcome { outcome: REFUSED.into(), text: String::new(), at_ms: 0, pilot: String::new() };
        answer(&at("fine.json"), &outcome);
        assert_eq!(std::fs::read_to_string(at("victim")).unwrap(), "x");
        assert!(std::fs::read_to_string(at("fine.json.outcome.json")).unwrap().contains("refused"));
    }
}
