//! Reading one `[[stream]]`.
//!
//! Contract: whatever is wrong is reported through the section's reader; a [`Stream`] comes out only when
//! the keys it cannot do without were right. Cross-checks between streams are the caller's.

use super::pattern::{Pattern, PatternError};
use super::read::{At, Section};
use super::types::*;
use globset::GlobBuilder;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};
use toml::de::DeValue;
use toml::value::{Datetime, Offset};

const TIMEOUT: Duration = Duration::from_secs(30 * 60);
const QUIET: Duration = Duration::from_secs(60);

/// A stream, and `watch` still unresolved when it says `from`.
pub(super) fn read(section: &Section<'_, '_, '_>, base: &Path, deadline: Duration) -> Option<Stream> {
    let name = section.required("name", "name = \"2bm\"").filter(|name| fits_folder(section, name));
    let from = source(section);
    let watch = match section.get("from") {
        None => section.required("watch", "watch = \"incoming/2bm\"").map(|w| resolve(base, &w.value)),
        Some(_) => {
            if let Some(both) = section.get("watch") {
                section.report(both.line, "watch", "contradicts from", "keep one of watch and from");
            }
            Some(PathBuf::new())
        }
    };
    let chained = section.get("from").is_some();
    let unit = unit(section, chained);
    let pattern = pattern(section, unit, chained);
    let since = section.get("since").and_then(|at| since(section, &at));
    let complete = complete(section, unit, chained);
    let technique = section.required("technique", "technique = \"tomography\"").map(|t| t.value);
    let output = section.string("output", "output = \"results\"").map_or("results".to_owned(), |o| o.value);
    let deadline = section.positive_duration("deadline", "10m").map_or(deadline, |d| d.value);
    let task_limit = section.positive_duration("task_limit", "15m").map(|d| d.value);
    let order = section.choice("order", &[("deadline", Order::Deadline), ("newest", Order::Newest)]);
    let weight = section.count("weight", "weight = 1").map_or(1, |w| w.value);
    let roles = section.section("roles", "[stream.roles]").map(|r| roles(&r, base, unit)).unwrap_or_default();
    let recipe = section.section("recipe", "[stream.recipe]").map(|r| r.to_toml()).unwrap_or_default();
    let inbox = section.section("inbox", "[stream.inbox]").and_then(|i| inbox(&i, base));
    section.finish();
    Some(Stream {
        name: name?.value,
        watch: watch?,
        from: from.map(|f| f.value),
        pattern: pattern?,
        unit,
        since,
        complete: complete?,
        technique: technique?,
        output: resolve(base, &output),
        deadline,
        task_limit,
        order: order.map_or(Order::Deadline, |o| o.value),
        weight,
        roles,
        recipe,
        inbox,
        lines: section.lines(),
        line: section.line,
    })
}

fn inbox(table: &Section<'_, '_, '_>, base: &Path) -> Option<ShareInbox> {
    let path = table.required("path", "path = \"share/requests\"");
    let example = "allow = [\"center\"]";
    let mut allow = Vec::new();
    if let Some(at) = table.get("allow") {
        match at.value.as_array() {
            Some(list) => {
                for item in list.iter() {
                    match item.get_ref().as_str() {
                        Some(key) if !key.is_empty() => allow.push(key.to_owned()),
                        _ => table.report(
                            at.line,
                            "allow",
                            "holds something that is no recipe key",
                            format!("write {example}"),
                        ),
                    }
                }
            }
            None => table.mistyped(&at, "allow", "an array of recipe keys", example),
        }
    }
    table.finish();
    Some(ShareInbox { path: resolve(base, &path?.value), allow })
}

/// `from = { stream = "…" }`, or the stream's name alone.
fn source(section: &Section<'_, '_, '_>) -> Option<At<String>> {
    const EXAMPLE: &str = "from = { stream = \"another stream\" }";
    let at = section.get("from")?;
    if at.value.as_table().is_none() {
        return section.string("from", EXAMPLE);
    }
    let table = section.section("from", EXAMPLE)?;
    let stream = table.required("stream", "stream = \"another stream\"");
    table.finish();
    stream.map(|s| At { line: at.line, value: s.value })
}

