//! Every kind of mistake, and the exact line it is answered with.

use super::*;
use crate::technique::{Fault, Inspection, Payload, Plan, RecipeError, TaskContext, TaskOutput};
use std::time::SystemTime;

const FULL: &str = r#"[campaign]
name = "2026-3-gup-81234"
state = "state"
deadline = "15m"

[[stream]]
name = "2bm"
watch = "incoming/2bm"
pattern = "**/*.h5"
unit = "file"
since = "now"
complete = { rule = "settled", quiet = "60s" }
technique = "tomography"
output = "results"
deadline = "10m"
order = "deadline"
weight = 1
[stream.roles]
dark = { latest = "darks/*.h5", within = "12h" }
[stream.recipe]
center = "auto"
"#;

fn parse(text: &str) -> Result<Campaign, CampaignErrors> {
    Campaign::parse(text, Path::new("c.toml"))
}

fn stream(extra: &str) -> String {
    format!("[[stream]]\nname = \"a\"\nwatch = \"in\"\ntechnique = \"tomography\"\n{extra}")
}

#[test]
fn the_schema_of_the_issue_is_understood() {
    let c = Campaign::parse(FULL, Path::new("/exp/c.toml")).unwrap();
    assert_eq!((c.name.as_str(), c.state.as_path()), ("2026-3-gup-81234", Path::new("/exp/state")));
    assert_eq!(c.hash.len(), 16);
    let s = &c.streams[0];
    assert_eq!((s.watch.as_path(), s.output.as_path()), (Path::new("/exp/incoming/2bm"), Path::new("/exp/results")));
    assert_eq!((s.unit, s.since, s.order, s.weight), (Unit::File, Some(Since::Now), Order::Deadline, 1));
    assert_eq!(s.deadline, Duration::from_secs(600));
    assert!(matches!(s.complete.rule, Rule::Settled { quiet } if quiet == Duration::from_secs(60)));
    assert_eq!(s.complete.timeout, Duration::from_secs(1800));
    let RoleSource::Latest { pattern, within } = &s.roles["dark"] else { panic!("{:?}", s.roles) };
    assert_eq!((pattern.source(), *within), ("darks/*.h5", Duration::from_secs(12 * 3600)));
    assert_eq!(s.recipe["center"].as_str(), Some("auto"));
    assert_eq!(
        (s.line("recipe.center"), s.line("roles.dark.within"), s.line("recipe.nope"), s.line("x")),
        (21, 19, 20, 6)
    );
}

#[test]
fn an_inbox_lies_beside_everything_else() {
    for (path, fine) in [("asks", true), ("in/asks", false), ("results/a", false), ("state", false), (".", false)] {
        let parsed = parse(&stream(&format!("inbox = {{ path = \"{path}\" }}")));
        assert_eq!(parsed.is_ok(), fine, "{path}: {parsed:?}");
        assert!(fine || parsed.unwrap_err().to_string().contains("stream.inbox.path"));
    }
}

#[test]
fn defaults_are_written_out() {
    let c = parse(&stream("")).unwrap();
    assert_eq!((c.name.as_str(), c.deadline), ("c", Duration::from_secs(900)));
    let s = &c.streams[0];
    assert_eq!((s.pattern.source(), s.unit, s.since, s.deadline), ("**/*.h5", Unit::File, None, c.deadline));
    assert!(s.output.is_absolute() && s.output.ends_with("results"));
}

#[test]
fn rules_units_and_roles() {
    let rule = |text: &str| parse(&stream(text)).unwrap().streams.remove(0).complete.rule;
    assert!(matches!(rule("complete = { rule = \"marker\" }"), Rule::Marker { suffix } if suffix == ".done"));
    let Rule::Manifest { names } = rule("complete = { rule = \"manifest\" }") else { panic!() };
    assert_eq!(names[1].of("day/x.h5"), "day/x.h5.sha256");
    assert_eq!(names[0].scan_of("x.h5.manifest.json"), Some("x.h5"));
    let Rule::Renamed { temporary } = rule("complete = { rule = \"renamed\", temporary = \"*.tmp\" }") else {
        panic!()
    };
    assert!(temporary.matches("a.tmp".as_ref()));
    let c = parse(&stream("unit = \"group\"\ncount = 3\npattern = \"{key}_p*.h5\"")).unwrap();
    assert_eq!(c.streams[0].unit, Unit::Group { count: 3 });
    let c = parse(&stream("roles = { metadata = { file = \"{stem}.json\" }, dark = \"cal/dark.h5\" }")).unwrap();
    let RoleSource::Beside { file } = &c.streams[0].roles["metadata"] else { panic!() };
    assert_eq!(file.of("d/x.y.h5"), "d/x.y.json");
    assert!(
        matches!(&c.streams[0].roles["dark"], RoleSource::Path(p) if p.ends_with("cal/dark.h5") && p.is_absolute())
    );
}

