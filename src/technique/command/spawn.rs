//! Starting a program without copying this process.
//!
//! `fork` copies the page tables of a process that may map many gigabytes, which takes several times as long as the
//! start of a small program; `posix_spawn` does not, but cannot ask for the parent-death signal nor make the child a
//! subreaper. So this does what `posix_spawn` does inside: `clone` with the parent's memory and the calling thread
//! suspended until the child executes the program.
//!
//! Contract
//! - The child allocates nothing, takes no lock and returns nowhere; everything it needs is prepared before. No handler
//!   of this process ever runs in it: all signals are blocked until each has its default action. (The C library's two
//!   own ones cannot be blocked; it sends them to threads that it knows, and the child is none.)
//! - `errno` is the calling thread's own, which waits; so is the memory in which the child says why it failed.
//! - The parent-death signal is that of the *thread* that called: it must outlive the program, as one that waits for it
//!   does. The kernel drops the signal when the program is set-user-ID; then the keeper ends what is left.
//! - A file system that hangs in `execve` holds the calling thread up, as with every way to start a program; the rank
//!   ends executors that take too long.

use rustix::process::Pid;
use std::ffi::{CString, OsStr, OsString, c_char, c_int, c_void};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

/// A started program.
pub(super) struct Started {
    pub pid: Pid,
    pub stdout: PipeReader,
    pub stderr: PipeReader,
    /// This process's copies of the other ends: as long as they are open, nobody is woken just because the program
    /// closed its own.
    pub ends: [PipeWriter; 2],
}

/// What the child reads, and where it says why it could not go on.
struct Prepared {
    program: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    folder: *const c_char,
    /// Standard input, output and error.
    fds: [c_int; 3],
    parent: c_int,
    errno: c_int,
}

/// Words of 16 bytes, as the stack must be aligned; the child needs a few hundred bytes of these 32 KiB.
const STACK: usize = 2048;

/// Standard input of every program.
fn null() -> io::Result<&'static File> {
    static NULL: OnceLock<File> = OnceLock::new();
    match NULL.get() {
        Some(file) => Ok(file),
        None => File::open("/dev/null").map(|file| NULL.get_or_init(|| file)),
    }
}

/// Starts a program as leader of a group of its own, as a subreaper that dies with this thread.
pub(super) fn spawn(argv: &[OsString], env: &[(String, OsString)], folder: &Path) -> io::Result<Started> {
    let text = |s: &OsStr| CString::new(s.as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let name = argv.first().ok_or(io::ErrorKind::InvalidInput)?;
    let program = text(find(name, env)?.as_os_str())?;
    let arguments = argv.iter().map(|a| text(a)).collect::<io::Result<Vec<_>>>()?;
    let pair = |(name, value): &(String, OsString)| {
        let mut whole = OsString::from(name);
        whole.push("=");
        whole.push(value);
        text(&whole)
    };
    // The first of two values would win in most programs; the later one is meant.
    let last = |i: usize, name: &str| !env.iter().skip(i + 1).any(|(later, _)| later == name);
    let wanted = env.iter().enumerate().filter(|(i, (name, _))| last(*i, name)).map(|(_, e)| pair(e));
    let variables = wanted.collect::<io::Result<Vec<_>>>()?;
    let pointers =
        |all: &[CString]| -> Vec<*const c_char> { all.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect() };
    let (argv, envp, folder) = (pointers(&arguments), pointers(&variables), text(folder.as_os_str())?);
    let stdin = null()?;
    let (stdout, out) = io::pipe()?;
    let (stderr, err) = io::pipe()?;
    let fds = [stdin.as_raw_fd(), out.as_raw_fd(), err.as_raw_fd()];
    if fds.iter().any(|fd| *fd <= libc::STDERR_FILENO) {
        // Moved onto each other they would be lost.
        return Err(io::Error::other("this process has lost its standard input, output or error"));
    }
    let mut prepared = Prepared {
        program: program.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        folder: folder.as_ptr(),
        fds,
        parent: rustix::process::getpid().as_raw_nonzero().get(),
        errno: 0,
    };
    let mut stack = Vec::<MaybeUninit<u128>>::with_capacity(STACK);
    // SAFETY: the child runs `child` on a stack of its own, which outlives it: with CLONE_VFORK this thread goes on
    // only when the child has executed a program or ended. What `prepared` points to outlives the call, too, and
    // nobody else touches it. All signals are blocked meanwhile, so that no handler runs in the child, which shares
    // this memory. The mask is put back whether the call succeeds or not.
    let pid = unsafe {
        let (mut all, mut before) = (std::mem::zeroed::<libc::sigset_t>(), std::mem::zeroed::<libc::sigset_t>());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let top = stack.as_mut_ptr().add(STACK).cast::<c_void>();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let pid = libc::clone(child, top, flags, (&raw mut prepared).cast());
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        if pid < 0 {
            return Err(error);
        }
        pid
    };
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("the system gave an impossible process number"))?;
    // SAFETY: `prepared` is alive and the child, which may have written to it, has executed or ended.
    let errno = unsafe { ptr::read_volatile(&raw const prepared.errno) };
    if errno != 0 {
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
        return Err(io::Error::from_raw_os_error(errno));
    }
    Ok(Started { pid, stdout, stderr, ends: [out, err] })
}

