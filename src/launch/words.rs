//! Which rank died first? The launchers say it, each in its own words, on standard error.
//!
//! Contract: a hint, never proof: it helps to find the bad host, and nothing that matters for correctness rests on it.

/// The rank, or the host, named in a line that tells of a death.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Culprit {
    /// Number of the rank.
    pub rank: Option<usize>,
    /// Host, as the launcher calls it.
    pub host: Option<String>,
    /// Process on that host; some versions of Hydra say this instead of the rank.
    pub pid: Option<u32>,
}

/// Reads one line.
pub fn culprit(line: &str) -> Option<Culprit> {
    let after = |word: &str| {
        let rest = &line[line.find(word)? + word.len()..];
        Some(rest.split_whitespace().next()?.trim_matches(|c: char| ":,.;()".contains(c)).to_owned())
    };
    let rank = || after("rank ").or_else(|| after("RANK ")).and_then(|r| r.parse().ok());
    let pid = || after(" PID ").and_then(|p| p.parse().ok());
    // Hydra: "=   RANK 0 PID 27 RUNNING AT x3004", or without the rank.
    if let Some(host) = after("RUNNING AT ") {
        return Some(Culprit { rank: rank(), host: Some(host), pid: pid() });
    }
    // Open MPI: "… noticed that process rank 1 with PID 7 on node x3004 exited on signal 9 (Killed)."
    if line.contains("process rank ") && line.contains(" on node ") {
        return Some(Culprit { rank: rank(), host: after(" on node "), pid: None });
    }
    // PALS: "x3004c0s1b0n0.hsn: rank 3 died from signal 9", "… rank 3 exited with code 1"
    let (host, rest) = line.split_once(": rank ")?;
    if rest.contains(" died from signal ") || rest.contains(" exited with code ") {
        let host = host.trim();
        return Some(Culprit { rank: rank(), host: (!host.contains(' ')).then(|| host.to_owned()), pid: None });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_name_the_dead() {
        let of = |line: &str| culprit(line).map(|c| (c.rank, c.host.unwrap_or_default()));
        assert_eq!(of("=   RANK 2 PID 27 RUNNING AT x3004"), Some((Some(2), "x3004".into())));
        let hydra = culprit("=   PID 5884 RUNNING AT vm").unwrap();
        assert_eq!((hydra.rank, hydra.host.as_deref(), hydra.pid), (None, Some("vm"), Some(5884)));
        let open = "mpiexec noticed that process rank 1 with PID 0 on node n7 exited on signal 9 (Killed).";
        assert_eq!(of(open), Some((Some(1), "n7".into())));
        assert_eq!(of("x3.hsn: rank 3 died from signal 9"), Some((Some(3), "x3.hsn".into())));
        assert_eq!(of("2026-11-25 INFO rank 3 of 4 joined"), None);
    }
}
