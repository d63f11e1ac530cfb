//! Candidate centres side by side: one picture from which a person picks the rotation axis.
//!
//! Slices in a grid from left to right and down, each under its label, all with the grey window of the middle one. Only
//! the square inside the circle of reconstruction is shown (that is where the arcs of a wrong axis show), averaged down to at
//! most [`TILE`] pixels.

use super::preview::{Window, window};
use ndarray::{Array2, ArrayView2, s};

/// Longest side of a slice in the picture.
pub const TILE: usize = 360;
/// Slices side by side.
pub const ACROSS: usize = 5;
/// Pixels between slices.
const GAP: usize = 8;
/// Height of a label's letters, of which each pixel is doubled.
const LETTER: (usize, usize) = (5, 7);
const SCALE: usize = 2;

/// An 8-bit grey picture of the slices under their labels.
#[must_use]
pub fn picture(slices: &[(String, Array2<f32>)]) -> Array2<u8> {
    let Some((_, middle)) = slices.get(slices.len() / 2) else {
        return Array2::zeros((1, 1));
    };
    let grey = window(middle.view(), true);
    let tiles: Vec<Array2<u8>> = slices.iter().map(|(_, image)| tile(image.view(), grey)).collect();
    let (high, wide) = tiles.iter().fold((1, 1), |(h, w), t| (t.nrows().max(h), t.ncols().max(w)));
    let head = LETTER.1 * SCALE + GAP;
    let across = slices.len().min(ACROSS);
    let down = slices.len().div_ceil(ACROSS);
    let mut out = Array2::zeros((down * (high + head + GAP) + GAP, across * (wide + GAP) + GAP));
    for (i, ((label, _), tile)) in slices.iter().zip(&tiles).enumerate() {
        let (y, x) = (GAP + i / ACROSS * (high + head + GAP), GAP + i % ACROSS * (wide + GAP));
        write(&mut out, label, y, x, x + wide);
        out.slice_mut(s![y + head..y + head + tile.nrows(), x..x + tile.ncols()]).assign(tile);
    }
    out
}

/// The inscribed square, reduced by averaging.
fn tile(image: ArrayView2<'_, f32>, grey: Window) -> Array2<u8> {
    let cut = |n: usize| ((n as f64 * (1.0 - 0.5_f64.sqrt()) / 2.0) as usize, n);
    let ((top, h), (left, w)) = (cut(image.nrows()), cut(image.ncols()));
    let image = image.slice(s![top..(h - top).max(top + 1), left..(w - left).max(left + 1)]);
    let factor = image.nrows().max(image.ncols()).div_ceil(TILE);
    let scale = 255.0 / (grey.high - grey.low);
    Array2::from_shape_fn((image.nrows().div_ceil(factor), image.ncols().div_ceil(factor)), |(y, x)| {
        let end = |at: usize, n: usize| ((at + 1) * factor).min(n);
        let block = image.slice(s![y * factor..end(y, image.nrows()), x * factor..end(x, image.ncols())]);
        // `as` saturates, and turns NaN into 0.
        ((block.sum() / block.len() as f32 - grey.low) * scale + 0.5) as u8
    })
}

/// Writes a number, white, as far as there is room.
fn write(out: &mut Array2<u8>, text: &str, y: usize, x: usize, end: usize) {
    let (wide, high) = (LETTER.0 * SCALE, LETTER.1 * SCALE);
    for (i, letter) in text.chars().enumerate() {
        let left = x + i * (wide + SCALE);
        if left + wide > end.min(out.ncols()) || y + high > out.nrows() {
            return;
        }
        for (row, bits) in glyph(letter).into_iter().enumerate() {
            for column in 0..LETTER.0 {
                if bits >> (LETTER.0 - 1 - column) & 1 == 1 {
                    let (top, left) = (y + row * SCALE, left + column * SCALE);
                    out.slice_mut(s![top..top + SCALE, left..left + SCALE]).fill(255);
                }
            }
        }
    }
}

/// Rows of a letter, five bits each; what is not of numbers is blank.
fn glyph(letter: char) -> [u8; 7] {
    match letter {
        '0' => [0b01110, 0b10001, 0b10011, 0b10101, 0b11001, 0b10001, 0b01110],
        '1' => [0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
        '2' => [0b01110, 0b10001, 0b00001, 0b00010, 0b00100, 0b01000, 0b11111],
        '3' => [0b11111, 0b00010, 0b00100, 0b00010, 0b00001, 0b10001, 0b01110],
        '4' => [0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010],
        '5' => [0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110],
        '6' => [0b00110, 0b01000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110],
        '7' => [0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000],
        '8' => [0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110],
        '9' => [0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100],
        '.' => [0, 0, 0, 0, 0, 0b01100, 0b01100],
        '-' => [0, 0, 0, 0b11111, 0, 0, 0],
        _ => [0; 7],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_stand_in_a_grid_under_their_labels() {
        let slices: Vec<(String, Array2<f32>)> = (0..7)
            .map(|i| (format!("{}.25", 290 + i), Array2::from_shape_fn((100, 100), |(y, x)| (y + x * i) as f32)))
            .collect();
        let picture = picture(&slices);
        // Tiles of 72 pixels: 100 less twice ⌊100 (1 − √½)/2⌋.
        assert_eq!(picture.dim(), (2 * (72 + 22 + 8) + 8, 5 * 80 + 8));
        // Every label has ink, and between the tiles is nothing.
        for i in 0..7 {
            let (y, x) = (8 + i / 5 * 102, 8 + i % 5 * 80);
            assert!(picture.slice(s![y..y + 14, x..x + 72]).iter().any(|&p| p == 255), "{i}");
            assert!(picture.slice(s![y.., x + 72..x + 80]).iter().all(|&p| p == 0));
        }
        // Different numbers look different.
        assert_ne!(picture.slice(s![8..22, 8..80]), picture.slice(s![8..22, 88..160]));
    }

    #[test]
    fn odd_inputs_make_pictures() {
        assert_eq!(picture(&[]).dim(), (1, 1));
        for edge in [1, 2, 1500] {
            let made = picture(&[("1".into(), Array2::from_elem((edge, edge), f32::NAN))]);
            assert!(made.ncols() <= TILE + 2 * GAP);
        }
    }
}
