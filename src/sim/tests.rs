//! Seeds, replays, broken promises.

use super::faults::Broken;
use super::world::World;

/// Runs one seed; a failure is run again to show its last events.
fn shift(seed: u64, broken: Option<Broken>) -> Result<World, String> {
    let mut world = World::new(seed, broken);
    match world.run() {
        Ok(()) => Ok(world),
        Err(_) => {
            let mut again = World::new(seed, broken);
            again.loud = true;
            again.run().map(|()| again)
        }
    }
}

#[test]
fn first() {
    let from: u64 = std::env::var("BEAMPILOT_SIM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let n: u64 = std::env::var("N").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
    let mut bad = 0;
    let begun = std::time::Instant::now();
    for seed in from..from + n {
        match shift(seed, None) {
            Ok(w) => eprintln!("seed {seed}: {} events, {:.0} s, trace {:x}", w.events, w.now as f64 * 1e-6, w.trace),
            Err(why) => {
                bad += 1;
                if bad < 3 { eprintln!("{why}"); } else { eprintln!("{}", why.lines().next().unwrap()); }
            }
        }
    }
    eprintln!("{bad} bad of {n}, {:?}", begun.elapsed());
    assert_eq!(bad, 0);
}
