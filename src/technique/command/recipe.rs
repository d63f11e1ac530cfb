//! The recipe: which programs, with which arguments, environment and limits.
//!
//! Contract: [`Recipe::parse`] is deterministic and total; every default is written out, because its JSON is hashed
//! into the job's identity. Relative programs are relative to the campaign file's folder. The programs' content is
//! no part of the identity: a changed program does not process old scans again.

use super::template;
use crate::campaign::closest;
use crate::technique::RecipeError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use toml::{Table, Value};

/// Every key, for the documentation's test.
pub const KEYS: [&str; 15] = [
    "run",
    "plan",
    "item",
    "finish",
    "preview",
    "prefix",
    "modules",
    "env",
    "set",
    "time_limit",
    "memory_limit",
    "exit",
    "max_items",
    "unit",
    "nodes",
];

/// Those that say what is executed, or with which environment.
pub(super) const EXECUTING: [&str; 9] = ["run", "plan", "item", "finish", "preview", "prefix", "modules", "env", "set"];

/// Which of the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Run,
    Plan,
    Item,
    Finish,
    Preview,
}

impl Program {
    const ALL: [Self; 5] = [Self::Run, Self::Plan, Self::Item, Self::Finish, Self::Preview];

    /// Its key in the recipe.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Plan => "plan",
            Self::Item => "item",
            Self::Finish => "finish",
            Self::Preview => "preview",
        }
    }
}

/// What exit codes mean; 0 is success and anything else not named here is a failed try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitMap {
    /// Try again, elsewhere where possible.
    pub retry: Vec<i32>,
    /// The scan is at fault: quarantine, with the last lines of standard error as reason.
    pub reject: Vec<i32>,
    /// The program says that trying again is no use: quarantine.
    pub fail: Vec<i32>,
}

/// A recipe with every default written out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// One program a scan; excludes `plan` and `item`.
    pub run: Vec<String>,
    /// Prints the items.
    pub plan: Vec<String>,
    /// Once an item.
    pub item: Vec<String>,
    /// After all items.
    pub finish: Vec<String>,
    /// Something to look at, first.
    pub preview: Vec<String>,
    /// In front of every program: a container, `nice`.
    pub prefix: Vec<String>,
    /// Environment modules that are loaded for every program. Not written out when there are none, as in recipes that
    /// are older than the key: they stay the same recipes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<String>,
    /// Variables that programs inherit.
    pub env: Vec<String>,
    /// Variables that are set.
    pub set: BTreeMap<String, String>,
    /// Longest run of one program, seconds.
    pub time_limit_s: f64,
    /// Resident memory of one program and all it started, bytes; 0 = no limit.
    pub memory_limit: u64,
    /// Exit codes.
    pub exit: ExitMap,
    /// More items than this are refused.
    pub max_items: usize,
    /// What people count.
    pub unit: String,
}

const ENV: [&str; 9] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH"];
/// A program that believes to be a rank of this job would wait for the others for ever, or disturb them.
const LAUNCHERS: [&str; 9] =
    ["OMPI_", "PMI_", "PMI2_", "PMIX_", "PALS_", "SLURM_STEP", "SLURM_PROCID", "MPI_LOCALRANKID", "HYDRA_"];

fn error(key: &str, problem: impl Into<String>, remedy: impl Into<String>) -> RecipeError {
    RecipeError { key: key.to_owned(), problem: problem.into(), remedy: remedy.into() }
}

