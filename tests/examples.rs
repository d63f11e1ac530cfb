//! Campaigns that people copy: every example, and every complete campaign in the documentation, is right for this build.

use beampilot::campaign::{Campaign, Problem};
use beampilot::technique;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Loads a campaign in a folder of its own, where what it watches exists, and validates it as `run` does.
fn load(text: &str, name: &str) -> Campaign {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(name);
    fs::write(&file, text).unwrap();
    // Files that recipes name are read when they are checked.
    fs::create_dir(dir.path().join("laue")).unwrap();
    for entry in fs::read_dir(root().join("examples/laue")).unwrap().flatten() {
        fs::copy(entry.path(), dir.path().join("laue").join(entry.file_name())).unwrap();
    }
    let campaign = Campaign::load(&file).unwrap_or_else(|e| panic!("{name}:\n{e}\n\n{text}"));
    let names: Vec<&str> = technique::all().iter().map(|t| t.name()).collect();
    campaign.validate_techniques(&technique::registry, &names).unwrap_or_else(|e| panic!("{name}:\n{e}\n\n{text}"));
    for stream in campaign.streams.iter().filter(|s| s.from.is_none()) {
        assert!(stream.watch.starts_with(dir.path()), "{name}: {} is not relative", stream.watch.display());
        fs::create_dir_all(&stream.watch).unwrap();
    }
    let problems = campaign.preflight();
    assert!(problems.is_empty(), "{name}: {:?}", problems.iter().map(Problem::to_string).collect::<Vec<_>>());
    assert!(campaign.warnings.is_empty(), "{name}: {:?}", campaign.warnings);
    campaign
}

fn examples() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("examples")).unwrap().flatten().map(|e| e.path());
    entries.filter(|p| p.extension().is_some_and(|e| e == "toml")).collect()
}

/// The fenced blocks of a page that begin with this fence.
fn blocks(page: &str, fence: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line == fence {
            found.push(lines.by_ref().take_while(|l| *l != "```").map(|l| format!("{l}\n")).collect());
        }
    }
    found
}

#[test]
fn every_example_is_a_right_campaign_and_is_listed() {
    let readme = fs::read_to_string(root().join("examples/README.md")).unwrap();
    let examples = examples();
    assert!(examples.len() >= 3);
    for path in examples {
        let name = path.file_name().unwrap().to_str().unwrap();
        load(&fs::read_to_string(&path).unwrap(), name);
        assert!(readme.contains(&format!("]({name})")), "examples/README.md does not list {name}");
    }
}

#[test]
fn the_commented_example_writes_the_defaults_out() {
    let text = fs::read_to_string(root().join("examples/tomography-settled.toml")).unwrap();
    let default = |line: &&str| !line.trim_start().starts_with('#') && line.contains("(default)");
    let without: String = text.lines().filter(|l| !default(l)).map(|l| format!("{l}\n")).collect();
    assert!(without.len() < text.len());
    let (a, b) = (load(&text, "c.toml"), load(&without, "c.toml"));
    let technique = technique::registry("tomography").unwrap();
    let shown = |c: &Campaign| {
        let s = &c.streams[0];
        let base = c.file.parent().unwrap();
        let output = s.output.strip_prefix(base).unwrap().to_owned();
        let state = c.state.strip_prefix(base).unwrap().to_owned();
        let recipe = technique.recipe(&s.recipe).unwrap();
        format!(
            "{state:?} {:?} {output:?} {:?} {:?} {} {:?} {recipe}",
            c.deadline, s.unit, s.order, s.weight, s.complete
        )
    };
    assert_eq!(shown(&a), shown(&b));
}

#[test]
fn campaigns_in_the_documentation_are_right() {
    let page = fs::read_to_string(root().join("docs/campaign.md")).unwrap();
    let command = fs::read_to_string(root().join("docs/command.md")).unwrap();
    let whole = [blocks(&page, "```toml campaign"), blocks(&command, "```toml campaign")].concat();
    let streams = blocks(&page, "```toml stream");
    assert!(!whole.is_empty() && !streams.is_empty());
    whole.iter().for_each(|text| drop(load(text, "docs-campaign.toml")));
    for text in streams {
        // A piece of a stream: what every stream must say is put in front of it.
        let watch = if text.contains("from =") { "" } else { "watch = \"incoming\"\n" };
        let other = if text.contains("from =") {
            "[[stream]]\nname = \"first\"\nwatch = \"incoming\"\ntechnique = \"tomography\"\n"
        } else {
            ""
        };
        let text = format!("{other}[[stream]]\nname = \"s\"\n{watch}technique = \"tomography\"\n{text}");
        load(&text, "docs-stream.toml");
    }
}

#[test]
fn every_key_of_a_recipe_is_documented_with_its_default() {
    let page = fs::read_to_string(root().join("docs/tomography.md")).unwrap();
    for key in beampilot::technique::tomography::recipe::KEYS {
        assert!(page.contains(&format!("| `{key}` |")), "docs/tomography.md has no row for {key}");
    }
}

#[test]
fn every_key_of_a_command_is_documented() {
    let page = fs::read_to_string(root().join("docs/command.md")).unwrap();
    for key in beampilot::technique::command::recipe::KEYS {
        assert!(page.contains(&format!("| `{key}` |")), "docs/command.md has no row for {key}");
    }
}

#[test]
fn every_key_of_a_laue_recipe_is_documented() {
    let page = fs::read_to_string(root().join("docs/laue.md")).unwrap();
    for key in beampilot::technique::laue::recipe::KEYS {
        assert!(page.contains(&format!("| `{key}` |")), "docs/laue.md has no row for {key}");
    }
}

#[test]
fn programs_of_the_examples_are_there_and_executable() {
    use std::os::unix::fs::PermissionsExt;
    for path in examples() {
        for text in fs::read_to_string(&path).unwrap().split('"').filter(|t| t.contains("programs/")) {
            let program = root().join("examples").join(text.trim_start_matches("{campaign}/"));
            let mode = fs::metadata(&program).unwrap_or_else(|e| panic!("{text}: {e}")).permissions().mode();
            assert!(mode & 0o111 != 0, "{text} is not executable");
        }
    }
}
