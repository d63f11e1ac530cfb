//! `beampilot calibrate`: the pose of a coded mask, from a point on a thin film.

use super::reconstruct::{entry, failed, recipe_table};
use super::{Exit, OrExit};
use crate::technique::Fault;
use crate::technique::laue::calibrate::{Calibration, PARAMETERS, picture};
use crate::technique::laue::job::calibrate;
use anyhow::anyhow;
use std::path::PathBuf;

/// Calibrates the pose of a coded mask on a point measured on a thin film.
///
/// Prints the pose as the recipe's `[stream.recipe.mask]` takes it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  beampilot calibrate film_001.h5 --recipe configuration=config.yml calibrate.film_um=0 \\
      --picture objective.svg")]
pub struct Args {
    /// The point: a file, or a folder of files.
    #[arg(value_name = "POINT")]
    pub point: PathBuf,
    /// Recipe entries, as for `reconstruct`; `calibrate.film_um` is the film's depth when it is known.
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., value_parser = entry)]
    pub recipe: Vec<(String, toml::Value)>,
    /// Draw the objective around the pose found.
    #[arg(long, value_name = "FILE.svg")]
    pub picture: Option<PathBuf>,
    /// Print everything as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    if !args.point.exists() {
        let what = anyhow!("{}: there is no such file", args.point.display());
        return Err(what).or_exit(Exit::NoInput);
    }
    let found = calibrate(&args.point, &recipe_table(&args.recipe)).map_err(failed)?;
    if let Some(path) = &args.picture {
        let svg = picture(&found).map_err(|e| super::fault(&Fault::Task(e)))?;
        std::fs::write(path, svg).map_err(|e| super::fault(&Fault::writing(path, &e)))?;
    }
    if args.json {
        super::print_json(&found)?;
    } else {
        super::print(&text(&found))?;
    }
    Ok(Exit::Done)
}

fn text(c: &Calibration) -> String {
    let names: Vec<&str> = PARAMETERS.iter().map(|p| p.0).collect();
    let list = |v: [f64; 3]| format!("[{:.6}, {:.6}, {:.6}]", v[0], v[1], v[2]);
    let idle = if c.without_effect.is_empty() {
        String::new()
    } else {
        format!("; without effect: {}", c.without_effect.join(", "))
    };
    format!(
        "# {} pixels; spread of depths {:.2} um before, {:.2} um after; sharpness {:.4} before, {:.4} after\n# searched: {}{idle}\n\
         center_mm = {}\nangles_deg = {}\n",
        c.pixels,
        c.spread_um.0,
        c.spread_um.1,
        c.sharpness.0,
        c.sharpness.1,
        names.join(", "),
        list(c.pose.centre_mm),
        list(c.pose.angles_deg),
    )
}
