//! Environment modules: what `module load` sets, asked of the site's module tool once an executor.
//!
//! Contract
//! - The tool, Lmod or Environment Modules, is asked as the shell function `module` does it: it prints text for a shell,
//!   a shell reads that and shows the environment it has then. The text is the site's own, as its module files are.
//!   Names of modules are arguments of a script that never changes, and no part of it; nothing else reaches the shell.
//! - The tool sees the executor's whole environment, so the modules of the job script and its `module use` count, with
//!   the recipe's `set` over it; but not the launcher's variables.
//! - What counts is the difference: variables that are set or changed, and those that are gone.
//! - A tool that fails or takes too long is a failed task; it is asked again next time.

use super::process::{self, How, Order};
use super::recipe::{Recipe, is_launchers};
use crate::technique::{Fault, TaskContext};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A shared filesystem may be slow when a thousand nodes ask at once.
const LONGEST: Duration = Duration::from_secs(120);
/// Bytes of an environment.
const MOST: usize = 4 << 20;
/// Lists kept; a campaign has a few.
const KEPT: usize = 64;
/// `$1`: the tool; then the modules. Both kinds of tool print `false` or the like when a module cannot be loaded.
const SCRIPT: &str = r#"tool=$1; shift; text=$("$tool" bash load "$@") && eval "$text" && exec /usr/bin/env -0"#;

/// What loading changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Loaded {
    pub set: BTreeMap<String, OsString>,
    pub gone: BTreeSet<String>,
}

type Environment = BTreeMap<String, OsString>;

/// What the recipe's modules change here.
pub(super) fn of(recipe: &Recipe, ctx: &TaskContext) -> Result<Arc<Loaded>, Fault> {
    type Key = (Vec<String>, BTreeMap<String, String>);
    static KNOWN: Mutex<BTreeMap<Key, Arc<Loaded>>> = Mutex::new(BTreeMap::new());
    if recipe.modules.is_empty() {
        return Ok(Arc::default());
    }
    let key = (recipe.modules.clone(), recipe.set.clone());
    if let Some(known) = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
        return Ok(known.clone());
    }
    let fault = |why: String| {
        let names = recipe.modules.join(" ");
        Fault::Task(format!("modules {names} could not be loaded on {}: {why}", ctx.host))
    };
    let tool = tool(&|name| std::env::var_os(name)).ok_or_else(|| {
        fault(
            "neither LMOD_CMD nor MODULES_CMD is set and there is no modulecmd; begin the job script with \
             #!/bin/bash -l, or remove modules from the recipe"
                .to_owned(),
        )
    })?;
    let inherited = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let mut base: Environment = inherited.filter(|(name, _)| is_variable(name)).collect();
    base.extend(recipe.set.iter().map(|(name, value)| (name.clone(), value.into())));
    let loaded = Arc::new(ask(&tool, &recipe.modules, &base, ctx).map_err(fault)?);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() >= KEPT {
        known.clear();
    }
    known.insert(key, loaded.clone());
    Ok(loaded)
}

/// A plain name that programs may see: no exported shell functions, and nothing of the launcher's.
fn is_variable(name: &str) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.is_empty();
    // The shell would run the file that the last one names.
    plain && !is_launchers(name) && !["_", "SHLVL", "PWD", "OLDPWD", "BASH_ENV"].contains(&name)
}

/// The tools keep their accounts in such variables, many kilobytes of them.
const ACCOUNTS: [&str; 3] = ["_ModuleTable", "__LMOD_", "__MODULES_"];

/// The module tool: of Lmod, of Environment Modules, or an old one.
fn tool(var: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let named = ["LMOD_CMD", "MODULES_CMD"].into_iter().filter_map(var).map(PathBuf::from);
    let home = var("MODULESHOME").map(|home| Path::new(&home).join("bin/modulecmd"));
    let path = var("PATH").unwrap_or_default();
    let searched: Vec<PathBuf> = std::env::split_paths(&path).map(|folder| folder.join("modulecmd")).collect();
    named.chain(home).chain(searched).find(|file| file.is_absolute() && file.is_file())
}