/// The child's life until it executes the program.
extern "C" fn child(data: *mut c_void) -> c_int {
    let prepared = data.cast::<Prepared>();
    // SAFETY: `data` is the parent's `Prepared`, alive while the parent is suspended. Only system calls are made, by
    // thin wrappers that neither allocate nor lock; the handlers and the descriptors are the child's own copies.
    unsafe {
        let fail = || -> c_int {
            ptr::write_volatile(&raw mut (*prepared).errno, *libc::__errno_location());
            libc::_exit(127)
        };
        let mut default = std::mem::zeroed::<libc::sigaction>();
        default.sa_sigaction = libc::SIG_DFL;
        for signal in 1..=64 {
            // Those that cannot be changed say so.
            libc::sigaction(signal, &raw const default, ptr::null_mut());
        }
        libc::setpgid(0, 0);
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 || libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) != 0
        {
            return fail();
        }
        // The parent may have died before the signal was asked for. It has no number where it lives in another
        // namespace of process numbers.
        if ![0, (*prepared).parent].contains(&libc::getppid()) {
            *libc::__errno_location() = libc::ESRCH;
            return fail();
        }
        if libc::chdir((*prepared).folder) != 0 {
            return fail();
        }
        for (i, fd) in (*prepared).fds.iter().enumerate() {
            if libc::dup2(*fd, i as c_int) < 0 {
                return fail();
            }
        }
        // Files that a C library opened without care stay here. Old kernels do not know it, and nothing depends on it.
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        libc::execve((*prepared).program, (*prepared).argv, (*prepared).envp);
        fail()
    }
}

/// A program with a slash is that file; others are looked for in the PATH they will see.
fn find(name: &OsStr, env: &[(String, OsString)]) -> io::Result<std::path::PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Ok(name.into());
    }
    let path = env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
    let path = path.unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    // Of folders without a full path nobody can say which are meant: the program starts in another one than this.
    let found = std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file());
    found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;
    use std::io::Read;

    fn argv(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    fn path(value: &str) -> Vec<(String, OsString)> {
        vec![("PATH".to_owned(), value.into())]
    }

    /// What a program says, with its number.
    fn said(words: &[&str]) -> (String, i32) {
        let spawning = tree::spawning();
        let started = spawn(&argv(words), &path("/usr/bin:/bin"), Path::new("/tmp")).unwrap();
        tree::enter(started.pid);
        drop((spawning, started.ends));
        let mut text = String::new();
        { started.stdout }.read_to_string(&mut text).unwrap();
        rustix::process::waitpid(Some(started.pid), rustix::process::WaitOptions::empty()).unwrap();
        tree::leave(started.pid);
        (text, started.pid.as_raw_nonzero().get())
    }

    fn mask() -> Vec<bool> {
        // SAFETY: only reads this thread's mask into a set of its own.
        unsafe {
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            libc::pthread_sigmask(libc::SIG_SETMASK, ptr::null(), &raw mut set);
            (1..=64).map(|signal| libc::sigismember(&raw const set, signal) == 1).collect()
        }
    }

    #[test]
    fn programs_inherit_neither_signals_nor_files() {
        // Rust ignores SIGPIPE; here is a handler, too, and a descriptor that a careless library opened.
        let flag = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGUSR2, flag).unwrap();
        let null = null().unwrap();
        // SAFETY: a plain duplicate of an open descriptor, closed below.
        let careless = unsafe { libc::dup(null.as_raw_fd()) };
        assert!(careless > 2);
        let before = mask();
        let (status, _) = said(&["cat", "/proc/self/status"]);
        for set in ["SigBlk", "SigIgn", "SigCgt"] {
            let line = status.lines().find(|l| l.starts_with(set)).unwrap();
            let signals = u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap();
            // 32 and 33 are the C library's own; it looks after them itself.
            assert_eq!(signals & !(0b11 << 31), 0, "{line}");
        }
        // The fourth is the folder that is listed.
        assert_eq!(said(&["ls", "/proc/self/fd"]).0, "0\n1\n2\n3\n");
        assert_eq!(mask(), before, "the caller's signals are as they were");
        // SAFETY: opened above, and nobody else's.
        unsafe { libc::close(careless) };
    }

    #[test]
    fn a_program_leads_its_group_and_starts_in_its_folder() {
        let (stat, pid) = said(&["cat", "/proc/self/stat"]);
        let group: i32 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(2).unwrap().parse().unwrap();
        assert_eq!(group, pid);
        assert_eq!(said(&["pwd"]).0, "/tmp\n");
    }

    #[test]
    fn a_start_that_fails_says_why_and_leaves_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("text");
        std::fs::write(&text, "no program").unwrap();
        let errno = |words: &[&str], search: &str, folder: &Path| {
            let e = spawn(&argv(words), &path(search), folder).err().expect("it cannot start");
            e.raw_os_error().unwrap()
        };
        let text_name = text.to_str().unwrap();
        assert_eq!(errno(&["/nowhere"], "", dir.path()), libc::ENOENT);
        assert_eq!(errno(&[text_name], "", dir.path()), libc::EACCES);
        assert_eq!(errno(&["/bin/true"], "", &dir.path().join("gone")), libc::ENOENT);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&text, mode).unwrap();
        assert_eq!(errno(&[text_name], "", dir.path()), libc::ENOEXEC);
        // A folder of PATH without a full path is not searched, wherever this process is.
        let here = std::env::current_dir().unwrap();
        let up = "../".repeat(here.components().count());
        assert_eq!(errno(&["true"], &format!(":{up}usr/bin:{up}bin"), dir.path()), libc::ENOENT);
    }
}
