//! `mpiexec beampilot doctor`: every rank finds the launcher of its own library, or says that it is another's.
#![cfg(feature = "mpi")]

use std::process::{Command, Output};

fn doctor(mpiexec: &str) -> Option<Output> {
    Command::new(mpiexec)
        .args(["-n", "2", env!("CARGO_BIN_EXE_beampilot"), "doctor", "--json"])
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .output()
        .ok()
}

/// Under `--json` every rank prints its own document; the launcher may mix their lines, so only words are looked for.
#[test]
fn ranks_know_their_launcher() {
    let mpiexec = std::env::var("BEAMPILOT_MPIEXEC").unwrap_or_else(|_| "mpiexec".to_owned());
    let Some(output) = doctor(&mpiexec) else {
        eprintln!("no {mpiexec}: not tried");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("rank 0 of 2, started by") && text.contains("rank 1 of 2, started by"), "{text}");
}

#[test]
fn a_foreign_launcher_is_recognised() {
    let ours = std::env::var("BEAMPILOT_MPIEXEC").unwrap_or_default();
    let foreign = if ours.ends_with("mpich") { "mpiexec.openmpi" } else { "mpiexec.mpich" };
    match doctor(foreign) {
        Some(output) if ours.ends_with("mpich") || ours.ends_with("openmpi") => {
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("believe it is alone"), "{text}");
            assert!(!output.status.success());
        }
        _ => eprintln!("no two MPIs here: not tried"),
    }
}
