//! The emulated device: the stand-in for CUDA's libraries, built from `kernels/emulation` by the host's compiler.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Folder with `libcuda.so`, `libcufft.so`, `libnvrtc.so` and `libnvidia-ml.so.1`, all of them the emulation.
pub fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emulation");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulation");
        std::fs::create_dir_all(&folder).unwrap();
        let newest = ["driver.cpp", "engine.h", "interface.h"]
            .map(|f| std::fs::metadata(source.join(f)).unwrap().modified().unwrap())
            .into_iter()
            .max();
        let library = folder.join("libcuda.so");
        let built = std::fs::metadata(&library).and_then(|m| m.modified()).ok();
        if built < newest {
            // Another test program may be building it, too: the last rename wins, both are the same.
            let own = folder.join(format!("libcuda.{}", std::process::id()));
            let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
            let run = |arguments: &[&str]| {
                let output =
                    Command::new(&compiler).args(arguments).output().expect("a C++ compiler; see scripts/setup.sh");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            };
            let text = |p: &Path| p.to_str().unwrap().to_owned();
            let define = format!("-DEMULATION_FOLDER=\"{}\"", text(&source));
            let (own, driver) = (text(&own), text(&source.join("driver.cpp")));
            run(&[
                "-std=c++17",
                "-O2",
                "-fPIC",
                "-shared",
                &define,
                "-Wl,-soname,libcuda.so",
                "-o",
                &own,
                &driver,
                "-ldl",
            ]);
            for name in ["libcufft.so", "libnvrtc.so", "libnvidia-ml.so.1"] {
                let soname = format!("-Wl,-soname,{name}");
                let out = format!("{own}.{name}");
                run(&["-shared", &soname, "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN", "-o", &out, &own]);
                std::fs::rename(&out, folder.join(name)).unwrap();
            }
            std::fs::rename(&own, &library).unwrap();
        }
        folder
    })
}
