//! Patterns over stream-relative paths: globs by component, `**` for any number of folders, `{key}` for groups.
//!
//! Contract
//! - A pattern is relative and has no `..`: it cannot name anything outside the folder it is applied to.
//! - Matching is component by component, so that [`Pattern::may_descend`] can tell which folders are worth
//!   listing at all. Cost is bounded by components times path depth, whatever the names are.
//! - `{key}` stands for one or more characters of one component; the shortest reading from the left wins.

use globset::{GlobBuilder, GlobMatcher};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component as PathComponent, Path};

/// Most components a pattern may have: the states of the matcher are the bits of one word.
const MAX_COMPONENTS: usize = 60;

/// Why a pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It begins with `/`.
    #[error("is absolute; write it relative to the watched folder")]
    Absolute,
    /// It has `..`, `.` or an empty component.
    #[error("has the component \"{0}\"; write a plain path below the watched folder")]
    Component(String),
    /// A component begins with a dot.
    #[error("names hidden files (\"{0}\"), which never match; remove the leading dot")]
    Hidden(String),
    /// The glob is not one.
    #[error("is not a pattern ({0}); see the syntax: *, ?, [a-z], {{a,b}} and ** for any folders")]
    Glob(String),
    /// `{key}` is missing from the pattern of a group.
    #[error("has no {{key}}; mark what the files of one group share, as in \"{{key}}_part*.h5\"")]
    NoKey,
    /// `{key}` outside a group's pattern.
    #[error("has a {{key}}, which only groups have; write unit = \"group\" and a count, or use *")]
    Key,
    /// `{key}` more than once, or before `**`.
    #[error("has {{key}} twice or before **; use it once, in a component that no ** follows")]
    Ambiguous,
    /// Too many components.
    #[error("has more than {MAX_COMPONENTS} components; shorten it")]
    Long,
}

#[derive(Debug, Clone)]
enum Component {
    /// `**`
    Folders,
    Glob(GlobMatcher),
    Key {
        before: GlobMatcher,
        after: GlobMatcher,
    },
}

