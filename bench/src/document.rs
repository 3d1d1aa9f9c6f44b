//! `docs/gpu_optimization.md`: the state of optimisation, made of saved runs.

use crate::plots;
use crate::results::{Clock, Measured, Results};
use crate::table::{number, unit};
use std::fmt::Write;

const PRACTICE: &str = include_str!("document/practice.md");
const TITLE: &str = include_str!("document/title.md");
const EPILOGUES: &str = include_str!("document/epilogues.md");
const HOST: &str = include_str!("document/host.md");
const POOL: &str = include_str!("document/pool.md");
const FUSION: &str = include_str!("document/fusion.md");

/// Cases that the analysis names at either end.
const NAMED: usize = 8;

/// The document of several runs, each with the name of its file. Its pictures are looked for in `figures/`.
pub fn document(runs: &[(String, Results)]) -> String {
    let files: Vec<String> = runs.iter().map(|(name, _)| format!("docs/results/{name}.json")).collect();
    let command = format!(
        "```bash\ncargo run --release -p tensorlogic-cli -- bench --document {} \\\n    --plots docs/figures > \
         docs/gpu_optimization.md\n```\n",
        files.join(" ")
    );
    let mut text = [TITLE, &command, &honesty(runs), CLOCKS].join("\n");
    for (name, run) in runs {
        text += &performance(name, run);
    }
    text += "## Implemented optimisations\n\n";
    text += POOL;
    each(&mut text, runs, pool);
    text += FUSION;
    each(&mut text, runs, fusion);
    text += EPILOGUES;
    each(&mut text, runs, epilogues);
    text += HOST;
    each(&mut text, runs, host);
    text += "## Analysis\n\nOf large cases, which neither caches nor launches decide.\n\n";
    each(&mut text, runs, analysis);
    text + PRACTICE
}

const CLOCKS: &str = include_str!("document/clocks.md");

/// What the runs do not say.
fn honesty(runs: &[(String, Results)]) -> String {
    let devices: Vec<String> =
        runs.iter().map(|(_, run)| format!("{} ({})", run.machine.model, run.machine.date)).collect();
    let gpu = runs.iter().any(|(_, run)| run.machine.device != "cpu");
    let none = if gpu { "" } else { "There is no run of a GPU among them yet. " };
    format!("Measured: {}. {none}Nothing was measured on Apple hardware.\n", devices.join(", "))
}

/// What each run has to say of a thing, under the run's name; nothing where it has nothing.
fn each(text: &mut String, runs: &[(String, Results)], table: fn(&Results) -> Option<String>) {
    for (_, run) in runs {
        if let Some(table) = table(run) {
            let _ = write!(text, "{}, {}:\n\n{table}\n", run.machine.model, run.machine.date);
        }
    }
}

/// A table with a head, where there are rows. Columns after `words` are numbers.
fn rows(heads: &[&str], words: usize, rows: Vec<Vec<String>>) -> Option<String> {
    if rows.is_empty() {
        return None;
    }
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule: Vec<String> = (0..heads.len()).map(|i| if i < words { "---" } else { "---:" }.into()).collect();
    let heads: Vec<String> = heads.iter().map(|head| head.to_string()).collect();
    Some(line(&heads) + &line(&rule) + &rows.iter().map(|row| line(row)).collect::<String>())
}

fn performance(name: &str, run: &Results) -> String {
    let machine = &run.machine;
    let mut text = format!("### {}\n\n", machine.model);
    let _ = write!(text, "{} threads, {}, {}. ", machine.threads, machine.simd, machine.system);
    let commit = machine.commit.as_ref().map_or(String::new(), |commit| format!(" ({commit})"));
    let _ = writeln!(text, "TensorLogic {}{commit}, {}.", machine.version, machine.date);
    let arguments = machine.arguments.iter().filter(|argument| *argument != "bench");
    let arguments: String = arguments.map(|argument| format!(" {argument}")).collect();
    let _ = writeln!(text, "Command: `tl bench{arguments}`.");
    if let Some(driver) = &machine.driver {
        let _ = writeln!(text, "Driver {driver}.");
    }
    if let Some(load) = machine.load.filter(|_| machine.device == "cpu") {
        let quiet = if load < 0.5 { "quiet" } else { "shared with other work, so that times are too long" };
        let _ = writeln!(text, "When the run began, {load:.1} processes wanted to run: the machine was {quiet}.");
    }
    let ceilings = run.ceilings.iter().map(|(name, rate)| format!("{name} {} {}", number(*rate), unit(name)));
    let _ = writeln!(text, "Ceilings: {}.\n", ceilings.collect::<Vec<_>>().join(", "));
    let heads = [
        "category",
        "operation",
        "size",
        "dtype",
        "performance",
        "ceiling",
        "device",
        "captured",
        "amortised",
        "synchr.",
        "status",
    ];
    text += &rows(&heads, 4, headline(run).map(|case| metrics(run, case)).collect()).unwrap_or_default();
    for (kind, title) in plots::kinds(run) {
        let _ = write!(text, "\n![{title}](figures/{name}-{kind}.svg)\n");
    }
    text + "\n"
}

