//! Records the commit and a build identity, so that ranks of different builds refuse each other.
use std::process::Command;

fn git(args: &[&str]) -> Option<String> {
    let out = Command::new("git").args(args).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn main() {
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    let commit = if dirty { format!("{commit}+dirty") } else { commit };
    let features = if std::env::var_os("CARGO_FEATURE_MPI").is_some() { "mpi" } else { "embedded" };
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    println!("cargo:rustc-env=BEAMPILOT_COMMIT={commit}");
    println!("cargo:rustc-env=BEAMPILOT_BUILD={version}-{commit}-{features}");
    for path in ["build.rs", "src", "Cargo.toml", ".git/HEAD", ".git/refs"] {
        println!("cargo:rerun-if-changed={path}");
    }
}
