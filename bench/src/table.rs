//! The table of a run, as text.

use crate::results::{Clock, Measured, Results};

/// A section a group.
pub fn text(results: &Results) -> String {
    let mut text = format!("{}, {}\n", results.machine.describe(), results.machine.date);
    for (name, rate) in &results.ceilings {
        text += &format!("best {name}: {rate:.1} {}\n", unit(name));
    }
    let mut group = "";
    for case in &results.cases {
        if case.group != group {
            group = &case.group;
            text += &format!("\n{group}\n{}\n", header());
        }
        text += &(line(case) + "\n");
    }
    text
}

/// What a ceiling is counted in.
pub fn unit(ceiling: &str) -> &'static str {
    if ceiling.starts_with("matmul") { "GFLOPS" } else { "GB/s" }
}

fn header() -> String {
    let columns =
        ["device us", "capt. us", "amort. us", "sync. us", "p10", "p90", "GFLOPS", "GB/s", "ceiling", "kernels"];
    let columns: String = columns.iter().map(|name| format!("{name:>11}")).collect();
    format!("{:<27}{:<13}{:<5}{columns}", "case", "size", "dtype")
}

/// A case; the tenths are those of the last clock that it has.
fn line(case: &Measured) -> String {
    let mode = if case.mode == "normal" { String::new() } else { format!(", {}", case.mode) };
    let start = format!("{:<27}{:<13}{:<5}", case.operation.clone() + &mode, case.size, case.dtype);
    if let Some(error) = &case.error {
        return format!("{start} {error}");
    }
    let mut cells = Clock::OF_CALLS.map(|clock| case.times.get(&clock).map(|spread| spread.median)).to_vec();
    if let Some(host) = case.times.get(&Clock::Host) {
        cells[2] = Some(host.median);
    }
    let last = case.times.values().last();
    cells.extend([last.map(|spread| spread.p10), last.map(|spread| spread.p90), case.gflops(), case.gb_s()]);
    let mut line = start;
    for cell in cells {
        line += &cell.map_or(format!("{:>11}", "-"), |value| format!("{:>11}", number(value)));
    }
    let share = case.fraction.map_or("-".into(), |fraction| format!("{:.0}%", 100.0 * fraction));
    line + &format!("{share:>11}{:>11}", case.kernels)
}

/// Three digits or more.
pub fn number(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        0.1.. => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}
