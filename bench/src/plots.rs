//! Pictures of a run: a roofline and bar charts, each as SVG and PNG.

use crate::Outcome;
use crate::results::{Clock, Measured, Results};
use crate::table::number;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::fmt::Display;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::OnceLock;

/// Colours that people with a colour-blindness can tell apart (Okabe and Ito 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
];

type Painted = Result<(), String>;

/// Something that can be drawn on any kind of surface.
trait Picture {
    /// Pixels.
    fn size(&self) -> (u32, u32);
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Painted;
}

/// Draws the pictures of a run that it has figures for; files are called `NAME-roofline.svg` and so on.
///
/// # Errors
/// A folder that cannot be written to.
pub fn draw(results: &Results, folder: &Path, name: &str) -> Outcome<()> {
    std::fs::create_dir_all(folder)?;
    if let Some(roofline) = Roofline::of(results) {
        write(&roofline, folder, &format!("{name}-roofline"))?;
    }
    charts(results).iter().try_for_each(|chart| write(chart, folder, &format!("{name}-{}", chart.kind)))
}

/// The pictures that a run has figures for: what its files end with, and what they show.
pub fn kinds(results: &Results) -> Vec<(&'static str, String)> {
    let roofline = Roofline::of(results).map(|roofline| ("roofline", roofline.title));
    roofline.into_iter().chain(charts(results).into_iter().map(|chart| (chart.kind, chart.title))).collect()
}

fn charts(results: &Results) -> Vec<Bars> {
    let all = [ceilings(results), calls(results), fusion(results)];
    all.into_iter().filter(|chart| !chart.rows.is_empty()).collect()
}

/// A picture's title: what it shows, and of which run.
fn title(what: &str, results: &Results) -> String {
    format!("{what}: {}, {}", results.machine.model, results.machine.date)
}

fn write(picture: &impl Picture, folder: &Path, name: &str) -> Outcome<()> {
    static FONT: OnceLock<bool> = OnceLock::new();
    // No font of the system is needed; SVG files name the family only.
    FONT.get_or_init(|| register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular()).is_ok());
    let (width, height) = picture.size();
    let file = folder.join(format!("{name}.svg"));
    let svg = SVGBackend::new(&file, (width, height)).into_drawing_area();
    picture.paint(&svg)?;
    svg.present()?;
    drop(svg);

    let mut pixels = vec![0; (width * height * 3) as usize];
    picture.paint(&BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area())?;
    let mut png = png::Encoder::new(BufWriter::new(File::create(folder.join(format!("{name}.png")))?), width, height);
    png.set_color(png::ColorType::Rgb);
    png.set_depth(png::BitDepth::Eight);
    Ok(png.write_header()?.write_image_data(&pixels)?)
}

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&BLACK)
}

fn said(error: impl Display) -> String {
    error.to_string()
}

/// Arithmetic over bytes, on logarithmic axes, under what the device can do.
struct Roofline {
    title: String,
    /// Name, and points: operations a byte, GFLOPS.
    points: Vec<(String, Vec<(f64, f64)>)>,
    /// Slopes in GB/s and heights in GFLOPS.
    slopes: Vec<(String, f64)>,
    heights: Vec<(String, f64)>,
}

impl Roofline {
    /// `None` where no case has both bytes and operations.
    fn of(results: &Results) -> Option<Roofline> {
        let mut points: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
        for case in results.cases.iter().filter(|case| {
            case.mode == "normal" && case.bytes > 0 && !["fusion", "pool"].contains(&case.group.as_str())
        }) {
            let Some(gflops) = case.gflops() else { continue };
            let point = (case.flops as f64 / case.bytes as f64, gflops);
            match points.iter_mut().find(|(group, _)| *group == case.group) {
                Some((_, list)) => list.push(point),
                None => points.push((case.group.clone(), vec![point])),
            }
        }
        let ceilings = results.ceilings.iter().map(|(name, rate)| (name.clone(), *rate));
        let (heights, mut slopes): (Vec<_>, Vec<_>) = ceilings.partition(|(name, _)| name.starts_with("matmul"));
        slopes.retain(|(name, _)| name == "copy");
        (!points.is_empty()).then(|| Roofline { title: title("Roofline", results), points, slopes, heights })
    }
}

