//! What happened when: one event a line, for people as a log line, for programs as JSON on standard output.

use crate::site::walltime;
use serde_json::{Value, json};
use std::time::SystemTime;

/// Takes a line with its end.
pub type Sink = Box<dyn Fn(&str)>;

/// Takes events.
pub struct Timeline {
    launch: String,
    out: Option<Sink>,
}

impl Timeline {
    /// `out` takes JSON lines, when somebody wants them.
    pub fn new(launch: &str, out: Option<Sink>) -> Self {
        Self { launch: launch.to_owned(), out }
    }

    /// Tells one event; `fields` is an object.
    pub fn tell(&self, event: &str, words: &str, fields: Value) {
        tracing::info!(event, "{words}");
        let Some(out) = &self.out else { return };
        let now = SystemTime::now();
        let mut line =
            json!({ "event": event, "at": walltime::rfc3339(now), "at_ms": at_ms(now), "launch": self.launch });
        if let (Some(line), Value::Object(fields)) = (line.as_object_mut(), fields) {
            line.extend(fields);
        }
        out(&format!("{line}\n"));
    }
}

/// Milliseconds since the epoch.
pub fn at_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