#[test]
fn dates() {
    let at = |text: &str| match parse(&stream(&format!("since = {text}"))).unwrap().streams[0].since {
        Some(Since::At(t)) => t.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(),
        other => panic!("{other:?}"),
    };
    assert_eq!(at("2026-03-01"), 1_772_323_200);
    assert_eq!(at("\"2026-03-01\""), 1_772_323_200);
    assert_eq!(at("\"2026-03-01T06:00:00-06:00\""), 1_772_323_200 + 12 * 3600);
    assert_eq!(at("2000-02-29T00:00:01Z"), 951_782_401);
}

#[test]
fn a_bundle_can_be_an_arrival() {
    let text = stream("") + "[[stream]]\nname = \"b\"\nfrom = \"a\"\ntechnique = \"command\"\n";
    let c = parse(&text).unwrap();
    assert_eq!((c.streams[1].watch.clone(), c.streams[1].unit), (c.streams[0].results(), Unit::Folder));
    let table = text.replace("from = \"a\"", "from = { stream = \"a\" }");
    assert_eq!(parse(&table).unwrap().streams[1].from.as_deref(), Some("a"));
    // Two may go on from one.
    let two = table + "[[stream]]\nname = \"c\"\nfrom = { stream = \"a\" }\ntechnique = \"command\"\n";
    assert_eq!(parse(&two).unwrap().streams.len(), 3);
}

#[test]
fn streams_that_feed_each_other_are_refused() {
    let circle = |from: [&str; 3]| {
        let stream = |(name, from): (&str, &str)| {
            format!("[[stream]]\nname = \"{name}\"\nfrom = {{ stream = \"{from}\" }}\ntechnique = \"command\"\n")
        };
        parse(&["a", "b", "c"].into_iter().zip(from).map(stream).collect::<String>()).unwrap_err().to_string()
    };
    let all = circle(["c", "a", "b"]);
    assert_eq!(all.lines().count(), 3, "{all}");
    assert!(
        all.contains("c.toml:3: stream.from: a ← c ← b feed each other in a circle; let one of them watch a folder")
    );
    // Who only hangs on a circle is not in it.
    assert_eq!(circle(["b", "a", "a"]).lines().count(), 2);
    assert!(circle(["a", "a", "a"]).contains("no other stream is called \"a\""));
}

#[test]
fn a_lease_has_its_bounds() {
    let with = |lease: &str| {
        let text =
            format!("[campaign]\nlease = \"{lease}\"\n\n[[stream]]\nname = \"a\"\nwatch = \"in\"\ntechnique = \"t\"\n");
        Campaign::parse(&text, Path::new("c.toml")).map(|c| c.lease.as_secs()).map_err(|e| e.to_string())
    };
    assert_eq!((with("5s"), with("90s")), (Ok(5), Ok(90)));
    for wrong in ["4s", "11m"] {
        let told = with(wrong).unwrap_err();
        assert!(told.starts_with("c.toml:2: campaign.lease: ") && told.contains("write 5s to 10m"), "{told}");
    }
}

#[test]
fn node_scratch_is_named_by_an_absolute_path() {
    let with = |line: &str| {
        let text = format!("[campaign]\n{line}\n\n[[stream]]\nname = \"a\"\nwatch = \"in\"\ntechnique = \"t\"\n");
        Campaign::parse(&text, Path::new("c.toml")).map(|c| c.node_scratch).map_err(|e| e.to_string())
    };
    assert_eq!((with(""), with("node_scratch = \"/local/scratch\"")), (Ok(None), Ok(Some("/local/scratch".into()))));
    for wrong in ["local", "/local/../etc", "~/scratch"] {
        let told = with(&format!("node_scratch = {wrong:?}")).unwrap_err();
        assert!(told.starts_with("c.toml:2: campaign.node_scratch: ") && told.contains("/local/scratch"), "{told}");
    }
}