impl Picture for Roofline {
    fn size(&self) -> (u32, u32) {
        (1100, 700)
    }

    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Painted {
        area.fill(&WHITE).map_err(said)?;
        let all = || self.points.iter().flat_map(|(_, list)| list).copied();
        let fold = |pick: fn((f64, f64)) -> f64, with: fn(f64, f64) -> f64| all().map(pick).reduce(with).unwrap_or(1.0);
        let right = fold(|p| p.0, f64::max) * 2.0;
        let left = fold(|p| p.0, f64::min) / 2.0;
        let highest = self.heights.iter().map(|h| h.1).fold(fold(|p| p.1, f64::max), f64::max) * 3.0;
        let lowest = fold(|p| p.1, f64::min) / 2.0;
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, text(24))
            .margin(20)
            .x_label_area_size(55)
            .y_label_area_size(85)
            .build_cartesian_2d((left..right).log_scale(), (lowest..highest).log_scale())
            .map_err(said)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE.mix(0.0))
            .bold_line_style(BLACK.mix(0.12))
            .x_desc("operations a byte moved")
            .y_desc("GFLOPS")
            .label_style(text(16))
            .axis_desc_style(text(18))
            .x_label_formatter(&|x| plain(*x))
            .y_label_formatter(&|y| plain(*y))
            .draw()
            .map_err(said)?;
        let faint = BLACK.mix(0.6);
        for (_, height) in &self.heights {
            chart.draw_series(LineSeries::new([(left, *height), (right, *height)], faint)).map_err(said)?;
        }
        let mut peaks = self.heights.clone();
        peaks.sort_by(|a, b| b.1.total_cmp(&a.1));
        if let Some((_, highest)) = peaks.first() {
            let names = peaks.iter().map(|(name, height)| format!("{name} {}", plain(*height))).collect::<Vec<_>>();
            let style = text(16).pos(Pos::new(HPos::Right, VPos::Bottom));
            let at = (right * 0.9, highest * 1.1);
            chart.draw_series([Text::new(names.join(", ") + " GFLOPS", at, style)]).map_err(said)?;
        }
        for (name, rate) in &self.slopes {
            let end = peaks.first().map_or(highest / 2.0, |peak| peak.1) / rate;
            chart.draw_series(LineSeries::new([(left, left * rate), (end, end * rate)], faint)).map_err(said)?;
            // Left of the line's middle, where no point can be.
            let x = (left * end).sqrt();
            let style = text(16).pos(Pos::new(HPos::Right, VPos::Bottom));
            let words = format!("{name} {} GB/s", number(*rate));
            chart.draw_series([Text::new(words, (x * 0.95, x * rate), style)]).map_err(said)?;
        }
        for ((group, list), colour) in self.points.iter().zip(COLOURS.iter().cycle()) {
            let colour = *colour;
            chart
                .draw_series(list.iter().map(|&point| Circle::new(point, 5, colour.mix(0.75).filled())))
                .map_err(said)?
                .label(group)
                .legend(move |(x, y)| Circle::new((x + 8, y), 6, colour.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.9))
            .border_style(BLACK.mix(0.3))
            .label_font(text(17))
            .draw()
            .map_err(said)
    }
}

/// A number on an axis.
fn plain(value: f64) -> String {
    match value {
        1000.0.. => {
            let digits = format!("{value:.0}");
            let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
            groups.collect::<Vec<_>>().join(",")
        }
        1.0.. => format!("{value:.0}"),
        _ => format!("{}", (value * 1e4).round() / 1e4),
    }
}

/// Horizontal bars, a group of them a row.
struct Bars {
    /// What its file ends with.
    kind: &'static str,
    title: String,
    unit: &'static str,
    /// Names of a row's bars, if there are several.
    series: Vec<&'static str>,
    rows: Vec<(String, Vec<Option<f64>>)>,
    /// A value that a line marks.
    mark: Option<f64>,
    logarithmic: bool,
}

const BAR: i32 = 16;
const LABELS: i32 = 330;
const VALUES: i32 = 90;

impl Bars {
    fn position(&self, value: f64, width: i32) -> i32 {
        let values = || self.rows.iter().flat_map(|(_, values)| values).flatten().copied();
        let largest = values().chain(self.mark).fold(0.0, f64::max);
        let share = if self.logarithmic {
            let smallest = values().fold(f64::MAX, f64::min) / 2.0;
            (value / smallest).ln() / (largest / smallest).ln()
        } else {
            value / largest
        };
        LABELS + (share * f64::from(width - LABELS - VALUES)) as i32
    }
}