/// Absolute, relative to the campaign file's folder; `.` and `..` taken out by their letters.
pub(super) fn resolve(base: &Path, text: &str) -> PathBuf {
    let mut out = PathBuf::new();
    for component in base.join(text).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

fn fits_folder(section: &Section<'_, '_, '_>, name: &At<String>) -> bool {
    let fits = name.value.len() <= 64
        && name.value.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.value.chars().all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c));
    if !fits {
        let problem = format!("\"{}\" cannot name a folder of results", name.value.escape_debug());
        let remedy = "use up to 64 letters, digits and . _ + -, beginning with a letter or digit";
        section.report(name.line, "name", problem, remedy);
    }
    fits
}

fn unit(section: &Section<'_, '_, '_>, from: bool) -> Unit {
    #[derive(Clone, Copy)]
    enum Kind {
        File,
        Folder,
        Group,
    }
    let default = if from { Kind::Folder } else { Kind::File };
    let choices = [("file", Kind::File), ("folder", Kind::Folder), ("group", Kind::Group)];
    let kind = section.choice("unit", &choices);
    let line = kind.as_ref().map_or(section.line, |k| k.line);
    let kind = kind.map_or(default, |k| k.value);
    let count = section.count("count", "count = 3");
    match (kind, count) {
        (Kind::Group, Some(count)) => Unit::Group { count: count.value },
        (Kind::Group, None) => {
            if section.get("count").is_none() {
                let remedy = "add count = 3: how many files make a group whole";
                section.report(line, "count", "is missing for unit = \"group\"", remedy);
            }
            Unit::Group { count: 1 }
        }
        (kind, count) => {
            if let Some(count) = count {
                section.report(count.line, "count", "is only for unit = \"group\"", "remove it, or set the unit");
            }
            if matches!(kind, Kind::Folder) { Unit::Folder } else { Unit::File }
        }
    }
}

fn pattern(section: &Section<'_, '_, '_>, unit: Unit, from: bool) -> Option<Pattern> {
    let (default, example) = match unit {
        Unit::File => ("**/*.h5", "pattern = \"**/*.h5\""),
        Unit::Folder => ("*", "pattern = \"scan_*\""),
        Unit::Group { .. } => ("", "pattern = \"{key}_part*.h5\""),
    };
    let given = match unit {
        Unit::Group { .. } if !from => section.required("pattern", example),
        _ => section.string("pattern", example),
    };
    if given.is_none() && section.get("pattern").is_some() {
        return None; // Present and wrong: already reported.
    }
    let text = given.unwrap_or(At { line: section.line, value: default.to_owned() });
    let parsed = match unit {
        Unit::Group { .. } if text.value.is_empty() => return None,
        Unit::Group { .. } => Pattern::keyed(&text.value),
        _ => Pattern::plain(&text.value),
    };
    report_pattern(section, "pattern", &text, parsed)
}

fn report_pattern(
    section: &Section<'_, '_, '_>,
    key: &str,
    text: &At<String>,
    parsed: Result<Pattern, PatternError>,
) -> Option<Pattern> {
    parsed
        .map_err(|e| {
            let message = e.to_string();
            let (problem, remedy) = message.split_once("; ").unwrap_or((&message, "write a glob"));
            section.report(text.line, key, format!("\"{}\" {problem}", text.value.escape_debug()), remedy);
        })
        .ok()
}

fn since(section: &Section<'_, '_, '_>, at: &At<&DeValue<'_>>) -> Option<Since> {
    const REMEDY: &str = "write \"now\", \"all\" or a date, as in 2026-03-01 or \"2026-03-01T08:00:00Z\"";
    match at.value {
        DeValue::Datetime(date) => moment(date).map(Since::At),
        DeValue::String(text) => match text.as_ref() {
            "now" => return Some(Since::Now),
            "all" => return Some(Since::All),
            text => Datetime::from_str(text).ok().and_then(|date| moment(&date)).map(Since::At),
        },
        other => {
            section.report(at.line, "since", format!("expected a date, found {}", other.type_str()), REMEDY);
            return None;
        }
    }
    .or_else(|| {
        let shown = match at.value {
            DeValue::String(text) => text.escape_debug().to_string(),
            DeValue::Datetime(date) => date.to_string(),
            _ => String::new(),
        };
        let is_date = Datetime::from_str(&shown).is_ok_and(|date| date.date.is_some());
        let why = if is_date { "is before 1970; write \"all\" for everything" } else { "is not a date" };
        section.report(at.line, "since", format!("\"{shown}\" {why}"), REMEDY);
        None
    })
}