impl Recipe {
    /// Reads a recipe table; `base` is the folder of the campaign file.
    ///
    /// # Errors
    /// The first mistake.
    pub fn parse(table: &Table, base: &Path) -> Result<Self, RecipeError> {
        if let Some(key) = table.keys().find(|k| !KEYS.contains(&k.as_str())) {
            return Err(match closest(key, KEYS) {
                Some(near) => error(key, "no such key in a command recipe", format!("did you mean {near}?")),
                None => error(key, "no such key in a command recipe", format!("use one of {}", KEYS.join(", "))),
            });
        }
        nodes(table)?;
        let mut programs = Program::ALL.map(|p| argv(table, p.key(), p, base));
        let mut take = |p: Program| std::mem::replace(&mut programs[p as usize], Ok(Vec::new()));
        let (run, plan, item) = (take(Program::Run)?, take(Program::Plan)?, take(Program::Item)?);
        let (finish, preview) = (take(Program::Finish)?, take(Program::Preview)?);
        match (run.is_empty(), plan.is_empty(), item.is_empty()) {
            (true, true, true) => {
                let remedy = "write run = [\"program\", \"{scan}\"], or plan and item";
                return Err(error("run", "no program is named", remedy));
            }
            (false, true, true) | (true, false, false) => {}
            (false, ..) => {
                return Err(error("run", "contradicts plan and item", "keep run, or plan and item"));
            }
            (true, false, true) => {
                return Err(error(
                    "plan",
                    "prints items for which no program is named",
                    "add item = [\"program\", \"{item}\"]",
                ));
            }
            (true, true, false) => {
                let remedy = "add plan = [\"program\"], which prints one item a line, or write run";
                return Err(error("item", "has no items", remedy));
            }
        }
        if !finish.is_empty() && item.is_empty() {
            return Err(error("finish", "is only for plan and item", "let run write the whole result"));
        }
        Ok(Self {
            run,
            plan,
            item,
            finish,
            preview,
            prefix: argv(table, "prefix", Program::Run, base)?,
            modules: modules(table)?,
            env: environment(table)?,
            set: set(table)?,
            time_limit_s: time_limit(table)?,
            memory_limit: memory_limit(table)?,
            exit: exit(table)?,
            max_items: whole(table, "max_items", 10_000, 1..=crate::technique::Plan::MAX_TASKS as i64)? as usize,
            unit: unit(table)?,
        })
    }

    /// The template of one program, prefix included; empty when there is none.
    pub(super) fn template(&self, program: Program) -> Vec<String> {
        let own = match program {
            Program::Run => &self.run,
            Program::Plan => &self.plan,
            Program::Item => &self.item,
            Program::Finish => &self.finish,
            Program::Preview => &self.preview,
        };
        if own.is_empty() { Vec::new() } else { self.prefix.iter().chain(own).cloned().collect() }
    }

    /// Longest run of one program.
    pub(super) fn time_limit(&self) -> Duration {
        Duration::try_from_secs_f64(self.time_limit_s).unwrap_or(Duration::MAX)
    }
}

fn nodes(table: &Table) -> Result<(), RecipeError> {
    if whole(table, "nodes", 1, 1..=1_000_000)? > 1 {
        let remedy = "write nodes = 1 and split the work with plan and item; if that cannot be done, ask for it";
        return Err(error("nodes", "one program over several nodes is not supported", remedy));
    }
    Ok(())
}

fn strings(key: &str, value: &Value, example: &str) -> Result<Vec<String>, RecipeError> {
    let wrong = || error(key, "expected an array of texts", format!("write {key} = {example}"));
    let list = value.as_array().ok_or_else(wrong)?;
    list.iter().map(|v| v.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
}

fn argv(table: &Table, key: &str, program: Program, base: &Path) -> Result<Vec<String>, RecipeError> {
    let Some(value) = table.get(key) else { return Ok(Vec::new()) };
    if value.is_str() {
        let remedy = format!("write {key} = [\"program\", \"{{scan}}\"]: one text an argument");
        return Err(error(key, "is a text, and no shell takes it apart", remedy));
    }
    let given = strings(key, value, "[\"program\", \"{scan}\"]")?;
    let mut out = Vec::with_capacity(given.len());
    for (i, text) in given.iter().enumerate() {
        template::check(program, text).map_err(|(problem, remedy)| error(key, problem, remedy))?;
        let path = i == 0 && text.contains('/') && !text.starts_with(['/', '{']);
        out.push(template::with_campaign(&if path { format!("{{campaign}}/{text}") } else { text.clone() }, base));
    }
    match out.first() {
        None => Err(error(key, "is empty", "name a program, or remove it")),
        Some(first) if first.is_empty() => Err(error(key, "names no program", "begin with a program")),
        Some(_) => Ok(out),
    }
}

fn variable(key: &str, name: &str) -> Result<(), RecipeError> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(error(
            key,
            format!("\"{}\" cannot name a variable", name.escape_debug()),
            "write a name like PATH",
        ));
    }
    if is_launchers(name) {
        let problem =
            format!("{name} belongs to the MPI launcher: the program would take itself for a rank of this job");
        return Err(error(key, problem, "remove it"));
    }
    if name.starts_with("BEAMPILOT_") {
        return Err(error(key, format!("{name} is set by beampilot"), "choose another name"));
    }
    Ok(())
}

