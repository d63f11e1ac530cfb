//! Exit codes: what a launcher that reads no prose is told.
//!
//! Contract
//! - Codes are stable; `docs/exit-codes.md` lists exactly [`Exit::ALL`] and a test compares the two.
//! - None is 124 or above: those mean a timeout, a shell's trouble or a signal.
//! - Library errors are typed; only here, at the command line's edge, do they become a code: with
//!   [`OrExit::or_exit`] where the code is known, or else by [`Exit::of`], which looks for an I/O error.
//! - An error says its remedy in its own words; the code says only what a machine should do next.

use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitCode;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done, or the pilot drained as told.
    Done = 0,
    /// A failure that fits no other code.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Data cannot be processed: the scan was refused, or `run --once` left scans in quarantine.
    Data = 65,
    /// An input named on the command line does not exist.
    NoInput = 66,
    /// Something the work needs is missing or does not answer: MPI, storage, a GPU.
    Unavailable = 69,
    /// A bug in beampilot.
    Internal = 70,
    /// An output exists already or cannot be created.
    CannotCreate = 73,
    /// Reading or writing failed.
    Io = 74,
    /// Not now: the same command may succeed later.
    TryLater = 75,
    /// Permission denied.
    Permission = 77,
    /// The configuration is wrong.
    Config = 78,
}

impl Exit {
    /// Every code, ascending.
    pub const ALL: [Exit; 12] = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Data,
        Exit::NoInput,
        Exit::Unavailable,
        Exit::Internal,
        Exit::CannotCreate,
        Exit::Io,
        Exit::TryLater,
        Exit::Permission,
        Exit::Config,
    ];

    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What it means, one line; the text of `docs/exit-codes.md`.
    pub const fn meaning(self) -> &'static str {
        match self {
            Exit::Done => "done, or drained as told",
            Exit::Failed => "a failure that fits no other code; the message says what",
            Exit::Usage => "the command line is wrong",
            Exit::Data => "data cannot be processed; with `run --once`, some scans ended in quarantine",
            Exit::NoInput => "an input named on the command line does not exist",
            Exit::Unavailable => "something the work needs is missing or does not answer (MPI, storage, a GPU)",
            Exit::Internal => "a bug in beampilot; please report it",
            Exit::CannotCreate => "an output exists already or cannot be created",
            Exit::Io => "reading or writing failed",
            Exit::TryLater => "not now; the same command may succeed later",
            Exit::Permission => "permission denied",
            Exit::Config => "the configuration is wrong (campaign, recipe, or a state folder of a newer release)",
        }
    }

    /// What a launcher should do next; the text of `docs/exit-codes.md`.
    pub const fn advice(self) -> &'static str {
        match self {
            Exit::Done => "nothing",
            Exit::Failed => "show it to a person",
            Exit::Usage => "never resubmit; correct the command",
            Exit::Data => "never resubmit unchanged; look at the quarantine",
            Exit::NoInput => "never resubmit; correct the path",
            Exit::Unavailable => "run `beampilot doctor`; resubmit when it is content",
            Exit::Internal => "resubmit once; report it",
            Exit::CannotCreate => "never resubmit; choose another name",
            Exit::Io => "resubmit after a pause; look at the filesystem",
            Exit::TryLater => "resubmit after a pause",
            Exit::Permission => "never resubmit; correct the permissions",
            Exit::Config => "never resubmit; correct the file",
        }
    }

    /// The code for an error: the outermost one that carries a code decides, then the first I/O error.
    pub fn of(error: &anyhow::Error) -> Exit {
        for cause in error.chain() {
            if let Some(coded) = cause.downcast_ref::<Coded>() {
                return coded.exit;
            }
            if let Some(io) = cause.downcast_ref::<io::Error>() {
                return match io.kind() {
                    io::ErrorKind::PermissionDenied => Exit::Permission,
                    _ => Exit::Io,
                };
            }
        }
        Exit::Failed
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// An error that knows its exit code. Reads exactly like the error inside.
#[derive(Debug)]
struct Coded {
    exit: Exit,
    inner: anyhow::Error,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

impl Error for Coded {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.inner.source()
    }
}

/// Gives an error its exit code.
pub trait OrExit<T> {
    /// The same result; an error in it now ends the process with `exit`.
    ///
    /// # Errors
    /// Those it had.
    fn or_exit(self, exit: Exit) -> anyhow::Result<T>;
}

/// An error that ends the process with `exit`.
pub(super) fn coded(exit: Exit, inner: anyhow::Error) -> anyhow::Error {
    anyhow::Error::new(Coded { exit, inner })
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> anyhow::Result<T> {
        self.map_err(|e| coded(exit, e.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn codes_are_stable_and_below_124() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|e| e.code()).collect();
        assert_eq!(codes, [0, 1, 2, 65, 66, 69, 70, 73, 74, 75, 77, 78]);
        assert!(codes.iter().all(|&c| c < 124));
    }

    #[test]
    fn the_documented_table_is_the_table() {
        let page = include_str!("../../docs/exit-codes.md");
        let listed: Vec<&str> = page.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| code")).collect();
        let expected: Vec<String> =
            Exit::ALL.iter().map(|e| format!("| {} | {} | {} |", e.code(), e.meaning(), e.advice())).collect();
        assert_eq!(listed, expected, "docs/exit-codes.md and src/cli/exit.rs differ");
    }

    #[test]
    fn an_error_keeps_its_code_and_its_words_through_contexts() {
        let inner: anyhow::Result<()> = Err(anyhow!("no such key")).context("line 3");
        let error = inner.or_exit(Exit::Config).context("campaign.toml").unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Config);
        assert_eq!(format!("{error:#}"), "campaign.toml: line 3: no such key");
    }

    #[test]
    fn the_outer_code_wins_over_an_inner_one_and_over_io() {
        let io: io::Result<()> = Err(io::Error::from(io::ErrorKind::StorageFull));
        let error = io.or_exit(Exit::Data).or_exit(Exit::TryLater).unwrap_err();
        assert_eq!(Exit::of(&error), Exit::TryLater);
    }

    #[test]
    fn plain_errors_are_classified() {
        let io = |kind| anyhow::Error::new(io::Error::from(kind)).context("reading");
        assert_eq!(Exit::of(&io(io::ErrorKind::PermissionDenied)), Exit::Permission);
        assert_eq!(Exit::of(&io(io::ErrorKind::StorageFull)), Exit::Io);
        assert_eq!(Exit::of(&anyhow!("?")), Exit::Failed);
    }
}
