//! Which GPU a rank uses: decided from the site's table before anything starts, proven and logged afterwards.
//!
//! Contract
//! - [`choose`] runs first in `main`, before any thread and before CUDA: a GPU chosen later is not chosen.
//! - Only a process under `beampilot launch` (BEAMPILOT_SITE is set) and a launcher that numbers local ranks is bound.

use super::profile::Profile;
use crate::transport::launch;
use crate::worker::topology;

/// The variable to set, and its value; `None` when nothing is to be done.
pub fn choose() -> Option<(&'static str, &'static str)> {
    let profile = Profile::named(&std::env::var("BEAMPILOT_SITE").ok()?)?;
    let variable = profile.gpu_variable?;
    profile.gpu(launch::local_rank()?).map(|(gpu, _)| (variable, gpu))
}

/// Logs what this rank got, and warns when its cores are not those beside its GPU.
pub fn report() {
    let Some(profile) = std::env::var("BEAMPILOT_SITE").ok().and_then(|s| Profile::named(&s)) else { return };
    let local = launch::local_rank().unwrap_or(0);
    let mask = topology::affinity();
    let cores: Vec<usize> = (0..1024).filter(|cpu| mask[cpu / 8] & (1 << (cpu % 8)) != 0).collect();
    let Some((gpu, beside)) = profile.gpu(local).filter(|_| profile.gpu_variable.is_some()) else {
        tracing::info!(site = profile.name, local_rank = local, cores = cores.len(), "started by launch");
        return;
    };
    tracing::info!(site = profile.name, local_rank = local, gpu, cores = ?ranges(&cores), "bound");
    let beside = expand(beside);
    if !beside.is_empty() && !cores.iter().all(|c| beside.contains(c)) {
        tracing::warn!(gpu, cores = ?ranges(&cores), "these cores are not beside this GPU; copies to it will be slow");
    }
}

fn expand(list: &str) -> Vec<usize> {
    let part = |p: &str| {
        let (from, to) = p.split_once('-').unwrap_or((p, p));
        Some(from.parse().ok()?..=to.parse().ok()?)
    };
    list.split(',').filter_map(part).flatten().collect()
}

fn ranges(cores: &[usize]) -> String {
    let mut out: Vec<(usize, usize)> = Vec::new();
    for &c in cores {
        match out.last_mut() {
            Some((_, end)) if *end + 1 == c => *end = c,
            _ => out.push((c, c)),
        }
    }
    let show = |(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    out.iter().map(show).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_lists_come_and_go() {
        assert_eq!(expand("0-2,8"), [0, 1, 2, 8]);
        assert_eq!(ranges(&[0, 1, 2, 8]), "0-2,8");
        assert!(expand("").is_empty() && ranges(&[]).is_empty());
    }
}