/// Does the variable make a program take itself for a rank of this job?
pub(super) fn is_launchers(name: &str) -> bool {
    LAUNCHERS.iter().any(|l| name.starts_with(l))
}

fn modules(table: &Table) -> Result<Vec<String>, RecipeError> {
    const EXAMPLE: &str = "[\"conda\", \"cray-hdf5/1.12.2.9\"]";
    let Some(value) = table.get("modules") else { return Ok(Vec::new()) };
    let names = strings("modules", value, EXAMPLE)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-/=@:~".contains(c);
    let wrong = |n: &&String| n.is_empty() || n.len() > 256 || n.starts_with('-') || !n.chars().all(plain);
    match names.iter().find(wrong) {
        Some(name) => {
            let problem = format!("\"{}\" is no module's name", name.escape_debug());
            Err(error("modules", problem, format!("write modules = {EXAMPLE}: one name a text, and no options")))
        }
        None => Ok(names),
    }
}

fn environment(table: &Table) -> Result<Vec<String>, RecipeError> {
    let Some(value) = table.get("env") else { return Ok(ENV.map(str::to_owned).to_vec()) };
    let names = strings("env", value, "[\"PATH\", \"HOME\"]")?;
    names.iter().try_for_each(|name| variable("env", name))?;
    Ok(names)
}

fn set(table: &Table) -> Result<BTreeMap<String, String>, RecipeError> {
    let Some(value) = table.get("set") else { return Ok(BTreeMap::new()) };
    let wrong = |key: &str| error(key, "expected texts", "write set = { NAME = \"value\" }");
    let inner = value.as_table().ok_or_else(|| wrong("set"))?;
    let mut out = BTreeMap::new();
    for (name, value) in inner {
        let key = format!("set.{name}");
        variable(&key, name)?;
        let value = value.as_str().filter(|v| !v.contains('\0')).ok_or_else(|| wrong(&key))?;
        out.insert(name.clone(), value.to_owned());
    }
    Ok(out)
}

fn text<'t>(table: &'t Table, key: &str) -> Result<Option<&'t str>, RecipeError> {
    let wrong = || error(key, "expected a text", format!("write {key} = \"…\""));
    table.get(key).map(|v| v.as_str().filter(|s| !s.is_empty()).ok_or_else(wrong)).transpose()
}

/// It is shown on terminals.
fn unit(table: &Table) -> Result<String, RecipeError> {
    let unit = text(table, "unit")?.unwrap_or("items");
    if unit.chars().any(char::is_control) {
        let problem = format!("\"{}\" has control characters", unit.escape_debug());
        return Err(error("unit", problem, "write a word, as in unit = \"spots\""));
    }
    Ok(unit.to_owned())
}

fn whole(table: &Table, key: &str, default: i64, range: std::ops::RangeInclusive<i64>) -> Result<i64, RecipeError> {
    let Some(value) = table.get(key) else { return Ok(default) };
    let found = value.as_integer().filter(|n| range.contains(n));
    let remedy = || format!("write a whole number from {} to {}", range.start(), range.end());
    found.ok_or_else(|| error(key, format!("{value} is out of range"), remedy()))
}

fn time_limit(table: &Table) -> Result<f64, RecipeError> {
    const EXAMPLE: &str = "write time_limit = \"10m\"";
    let Some(text) = text(table, "time_limit")? else { return Ok(3600.0) };
    match humantime::parse_duration(text) {
        Ok(limit) if !limit.is_zero() => Ok(limit.as_secs_f64()),
        Ok(_) => Err(error("time_limit", "is zero", EXAMPLE)),
        Err(e) => Err(error("time_limit", format!("\"{text}\" is not a duration ({e})"), EXAMPLE)),
    }
}

