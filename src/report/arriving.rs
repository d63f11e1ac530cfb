//! Why a scan that is in the watched folder has not arrived, from the campaign, the scan's own times and what pilots say
//! of its stream.
//!
//! Contract: the reasons are looked for in the order in which arrivals do: name, time, completeness, companions. What
//! pilots say are counts of the stream; that a reason is this scan's is said only where it must be.

use super::status::ArrivalsView;
use super::table::when;
use crate::campaign::{Campaign, RoleSource, Rule, Since, Stream, Unit};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The reason in words, and what to do about it.
pub(super) fn why(
    campaign: &Campaign,
    (stream, scan): (&str, &str),
    first_pilot: Option<SystemTime>,
    seen: &[ArrivalsView],
) -> String {
    if let Some(trouble) = seen.iter().find_map(|a| a.trouble.as_ref()) {
        return format!("its folder is in trouble: {trouble}");
    }
    let Some(stream) = campaign.stream(stream) else { return "the campaign has no such stream any more".to_owned() };
    if let Some(why) = by_name(stream, scan).or_else(|| by_time(stream, scan, first_pilot)) {
        return why;
    }
    let count = |of: fn(&ArrivalsView) -> usize| seen.iter().map(of).max().unwrap_or(0);
    match (count(|a| a.settling), count(|a| a.waiting_role)) {
        (0, 0) => "it was not seen yet, or just now: pilots look every few seconds".to_owned(),
        (_, 0) => format!("it is not complete yet: {}", awaited(stream, scan)),
        (0, _) => format!("it is complete, but lacks a companion: {}", companions(stream, scan)),
        _ => format!(
            "it is not complete yet: {}; or it lacks a companion: {}",
            awaited(stream, scan),
            companions(stream, scan)
        ),
    }
}

fn by_name(stream: &Stream, scan: &str) -> Option<String> {
    let path = Path::new(scan);
    if let (Rule::Renamed { temporary }, Some(name)) = (&stream.complete.rule, path.file_name())
        && temporary.matches(name)
    {
        let glob = &temporary.source;
        return Some(format!(
            "its name is that of an unfinished file (\"{glob}\"): it counts once it has its own name"
        ));
    }
    // The name of a group is no file's.
    let one = !matches!(stream.unit, Unit::Group { .. });
    (one && !stream.pattern.matches(path)).then(|| {
        format!("no pilot wants it: its name does not match the stream's pattern \"{}\"", stream.pattern.source())
    })
}

fn by_time(stream: &Stream, scan: &str, first_pilot: Option<SystemTime>) -> Option<String> {
    let since = Since::resolve(stream.since, first_pilot?, false)?;
    let meta = std::fs::symlink_metadata(stream.watch.join(scan)).ok()?;
    // A folder's own time says little of the files in it.
    let changed = meta.modified().ok().filter(|_| meta.is_file())?;
    let moment = |t: SystemTime| when(t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64));
    let anyway = format!("`request reprocess {}/{scan}` takes it all the same", stream.name);
    (changed < since).then(|| match stream.since {
        Some(Since::At(_)) => format!("no pilot wants it: it is older than `since`, {} UTC; {anyway}", moment(since)),
        _ => format!(
            "no pilot wants it: it was there before the campaign's first pilot, {} UTC; {anyway}, and since = \"all\" \
             in the campaign takes all",
            moment(since)
        ),
    })
}

fn awaited(stream: &Stream, scan: &str) -> String {
    let span = |d: &Duration| humantime::format_duration(*d).to_string();
    match &stream.complete.rule {
        Rule::Settled { quiet } => format!("its files must be unchanged for {}", span(quiet)),
        Rule::Marker { suffix } => format!("{scan}{suffix} must appear"),
        Rule::Manifest { names } => {
            let names: Vec<String> = names.iter().map(|n| n.of(scan)).collect();
            format!("{} must appear", names.join(" or "))
        }
        Rule::Renamed { .. } => "all of its files must have their own names".to_owned(),
    }
}

fn companions(stream: &Stream, scan: &str) -> String {
    let one = |(role, source): (&String, &RoleSource)| match source {
        RoleSource::InScan { file } => format!("{role} (\"{}\" in the scan)", file.source()),
        RoleSource::Beside { file } => format!("{role} ({})", file.of(scan)),
        RoleSource::Path(path) => format!("{role} ({})", path.display()),
        RoleSource::Latest { pattern, within } => {
            let age = humantime::format_duration(*within);
            format!("{role} (\"{}\", not newer than the scan and at most {age} older)", pattern.source())
        }
    };
    let all: Vec<String> = stream.roles.iter().map(one).collect();
    let limit = humantime::format_duration(stream.complete.timeout);
    format!("{}; without it the scan goes to quarantine after {limit}", all.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("in")).unwrap();
        for name in ["a.h5", "a.dat", "a.h5.part"] {
            std::fs::write(dir.path().join("in").join(name), "").unwrap();
        }
        let long_ago = UNIX_EPOCH + Duration::from_secs(1);
        let later = SystemTime::now() + Duration::from_secs(3600);
        let settling = ArrivalsView { settling: 1, ..Default::default() };
        let lacking = ArrivalsView { waiting_role: 1, ..Default::default() };
        let trouble = ArrivalsView { trouble: Some("stale handle".into()), ..Default::default() };
        let renamed = "complete = { rule = \"renamed\", temporary = \"*.part\" }";
        let marker = "complete = { rule = \"marker\" }\nroles = { dark = \"dark.raw\" }";
        for (keys, scan, first, seen, words) in [
            (renamed, "a.h5.part", long_ago, &settling, "unfinished file (\"*.part\")"),
            (renamed, "a.dat", long_ago, &settling, "pattern \"*.h5\""),
            (renamed, "a.h5", later, &settling, "`request reprocess s/a.h5`"),
            ("since = \"all\"", "a.h5", later, &settling, "unchanged for 1m"),
            (marker, "a.h5", long_ago, &settling, "a.h5.done must appear"),
            (marker, "a.h5", long_ago, &lacking, "lacks a companion: dark ("),
            (renamed, "a.h5", long_ago, &trouble, "stale handle"),
            (renamed, "a.h5", long_ago, &ArrivalsView::default(), "not seen yet"),
        ] {
            let text = format!(
                "[[stream]]\nname = \"s\"\nwatch = \"in\"\npattern = \"*.h5\"\ntechnique = \"tomography\"\n{keys}\n"
            );
            let campaign = Campaign::parse(&text, &dir.path().join("c.toml")).unwrap();
            let told = why(&campaign, ("s", scan), Some(first), std::slice::from_ref(seen));
            assert!(told.contains(words), "{keys}: {told}");
        }
    }
}
