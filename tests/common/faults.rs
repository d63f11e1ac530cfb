//! A campaign under fire: pilots that overlap, with every kind of their processes killed or stopped at random moments.
//!
//! One seed draws what happens; the seeds are fixed, the moments depend on the machine. Whatever happens, every scan is
//! published exactly once, whole, nothing is left behind and no input is touched. `BEAMPILOT_FAULT_SCANS`,
//! `BEAMPILOT_FAULT_BLOWS`, `BEAMPILOT_FAULT_STOP_MS` (the longest stop; a lease is 60 000) and `BEAMPILOT_FAULT_SEED`
//! make it longer: `make soak-real`.

use super::rig::*;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Something that happens to one process.
#[derive(Debug, Clone, Copy)]
enum Blow {
    Kill(Role),
    /// Stopped for so long, then continued.
    Stop(Role, Duration),
    /// SIGKILL to a pilot with everything it started.
    Everything,
}

fn draw(rng: &mut ChaCha8Rng) -> Blow {
    let role = *[Role::Executor, Role::Executor, Role::Keeper, Role::Rank].choose(rng).unwrap();
    match rng.random_range(0..10) {
        0 => Blow::Everything,
        1..4 => {
            let longest = number("BEAMPILOT_FAULT_STOP_MS", 4000) as u64;
            Blow::Stop(role, Duration::from_millis(rng.random_range(500..longest.max(501))))
        }
        _ => Blow::Kill(role),
    }
}

/// Paused processes and when each goes on.
type Stopped = Vec<(Instant, Vec<u32>)>;

fn strike(rng: &mut ChaCha8Rng, pilot: &mut Pilot, blow: Blow, stopped: &mut Stopped) -> bool {
    let mut victim = |role| pilot.pids(role).choose(rng).copied();
    match blow {
        Blow::Kill(role) => victim(role).is_some_and(|pid| {
            signal(&[pid], "KILL");
            true
        }),
        Blow::Stop(role, time) => victim(role).is_some_and(|pid| {
            signal(&[pid], "STOP");
            stopped.push((Instant::now() + time, vec![pid]));
            true
        }),
        Blow::Everything => {
            pilot.kill();
            true
        }
    }
}

fn wake(stopped: &mut Stopped, all: bool) {
    stopped.retain(|(at, pids)| {
        let due = all || Instant::now() >= *at;
        if due {
            signal(pids, "CONT");
        }
        !due
    });
}

fn stamps(folder: &Path) -> BTreeMap<String, (u64, SystemTime)> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries
        .map(|e| {
            let meta = e.metadata().unwrap();
            (e.file_name().into_string().unwrap(), (meta.len(), meta.modified().unwrap()))
        })
        .collect()
}

/// See the module.
pub fn a_campaign_under_fire_loses_and_doubles_nothing(launcher: Launcher) {
    let scans = number("BEAMPILOT_FAULT_SCANS", 40);
    let blows = number("BEAMPILOT_FAULT_BLOWS", 24);
    let seed = number("BEAMPILOT_FAULT_SEED", 11) as u64;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let rig = Rig::new(launcher, "complete = { rule = \"settled\", quiet = \"300ms\" }");
    let small = ["--size", "32", "--angles", "24", "--slices", "4"];
    rig.synth("in/scan_000.h5", &small);
    for n in 1..scans {
        std::fs::copy(rig.path("in/scan_000.h5"), rig.path(&format!("in/scan_{n:03}.h5"))).unwrap();
    }
    let before = stamps(&rig.path("in"));
    let began = Instant::now();
    let mut pilots = vec![rig.start(&[]), rig.start(&[])];
    let (mut struck, mut stopped): (BTreeMap<String, usize>, Stopped) = Default::default();
    let mut landed = 0;
    while landed < blows {
        std::thread::sleep(Duration::from_millis(rng.random_range(50..900)));
        wake(&mut stopped, false);
        for pilot in &mut pilots {
            if pilot.child.try_wait().unwrap().is_some() {
                *pilot = rig.start(&[]);
            }
        }
        let (at, blow) = (rng.random_range(0..pilots.len()), draw(&mut rng));
        if strike(&mut rng, &mut pilots[at], blow, &mut stopped) {
            landed += 1;
            let what = format!("{blow:?}").split(',').next().unwrap_or_default().to_owned();
            *struck.entry(what).or_default() += 1;
        }
        let patience = PATIENCE * 4 + Duration::from_secs(blows as u64 * 5);
        assert!(began.elapsed() < patience, "{landed} blows in {:?}", began.elapsed());
    }
    // Peace. What still stands goes on, and one pilot ends what is left.
    wake(&mut stopped, true);
    for pilot in &mut pilots {
        if pilot.child.try_wait().unwrap().is_none() {
            pilot.drain();
        }
    }
    let (code, log) = rig.once();
    assert!(matches!(code, Some(0)), "ends with {code:?}; quarantined: {:?}\n{log}", rig.quarantined());
    eprintln!("seed {seed}: {landed} blows on {scans} scans in {:.0?}: {struck:?}", began.elapsed());
    let published = rig.published();
    assert_eq!(published.len(), scans, "{:?}", rig.quarantined());
    for (scan, bundles) in &published {
        assert_eq!(bundles.len(), 1, "{scan} is published {} times: {bundles:?}", bundles.len());
        assert_checksums(Path::new(&bundles[0]));
    }
    assert_eq!(rig.in_output(), scans, "a bundle too many");
    assert_eq!(rig.quarantined(), BTreeMap::new());
    rig.assert_clean();
    assert_eq!(stamps(&rig.path("in")), before, "no input is ever changed");
}

/// A successor that runs already takes over what a killed pilot held, at once where the death can be proven, and goes on
/// with its parts. How long a scan waits for that is printed, not asserted.
pub fn a_successor_takes_over_at_once(launcher: Launcher) {
    let rig = Rig::new(launcher, "complete = { rule = \"settled\", quiet = \"300ms\" }");
    let big = ["--size", "128", "--angles", "180", "--slices", "32"];
    rig.synth("in/scan_0.h5", &big);
    for n in 1..4 {
        std::fs::copy(rig.path("in/scan_0.h5"), rig.path(&format!("in/scan_{n}.h5"))).unwrap();
    }
    let claims = |generation: &str| {
        let names = std::fs::read_dir(rig.path("state/claims")).into_iter().flatten().flatten();
        names.filter(|e| e.file_name().to_string_lossy().ends_with(generation)).count()
    };
    let mut first = rig.start(&[]);
    rig.wait("the first pilot holds something", || claims(".1") > 0);
    let mut second = rig.start(&["--once"]);
    rig.wait("the second pilot looks", || {
        rig.status().is_some_and(|s| s["pilots"].as_array().is_some_and(|p| p.len() == 2))
    });
    let held = claims(".1");
    let killed = Instant::now();
    first.kill();
    if rig.published().len() < held {
        rig.wait("the second takes over", || claims(".2") > 0 || rig.published().len() == 4);
        eprintln!("taken over {:.1?} after the kill", killed.elapsed());
    }
    assert_eq!(second.exit_code(), Some(0), "{}", second.log());
    assert_eq!(rig.published().len(), 4);
    rig.assert_clean();
}
