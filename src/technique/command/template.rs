//! Argument templates: `{scan}`, `{out}` and the like in an array of arguments. No shell ever sees them.
//!
//! Contract
//! - [`check`] refuses what [`expand`] could not fill in: unknown placeholders, and those that have no meaning for
//!   the program. `{{` and `}}` are literal braces.
//! - One argument of the template is one argument of the program, whatever it holds; only an argument that is
//!   exactly `{files}` or `{role.NAME}` becomes one argument a file.
//! - A name or an item that begins with `-` never becomes the beginning of an argument: it would be an option, and
//!   whoever names scans is not whoever writes the recipe.

use super::recipe::Program;
use crate::campaign::closest;
use crate::technique::Fault;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Placeholders of every program.
const COMMON: [&str; 7] = ["scan", "files", "name", "out", "gpu", "threads", "campaign"];
/// Companions that a stream may name.
pub(super) const ROLES: [&str; 6] = ["dark", "white", "angles", "positions", "geometry", "metadata"];

#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(String),
    Slot(&'a str),
}

/// What the placeholders stand for.
#[derive(Debug, Default)]
pub(super) struct Values<'a> {
    pub scan: Option<PathBuf>,
    pub files: Vec<PathBuf>,
    pub name: &'a str,
    pub out: PathBuf,
    /// Folder with one folder an item.
    pub items: Option<&'a Path>,
    pub item: Option<(usize, &'a str)>,
    pub gpu: Option<String>,
    pub threads: u32,
    pub roles: BTreeMap<&'a str, Vec<PathBuf>>,
}

/// Text and placeholders, or what is wrong and what to write.
fn pieces(text: &str) -> Result<Vec<Piece<'_>>, (String, String)> {
    let mut found = vec![];
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, after) = rest.split_at(at);
        literal.push_str(before);
        if let Some(next) = after.strip_prefix("{{") {
            literal.push('{');
            rest = next;
        } else if let Some(next) = after.strip_prefix("}}") {
            literal.push('}');
            rest = next;
        } else if let Some((slot, next)) = after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            if !literal.is_empty() {
                found.push(Piece::Text(std::mem::take(&mut literal)));
            }
            found.push(Piece::Slot(slot));
            rest = next;
        } else {
            let problem = format!("\"{text}\" has a brace without its partner");
            return Err((problem, "write {{ and }} for braces that are meant as such".to_owned()));
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        found.push(Piece::Text(literal));
    }
    Ok(found)
}

/// Refuses what cannot be filled in, with what to write instead.
pub(super) fn check(program: Program, text: &str) -> Result<(), (String, String)> {
    if text.contains('\0') {
        return Err(("has a zero byte".to_owned(), "remove it".to_owned()));
    }
    let own: &[&str] = match program {
        Program::Item => &["item", "index"],
        Program::Finish => &["items", "parts"],
        _ => &[],
    };
    let all: Vec<&str> = COMMON.iter().chain(own).copied().collect();
    let pieces = pieces(text)?;
    for slot in pieces.iter().filter_map(|p| if let Piece::Slot(s) = p { Some(*s) } else { None }) {
        if let Some(role) = slot.strip_prefix("role.") {
            if !ROLES.contains(&role) {
                let remedy = format!("use one of {}", ROLES.map(|r| format!("{{role.{r}}}")).join(", "));
                return Err((format!("\"{text}\" asks for a role \"{role}\" that there is not"), remedy));
            }
        } else if slot == "files" && pieces.len() > 1 {
            let problem = format!("\"{text}\" has {{files}} within an argument");
            return Err((problem, "write \"{files}\" as an argument of its own: it becomes one a file".to_owned()));
        } else if !all.contains(&slot) {
            let elsewhere = ["item", "index", "items", "parts"].contains(&slot);
            let problem = if elsewhere {
                format!("\"{text}\": {{{slot}}} means nothing for `{}`", program.key())
            } else {
                format!("\"{text}\" has an unknown placeholder {{{slot}}}")
            };
            let remedy = match closest(slot, all.iter().copied()) {
                Some(near) if !elsewhere => format!("did you mean {{{near}}}?"),
                _ => format!("use one of {}", all.iter().map(|a| format!("{{{a}}}")).collect::<Vec<_>>().join(", ")),
            };
            return Err((problem, remedy));
        }
    }
    Ok(())
}

/// Puts the campaign's folder in: it is known when the recipe is read, and is part of it from then on.
pub(super) fn with_campaign(text: &str, base: &Path) -> String {
    let literal = |text: &str| text.replace('{', "{{").replace('}', "}}");
    // What has no pieces was refused by `check` before.
    let pieces = pieces(text).unwrap_or_default();
    pieces.iter().fold(String::new(), |out, piece| match piece {
        Piece::Text(text) => out + &literal(text),
        Piece::Slot("campaign") => out + &literal(&base.display().to_string()),
        Piece::Slot(slot) => out + &format!("{{{slot}}}"),
    })
}

