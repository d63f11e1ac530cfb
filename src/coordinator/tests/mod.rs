//! Tests of the core: builders that show only what a test is about, a bench that consumes every action.

mod bench;
mod deaths;
mod home;
mod random;
mod requests;
mod scenarios;

/// The core imports nothing that could make two runs differ.
#[test]
fn the_core_is_pure() {
    let sources = [
        ("adoption.rs", include_str!("../adoption.rs")),
        ("claiming.rs", include_str!("../claiming.rs")),
        ("core.rs", include_str!("../core.rs")),
        ("deaths.rs", include_str!("../deaths.rs")),
        ("dispatch.rs", include_str!("../dispatch.rs")),
        ("ends.rs", include_str!("../ends.rs")),
        ("event.rs", include_str!("../event.rs")),
        ("event/action.rs", include_str!("../event/action.rs")),
        ("event/entry.rs", include_str!("../event/entry.rs")),
        ("event/times.rs", include_str!("../event/times.rs")),
        ("faults.rs", include_str!("../faults.rs")),
        ("health.rs", include_str!("../health.rs")),
        ("intake.rs", include_str!("../intake.rs")),
        ("learned.rs", include_str!("../learned.rs")),
        ("storage.rs", include_str!("../storage.rs")),
        ("stragglers.rs", include_str!("../stragglers.rs")),
        ("time.rs", include_str!("../time.rs")),
        ("job.rs", include_str!("../job.rs")),
        ("queue.rs", include_str!("../queue.rs")),
        ("requests.rs", include_str!("../requests.rs")),
        ("view.rs", include_str!("../view.rs")),
        ("workers.rs", include_str!("../workers.rs")),
    ];
    let forbidden = [
        "std::fs",
        "std::io",
        "std::net",
        "std::thread",
        "std::time",
        "std::env",
        "std::process",
        "HashMap",
        "HashSet",
        "crossbeam",
        "rand::",
        "mpi::",
        "hdf5",
        "rustix",
        "Instant::",
        "SystemTime",
        "tracing::",
    ];
    for (file, text) in sources {
        for word in forbidden {
            assert!(!text.contains(word), "{file} mentions {word}");
        }
    }
}
