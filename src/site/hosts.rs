//! Which hosts does this job have?
//!
//! Contract: each host once, in the scheduler's order. PBS_NODEFILE repeats a host for each of its chunk's slots.

use super::bounded;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Why the hosts are not known.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The file of hosts.
    #[error("{file}: {source}")]
    Unreadable {
        /// Which.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// Slurm's list.
    #[error("scontrol cannot expand {0:?}")]
    Slurm(String),
    /// There is none.
    #[error("{0} names no host")]
    None(String),
}

/// The hosts: given ones, a file's, the scheduler's, or this one.
///
/// # Errors
/// See [`HostsError`].
pub fn find(given: &[String], file: Option<&Path>) -> Result<Vec<String>, HostsError> {
    if !given.is_empty() {
        return some("--hosts", unique(given.iter().map(String::as_str)));
    }
    let from_pbs = std::env::var_os("PBS_NODEFILE").filter(|f| !f.is_empty());
    if let Some(file) = file.or(from_pbs.as_deref().map(Path::new)) {
        let shown = file.display().to_string();
        let text =
            std::fs::read_to_string(file).map_err(|source| HostsError::Unreadable { file: shown.clone(), source })?;
        return some(&shown, parse(&text));
    }
    match std::env::var("SLURM_JOB_NODELIST") {
        Ok(list) if !list.is_empty() => expand(&list),
        _ => Ok(vec![crate::store::claims::host_name()]),
    }
}

fn expand(list: &str) -> Result<Vec<String>, HostsError> {
    let mut command = Command::new("scontrol");
    command.args(["show", "hostnames", list]);
    match bounded::output(&mut command, Duration::from_secs(10)) {
        Ok(said) if said.status.success() => some("scontrol", parse(&String::from_utf8_lossy(&said.stdout))),
        _ => Err(HostsError::Slurm(list.to_owned())),
    }
}

/// One host a line; what follows it (`slots=4`) and comments do not count.
fn parse(text: &str) -> Vec<String> {
    unique(text.lines().filter_map(|l| l.split('#').next()?.split_whitespace().next()))
}

fn unique<'a>(hosts: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    hosts.map(str::trim).filter(|h| !h.is_empty() && seen.insert((*h).to_owned())).map(str::to_owned).collect()
}

fn some(whence: &str, hosts: Vec<String>) -> Result<Vec<String>, HostsError> {
    if hosts.is_empty() { Err(HostsError::None(whence.to_owned())) } else { Ok(hosts) }
}

/// Is that name this host's? Schedulers write names with a domain, `uname` often without.
pub fn is_here(host: &str) -> bool {
    let own = crate::store::claims::host_name();
    same(host, &own) || host == "localhost" || host == "127.0.0.1"
}

/// The same host, whether with its domain or without.
pub fn same(a: &str, b: &str) -> bool {
    let label = |h: &str| h.split('.').next().unwrap_or_default().to_ascii_lowercase();
    a == b || ((!a.contains('.') || !b.contains('.')) && label(a) == label(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_once_in_order() {
        assert_eq!(parse("b\nb\n# x\na slots=4\n\nb\n"), ["b", "a"]);
        let given = ["x".to_owned(), "y".to_owned(), "x".to_owned()];
        assert_eq!(find(&given, None).unwrap(), ["x", "y"]);
        assert!(find(&[], Some(Path::new("/no/such"))).unwrap_err().to_string().contains("/no/such"));
    }

    #[test]
    fn a_domain_makes_no_other_host() {
        assert!(same("x3004.hsn.cm", "x3004") && same("a", "A") && !same("a.one", "a.two") && !same("a", "b"));
        assert!(is_here("localhost") && is_here(&crate::store::claims::host_name()));
    }
}
