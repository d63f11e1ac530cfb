//! Reading TOML with its lines: every value knows where it stood, every mistake is collected.
//!
//! Contract
//! - A [`Section`] is one table. Asking for a key makes it known; [`Section::finish`] refuses the keys
//!   that nobody asked for, with a suggestion among those that somebody did.
//! - A wrong value is reported and read as absent, so that the remaining mistakes are found too.

use super::problem::{Problem, suggestion};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// The text of one file and what is wrong with it so far.
pub(super) struct Reader<'a> {
    file: &'a Path,
    /// Offset of the first byte of every line.
    starts: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a Path, text: &str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Self { file, starts, problems: RefCell::default() }
    }

    /// The line of a byte offset, from one.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|&start| start <= offset)
    }

    pub(super) fn report(&self, line: usize, key: &str, problem: impl Into<String>, remedy: impl Into<String>) {
        self.problems.borrow_mut().push(Problem {
            file: self.file.to_owned(),
            line,
            key: key.to_owned(),
            problem: problem.into(),
            remedy: remedy.into(),
        });
    }

    pub(super) fn take_problems(&self) -> Vec<Problem> {
        self.problems.take()
    }
}

/// A value and where it stood.
#[derive(Clone)]
pub(super) struct At<T> {
    pub(super) line: usize,
    pub(super) value: T,
}

/// One table of the file.
pub(super) struct Section<'r, 'a, 't> {
    pub(super) reader: &'r Reader<'a>,
    table: &'t DeTable<'t>,
    /// Dotted path of the table; empty at the top.
    path: String,
    /// Where the table begins.
    pub(super) line: usize,
    known: RefCell<Vec<&'static str>>,
}

impl<'r, 'a, 't> Section<'r, 'a, 't> {
    pub(super) fn new(reader: &'r Reader<'a>, table: &'t DeTable<'t>, path: &str, line: usize) -> Self {
        Self { reader, table, path: path.to_owned(), line, known: RefCell::default() }
    }

    /// Dotted path of one of this table's keys.
    pub(super) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Dotted path of the table itself.
    pub(super) fn name(&self) -> String {
        self.path.clone()
    }

    pub(super) fn report(&self, line: usize, key: &str, problem: impl Into<String>, remedy: impl Into<String>) {
        self.reader.report(line, &self.path(key), problem, remedy);
    }

    /// The value of a key, which becomes known.
    pub(super) fn get(&self, key: &'static str) -> Option<At<&'t DeValue<'t>>> {
        if !self.known.borrow().contains(&key) {
            self.known.borrow_mut().push(key);
        }
        self.entries().find(|(name, _)| *name == key).map(|(_, at)| at)
    }

