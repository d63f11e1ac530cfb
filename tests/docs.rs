//! The prose says what is there: links lead somewhere, every room is on the map, scripts are readable by bash.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn with_extension(dir: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(dir)).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == extension)).collect()
}

#[test]
fn links_between_pages_lead_somewhere() {
    for page in [".", "docs", "examples"].into_iter().flat_map(|dir| with_extension(dir, "md")) {
        let text = fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let path = page.parent().unwrap().join(target);
            assert!(path.exists(), "{} links to {target}, which is not there", page.display());
        }
    }
}

#[test]
fn the_map_has_every_room_and_no_other() {
    let map = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let on_map: BTreeSet<String> =
        map.lines().filter_map(|l| l.strip_prefix("| `src/")?.split('`').next()).map(str::to_owned).collect();
    let rooms: BTreeSet<String> = fs::read_dir(root().join("src"))
        .unwrap()
        .flatten()
        .filter(|e| e.path().is_dir())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(on_map, rooms, "docs/architecture.md and src/ differ");
}

#[test]
fn bash_can_read_the_scripts() {
    for script in ["scripts", "pbs"]
        .into_iter()
        .flat_map(|d| with_extension(d, "sh"))
        .chain(with_extension("pbs", "pbs"))
        .chain([root().join(".ci/run")])
    {
        let Ok(parsed) = Command::new("bash").arg("-n").arg(&script).output() else { return };
        let complaint = String::from_utf8_lossy(&parsed.stderr);
        assert!(parsed.status.success(), "{}: {complaint}", script.display());
    }
}
