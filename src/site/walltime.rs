//! When does this job end?
//!
//! Contract
//! - What the user says (`--until`) wins; then the scheduler is asked; then its environment; else nobody knows.
//! - Asking takes at most ten seconds: a scheduler that is busy must not hold up a shift.
//! - Times are UTC. `qstat` prints local time, so it runs with `TZ=UTC0`.

use super::bounded;
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// For the scheduler's answer.
const QUERY_LIMIT: Duration = Duration::from_secs(10);
/// A walltime without a start counts from now, when some of it has passed already.
const UNKNOWN_START: Duration = Duration::from_secs(120);

/// The last second that RFC 3339 can write, 9999-12-31T23:59:59Z.
const LAST_S: u64 = 253_402_300_799;

/// Why `--until` is not a time.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no time; write +30m, or 2026-11-25T14:00:00Z, or 2026-11-25T09:00:00-05:00")]
pub struct NotATime(String);

/// `+30m` from `now`, or RFC 3339.
///
/// # Errors
/// Anything else, and what lies before 1970 or after 9999.
pub fn parse_until(text: &str, now: SystemTime) -> Result<SystemTime, NotATime> {
    let shown = UNIX_EPOCH..=UNIX_EPOCH + Duration::from_secs(LAST_S);
    moment(text, now).filter(|at| shown.contains(at)).ok_or_else(|| NotATime(text.to_owned()))
}

fn moment(text: &str, now: SystemTime) -> Option<SystemTime> {
    if let Some(span) = text.strip_prefix('+') {
        return now.checked_add(humantime::parse_duration(span).ok()?);
    }
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Some(time);
    }
    // With an offset, which humantime does not know.
    let cut = text.len().checked_sub(6).filter(|&cut| text.is_char_boundary(cut))?;
    let (local, offset) = text.split_at(cut);
    let (sign, clock) = offset.split_at_checked(1)?;
    let (hours, minutes) = clock.split_once(':')?;
    let (hours, minutes): (u64, u64) = (hours.parse().ok()?, minutes.parse().ok()?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    let offset = Duration::from_secs(hours * 3600 + minutes * 60);
    let local = humantime::parse_rfc3339_weak(local).ok()?;
    match sign {
        "+" => local.checked_sub(offset),
        "-" => local.checked_add(offset),
        _ => None,
    }
}

/// For clap.
///
/// # Errors
/// See [`parse_until`].
pub fn until_argument(text: &str) -> Result<SystemTime, NotATime> {
    parse_until(text, SystemTime::now())
}

/// When the scheduler will end this job; `None` when there is none, or it does not say.
pub fn job_end() -> Option<SystemTime> {
    let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    if let Some(job) = env("PBS_JOBID") {
        match ask_pbs(&job) {
            Ok(end) => return Some(end),
            Err(why) => tracing::warn!("the scheduler does not say when job {job} ends: {why}"),
        }
    }
    from_environment(&env, SystemTime::now())
}

fn from_environment(env: &dyn Fn(&str) -> Option<String>, now: SystemTime) -> Option<SystemTime> {
    if let Some(end) = env("SLURM_JOB_END_TIME").and_then(|v| v.trim().parse().ok()) {
        return UNIX_EPOCH.checked_add(Duration::from_secs(end));
    }
    let walltime = env("PBS_WALLTIME").and_then(|v| clock(&v))?;
    now.checked_add(walltime.saturating_sub(UNKNOWN_START))
}

fn ask_pbs(job: &str) -> Result<SystemTime, String> {
    let mut command = Command::new("qstat");
    command.args(["-f", "-F", "json", job]).env("TZ", "UTC0");
    let said = bounded::output(&mut command, QUERY_LIMIT).map_err(|e| format!("qstat: {e}"))?;
    if !said.status.success() {
        return Err(format!("qstat: {}", String::from_utf8_lossy(&said.stderr).trim()));
    }
    pbs_end(&said.stdout).ok_or_else(|| "qstat names no walltime and start of it".to_owned())
}

