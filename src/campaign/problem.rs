//! What is wrong with a campaign file, said so that the reader can repair it.
//!
//! Contract: every problem names file, line, key, what is wrong and what to write instead. All problems
//! of a file are reported at once, in the order of their lines: nobody edits and reruns nine times.

use std::fmt;
use std::path::PathBuf;

/// One thing to repair: `file:line: key: problem; remedy`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// The campaign file, as it was named on the command line.
    pub file: PathBuf,
    /// Line, from one; 0 when the file as a whole is meant.
    pub line: usize,
    /// The key, dotted from the top (`stream.complete.quiet`); empty when no key is to blame.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What to write or do instead.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}; {}", self.problem, self.remedy)
    }
}

/// Everything that is wrong with a campaign file; never empty. Displayed one problem a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct CampaignErrors(pub Vec<Problem>);

impl fmt::Display for CampaignErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl CampaignErrors {
    /// `Ok` when nothing is wrong; otherwise the problems in the order of their lines.
    pub(super) fn check(mut problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() {
            return Ok(());
        }
        problems.sort_by_key(|p| p.line);
        Err(Self(problems))
    }
}

/// The candidate that `word` was probably meant to be.
///
/// At most a third of the letters may differ: a suggestion that is far off misleads more than none.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&lower, &c.to_lowercase()), c))
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, c)| distance <= (c.chars().count().max(word.chars().count()) / 3).max(1))
        .map(|(_, c)| c)
}

/// `did you mean "x"?` when something is close, otherwise `use one of a, b, c`.
pub(super) fn suggestion(word: &str, candidates: &[&str]) -> String {
    match closest(word, candidates.iter().copied()) {
        Some(c) => format!("did you mean \"{c}\"?"),
        None if candidates.is_empty() => "remove it".to_owned(),
        None => format!("use one of {}", candidates.join(", ")),
    }
}
