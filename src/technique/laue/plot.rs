//! Pictures of curves, as SVG: no font and no screen is needed to make them.

use plotters::prelude::*;

/// A line and its name.
pub struct Curve<'a> {
    /// Shown in the legend; none when empty.
    pub name: &'a str,
    /// Points.
    pub points: Vec<(f64, f64)>,
}

/// One set of axes.
pub struct Panel<'a> {
    /// Above it.
    pub title: &'a str,
    /// Below it, with unit.
    pub x: &'a str,
    /// Beside it, with unit.
    pub y: &'a str,
    /// Lines.
    pub curves: Vec<Curve<'a>>,
    /// Logarithmic vertical axis: not positive values are left out.
    pub log: bool,
    /// A mark on the horizontal axis.
    pub mark: Option<f64>,
}

const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(90, 90, 90),
];

/// Panels side by side, `across` of them in a row.
///
/// # Errors
/// What the drawing library says.
pub fn svg(panels: &[Panel<'_>], across: usize, size: (u32, u32)) -> Result<String, String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE).map_err(|e| e.to_string())?;
        let across = across.max(1);
        for (area, panel) in root.split_evenly((panels.len().div_ceil(across), across)).iter().zip(panels) {
            draw(area, panel)?;
        }
        root.present().map_err(|e| e.to_string())?;
    }
    Ok(text)
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.filter(|v| v.is_finite()).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    match (low <= high, high > low) {
        (false, _) => (0.0, 1.0),
        (true, false) => (low - 0.5, low + 0.5),
        _ => (low, high),
    }
}

fn draw(area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>, panel: &Panel<'_>) -> Result<(), String> {
    let shown = |v: f64| if panel.log { v.log10() } else { v };
    let kept = |p: &&(f64, f64)| p.0.is_finite() && shown(p.1).is_finite();
    let all = || panel.curves.iter().flat_map(|c| c.points.iter()).filter(kept);
    let (x0, x1) = range(all().map(|p| p.0));
    let (y0, y1) = range(all().map(|p| shown(p.1)));
    let pad = 0.05 * (y1 - y0);
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(38)
        .y_label_area_size(64)
        .build_cartesian_2d(x0..x1, y0 - pad..y1 + pad)
        .map_err(|e| e.to_string())?;
    let log = panel.log;
    chart
        .configure_mesh()
        .x_desc(panel.x)
        .y_desc(panel.y)
        .x_labels(6)
        .y_labels(6)
        .light_line_style(TRANSPARENT)
        .y_label_formatter(&|v| if log { format!("{:.1e}", 10f64.powf(*v)) } else { format!("{v:.3}") })
        .draw()
        .map_err(|e| e.to_string())?;
    if let Some(mark) = panel.mark {
        chart
            .draw_series(LineSeries::new([(mark, y0 - pad), (mark, y1 + pad)], RGBColor(160, 160, 160)))
            .map_err(|e| e.to_string())?;
    }
    for (curve, colour) in panel.curves.iter().zip(COLOURS.iter().cycle()) {
        let points: Vec<(f64, f64)> = curve.points.iter().filter(kept).map(|p| (p.0, shown(p.1))).collect();
        let series = chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))
            .map_err(|e| e.to_string())?;
        if !curve.name.is_empty() {
            let colour = *colour;
            series
                .label(curve.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        if points.len() <= 40 {
            chart.draw_series(points.iter().map(|&p| Circle::new(p, 3, colour.filled()))).map_err(|e| e.to_string())?;
        }
    }
    if panel.curves.iter().any(|c| !c.name.is_empty()) {
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(RGBColor(200, 200, 200))
            .draw()
            .map_err(|e| e.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_curves_make_pictures_too() {
        let curves = |points: &[(f64, f64)]| vec![Curve { name: "a & b", points: points.to_vec() }];
        for points in [&[][..], &[(1.0, 1.0)], &[(0.0, f64::NAN), (1.0, 0.0), (2.0, 5.0)]] {
            for log in [false, true] {
                let panel = Panel { title: "t", x: "x", y: "y", curves: curves(points), log, mark: Some(0.5) };
                let text = svg(&[panel], 1, (300, 200)).unwrap();
                assert!(text.contains("</svg>") && !text.contains("NaN"), "{text}");
            }
        }
    }
}
