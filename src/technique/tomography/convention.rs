//! One convention for axes, rotation centre and direction of rotation, and the conversions to it.
//!
//! * Detector column `u` is a zero-based pixel index; pixel `u` covers `[u − ½, u + ½)`. The **centre** `c` of a scan is the
//!   column onto which the rotation axis projects, in the same zero-based index: of `N` pixels the middle is `N/2 − ½`.
//! * A sinogram is `[angle, column]`, a slab of them `[row, angle, column]`; detector data are `[angle, row, column]`.
//! * An image is `[y, x]`, `N × N` pixels of the detector's pixel size, its middle `(N − 1)/2` on the rotation axis whatever
//!   the centre is. Coordinates in pixels from the axis: `x = ix − (N−1)/2` to the right, `y = (N−1)/2 − iy` **upwards**
//!   (row 0 is the top).
//! * Angle `θ` in radians; the ray that hits column `u` is the line `x cos θ + y sin θ = u − c`. At `θ = 0` the columns run
//!   along `+x`; as `θ` grows the detector's column axis turns counter-clockwise in the displayed image (the specimen
//!   turns clockwise before a fixed detector). Scans that turn the other way are read with negated angles.
//! * Values are line integrals per pixel; see [`per_cm`] for physical units.

/// Centre of a row of `columns` pixels in this convention: `columns/2 − ½`.
#[must_use]
pub fn middle(columns: usize) -> f64 {
    columns as f64 / 2.0 - 0.5
}

/// From a centre that counts pixel *edges* (the left edge of the first pixel is 0, so the middle is `N/2`).
#[must_use]
pub fn from_edge(centre: f64) -> f64 {
    centre - 0.5
}

/// To a centre that counts pixel edges (the left edge of the first pixel is 0).
#[must_use]
pub fn to_edge(centre: f64) -> f64 {
    centre + 0.5
}

/// From a one-based pixel index (the first pixel's middle is 1).
#[must_use]
pub fn from_one_based(centre: f64) -> f64 {
    centre - 1.0
}

/// From an offset of the axis relative to the middle of the detector, in pixels, positive towards higher columns.
#[must_use]
pub fn from_offset(offset: f64, columns: usize) -> f64 {
    middle(columns) + offset
}

/// To an offset of the axis relative to the middle of the detector, in pixels, positive towards higher columns.
#[must_use]
pub fn to_offset(centre: f64, columns: usize) -> f64 {
    centre - middle(columns)
}

/// The centre after the detector's columns are reversed.
#[must_use]
pub fn mirrored(centre: f64, columns: usize) -> f64 {
    columns as f64 - 1.0 - centre
}

/// The centre after binning `factor` columns into one (pixel edges stay where they are).
#[must_use]
pub fn binned(centre: f64, factor: usize) -> f64 {
    (centre + 0.5) / factor as f64 - 0.5
}

/// The centre after the first `first` columns are cut off.
#[must_use]
pub fn cropped(centre: f64, first: usize) -> f64 {
    centre - first as f64
}

/// Factor that turns an attenuation coefficient per pixel into one per centimetre.
#[must_use]
pub fn per_cm(pixel_size_cm: f64) -> f64 {
    1.0 / pixel_size_cm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_lies_between_pixels_when_their_number_is_even() {
        assert_eq!(middle(4), 1.5);
        assert_eq!(middle(5), 2.0);
    }

    #[test]
    fn conversions_are_inverse_and_agree_on_the_middle() {
        assert_eq!(from_edge(to_edge(295.0)), 295.0);
        assert_eq!(from_edge(320.0), middle(640));
        assert_eq!(from_one_based(3.0), middle(5));
        assert_eq!(to_offset(from_offset(-3.25, 640), 640), -3.25);
        assert_eq!(mirrored(middle(640), 640), middle(640));
        assert_eq!(mirrored(0.0, 640), 639.0);
        assert_eq!(binned(middle(640), 2), middle(320));
        assert_eq!(binned(0.5, 2), 0.0);
        assert_eq!(cropped(295.0, 5), 290.0);
    }

    #[test]
    fn a_pixel_of_ten_micrometres_gives_a_thousand_per_cm() {
        assert!((per_cm(1e-3) - 1e3).abs() < 1e-9);
    }
}
