//! Records the commit and a build identity, so that ranks of different builds refuse each other.
use std::process::Command;

fn git(args: &[&str]) -> Option<String> {
    let out = Command::new("git").args(args).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// FNV-1a over names and contents of everything that goes into the executable: two builds of one commit with
/// different changes are different builds.
fn digest(path: &std::path::Path, hash: &mut u64) {
    let mut add = |bytes: &[u8]| {
        bytes.iter().for_each(|b| *hash = (*hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    };
    if path.is_dir() {
        let mut entries: Vec<_> = std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path()).collect();
        entries.sort();
        entries.iter().for_each(|e| digest(e, hash));
    } else if let Ok(content) = std::fs::read(path) {
        add(path.to_string_lossy().as_bytes());
        add(&content);
    }
}

fn main() {
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    let commit = if dirty { format!("{commit}+dirty") } else { commit };
    let features = if std::env::var_os("CARGO_FEATURE_MPI").is_some() { "mpi" } else { "embedded" };
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    println!("cargo:rustc-env=BEAMPILOT_COMMIT={commit}");
    let mut hash = 0xcbf2_9ce4_8422_2325;
    ["src", "kernels", "Cargo.toml", "Cargo.lock"].iter().for_each(|p| digest(std::path::Path::new(p), &mut hash));
    println!("cargo:rustc-env=BEAMPILOT_BUILD={version}-{commit}-{features}-{hash:016x}");
    for path in ["build.rs", "src", "kernels", "Cargo.toml", "Cargo.lock"] {
        if std::path::Path::new(path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    // A path that does not exist would make every build a rebuild; in a worktree HEAD lies elsewhere.
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|p| std::path::Path::new(p).exists()) {
        println!("cargo:rerun-if-changed={head}");
    }
}