#[test]
fn every_mistake_has_its_line() {
    let cases: &[(&str, &str)] = &[
        ("weigth = 2", "c.toml:5: stream.weigth: unknown key; did you mean \"weight\"?"),
        (
            "zzz = 2",
            "c.toml:5: stream.zzz: unknown key; use one of from, unit, count, pattern, since, complete, output, deadline, task_limit, order, weight, roles, recipe, inbox",
        ),
        ("inbox = {}", "c.toml:5: stream.inbox.path: is missing; add path = \"share/requests\""),
        (
            "inbox = { path = \"asks\", allow = \"center\" }",
            "c.toml:5: stream.inbox.allow: expected an array of recipe keys, found a string; write allow = [\"center\"]",
        ),
        (
            "inbox = { path = \"asks\", allow = [1] }",
            "c.toml:5: stream.inbox.allow: holds something that is no recipe key; write allow = [\"center\"]",
        ),
        (
            "weight = 0",
            "c.toml:5: stream.weight: 0 is out of range; write a whole number of at least 1, as in weight = 1",
        ),
        ("weight = \"2\"", "c.toml:5: stream.weight: expected a whole number, found a string; write weight = 1"),
        ("order = \"newst\"", "c.toml:5: stream.order: unknown value \"newst\"; did you mean \"newest\"?"),
        (
            "task_limit = \"0s\"",
            "c.toml:5: stream.task_limit: is zero; write a duration above zero, as in task_limit = \"15m\"",
        ),
        ("order = \"random\"", "c.toml:5: stream.order: unknown value \"random\"; use one of deadline, newest"),
        (
            "deadline = \"0s\"",
            "c.toml:5: stream.deadline: is zero; write a duration above zero, as in deadline = \"10m\"",
        ),
        (
            "deadline = 10",
            "c.toml:5: stream.deadline: expected a duration in quotes, found an integer; write deadline = \"10m\"",
        ),
        (
            "deadline = \"10 parsecs\"",
            "c.toml:5: stream.deadline: \"10 parsecs\" is not a duration (unknown time unit \"parsecs\", supported units: ns, us/µs, ms, sec, min, hours, days, weeks, months, years (and few variations)); write a number and a unit, as in deadline = \"10m\"",
        ),
        (
            "pattern = \"/a/*.h5\"",
            "c.toml:5: stream.pattern: \"/a/*.h5\" is absolute; write it relative to the watched folder",
        ),
        (
            "pattern = \"../*.h5\"",
            "c.toml:5: stream.pattern: \"../*.h5\" has the component \"..\"; write a plain path below the watched folder",
        ),
        (
            "pattern = \"[a\"",
            "c.toml:5: stream.pattern: \"[a\" is not a pattern (unclosed character class; missing ']'); see the syntax: *, ?, [a-z], {a,b} and ** for any folders",
        ),
        ("pattern = \"\"", "c.toml:5: stream.pattern: is empty; write pattern = \"**/*.h5\""),
        (
            "unit = \"group\"\npattern = \"{key}.h5\"",
            "c.toml:5: stream.count: is missing for unit = \"group\"; add count = 3: how many files make a group whole",
        ),
        ("unit = \"group\"\ncount = 3", "c.toml:1: stream.pattern: is missing; add pattern = \"{key}_part*.h5\""),
        (
            "unit = \"group\"\ncount = 3\npattern = \"*.h5\"",
            "c.toml:7: stream.pattern: \"*.h5\" has no {key}; mark what the files of one group share, as in \"{key}_part*.h5\"",
        ),
        ("count = 3", "c.toml:5: stream.count: is only for unit = \"group\"; remove it, or set the unit"),
        (
            "since = \"yesterday\"",
            "c.toml:5: stream.since: \"yesterday\" is not a date; write \"now\", \"all\" or a date, as in 2026-03-01 or \"2026-03-01T08:00:00Z\"",
        ),
        (
            "since = 3",
            "c.toml:5: stream.since: expected a date, found integer; write \"now\", \"all\" or a date, as in 2026-03-01 or \"2026-03-01T08:00:00Z\"",
        ),
        (
            "complete = \"settled\"",
            "c.toml:5: stream.complete: expected a table, found a string; write complete = { rule = \"settled\", quiet = \"60s\" }",
        ),
        (
            "complete = { rule = \"setled\" }",
            "c.toml:5: stream.complete.rule: unknown value \"setled\"; did you mean \"settled\"?",
        ),
        (
            "complete = { quiet = \"3s\" }",
            "c.toml:5: stream.complete.rule: is missing; add rule = \"settled\", marker, manifest or renamed",
        ),
        (
            "complete = { rule = \"marker\", quiet = \"3s\" }",
            "c.toml:5: stream.complete.quiet: unknown key; use one of timeout, suffix",
        ),
        (
            "complete = { rule = \"marker\", suffix = \"/x\" }",
            "c.toml:5: stream.complete.suffix: \"/x\" has a slash; write what follows the scan's name, as in \".done\"",
        ),
        (
            "complete = { rule = \"manifest\", pattern = \"sums\" }",
            "c.toml:5: stream.complete.pattern: \"sums\" does not name a file beside the scan; write {scan} once, as in pattern = \"{scan}.manifest.json\"",
        ),
        (
            "complete = { rule = \"renamed\", temporary = \"a/*\" }",
            "c.toml:5: stream.complete.temporary: \"a/*\" is not a pattern for file names; write a name with *, as in temporary = \"*.part\"",
        ),
        (
            "roles = { dark = 3 }",
            "c.toml:5: stream.roles.dark: expected a table or a path, found an integer; write dark = { latest = \"darks/*.h5\", within = \"12h\" }, or a path in quotes",
        ),
        (
            "roles = { dark = {} }",
            "c.toml:5: stream.roles.dark: says nothing about where to look; write exactly one of latest, path and file",
        ),
        (
            "roles = { dark = { path = \"a\", latest = \"b\" } }",
            "c.toml:5: stream.roles.dark: says twice where to look; write exactly one of latest, path and file",
        ),
        (
            "roles = { dark = { latset = \"b\" } }",
            "c.toml:5: stream.roles.dark.latset: unknown key; did you mean \"latest\"?",
        ),
        (
            "roles = { dark = { file = \"dark.h5\" } }",
            "c.toml:5: stream.roles.dark.file: \"dark.h5\" does not name a file beside the scan; write {stem} (the scan's name without extension) or {scan} once, as in file = \"{stem}.json\"",
        ),
        (
            "output = \"in/results\"",
            "c.toml:5: stream.output: \"CWD/in/results\" overlaps \"CWD/in\", which stream \"a\" watches: results would arrive as scans; write results to a folder beside it",
        ),
        (
            "output = \".\"",
            "c.toml:5: stream.output: \"CWD\" overlaps \"CWD/in\", which stream \"a\" watches: results would arrive as scans; write results to a folder beside it",
        ),
        (
            "from = \"b\"",
            "c.toml:3: stream.watch: contradicts from; keep one of watch and from\nc.toml:5: stream.from: no other stream is called \"b\"; remove it",
        ),
        (
            "[[stream]]\nname = \"a\"\nwatch = \"in2\"\ntechnique = \"laue\"",
            "c.toml:6: stream.name: \"a\" is also the name of the stream in line 1; give every stream a name of its own",
        ),
        (
            "[[stream]]\nname = \"b\"\nwatch = \"./in\"\ntechnique = \"laue\"",
            "c.toml:7: stream.watch: watches the same files as \"a\" in line 1; change watch or pattern of one of them",
        ),
        (
            "[[stream]]\nname = \"../b\"\nwatch = \"in2\"\ntechnique = \"laue\"",
            "c.toml:6: stream.name: \"../b\" cannot name a folder of results; use up to 64 letters, digits and . _ + -, beginning with a letter or digit",
        ),
        (
            "[[stream]]\nname = \"b\"\nfrom = \"aa\"\ntechnique = \"laue\"",
            "c.toml:7: stream.from: no other stream is called \"aa\"; did you mean \"a\"?",
        ),
        (
            "[[stream]]\nname = \"b\"\nfrom = { strem = \"a\" }\ntechnique = \"laue\"",
            "c.toml:7: stream.from.stream: is missing; add stream = \"another stream\"\nc.toml:7: stream.from.strem: unknown key; did you mean \"stream\"?",
        ),
        (
            "[[stream]]\nname = \"b\"\nfrom = { stream = \"a\" }\noutput = \"results/a\"\ntechnique = \"laue\"",
            "c.toml:8: stream.output: results of \"b\" would lie in \"CWD/results/a\", whose bundles arrive at \"b\"; write results to a folder beside it",
        ),
        (
            "[[stream]]\nname = \"b\"",
            "c.toml:5: stream.watch: is missing; add watch = \"incoming/2bm\"\nc.toml:5: stream.technique: is missing; add technique = \"tomography\"",
        ),
        (
            "[[stream]]\nname = \"\"\nwatch = \"b\"\ntechnique = \"c\"",
            "c.toml:6: stream.name: is empty; write name = \"2bm\"",
        ),
        (
            "[campaign]\nstate = \"in/state\"",
            "c.toml:6: campaign.state: \"CWD/in/state\" overlaps \"CWD/in\", which is watched; keep the state in a folder beside it",
        ),
        (
            "[campaign]\nstate = \"results/a\"",
            "c.toml:1: stream.output: \"CWD/results\" overlaps the state folder; write results to a folder beside it",
        ),
        ("[campaign]\ndeadlin = \"3m\"", "c.toml:6: campaign.deadlin: unknown key; did you mean \"deadline\"?"),
        ("[campain]\nname = \"x\"", "c.toml:5: campain: unknown key; did you mean \"campaign\"?"),
    ];
    let cwd = std::path::absolute(".").unwrap().display().to_string();
    let mut wrong = String::new();
    for (text, want) in cases {
        let got = parse(&stream(text)).map(|_| ()).map_err(|e| e.to_string().replace(&cwd, "CWD"));
        if got.as_ref().err().map(String::as_str) != Some(want) {
            wrong.push_str(&format!("\n{text:?}\n  got  {got:?}\n  want {want:?}\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn all_mistakes_at_once_in_order() {
    let text = FULL
        .replace("unit = \"file\"", "unit = \"fil\"")
        .replace("\"10m\"", "\"x\"")
        .replace("[campaign]", "[campaign]\nx = 1");
    let errors = parse(&text).unwrap_err();
    assert_eq!(errors.0.iter().map(|p| p.line).collect::<Vec<_>>(), [2, 11, 16]);
}

#[test]
fn what_is_not_toml_or_not_there() {
    for (text, want) in [
        ("[[stream]]\nname = \n", "c.toml:2:"),
        ("", "c.toml:1: stream: is missing; add a [[stream]] with name, watch and technique"),
        ("stream = []", "c.toml:1: stream: is empty; add a [[stream]] with name, watch and technique"),
        (
            "[stream]\nname = \"a\"",
            "c.toml:1: stream: expected an array of tables, found a table; write [[stream]] with two brackets",
        ),
    ] {
        let got = parse(text).unwrap_err().to_string();
        assert!(got.starts_with(want), "{got}");
    }
    let missing = Campaign::load(Path::new("/nonexistent/c.toml")).unwrap_err().to_string();
    assert!(missing.starts_with("/nonexistent/c.toml: cannot be read"), "{missing}");
}

struct Fake;
impl Technique for Fake {
    fn name(&self) -> &'static str {
        "tomography"
    }
    fn recipe(&self, table: &toml::Table) -> Result<serde_json::Value, RecipeError> {
        let bad = |key: &str| RecipeError { key: key.into(), problem: "is odd".into(), remedy: "write auto".into() };
        if table.contains_key("center") { Err(bad("center")) } else { Ok(serde_json::Value::Null) }
    }
    fn roles(&self) -> &'static [&'static str] {
        &["dark", "white"]
    }
    fn inspect(&self, _: &TaskContext) -> Result<Inspection, Fault> {
        Err(Fault::Task(String::new()))
    }
    fn plan(&self, _: &TaskContext) -> Result<Plan, Fault> {
        Err(Fault::Task(String::new()))
    }
    fn load(&self, _: &TaskContext) -> Result<Payload, Fault> {
        Err(Fault::Task(String::new()))
    }
    fn compute(&self, _: &TaskContext, loaded: Payload) -> Result<Payload, Fault> {
        Ok(loaded)
    }
    fn store(&self, _: &TaskContext, _: Payload) -> Result<TaskOutput, Fault> {
        Err(Fault::Task(String::new()))
    }
}

#[test]
fn techniques_roles_and_recipes_are_checked() {
    let lookup = |name: &str| (name == "tomography").then_some(&Fake as &'static dyn Technique);
    for (text, want) in [
        (
            stream("roles = { drak = \"x\" }"),
            "c.toml:5: stream.roles.drak: tomography has no role \"drak\"; did you mean \"dark\"?",
        ),
        (stream("[stream.recipe]\n\ncenter = 3"), "c.toml:7: stream.recipe.center: is odd; write auto"),
        (
            stream("").replace("tomography", "tomografy"),
            "c.toml:4: stream.technique: unknown technique \"tomografy\"; did you mean \"tomography\"?",
        ),
    ] {
        let c = parse(&text).unwrap();
        assert_eq!(c.validate_techniques(&lookup, &["tomography", "laue"]).unwrap_err().to_string(), want);
    }
    parse(&stream("")).unwrap().validate_techniques(&lookup, &["tomography"]).unwrap();
}

#[test]
fn preflight_names_folders_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, stream("")).unwrap();
    let c = Campaign::load(&file).unwrap();
    let problems = c.preflight();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].to_string().contains("c.toml:3: stream.watch: ") && problems[0].remedy.starts_with("create it")
    );
    std::fs::write(dir.path().join("in"), "").unwrap();
    assert!(c.preflight()[0].problem.ends_with("is not a folder"));
    std::fs::remove_file(dir.path().join("in")).unwrap();
    std::fs::create_dir(dir.path().join("in")).unwrap();
    assert_eq!(c.preflight(), []);
    std::fs::write(dir.path().join("results"), "").unwrap();
    assert!(c.preflight()[0].to_string().contains("stream.output: "));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn links_do_not_hide_an_overlap() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("in")).unwrap();
    std::os::unix::fs::symlink("in", dir.path().join("results")).unwrap();
    let errors = Campaign::parse(&stream(""), &dir.path().join("c.toml")).unwrap_err();
    assert!(errors.to_string().contains("results would arrive as scans"));
    // Nor does one further in: the stream's own folder.
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("in/there")).unwrap();
    std::fs::create_dir(dir.path().join("results")).unwrap();
    std::os::unix::fs::symlink("../in/there", dir.path().join("results/a")).unwrap();
    let errors = Campaign::parse(&stream(""), &dir.path().join("c.toml")).unwrap_err();
    assert!(errors.to_string().contains("results/a\" overlaps"), "{errors}");
}

