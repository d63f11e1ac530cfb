//! Which signals ask a process to end.
//!
//! Contract
//! - SIGTERM, SIGINT and SIGHUP do. SIGHUP does not where it was ignored when the process started: `nohup` means that
//!   the work outlives the terminal.
//! - A write beyond the limit of file sizes (`ulimit -f`) is an error (EFBIG), no death. Programs that beampilot starts
//!   have the default again: a handler, other than an ignored signal, does not outlive exec(2).

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use std::ffi::c_int;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Those that ask this process to end. To be asked before a handler is set: the kernel then shows what was inherited.
pub fn ending() -> Vec<c_int> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut signals = vec![SIGTERM, SIGINT];
    if !is_ignored(&status, SIGHUP) {
        signals.push(SIGHUP);
    }
    signals
}

/// `SigIgn` of `/proc/<pid>/status`: bit n − 1 stands for signal n (proc_pid_status(5)).
fn is_ignored(status: &str, signal: c_int) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0);
    u32::try_from(signal - 1).ok().and_then(|bit| mask.checked_shr(bit)).is_some_and(|rest| rest & 1 == 1)
}

/// Turns the death by a file that grew too large into an error of the write.
///
/// # Errors
/// The kernel's.
pub fn survive_file_limit() -> io::Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false))).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_hangup_is_seen() {
        let status = |mask: &str| format!("Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\nSigCgt:\t1\n");
        assert!(is_ignored(&status("0000000000001001"), SIGHUP));
        assert!(!is_ignored(&status("0000000000001000"), SIGHUP));
        assert!(!is_ignored("", SIGHUP));
        assert!(ending().starts_with(&[SIGTERM, SIGINT]));
    }
}