fn pbs_end(json: &[u8]) -> Option<SystemTime> {
    let answer: Value = serde_json::from_slice(json).ok()?;
    let job = answer.get("Jobs")?.as_object()?.values().next()?;
    let walltime = clock(job.get("Resource_List")?.get("walltime")?.as_str()?)?;
    let start = match job.get("stime")? {
        Value::String(text) => ctime(text).or_else(|| text.parse().ok())?,
        number => number.as_u64()?,
    };
    UNIX_EPOCH.checked_add(Duration::from_secs(start))?.checked_add(walltime)
}

/// `HH:MM:SS`, `MM:SS` or seconds.
fn clock(text: &str) -> Option<Duration> {
    let seconds = text.trim().split(':').try_fold(0u64, |sum, part| {
        let part: u64 = part.parse().ok()?;
        sum.checked_mul(60)?.checked_add(part)
    })?;
    Some(Duration::from_secs(seconds))
}

/// `Wed Nov 25 12:00:00 2026`, UTC, as seconds since the epoch.
fn ctime(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace().skip(1);
    let month = words.next()?;
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = MONTHS.iter().position(|m| *m == month)? + 1;
    let day: u32 = words.next()?.parse().ok()?;
    let (time, year) = (words.next()?, words.next()?);
    let stamp = format!("{year}-{month:02}-{day:02}T{time}Z");
    humantime::parse_rfc3339(&stamp).ok()?.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs())
}

/// For command lines and events.
///
/// A scheduler may say anything: before 1970 is written as its first second, after 9999 as its last.
pub fn rfc3339(time: SystemTime) -> String {
    let time = time.clamp(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(LAST_S));
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn until_is_a_span_or_a_time() {
        let now = at(1000);
        assert_eq!(parse_until("+30m", now).unwrap(), at(2800));
        assert_eq!(parse_until("1970-01-01T01:00:00Z", now).unwrap(), at(3600));
        assert_eq!(parse_until("1970-01-01T01:00:00-05:00", now).unwrap(), at(3600 + 5 * 3600));
        assert_eq!(parse_until("1970-01-02T01:00:00+01:30", now).unwrap(), at(86400 - 1800));
        for wrong in
            ["", "30m", "+", "soon", "ünïcödé", "1970-01-01T01:00:00+99:00", "+99999999999999y", "+500000years"]
        {
            assert!(parse_until(wrong, now).is_err(), "{wrong}");
        }
        assert!(parse_until("1970-01-01T00:00:00+01:00", now).is_err(), "before 1970");
    }

    #[test]
    fn any_time_can_be_written() {
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(at(1 << 50)), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn pbs_says_when_it_ends() {
        let json = br#"{"pbs_version":"23.06","Jobs":{"12.pbs":{"Resource_List":{"walltime":"01:00:00"},
            "stime":"Wed Nov 25 12:00:00 2026"}}}"#;
        let end = humantime::parse_rfc3339("2026-11-25T13:00:00Z").unwrap();
        assert_eq!(pbs_end(json), Some(end));
        assert_eq!(pbs_end(b"{}"), None);
        assert_eq!(pbs_end(br#"{"Jobs":{"1":{"Resource_List":{"walltime":"00:10"}}}}"#), None, "not started");
    }

    #[test]
    fn the_environment_is_the_last_resort() {
        let slurm = |n: &str| (n == "SLURM_JOB_END_TIME").then(|| "5000".to_owned());
        assert_eq!(from_environment(&slurm, at(0)), Some(at(5000)));
        let torque = |n: &str| (n == "PBS_WALLTIME").then(|| "3600".to_owned());
        assert_eq!(from_environment(&torque, at(0)), Some(at(3480)));
        assert_eq!(from_environment(&|_| None, at(0)), None);
    }
}
