//! The loss curve.

use plotters::prelude::*;
use std::path::Path;

/// Draws the loss of each step, and of the text that was held out, after how many steps.
pub fn plot(path: &Path, losses: &[f32], held_out: &[[f32; 2]]) -> Result<(), Box<dyn std::error::Error>> {
    if path.extension().is_none_or(|e| e != "svg") {
        return Err("only SVG can be drawn; name the file .svg".into());
    }
    // For the extents of letters; the file names the family only.
    let known = plotters::style::register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular());
    known.map_err(|_| "no font")?;
    let top = losses.iter().copied().filter(|loss| loss.is_finite()).fold(0f32, f32::max).max(1e-6) * 1.05;
    let area = SVGBackend::new(path, (800, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Loss: each step (blue), held out (red)", ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0f32..losses.len().max(10) as f32, 0f32..top)?;
    let whole = |step: &f32| format!("{step:.0}");
    chart
        .configure_mesh()
        .x_desc("step")
        .x_label_formatter(&whole)
        .y_desc("mean cross entropy")
        .light_line_style(WHITE)
        .draw()?;
    let steps = losses.iter().enumerate().map(|(i, &loss)| ((i + 1) as f32, loss));
    chart.draw_series(LineSeries::new(steps, BLUE.stroke_width(1)))?;
    chart.draw_series(LineSeries::new(held_out.iter().map(|&[step, loss]| (step, loss)), RED.stroke_width(2)))?;
    area.present()?;
    Ok(())
}
