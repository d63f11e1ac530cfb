//! Calibration of one point here and now, without a pilot.

use super::bright;
use super::calibrate::{Calibration, calibrate as search};
use super::recipe::{Method, Recipe};
use super::source::Point;
use super::tasks::APART;
use crate::technique::tomography::reconstruct::{ReconstructError, scan_of};
use crate::technique::{Fault, RecipeError};
use std::collections::BTreeMap;
use std::path::Path;

/// Calibrates the mask's pose on the point at `path`; files that the recipe names are relative to the working folder.
///
/// # Errors
/// A recipe without a mask, a point that cannot be read, or too few bright pixels.
pub fn calibrate(path: &Path, table: &toml::Table) -> Result<Calibration, ReconstructError> {
    let here = std::env::current_dir().map_err(|e| Fault::reading(Path::new("."), &e))?;
    let recipe = Recipe::parse(table, &here)?;
    let Method::Aperture(setup) = &recipe.method else {
        let (problem, remedy) =
            ("a wire has no mask to calibrate".to_owned(), "write method = \"aperture\"".to_owned());
        return Err(RecipeError { key: "method".to_owned(), problem, remedy }.into());
    };
    let options = recipe.calibrate.clone().unwrap_or_default();
    let scan = scan_of(path, &BTreeMap::new(), &super::Laue)?;
    let point = Point::of(&scan, &recipe)?;
    let image = bright::mean_image(&point)?;
    let peaks = bright::peaks(&image, &point, setup.threshold, options.spots, APART);
    let pixels = bright::decode(&point, &recipe, &peaks)?;
    let found = search(setup, point.region, &pixels, &options);
    Ok(found.map_err(|e| Fault::Input(format!("{}: {e}", path.display())))?)
}