fn ask(tool: &Path, modules: &[String], base: &Environment, ctx: &TaskContext) -> Result<Loaded, String> {
    let shell = ["/bin/bash", "--noprofile", "--norc", "-c", SCRIPT, "modules"].map(OsString::from);
    let order = Order {
        argv: shell.into_iter().chain([tool.into()]).chain(modules.iter().map(OsString::from)).collect(),
        env: base.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        folder: Path::new("/"),
        time_limit: LONGEST,
        memory_limit: 0,
        cancelled: &ctx.cancelled,
        keep: MOST,
    };
    let ended = process::run(&order).map_err(|e| format!("/bin/bash did not start: {e}"))?;
    let said = match ended.err.last_lines(8, 1000) {
        silent if silent.is_empty() => "it said nothing".to_owned(),
        said => format!("it said: {said}"),
    };
    match ended.how {
        How::Code(0) => {}
        How::Cancelled => return Err(crate::transport::wire::CANCELLED.to_owned()),
        How::TimedOut => return Err(format!("{} took longer than {} s; {said}", tool.display(), LONGEST.as_secs())),
        _ => return Err(format!("{} refused; {said}", tool.display())),
    }
    let shown = ended.out.whole().ok_or_else(|| format!("the environment is larger than {} MiB", MOST >> 20))?;
    let pair = |entry: &[u8]| {
        let at = entry.iter().position(|b| *b == b'=')?;
        let (name, value) = entry.split_at(at);
        let value = OsString::from_vec(value.get(1..)?.to_vec());
        Some((OsStr::from_bytes(name).to_str()?.to_owned(), value))
    };
    let after: Environment = shown.split(|b| *b == 0).filter_map(pair).filter(|(name, _)| is_variable(name)).collect();
    let gone = base.keys().filter(|name| !after.contains_key(*name)).cloned().collect();
    let account = |name: &String| ACCOUNTS.iter().any(|a| name.starts_with(a));
    let set = after.into_iter().filter(|(name, value)| base.get(name) != Some(value) && !account(name)).collect();
    Ok(Loaded { set, gone })
}

#[cfg(test)]
mod tests {
    use super::super::tests::Bench;
    use super::*;

    /// Speaks to the shell as Lmod does.
    const TOOL: &str = r#"[ "$1 $2" = "bash load" ] || exit 9; shift 2
        for name; do
          case $name in
            tools/1.2) echo "export PATH='$HOME/tools:$PATH'; export TOOLS_HOME='/soft/a b'; unset STALE;" ;;
            extra) echo "export _ModuleTable001_=QQ LIST=\$TOOLS_HOME:x PMI_RANK=3;" ;;
            *) echo "Lmod has detected the following error: unknown module: $name" >&2; echo false; exit 1 ;;
          esac
        done"#;

    fn text(name: &str, value: &str) -> (String, OsString) {
        (name.to_owned(), value.into())
    }

    #[test]
    fn the_difference_is_what_counts() {
        let bench = Bench::new("run = [\"true\"]");
        bench.script("modulecmd", TOOL);
        let tool = bench.path("modulecmd");
        let ctx = bench.some_task();
        let base = [text("PATH", "/usr/bin:/bin"), text("STALE", "1"), text("HOME", "/h"), text("KEPT", "k")].into();
        let load = |names: &[&str]| ask(&tool, &names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>(), &base, &ctx);
        let set = [
            text("PATH", "/h/tools:/usr/bin:/bin"),
            text("TOOLS_HOME", "/soft/a b"),
            // One after the other, in one shell.
            text("LIST", "/soft/a b:x"),
        ];
        let want = Loaded { set: set.into(), gone: ["STALE".to_owned()].into() };
        assert_eq!(load(&["tools/1.2", "extra"]).unwrap(), want);
        let why = load(&["tools/1.2", "tols"]).unwrap_err();
        assert!(why.contains("unknown module: tols"), "{why}");
        // A name is an argument, whatever it looks like.
        let why = load(&["$(touch pwned); touch pwned"]).unwrap_err();
        assert!(why.contains("unknown module: $(touch pwned)") && !Path::new("/pwned").exists(), "{why}");
    }

    #[test]
    fn the_tool_is_found_where_sites_have_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("home/bin")).unwrap();
        for file in ["lmod", "modulecmd.tcl", "home/bin/modulecmd", "modulecmd"] {
            std::fs::write(at(file), "").unwrap();
        }
        let all = [("LMOD_CMD", "lmod"), ("MODULES_CMD", "modulecmd.tcl"), ("MODULESHOME", "home"), ("PATH", "")];
        let want = ["lmod", "modulecmd.tcl", "home/bin/modulecmd", "modulecmd"];
        for (n, want) in want.into_iter().enumerate() {
            let some = &all[n..];
            let var = |name: &str| some.iter().find(|(v, _)| *v == name).map(|(_, file)| at(file).into_os_string());
            assert_eq!(tool(&var), Some(at(want)));
        }
        assert_eq!(tool(&|name| (name == "LMOD_CMD").then(|| "/nowhere/lmod".into())), None);
    }
}