/// The cases of the metrics table: the seed's sizes, and the largest.
fn headline(run: &Results) -> impl Iterator<Item = &Measured> {
    run.cases.iter().filter(move |case| {
        let largest = |case: &Measured| {
            let size = |case: &Measured| case.shapes.iter().map(|shape| shape.iter().product::<usize>()).sum::<usize>();
            let same =
                run.group(&case.group).filter(|other| other.operation == case.operation && other.dtype == case.dtype);
            same.map(size).max() == Some(size(case))
        };
        let chosen = match case.group.as_str() {
            "matmul" => case.size == "1024x1024" || largest(case),
            "elementwise" => case.size == "1M" || largest(case),
            "transfers" => case.size == "102K" || largest(case),
            "rows" => case.size == "4096x1024" || case.operation == "softmax" && largest(case),
            "chains" | "epilogues" | "transpose" => largest(case),
            "training" => true,
            _ => false,
        };
        chosen && case.error.is_none()
    })
}

fn metrics(run: &Results, case: &Measured) -> Vec<String> {
    let category = match (case.group.as_str(), case.operation.as_str()) {
        ("matmul" | "epilogues", _) => "compute",
        ("transfers" | "transpose", _) => "memory",
        ("rows", _) | ("elementwise", "sum") => "reduction",
        ("elementwise", "relu" | "gelu") => "activation",
        ("elementwise", _) => "elementwise",
        (group, _) => group,
    };
    let share = case.fraction.map_or("-".into(), |fraction| format!("{:.0}%", 100.0 * fraction));
    let mut cells: Vec<String> = [category, &case.operation, &case.size, &case.dtype].map(String::from).into();
    cells.extend([performance_of(case), share]);
    cells
        .extend(Clock::OF_CALLS.map(|clock| case.times.get(&clock).map_or("-".into(), |spread| number(spread.median))));
    cells.push(status(run, case).into());
    cells
}

/// In the unit that bounds it.
fn performance_of(case: &Measured) -> String {
    let product = case.ceiling.as_deref().is_some_and(|name| name.starts_with("matmul")) || case.bytes == 0;
    let (rate, unit) = if product { (case.gflops(), "GFLOPS") } else { (case.gb_s(), "GB/s") };
    rate.map_or("-".into(), |rate| format!("{} {unit}", number(rate)))
}

/// Whether neither caches nor launches decide.
fn is_large(run: &Results, case: &Measured) -> bool {
    match case.ceiling.as_deref() {
        Some(name) if name.starts_with("matmul") => case.flops >= 200_000_000,
        Some(_) => case.bytes >= run.uncached_bytes,
        None => false,
    }
}

fn status(run: &Results, case: &Measured) -> &'static str {
    match case.fraction {
        None => "-",
        Some(_) if !is_large(run, case) => "small",
        Some(0.9..) => "at the ceiling",
        Some(0.6..) => "good",
        Some(_) => "can improve",
    }
}

fn us(case: &Measured) -> f64 {
    case.time().map_or(f64::NAN, |time| time.median)
}

fn label(case: &Measured) -> Vec<String> {
    [&case.operation, &case.size, &case.dtype].map(String::clone).into()
}