#[test]
fn a_path_that_no_filesystem_holds_is_found_before_a_run() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("in")).unwrap();
    let (long, deep) = ("x".repeat(300), "d/".repeat(3000));
    for output in ["\\u0000", &long, &deep, &"y/".repeat(2500)] {
        let text = stream(&format!("output = \"{output}\""));
        let problems = Campaign::parse(&text, &dir.path().join("c.toml")).unwrap().preflight();
        assert_eq!(problems.len(), 1, "{output}");
        assert!(problems[0].to_string().contains("c.toml:5: stream.output: "), "{}", problems[0]);
    }
    let text = stream(&format!("output = \"{}\"", "x".repeat(200)));
    assert_eq!(Campaign::parse(&text, &dir.path().join("c.toml")).unwrap().preflight(), []);
}

#[test]
fn names_that_would_command_a_terminal_are_refused() {
    for name in ["a\\nb", "\\u001b[31m"] {
        let text = format!("[campaign]\nname = \"{name}\"\n{}", stream(""));
        let errors = parse(&text).unwrap_err().to_string();
        assert!(errors.starts_with("c.toml:2: campaign.name: ") && !errors.contains('\u{1b}'), "{errors}");
    }
    let lookup = crate::technique::registry;
    let unit = stream("[stream.recipe]\nrun = [\"true\"]\nunit = \"\\u001b\"").replace("tomography", "command");
    let errors = parse(&unit).unwrap().validate_techniques(&lookup, &["command"]).unwrap_err();
    assert!(errors.to_string().contains("recipe.unit: \"\\u{1b}\" has control"), "{errors}");
}

