//! The words of a campaign file, after validation: every default written out, every path absolute.

use super::pattern::Pattern;
use globset::GlobMatcher;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// One beamline's rule: where to look, what a scan is, what to do with it, and by when.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Unique in the campaign; names a folder below `output`.
    pub name: String,
    /// The folder to watch, absolute.
    pub watch: PathBuf,
    /// The stream whose published bundles arrive here, when `from` was written instead of `watch`.
    pub from: Option<String>,
    /// What below `watch` is (part of) a scan.
    pub pattern: Pattern,
    /// What a scan is made of.
    pub unit: Unit,
    /// Which of the scans that were there before are wanted; `None`: see [`Since::resolve`].
    pub since: Option<Since>,
    /// How completeness is proven.
    pub complete: Completeness,
    /// Registry name.
    pub technique: String,
    /// Where results go, absolute; bundles are folders in `output/<name>/`.
    pub output: PathBuf,
    /// Lag allowed.
    pub deadline: Duration,
    /// Which scan is first.
    pub order: Order,
    /// Share of the machine, relative to other streams.
    pub weight: u32,
    /// Longest time for one task; the technique's own where nothing is said.
    pub task_limit: Option<Duration>,
    /// Companions by role; a role that is not named here is looked for in the scan by the technique.
    pub roles: BTreeMap<String, RoleSource>,
    /// The technique's own table.
    pub recipe: toml::Table,
    /// Where people without a shell put requests.
    pub inbox: Option<ShareInbox>,
    /// Line of every key of the stream, dotted (`technique`, `roles.dark.within`, `recipe.center`).
    pub(super) lines: BTreeMap<String, usize>,
    /// Where the stream begins.
    pub(super) line: usize,
}

/// A folder in the share in which people put small request files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareInbox {
    /// The folder, absolute.
    pub path: PathBuf,
    /// Recipe keys they may set.
    pub allow: Vec<String>,
}

impl Stream {
    /// The line of a dotted key, or of the nearest thing around it.
    pub fn line(&self, key: &str) -> usize {
        let mut key = key;
        loop {
            if let Some(&line) = self.lines.get(key) {
                return line;
            }
            match key.rsplit_once('.') {
                Some((outer, _)) => key = outer,
                None => return self.line,
            }
        }
    }

    /// `<output>/<name>`: where this stream's bundles are.
    pub fn results(&self) -> PathBuf {
        self.output.join(&self.name)
    }
}

/// What a scan is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// One file.
    File,
    /// Every regular file below one folder.
    Folder,
    /// Files that share the pattern's `{key}`.
    Group {
        /// How many make it whole.
        count: u32,
    },
}

/// Which scans are wanted of those that were there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Only what arrives after the campaign's first pilot started.
    Now,
    /// Everything.
    All,
    /// What arrived at or after a moment.
    At(SystemTime),
}

impl Since {
    /// The earliest arrival that is wanted; `None` means everything.
    ///
    /// Unset, it is `all` for a run that ends when nothing is left (`--once`) and `now` for a pilot.
    pub fn resolve(choice: Option<Self>, first_pilot: SystemTime, once: bool) -> Option<SystemTime> {
        match choice {
            Some(Self::All) => None,
            Some(Self::At(moment)) => Some(moment),
            Some(Self::Now) => Some(first_pilot),
            None if once => None,
            None => Some(first_pilot),
        }
    }
}

/// How completeness is proven, and how long a scan may stay unproven.
#[derive(Debug, Clone)]
pub struct Completeness {
    /// The rule.
    pub rule: Rule,
    /// How long a scan that stopped changing may be refused by its probe, lack a companion or a file of its
    /// group, before it goes to quarantine.
    pub timeout: Duration,
}

/// How completeness is proven.
#[derive(Debug, Clone)]
pub enum Rule {
    /// Size, mtime and ctime of every file did not change for `quiet`; then a probe by an executor.
    Settled {
        /// How long.
        quiet: Duration,
    },
    /// `<scan><suffix>` exists beside the scan: `a.h5.done` for `a.h5`, `scan_7.done` for the folder `scan_7`
    /// or the group `scan_7`.
    Marker {
        /// Includes the dot.
        suffix: String,
    },
    /// A later file lists names, sizes and hashes, relative to its own folder.
    Manifest {
        /// Names beside the scan, the first that exists is taken.
        names: Vec<Companion>,
    },
    /// The scan has a temporary name until it is whole.
    Renamed {
        /// File names that match are unfinished.
        temporary: NameGlob,
    },
}

impl Rule {
    /// How long files must be unchanged before they count as settled, also where the rule is another one.
    pub fn quiet(&self) -> Duration {
        match self {
            Self::Settled { quiet } => *quiet,
            _ => Duration::from_secs(60),
        }
    }
}

/// A glob for one file name.
#[derive(Debug, Clone)]
pub struct NameGlob {
    /// As it was written.
    pub source: String,
    /// Compiled.
    pub glob: GlobMatcher,
}

impl NameGlob {
    /// True when the file name matches.
    pub fn matches(&self, name: &std::ffi::OsStr) -> bool {
        self.glob.is_match(Path::new(name))
    }
}

/// The name of a file that accompanies a scan: a text with one `{scan}` or `{stem}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Companion {
    /// What comes before the placeholder.
    pub prefix: String,
    /// What comes after.
    pub suffix: String,
    /// `{stem}`: the scan's name without its last extension; `{scan}`: with it.
    pub stem: bool,
}

impl Companion {
    /// The companion's path, given the scan's name; both relative to the watched folder.
    pub fn of(&self, scan: &str) -> String {
        let (folder, name) = scan.rsplit_once('/').map_or(("", scan), |(f, n)| (f, n));
        let name = match name.rsplit_once('.') {
            Some((stem, _)) if self.stem && !stem.is_empty() => stem,
            _ => name,
        };
        let slash = if folder.is_empty() { "" } else { "/" };
        format!("{folder}{slash}{}{name}{}", self.prefix, self.suffix)
    }

    /// The scan a file beside it belongs to, if it is such a companion. Only for `{scan}`.
    pub fn scan_of<'n>(&self, name: &'n str) -> Option<&'n str> {
        if self.stem {
            return None;
        }
        name.strip_prefix(&self.prefix)?.strip_suffix(&self.suffix).filter(|scan| !scan.is_empty())
    }
}

/// Which scan of a stream is first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The one whose deadline is next.
    Deadline,
    /// The one that arrived last.
    Newest,
}

/// Where a companion comes from.
#[derive(Debug, Clone)]
pub enum RoleSource {
    /// Those files of the folder or group that match; they are no longer members of the scan.
    InScan {
        /// Relative to the folder; for groups, the file name.
        file: Pattern,
    },
    /// A file beside a scan that is one file.
    Beside {
        /// Its name.
        file: Companion,
    },
    /// One fixed file, absolute.
    Path(PathBuf),
    /// The file, among those matching below the watched folder, with the latest mtime that is not later
    /// than the scan's own. Files that match are never scans themselves.
    Latest {
        /// Relative to the watched folder.
        pattern: Pattern,
        /// How much older than the scan it may be.
        within: Duration,
    },
}