    /// Every key and value, known or not.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'t str, At<&'t DeValue<'t>>)> + use<'_, 'r, 'a, 't> {
        self.table.iter().map(|(name, value)| {
            // The value's span is where a table's header stands; the key's is right for everything else.
            let offset = if value.get_ref().is_table() { value.span().start } else { name.span().start };
            (name.get_ref().as_ref(), At { line: self.reader.line(offset), value: value.get_ref() })
        })
    }

    /// Reports a value of the wrong type.
    pub(super) fn mistyped(&self, at: &At<&DeValue<'_>>, key: &str, wanted: &str, example: &str) {
        let kind = at.value.type_str();
        let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
        self.report(at.line, key, format!("expected {wanted}, found {article} {kind}"), format!("write {example}"));
    }

    pub(super) fn string(&self, key: &'static str, example: &str) -> Option<At<String>> {
        let at = self.get(key)?;
        match at.value.as_str() {
            Some("") => {
                self.report(at.line, key, "is empty", format!("write {example}"));
                None
            }
            Some(text) => Some(At { line: at.line, value: text.to_owned() }),
            None => {
                self.mistyped(&at, key, "a string", example);
                None
            }
        }
    }

    /// As [`Section::string`], and its absence is a mistake.
    pub(super) fn required(&self, key: &'static str, example: &str) -> Option<At<String>> {
        if self.get(key).is_none() {
            self.report(self.line, key, "is missing", format!("add {example}"));
        }
        self.string(key, example)
    }

    pub(super) fn duration(&self, key: &'static str, example: &str) -> Option<At<Duration>> {
        let at = self.get(key)?;
        let example = format!("{key} = \"{example}\"");
        let Some(text) = at.value.as_str() else {
            self.mistyped(&at, key, "a duration in quotes", &example);
            return None;
        };
        match humantime::parse_duration(text) {
            Ok(value) => Some(At { line: at.line, value }),
            Err(e) => {
                let problem = format!("\"{text}\" is not a duration ({e})");
                self.report(at.line, key, problem, format!("write a number and a unit, as in {example}"));
                None
            }
        }
    }

    /// As [`Section::duration`], and zero is a mistake.
    pub(super) fn positive_duration(&self, key: &'static str, example: &str) -> Option<At<Duration>> {
        let at = self.duration(key, example)?;
        if at.value.is_zero() {
            self.report(at.line, key, "is zero", format!("write a duration above zero, as in {key} = \"{example}\""));
            return None;
        }
        Some(at)
    }

    /// A whole number of at least one.
    pub(super) fn count(&self, key: &'static str, example: &str) -> Option<At<u32>> {
        let at = self.get(key)?;
        let Some(integer) = at.value.as_integer() else {
            self.mistyped(&at, key, "a whole number", example);
            return None;
        };
        match u32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) if value > 0 => Some(At { line: at.line, value }),
            _ => {
                let problem = format!("{} is out of range", integer.as_str());
                self.report(at.line, key, problem, format!("write a whole number of at least 1, as in {example}"));
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Option<At<T>> {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let at = self.string(key, &format!("one of {}", words.join(", ")))?;
        match choices.iter().find(|(word, _)| *word == at.value) {
            Some(&(_, value)) => Some(At { line: at.line, value }),
            None => {
                self.report(at.line, key, format!("unknown value \"{}\"", at.value), suggestion(&at.value, &words));
                None
            }
        }
    }

    /// A table below this one.
    pub(super) fn section(&self, key: &'static str, example: &str) -> Option<Section<'r, 'a, 't>> {
        let at = self.get(key)?;
        match at.value.as_table() {
            Some(table) => Some(Section::new(self.reader, table, &self.path(key), at.line)),
            None => {
                self.mistyped(&at, key, "a table", example);
                None
            }
        }
    }

    /// Refuses the keys nobody asked for; false when there were any.
    pub(super) fn finish(&self) -> bool {
        let known = self.known.borrow();
        let mut all_known = true;
        for (name, at) in self.entries().filter(|(name, _)| !known.contains(name)) {
            let unused: Vec<&str> = known.iter().copied().filter(|k| !self.table.contains_key(*k)).collect();
            let shown = name.escape_debug().to_string();
            self.report(at.line, &shown, "unknown key", suggestion(name, &unused));
            all_known = false;
        }
        all_known
    }

    /// Line of every key below, dotted relative to this table.
    pub(super) fn lines(&self) -> BTreeMap<String, usize> {
        let mut lines = BTreeMap::new();
        collect_lines(self, "", &mut lines);
        lines
    }

    /// The table as ordinary TOML.
    pub(super) fn to_toml(&self) -> toml::Table {
        to_table(self.table)
    }
}

fn collect_lines(section: &Section<'_, '_, '_>, prefix: &str, lines: &mut BTreeMap<String, usize>) {
    for (name, at) in section.entries() {
        let key = format!("{prefix}{name}");
        if let Some(table) = at.value.as_table() {
            let below = Section::new(section.reader, table, "", at.line);
            collect_lines(&below, &format!("{key}."), lines);
        }
        lines.insert(key, at.line);
    }
}

fn to_table(table: &DeTable<'_>) -> toml::Table {
    table.iter().map(|(k, v)| (k.get_ref().to_string(), to_value(v.get_ref()))).collect()
}

fn to_value(value: &DeValue<'_>) -> toml::Value {
    match value {
        DeValue::String(s) => toml::Value::String(s.to_string()),
        // The parser accepts integers of any size; one that does not fit becomes text, which the technique refuses.
        DeValue::Integer(i) => i64::from_str_radix(i.as_str(), i.radix())
            .map_or_else(|_| toml::Value::String(i.as_str().to_owned()), toml::Value::Integer),
        DeValue::Float(f) => {
            f.as_str().parse().map_or_else(|_| toml::Value::String(f.as_str().to_owned()), toml::Value::Float)
        }
        DeValue::Boolean(b) => toml::Value::Boolean(*b),
        DeValue::Datetime(d) => toml::Value::Datetime(*d),
        DeValue::Array(a) => toml::Value::Array(a.iter().map(|v| to_value(v.get_ref())).collect()),
        DeValue::Table(t) => toml::Value::Table(to_table(t)),
    }
}
