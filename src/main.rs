//! The one executable; see [`beampilot::cli`].

fn main() -> std::process::ExitCode {
    if std::env::var_os("HDF5_USE_FILE_LOCKING").is_none() {
        // Lustre and NFS often refuse the locks HDF5 takes by itself, and a reader must never stop a writer.
        // SAFETY: nothing has started a thread yet, so no one reads the environment at the same time.
        unsafe { std::env::set_var("HDF5_USE_FILE_LOCKING", "FALSE") };
    }
    // Where HDF5 looks for external and virtual files is decided by the file and the watch root alone.
    for variable in ["HDF5_EXT_PREFIX", "HDF5_VDS_PREFIX"] {
        // SAFETY: as above.
        unsafe { std::env::remove_var(variable) };
    }
    if let Some((variable, gpu)) = beampilot::site::binding::choose() {
        // SAFETY: as above; nothing has touched CUDA yet either.
        unsafe { std::env::set_var(variable, gpu) };
    }
    // Without it a write beyond `ulimit -f` is a death without a word; when it cannot be had, nothing else is worse.
    let _ = beampilot::site::signals::survive_file_limit();
    beampilot::cli::main()
}