#[test]
fn an_inbox_allows_nothing_that_is_executed() {
    let validate = |allow: &str| {
        let rest = format!(
            "[stream.inbox]\npath = \"asks\"\nallow = [{allow}]\n[stream.recipe]\nrun = [\"true\"]\nunit = \"dots\""
        );
        let text = stream(&rest).replace("tomography", "command");
        parse(&text).unwrap().validate_techniques(&crate::technique::registry, &["command"])
    };
    validate("\"unit\"").unwrap();
    for key in ["run", "plan", "item", "finish", "preview", "prefix", "modules", "env", "set", "set.PATH"] {
        let errors = validate(&format!("\"unit\", \"{key}\"")).unwrap_err().to_string();
        assert!(errors.starts_with("c.toml:7: stream.inbox.allow: ") && errors.contains("executed"), "{errors}");
    }
}

#[test]
fn an_inbox_allows_no_key_that_names_a_file() {
    let with = |allow: &str| {
        let rest = format!(
            "[stream.inbox]\npath = \"asks\"\nallow = [{allow}]\n[stream.recipe]\nmethod = \"wire\"\n\
             wire = {{ diameter_um = 50.0, axis = [1.0, 0.0, 0.0] }}\n\
             detector = {{ shape = [2048, 2048], size_mm = [400.0, 400.0], rotation_rad = [0.0, 0.0, 0.0], \
             position_mm = [0.0, 0.0, 500.0] }}"
        );
        let text = stream(&rest).replace("tomography", "laue");
        parse(&text).unwrap().validate_techniques(&crate::technique::registry, &["laue"])
    };
    with("\"threshold\", \"depth\", \"mask\"").unwrap();
    for key in ["configuration", "geometry", "mask.code"] {
        let errors = with(&format!("\"threshold\", \"{key}\"")).unwrap_err().to_string();
        assert!(errors.starts_with("c.toml:7: stream.inbox.allow: ") && errors.contains("names a file"), "{errors}");
    }
    // Where the table is allowed, what names a file in it still is not.
    let laue = crate::technique::registry("laue").unwrap();
    let asked = |text: &str| {
        super::file_key(laue, serde_json::from_str::<serde_json::Value>(text).unwrap().as_object().unwrap())
    };
    assert_eq!(asked(r#"{ "mask": { "widening_um": 1.0 }, "threshold": 3 }"#), None);
    assert_eq!(asked(r#"{ "mask": { "widening_um": 1.0, "code": "/etc/shadow" } }"#), Some("mask.code"));
    assert_eq!(asked(r#"{ "mask.code": "/etc/shadow" }"#), Some("mask.code"));
    assert_eq!(asked(r#"{ "geometry": null }"#), Some("geometry"));
}

#[test]
fn a_date_before_1970_is_called_that() {
    for since in ["0001-01-01", "\"1969-12-31\""] {
        let errors = parse(&stream(&format!("since = {since}"))).unwrap_err().to_string();
        assert!(errors.contains("is before 1970; write \"all\""), "{errors}");
    }
}

#[test]
fn snapshots_are_named_by_their_hash() {
    let dir = tempfile::tempdir().unwrap();
    let c = parse(FULL).unwrap();
    for _ in 0..2 {
        let path = c.snapshot(dir.path()).unwrap();
        assert_eq!(path, dir.path().join(format!("campaigns/{}.toml", c.hash)));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), FULL);
    }
    assert_eq!(std::fs::read_dir(dir.path().join("campaigns")).unwrap().count(), 1);
}

#[test]
fn only_a_regular_file_of_bounded_size_is_a_campaign() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("real.toml"), FULL).unwrap();
    std::os::unix::fs::symlink("real.toml", at("link.toml")).unwrap();
    assert_eq!(Campaign::load(&at("link.toml")).unwrap().hash, parse(FULL).unwrap().hash);
    std::fs::write(at("large.toml"), format!("{FULL}#{}", "x".repeat(1 << 20))).unwrap();
    std::fs::write(at("latin.toml"), b"# \xe9").unwrap();
    std::os::unix::fs::symlink("/dev/zero", at("endless.toml")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(at("pipe.toml")).status().unwrap().success());
    for (name, why) in [
        ("large.toml", "cannot be read (it is larger than 1048576 bytes)"),
        ("latin.toml", "is not UTF-8 text"),
        ("endless.toml", "cannot be read (it is not a regular file)"),
        ("pipe.toml", "cannot be read (it is not a regular file)"),
        ("none.toml", "cannot be read (No such file"),
    ] {
        let errors = Campaign::load(&at(name)).unwrap_err().to_string();
        assert!(errors.contains(name) && errors.contains(why), "{errors}");
    }
}

#[test]
fn a_hasty_quiet_time_is_warned_about() {
    let c = parse(&stream("complete = { rule = \"settled\", quiet = \"300ms\" }")).unwrap();
    assert_eq!(c.warnings[0].line, 5);
    assert_eq!(parse(FULL).unwrap().warnings, []);
}
