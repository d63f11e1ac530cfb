//! Starting a program without copying this process.
//!
//! `fork` copies the page tables of a process that may map many gigabytes, which takes several times as long as the
//! start of a small program; `posix_spawn` does not, but cannot ask for the parent-death signal nor make the child a
//! subreaper. So this does what `posix_spawn` does inside: `clone` with the parent's memory and the calling thread
//! suspended until the child executes the program.
//!
//! Contract: the child allocates nothing, takes no lock and returns nowhere; everything it needs is prepared before.
//! No handler of this process ever runs in it.

use rustix::process::Pid;
use std::ffi::{CString, OsStr, OsString, c_char, c_int, c_void};
use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

/// A started program.
pub(super) struct Started {
    pub pid: Pid,
    pub stdout: PipeReader,
    pub stderr: PipeReader,
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

/// 64 KiB; the child needs a few hundred bytes.
const STACK: usize = 4096;

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
    let stdin = File::open("/dev/null")?;
    let (stdout, out) = io::pipe()?;
    let (stderr, err) = io::pipe()?;
    let mut prepared = Prepared {
        program: program.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        folder: folder.as_ptr(),
        fds: [stdin.as_raw_fd(), out.as_raw_fd(), err.as_raw_fd()],
        parent: rustix::process::getpid().as_raw_nonzero().get(),
        errno: 0,
    };
    let mut stack = vec![0u128; STACK];
    // SAFETY: the child runs `child` on a stack of its own, which outlives it: with CLONE_VFORK this thread goes on
    // only when the child has executed a program or ended. What `prepared` points to outlives the call, too, and
    // nobody else touches it. All signals are blocked meanwhile, so that no handler runs in the child, which shares
    // this memory. The mask is put back whether the call succeeds or not.
    let pid = unsafe {
        let (mut all, mut before) = (std::mem::zeroed::<libc::sigset_t>(), std::mem::zeroed::<libc::sigset_t>());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let top = stack.as_mut_ptr_range().end.cast::<c_void>();
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
    Ok(Started { pid, stdout, stderr })
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
        // The parent may have died before the signal was asked for.
        if libc::getppid() != (*prepared).parent {
            libc::_exit(127);
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
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok());
    found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}