fn memory_limit(table: &Table) -> Result<u64, RecipeError> {
    const EXAMPLE: &str = "write memory_limit = \"16GiB\"";
    let Some(text) = text(table, "memory_limit")? else { return Ok(0) };
    let units = [
        ("TiB", 1u64 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("TB", 1_000_000_000_000),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
    ];
    let parsed = units.iter().find_map(|(unit, bytes)| {
        let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        let bytes = number * *bytes as f64;
        (1e6..1e18).contains(&bytes).then_some(bytes as u64)
    });
    parsed.ok_or_else(|| error("memory_limit", format!("\"{text}\" is not an amount of memory above 1 MB"), EXAMPLE))
}

fn exit(table: &Table) -> Result<ExitMap, RecipeError> {
    let mut map = ExitMap { retry: vec![75], reject: vec![65], fail: Vec::new() };
    let Some(value) = table.get("exit") else { return Ok(map) };
    const EXAMPLE: &str = "write exit = { retry = [75], reject = [65], fail = [1] }";
    let inner = value.as_table().ok_or_else(|| error("exit", "expected a table", EXAMPLE))?;
    for (name, value) in inner {
        let key = format!("exit.{name}");
        let slot = match name.as_str() {
            "retry" => &mut map.retry,
            "reject" => &mut map.reject,
            "fail" => &mut map.fail,
            _ => return Err(error(&key, "no such meaning of an exit code", "use retry, reject and fail")),
        };
        let codes = value.as_array().map(|a| a.iter().map(|c| c.as_integer().filter(|c| (1..=255).contains(c))));
        let codes: Option<Vec<i64>> = codes.and_then(Iterator::collect);
        let codes = codes.ok_or_else(|| error(&key, "expected exit codes from 1 to 255", EXAMPLE))?;
        *slot = codes.into_iter().map(|c| c as i32).collect();
    }
    let mut all: Vec<i32> = [&map.retry, &map.reject, &map.fail].into_iter().flatten().copied().collect();
    all.sort_unstable();
    match all.windows(2).find(|w| w[0] == w[1]) {
        Some(twice) => {
            let problem = format!("{} is named twice (defaults: retry = [75], reject = [65])", twice[0]);
            Err(error("exit", problem, "give every exit code one meaning"))
        }
        None => Ok(map),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Recipe, RecipeError> {
        Recipe::parse(&text.parse().unwrap(), Path::new("/c"))
    }

    #[test]
    fn defaults_are_written_out_and_paths_are_the_campaigns() {
        let r = parse("run = [\"bin/go\", \"{scan}\", \"{campaign}/x\"]\nmemory_limit = \"2 GiB\"").unwrap();
        assert_eq!(r.run, ["/c/bin/go", "{scan}", "/c/x"]);
        assert_eq!((r.time_limit_s, r.memory_limit, r.exit.reject), (3600.0, 2 << 30, vec![65]));
        assert_eq!(parse("run = [\"go\"]").unwrap().run, ["go"]);
        // A recipe without modules is the one it was before there were any.
        let written = |text: &str| serde_json::to_string(&parse(text).unwrap()).unwrap();
        assert!(!written("run = [\"go\"]").contains("modules"));
        assert!(written("run = [\"go\"]\nmodules = [\"a/1\"]").contains("\"modules\":[\"a/1\"]"));
    }

    #[test]
    fn every_mistake_has_a_remedy() {
        for (text, words) in [
            ("", "run: no program is named; write run"),
            ("run = \"a b\"", "run: is a text, and no shell takes it apart"),
            ("run = []", "run: is empty"),
            ("run = [\"a\", \"{scn}\"]", "did you mean {scan}?"),
            ("run = [\"a\"]\nitem = [\"b\"]", "contradicts plan and item"),
            ("plan = [\"a\"]", "add item"),
            ("item = [\"a\"]", "add plan"),
            ("run = [\"a\"]\nfinish = [\"b\"]", "finish: is only for plan and item"),
            ("run = [\"a\"]\nmodules = \"x y\"", "modules: expected an array of texts"),
            ("run = [\"a\"]\nmodules = [\"x; y\"]", "\"x; y\" is no module's name"),
            ("run = [\"a\"]\nmodules = [\"-f\"]", "and no options"),
            ("run = [\"a\"]\nnodes = 2", "one program over several nodes is not supported"),
            ("run = [\"a\"]\ntime_limt = \"3m\"", "did you mean time_limit?"),
            ("run = [\"a\"]\ntime_limit = \"soon\"", "is not a duration"),
            ("run = [\"a\"]\nmemory_limit = \"8\"", "write memory_limit = \"16GiB\""),
            ("run = [\"a\"]\nenv = [\"PMI_RANK\"]", "belongs to the MPI launcher"),
            ("run = [\"a\"]\nset = { A = 3 }", "set.A: expected texts"),
            ("run = [\"a\"]\nexit = { retry = [65] }", "65 is named twice"),
            ("run = [\"a\"]\nexit = { rety = [1] }", "use retry, reject and fail"),
        ] {
            let e = parse(text).unwrap_err().to_string();
            assert!(e.contains(words), "{text}: {e}");
        }
    }
}
