//! Is this host fit for ranks? Asked before every launch, one process a host.
//!
//! Contract: takes well under a second, touches no GPU (a broken one may hang whoever does) and no scan.

use crate::site::binding;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a host says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// The host, as it calls itself.
    pub host: String,
    /// The build that runs there.
    pub build: String,
    /// GPUs the driver lists.
    pub gpus: usize,
    /// What this process was bound to, when it is a rank at a site that is bound.
    #[serde(default)]
    pub bound_to: Option<String>,
    /// What is wrong, in words.
    pub problems: Vec<String>,
}

/// Checks this host: the state folder is there, temporary files can be written, of `gpus` at least one is listed.
pub fn check(state: Option<&Path>, gpus: usize) -> HostReport {
    let mut problems = Vec::new();
    if let Some(state) = state
        && !state.join("FORMAT").is_file()
    {
        problems.push(format!("{} is not visible here", state.display()));
    }
    let temporary = std::env::temp_dir();
    if let Err(e) = tempfile::tempfile_in(&temporary) {
        problems.push(format!("{} cannot be written: {e}", temporary.display()));
    }
    let listed = std::fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, |entries| entries.flatten().count());
    // With some of them the others work: launch leaves out the places of those that are missing.
    if listed == 0 && gpus > 0 {
        problems.push(format!("{listed} of {gpus} GPUs are there"));
    }
    let bound_to =
        binding::choose().and_then(|(variable, _)| Some(format!("{variable}={}", std::env::var(variable).ok()?)));
    HostReport {
        host: crate::store::claims::host_name(),
        build: crate::BUILD.to_owned(),
        gpus: listed,
        bound_to,
        problems,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_lacks_something_says_what() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(check(None, 0).problems, Vec::<String>::new());
        let report = check(Some(dir.path()), 999);
        assert!(report.problems[0].contains("not visible") && report.problems[1].contains("of 999 GPUs"));
    }
}