/// A compiled pattern and its text.
#[derive(Debug, Clone)]
pub struct Pattern {
    source: String,
    components: Vec<Component>,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Pattern {
    /// A pattern without `{key}`.
    pub fn plain(source: &str) -> Result<Self, PatternError> {
        let pattern = Self::parse(source)?;
        if pattern.key_from_end().is_some() { Err(PatternError::Key) } else { Ok(pattern) }
    }

    /// A pattern with one `{key}`.
    pub fn keyed(source: &str) -> Result<Self, PatternError> {
        let pattern = Self::parse(source)?;
        if pattern.key_from_end().is_some() { Ok(pattern) } else { Err(PatternError::NoKey) }
    }

    fn parse(source: &str) -> Result<Self, PatternError> {
        if source.starts_with('/') {
            return Err(PatternError::Absolute);
        }
        let mut components = Vec::new();
        let mut keyed = false;
        for text in source.split('/') {
            let component = match text {
                "" | "." | ".." => return Err(PatternError::Component(text.to_owned())),
                "**" if keyed => return Err(PatternError::Ambiguous),
                "**" => Component::Folders,
                _ if text.starts_with('.') => return Err(PatternError::Hidden(text.to_owned())),
                _ => match text.split_once("{key}") {
                    Some((_, after)) if keyed || after.contains("{key}") => return Err(PatternError::Ambiguous),
                    Some((before, after)) => {
                        keyed = true;
                        Component::Key { before: glob(before)?, after: glob(after)? }
                    }
                    None => Component::Glob(glob(text)?),
                },
            };
            components.push(component);
        }
        if components.len() > MAX_COMPONENTS {
            return Err(PatternError::Long);
        }
        Ok(Self { source: source.to_owned(), components })
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// True when a relative path matches.
    pub fn matches(&self, path: &Path) -> bool {
        self.states(path) & (1 << self.components.len()) != 0
    }

    /// The group a path belongs to: the folders before the key's component, and the key.
    pub fn group(&self, path: &Path) -> Option<Vec<u8>> {
        if !self.matches(path) {
            return None;
        }
        let from_end = self.key_from_end()?;
        let names: Vec<&OsStr> = path.iter().collect();
        let at = names.len().checked_sub(1 + from_end)?;
        let Component::Key { before, after } = &self.components[self.components.len() - 1 - from_end] else {
            return None;
        };
        let key = key_of(names[at].as_bytes(), before, after)?;
        let mut group = Vec::new();
        for name in &names[..at] {
            group.extend_from_slice(name.as_bytes());
            group.push(b'/');
        }
        group.extend_from_slice(key);
        Some(group)
    }

    /// True when something below that folder could match.
    pub fn may_descend(&self, folder: &Path) -> bool {
        self.states(folder) & !(1 << self.components.len()) != 0
    }

    /// How many components follow the one with `{key}`.
    fn key_from_end(&self) -> Option<usize> {
        self.components.iter().rev().position(|c| matches!(c, Component::Key { .. }))
    }

    /// Bit `i` is set when the path used up the first `i` components.
    fn states(&self, path: &Path) -> u64 {
        let mut states = self.skip_folders(1);
        for name in path.components() {
            let PathComponent::Normal(name) = name else { continue };
            let mut next = 0u64;
            for (i, component) in self.components.iter().enumerate() {
                if states & (1 << i) == 0 {
                    continue;
                }
                let step = match component {
                    // A trailing ** is also an end: `a/**` matches everything below `a`, not `a` itself.
                    Component::Folders if i + 1 == self.components.len() => 1 << i | 1 << (i + 1),
                    Component::Folders => 1 << i,
                    Component::Glob(glob) if glob.is_match(Path::new(name)) => 1 << (i + 1),
                    Component::Key { before, after } if key_of(name.as_bytes(), before, after).is_some() => {
                        1 << (i + 1)
                    }
                    _ => 0,
                };
                next |= step;
            }
            states = self.skip_folders(next);
            if states == 0 {
                break;
            }
        }
        states
    }

    /// `**` may also stand for no folder at all.
    fn skip_folders(&self, mut states: u64) -> u64 {
        for i in 0..self.components.len().saturating_sub(1) {
            if states & (1 << i) != 0 && matches!(self.components[i], Component::Folders) {
                states |= 1 << (i + 1);
            }
        }
        states
    }
}

fn glob(text: &str) -> Result<GlobMatcher, PatternError> {
    let placeholder = text.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(inner, _)| inner);
    if let Some(word) = placeholder.into_iter().find(|inner| !inner.contains(',')) {
        return Err(PatternError::Glob(format!("{{{word}}} is not a placeholder, only {{key}} is")));
    }
    GlobBuilder::new(text)
        .literal_separator(true)
        .build()
        .map(|g| g.compile_matcher())
        .map_err(|e| PatternError::Glob(e.kind().to_string()))
}

fn key_of<'n>(name: &'n [u8], before: &GlobMatcher, after: &GlobMatcher) -> Option<&'n [u8]> {
    let part = |range: &[u8], glob: &GlobMatcher| glob.is_match(Path::new(OsStr::from_bytes(range)));
    let start = (0..name.len()).find(|&i| part(&name[..i], before))?;
    let end = (start + 1..=name.len()).find(|&j| part(&name[j..], after))?;
    Some(&name[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_like_globs() {
        for (pattern, path, want) in [
            ("**/*.h5", "a.h5", true),
            ("**/*.h5", "x/y/a.h5", true),
            ("**/*.h5", "x/a.h5x", false),
            ("*.h5", "x/a.h5", false),
            ("day*/scan_?.h5", "day1/scan_2.h5", true),
            ("day*/scan_?.h5", "day1/scan_22.h5", false),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("a/**/b/*.{h5,nxs}", "a/b/x.nxs", true),
            ("a/**/b/*.{h5,nxs}", "a/q/r/b/x.h5", true),
            ("a/**/b/*.{h5,nxs}", "a/q/r/c/x.h5", false),
            ("**", "x/y", true),
        ] {
            assert_eq!(Pattern::plain(pattern).unwrap().matches(Path::new(path)), want, "{pattern} on {path}");
        }
    }

    #[test]
    fn only_folders_that_can_hold_a_match_are_entered() {
        for (pattern, folder, want) in [
            ("*.h5", "", true),
            ("*.h5", "x", false),
            ("day*/*.h5", "day1", true),
            ("day*/*.h5", "night", false),
            ("day*/*.h5", "day1/x", false),
            ("**/*.h5", "x/y/z", true),
            ("raw/**", "raw/x", true),
            ("raw/**", "cooked", false),
        ] {
            assert_eq!(Pattern::plain(pattern).unwrap().may_descend(Path::new(folder)), want, "{pattern} on {folder}");
        }
    }

    #[test]
    fn keys_group_files() {
        for (pattern, path, want) in [
            ("{key}_part*.h5", "s1_part1.h5", Some("s1")),
            ("{key}_part*.h5", "s1_part1_part2.h5", Some("s1")),
            ("{key}_part*.h5", "_part1.h5", None),
            ("**/{key}_part*.h5", "day/x/s1_part1.h5", Some("day/x/s1")),
            ("{key}/part*.h5", "s1/part3.h5", Some("s1")),
            ("scan_{key}.h5", "scan_.h5", None),
        ] {
            let got = Pattern::keyed(pattern).unwrap().group(Path::new(path));
            assert_eq!(got.as_deref(), want.map(str::as_bytes), "{pattern} on {path}");
        }
    }

    #[test]
    fn unusable_patterns_are_refused() {
        for (pattern, want) in [
            ("/a/*.h5", PatternError::Absolute),
            ("../*.h5", PatternError::Component("..".into())),
            ("a//b", PatternError::Component(String::new())),
            (".h*", PatternError::Hidden(".h*".into())),
            ("{key}.h5", PatternError::Key),
            ("{key}/**/*.h5", PatternError::Ambiguous),
            ("{key}_{key}", PatternError::Ambiguous),
        ] {
            assert_eq!(Pattern::plain(pattern).unwrap_err(), want, "{pattern}");
        }
        assert_eq!(Pattern::keyed("*.h5").unwrap_err(), PatternError::NoKey);
        assert!(matches!(Pattern::plain("{scan}.h5"), Err(PatternError::Glob(_))));
        assert!(matches!(Pattern::plain("[a.h5"), Err(PatternError::Glob(_))));
    }
}