impl Picture for Bars {
    fn size(&self) -> (u32, u32) {
        let bars = self.series.len().max(1) as u32;
        (1100, 110 + self.rows.len() as u32 * (bars * BAR as u32 + 8))
    }

    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Painted {
        let (width, height) = (self.size().0 as i32, self.size().1 as i32);
        area.fill(&WHITE).map_err(said)?;
        let write = |words: &str, at: (i32, i32), size: u32, side: HPos| {
            let style = text(size).pos(Pos::new(side, VPos::Center));
            area.draw(&Text::new(words.to_string(), at, style)).map_err(said)
        };
        write(&self.title, (width / 2, 24), 22, HPos::Center)?;
        let mut x = LABELS;
        for (name, colour) in self.series.iter().zip(COLOURS) {
            area.draw(&Rectangle::new([(x, 48), (x + 14, 62)], colour.filled())).map_err(said)?;
            write(name, (x + 20, 55), 16, HPos::Left)?;
            x += 150;
        }
        let scale = if self.logarithmic { ", logarithmic" } else { "" };
        write(&format!("{}{scale}", self.unit), (width - 20, 55), 16, HPos::Right)?;
        let line = |x: i32, colour: RGBAColor| {
            area.draw(&PathElement::new([(x, 70), (x, height - 26)], colour.stroke_width(1))).map_err(said)
        };
        self.mark.map_or(Ok(()), |mark| line(self.position(mark, width), BLACK.mix(0.4)))?;
        let mut y = 76;
        for (label, values) in &self.rows {
            let tall = values.len() as i32 * BAR;
            write(label, (LABELS - 10, y + tall / 2), 15, HPos::Right)?;
            for (i, value) in values.iter().enumerate() {
                let top = y + i as i32 * BAR;
                let Some(value) = value else { continue };
                let end = self.position(*value, width).max(LABELS + 1);
                let bar = Rectangle::new([(LABELS, top), (end, top + BAR - 2)], COLOURS[i % COLOURS.len()].filled());
                area.draw(&bar).map_err(said)?;
                write(&number(*value), (end + 6, top + BAR / 2 - 1), 14, HPos::Left)?;
            }
            y += tall + 8;
        }
        line(LABELS, BLACK.mix(1.0))
    }
}

fn label(case: &Measured) -> String {
    format!("{} {} {}", case.operation, case.size, case.dtype)
}

/// How near cases come to what bounds them: large ones, since small ones live in caches and in launches.
fn ceilings(results: &Results) -> Bars {
    let large = |case: &&Measured| {
        case.mode == "normal"
            && case.group != "fusion"
            && match case.ceiling.as_deref() {
                Some(name) if name.starts_with("matmul") => case.flops >= 200_000_000,
                _ => case.bytes >= results.uncached_bytes,
            }
    };
    let rows = results.cases.iter().filter(large).filter_map(|case| {
        let ceiling = case.ceiling.as_deref()?.split(' ').next()?;
        Some((format!("{} ({ceiling})", label(case)), vec![case.fraction.map(|fraction| 100.0 * fraction)]))
    });
    Bars {
        kind: "ceilings",
        title: title("Share of the ceiling", results),
        unit: "per cent of the best rate measured in this run",
        series: Vec::new(),
        rows: rows.collect(),
        mark: Some(100.0),
        logarithmic: false,
    }
}

/// The clocks of small and middling cases.
fn calls(results: &Results) -> Bars {
    // Runs from before a clock was added have no bars for it.
    let has = |clock: &Clock| results.cases.iter().any(|case| case.times.contains_key(clock));
    let clocks: Vec<Clock> = Clock::OF_CALLS.into_iter().filter(has).collect();
    let wanted = |case: &&Measured| match case.group.as_str() {
        "elementwise" => ["1K", "1M"].contains(&case.size.as_str()) && case.operation != "mul",
        "matmul" => ["64x64", "512x512", "1024x1024"].contains(&case.size.as_str()),
        "training" => true,
        _ => false,
    };
    let time = |case: &Measured| clocks.iter().map(|clock| Some(case.times.get(clock)?.median)).collect();
    Bars {
        kind: "calls",
        title: title("A call by each clock", results),
        unit: "microseconds",
        series: clocks.iter().map(|clock| clock.name()).collect(),
        rows: results.cases.iter().filter(wanted).map(|case| (label(case), time(case))).collect(),
        mark: None,
        logarithmic: true,
    }
}

/// How much longer the ops take one kernel each.
fn fusion(results: &Results) -> Bars {
    let rows = results.fusion().map(|(fused, unfused)| {
        let ratio = fused.time().zip(unfused.time()).map(|(fused, unfused)| unfused.median / fused.median);
        (format!("{}, {} kernels to {}", label(fused), unfused.kernels, fused.kernels), vec![ratio])
    });
    Bars {
        kind: "fusion",
        title: title("Fusion", results),
        unit: "time of unfused kernels over that of the fused one",
        series: Vec::new(),
        rows: rows.collect(),
        mark: Some(1.0),
        logarithmic: false,
    }
}