/// A date as a moment; without an offset it is UTC, without a time midnight.
fn moment(date: &Datetime) -> Option<SystemTime> {
    let day = date.date?;
    // Days from civil, as in Howard Hinnant's chrono-compatible algorithms.
    let (y, m, d) = (i64::from(day.year), i64::from(day.month), i64::from(day.day));
    let y = if m <= 2 { y - 1 } else { y };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * ((m + 9) % 12) + 2) / 5 + d - 1;
    let days = era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468;
    let mut seconds = days * 86_400;
    let mut nanos = 0;
    if let Some(time) = date.time {
        seconds += i64::from(time.hour) * 3600 + i64::from(time.minute) * 60 + i64::from(time.second.unwrap_or(0));
        nanos = time.nanosecond.unwrap_or(0);
    }
    if let Some(Offset::Custom { minutes }) = date.offset {
        seconds -= i64::from(minutes) * 60;
    }
    let seconds = u64::try_from(seconds).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

fn complete(section: &Section<'_, '_, '_>, unit: Unit, from: bool) -> Option<Completeness> {
    // A bundle becomes visible by one rename; its staging folder is hidden and never matches anyway.
    if section.get("complete").is_none() {
        let rule =
            if from { Rule::Renamed { temporary: name_glob(".staging-*")? } } else { Rule::Settled { quiet: QUIET } };
        return Some(Completeness { rule, timeout: TIMEOUT });
    }
    #[derive(Clone, Copy)]
    enum Kind {
        Settled,
        Marker,
        Manifest,
        Renamed,
    }
    let table = section.section("complete", "complete = { rule = \"settled\", quiet = \"60s\" }")?;
    let kinds = [
        ("settled", Kind::Settled),
        ("marker", Kind::Marker),
        ("manifest", Kind::Manifest),
        ("renamed", Kind::Renamed),
    ];
    if table.get("rule").is_none() {
        table.report(table.line, "rule", "is missing", "add rule = \"settled\", marker, manifest or renamed");
    }
    let timeout = table.positive_duration("timeout", "30m").map_or(TIMEOUT, |t| t.value);
    let rule = match table.choice("rule", &kinds).map(|k| k.value) {
        Some(Kind::Settled) => {
            let quiet = table.positive_duration("quiet", "60s").map_or(QUIET, |q| q.value);
            Some(Rule::Settled { quiet })
        }
        Some(Kind::Marker) => marker(&table),
        Some(Kind::Manifest) => manifest(&table, unit),
        Some(Kind::Renamed) => temporary(&table),
        None => {
            // Which keys are right depends on the rule: say nothing about them until that is known.
            return None;
        }
    };
    table.finish();
    Some(Completeness { rule: rule?, timeout })
}

fn marker(table: &Section<'_, '_, '_>) -> Option<Rule> {
    let suffix = match table.string("suffix", "suffix = \".done\"") {
        Some(suffix) => suffix,
        None if table.get("suffix").is_some() => return None,
        None => At { line: table.line, value: ".done".to_owned() },
    };
    if suffix.value.contains('/') {
        let problem = format!("\"{}\" has a slash", suffix.value);
        table.report(suffix.line, "suffix", problem, "write what follows the scan's name, as in \".done\"");
        return None;
    }
    Some(Rule::Marker { suffix: suffix.value })
}

fn manifest(table: &Section<'_, '_, '_>, unit: Unit) -> Option<Rule> {
    let example = "pattern = \"{scan}.manifest.json\"";
    let Some(text) = table.string("pattern", example) else {
        let names = [".manifest.json", ".sha256"];
        let names = names.map(|s| Companion { prefix: String::new(), suffix: s.to_owned(), stem: false });
        return table.get("pattern").is_none().then(|| Rule::Manifest { names: names.to_vec() });
    };
    let inside = matches!(unit, Unit::Folder);
    match companion(&text.value, "{scan}").filter(|c| inside || !c.suffix.contains('/')) {
        Some(name) => Some(Rule::Manifest { names: vec![name] }),
        None => {
            let problem = format!("\"{}\" does not name a file beside the scan", text.value.escape_debug());
            let inside = if inside { " or \"{scan}/SHA256SUMS\"" } else { "" };
            table.report(text.line, "pattern", problem, format!("write {{scan}} once, as in {example}{inside}"));
            None
        }
    }
}

