//! The one executable; see [`beampilot::cli`].
fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