/// The arguments of one start.
pub(super) fn expand(template: &[String], values: &Values<'_>) -> Result<Vec<OsString>, Fault> {
    let mut arguments = Vec::with_capacity(template.len());
    for text in template {
        let pieces = pieces(text).map_err(|(problem, _)| Fault::Task(problem))?;
        if let [Piece::Slot(slot)] = pieces.as_slice() {
            if *slot == "files" {
                arguments.extend(values.files.iter().map(|f| f.clone().into_os_string()));
                continue;
            }
            if let Some(role) = slot.strip_prefix("role.") {
                arguments.extend(values.role(role)?.iter().map(|f| f.clone().into_os_string()));
                continue;
            }
        }
        let mut argument = OsString::new();
        for piece in &pieces {
            match piece {
                Piece::Text(text) => argument.push(text),
                Piece::Slot(slot) => {
                    let value = values.get(slot)?;
                    if argument.is_empty() && value.as_encoded_bytes().starts_with(b"-") {
                        let shown = value.display();
                        return Err(Fault::Input(format!(
                            "\"{shown}\" begins with -, and the program would read it as an option; rename it, or \
                             write an argument like --name={{{slot}}} in the recipe"
                        )));
                    }
                    argument.push(value);
                }
            }
        }
        arguments.push(argument);
    }
    Ok(arguments)
}

impl Values<'_> {
    fn role(&self, role: &str) -> Result<&[PathBuf], Fault> {
        self.roles.get(role).map(Vec::as_slice).ok_or_else(|| {
            Fault::Input(format!(
                "the recipe asks for {{role.{role}}}, which this scan does not have; name it in the stream's roles"
            ))
        })
    }

    fn get(&self, slot: &str) -> Result<OsString, Fault> {
        let none = |what: &str| Fault::Task(format!("{{{slot}}} has no value: {what}"));
        Ok(match slot {
            "scan" => self.scan.clone().map(PathBuf::into_os_string).ok_or_else(|| {
                Fault::Input("{scan} has no value for a group of files; write \"{files}\" in the recipe".to_owned())
            })?,
            "name" => self.name.into(),
            "out" => self.out.clone().into_os_string(),
            "items" | "parts" => self.items.ok_or_else(|| none("there are no items"))?.into(),
            "item" => self.item.ok_or_else(|| none("there is no item"))?.1.into(),
            "index" => self.item.ok_or_else(|| none("there is no item"))?.0.to_string().into(),
            "gpu" => {
                self.gpu.clone().ok_or_else(|| none("this worker has no GPU (CUDA_VISIBLE_DEVICES is not set)"))?.into()
            }
            "threads" => self.threads.to_string().into(),
            other => match other.strip_prefix("role.") {
                Some(role) => match self.role(role)? {
                    [one] => one.clone().into_os_string(),
                    many => {
                        let text = format!(
                            "{{role.{role}}} within an argument stands for one file, there are {}; write it as an \
                             argument of its own",
                            many.len()
                        );
                        return Err(Fault::Input(text));
                    }
                },
                None => return Err(none("no such placeholder")),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_in_and_never_split() {
        let values = Values {
            scan: Some("/in/a b.h5".into()),
            files: vec!["/in/1".into(), "/in/2".into()],
            name: "a b.h5",
            out: "/out".into(),
            item: Some((3, "x; rm -rf /")),
            threads: 4,
            roles: BTreeMap::from([("dark", vec!["/d".into()])]),
            ..Values::default()
        };
        let all = ["p", "{scan}", "--o={out}/{{x}}", "{item}", "{index}", "{files}", "-j{threads}", "{role.dark}"];
        let all: Vec<String> = all.iter().map(|s| (*s).to_owned()).collect();
        let got = expand(&all, &values).unwrap();
        assert_eq!(got, ["p", "/in/a b.h5", "--o=/out/{x}", "x; rm -rf /", "3", "/in/1", "/in/2", "-j4", "/d"]);
    }

    #[test]
    fn a_name_cannot_become_an_option() {
        let values = Values { name: "--delete", ..Values::default() };
        let fault = expand(&["{name}".to_owned()], &values).unwrap_err();
        assert!(matches!(fault, Fault::Input(ref t) if t.contains("--name={name}")), "{fault}");
        assert_eq!(expand(&["n={name}".to_owned()], &values).unwrap(), ["n=--delete"]);
    }

    #[test]
    fn what_cannot_be_filled_in_is_refused() {
        for (program, text, words) in [
            (Program::Run, "{scn}", "did you mean {scan}?"),
            (Program::Run, "{item}", "means nothing for `run`"),
            (Program::Item, "{items}", "means nothing for `item`"),
            (Program::Run, "{role.drak}", "use one of {role.dark}"),
            (Program::Run, "a{files}", "an argument of its own"),
            (Program::Run, "a{", "{{ and }}"),
            (Program::Run, "a}b", "{{ and }}"),
        ] {
            let (problem, remedy) = check(program, text).unwrap_err();
            assert!(format!("{problem}; {remedy}").contains(words), "{text}: {problem}; {remedy}");
        }
        assert!(check(Program::Finish, "{items}/{parts}{{}}").is_ok());
    }
}