/// Amortised: what memory costs is the host's time.
fn pool(run: &Results) -> Option<String> {
    let line = |(pooled, fresh): (&Measured, &Measured)| {
        let [with, without] = [pooled, fresh].map(|case| case.times.get(&Clock::Amortised));
        let (with, without) = (with?.median, without?.median);
        let mut cells = label(pooled);
        cells.extend([number(with), number(without), format!("{:.2}", without / with)]);
        Some(cells)
    };
    let heads = ["operation", "size", "dtype", "pool us", "no pool us", "times as long"];
    rows(&heads, 3, run.pairs("pool", "no pool").filter_map(line).collect())
}

fn fusion(run: &Results) -> Option<String> {
    let line = |(fused, unfused): (&Measured, &Measured)| {
        let mut cells = label(fused);
        cells.push(format!("{} for {}", fused.kernels, unfused.kernels));
        cells.extend([fused.bytes, unfused.bytes].map(|bytes| format!("{:.2}", bytes as f64 / 1e6)));
        cells.extend([number(us(fused)), number(us(unfused)), format!("{:.2}", us(unfused) / us(fused))]);
        cells
    };
    let heads =
        ["operation", "size", "dtype", "kernels", "MB moved", "unfused MB", "us", "unfused us", "times as long"];
    rows(&heads, 4, run.fusion().map(line).collect())
}

fn epilogues(run: &Results) -> Option<String> {
    let line = |case: &Measured| {
        let alone = |other: &&Measured| other.size == case.size && other.dtype == case.dtype;
        let plain = run.group("matmul").find(alone)?;
        let mut cells = label(case);
        cells.extend([number(us(case)), number(us(plain)), format!("{:.2}", us(case) / us(plain))]);
        Some(cells)
    };
    let heads = ["operation", "size", "dtype", "us", "matmul alone us", "times as long"];
    rows(&heads, 3, run.group("epilogues").filter_map(line).collect())
}

fn host(run: &Results) -> Option<String> {
    let line = |case: &Measured| {
        let spread = case.time()?;
        let cells = [spread.min, spread.median, spread.p90].map(|us| format!("{:.0}", 1e3 * us));
        Some([case.operation.clone()].into_iter().chain(cells).collect())
    };
    rows(&["what", "least", "median", "90 of 100 below"], 1, run.group("host").filter_map(line).collect())
}

fn analysis(run: &Results) -> Option<String> {
    let large = |case: &&Measured| case.mode == "normal" && case.group != "fusion" && is_large(run, case);
    let mut cases: Vec<(f64, &Measured)> =
        run.cases.iter().filter(large).filter_map(|case| Some((case.fraction?, case))).collect();
    cases.sort_by(|a, b| b.0.total_cmp(&a.0));
    if cases.is_empty() {
        return None;
    }
    let named = |list: &[(f64, &Measured)]| {
        let name = |(share, case): &(f64, &Measured)| format!("{} ({:.0}%)", label(case).join(" "), 100.0 * share);
        list.iter().map(name).collect::<Vec<_>>().join(", ")
    };
    let high = cases.iter().filter(|(share, _)| *share >= 0.9).count();
    let low: Vec<_> = cases.iter().rev().filter(|(share, _)| *share < 0.6).take(NAMED).copied().collect();
    let mut text = format!("- **At the ceiling**: {high} of {} cases.", cases.len());
    text += &format!(" The nearest: {}.\n", named(&cases[..cases.len().min(NAMED)]));
    text += &if low.is_empty() {
        "- **Room**: no case is below 60%.\n".into()
    } else {
        format!("- **Room**: the furthest below: {}.\n", named(&low))
    };
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The runs, in the order that the document itself names.
    #[test]
    fn the_committed_document_is_what_the_saved_runs_make() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let committed = std::fs::read_to_string(docs.join("gpu_optimization.md")).unwrap();
        let names =
            committed.split_whitespace().filter_map(|word| word.strip_prefix("docs/results/")?.strip_suffix(".json"));
        let load = |name: &str| (name.to_string(), Results::load(&docs.join(format!("results/{name}.json"))).unwrap());
        let runs: Vec<_> = names.map(load).collect();
        assert!(!runs.is_empty());
        assert!(document(&runs) == committed, "generate docs/gpu_optimization.md anew, as it says itself");
        for part in committed.split("](figures/").skip(1) {
            let name = part.split(')').next().unwrap();
            assert!(docs.join("figures").join(name).exists(), "no picture {name}");
        }
    }
}