fn temporary(table: &Section<'_, '_, '_>) -> Option<Rule> {
    let text = match table.string("temporary", "temporary = \"*.part\"") {
        Some(text) => text,
        None if table.get("temporary").is_some() => return None,
        None => At { line: table.line, value: "*.part".to_owned() },
    };
    match name_glob(&text.value) {
        Some(temporary) => Some(Rule::Renamed { temporary }),
        None => {
            let problem = format!("\"{}\" is not a pattern for file names", text.value.escape_debug());
            table.report(text.line, "temporary", problem, "write a name with *, as in temporary = \"*.part\"");
            None
        }
    }
}

fn name_glob(text: &str) -> Option<NameGlob> {
    let glob = GlobBuilder::new(text).literal_separator(true).build().ok().filter(|_| !text.contains('/'))?;
    Some(NameGlob { source: text.to_owned(), glob: glob.compile_matcher() })
}

/// A text with one placeholder, and neither `..` nor a leading slash.
fn companion(text: &str, placeholder: &str) -> Option<Companion> {
    let (prefix, suffix) = text.split_once(placeholder)?;
    let plain = Path::new(text).components().all(|c| matches!(c, Component::Normal(_)));
    let hidden = prefix.contains('/') || prefix.starts_with('.');
    let bare = prefix.is_empty() && suffix.is_empty();
    let safe = plain && !hidden && !bare && !suffix.contains(placeholder);
    safe.then(|| Companion { prefix: prefix.to_owned(), suffix: suffix.to_owned(), stem: placeholder == "{stem}" })
}

fn roles(table: &Section<'_, '_, '_>, base: &Path, unit: Unit) -> BTreeMap<String, RoleSource> {
    let mut roles = BTreeMap::new();
    for (name, at) in table.entries() {
        let source = match at.value {
            DeValue::String(path) if !path.is_empty() => Some(RoleSource::Path(resolve(base, path))),
            DeValue::Table(below) => role(&Section::new(table.reader, below, &table.path(name), at.line), base, unit),
            _ => {
                let example = format!("{name} = {{ latest = \"darks/*.h5\", within = \"12h\" }}, or a path in quotes");
                table.mistyped(&at, name, "a table or a path", &example);
                None
            }
        };
        if let Some(source) = source {
            roles.insert(name.to_owned(), source);
        }
    }
    roles
}

fn role(table: &Section<'_, '_, '_>, base: &Path, unit: Unit) -> Option<RoleSource> {
    let latest = table.string("latest", "latest = \"darks/*.h5\"");
    let path = table.string("path", "path = \"calibration/dark.h5\"");
    let file = table.string("file", "file = \"dark_*.tif\"");
    let within = table.positive_duration("within", "12h");
    let spelled = table.finish();
    let given = [&latest, &path, &file].iter().filter(|s| s.is_some()).count();
    if given != 1 {
        let silent = spelled && ["latest", "path", "file"].into_iter().all(|key| table.get(key).is_none());
        if silent || given > 1 {
            let remedy = "write exactly one of latest, path and file";
            let problem = if given == 0 { "says nothing about where to look" } else { "says twice where to look" };
            table.reader.report(table.line, &table.name(), problem, remedy);
        }
        return None;
    }
    if latest.is_none()
        && let Some(within) = &within
    {
        table.report(within.line, "within", "is only for latest", "remove it");
    }
    if let Some(text) = latest {
        let pattern = report_pattern(table, "latest", &text, Pattern::plain(&text.value))?;
        let within = within.map_or(Duration::from_secs(12 * 3600), |w| w.value);
        return Some(RoleSource::Latest { pattern, within });
    }
    if let Some(path) = path {
        return Some(RoleSource::Path(resolve(base, &path.value)));
    }
    let text = file?;
    if unit != Unit::File {
        let file = report_pattern(table, "file", &text, Pattern::plain(&text.value))?;
        return Some(RoleSource::InScan { file });
    }
    let file =
        ["{stem}", "{scan}"].into_iter().find_map(|p| companion(&text.value, p)).filter(|c| !c.suffix.contains('/'));
    if file.is_none() {
        let problem = format!("\"{}\" does not name a file beside the scan", text.value.escape_debug());
        let remedy = "write {stem} (the scan's name without extension) or {scan} once, as in file = \"{stem}.json\"";
        table.report(text.line, "file", problem, remedy);
    }
    file.map(|file| RoleSource::Beside { file })
}
