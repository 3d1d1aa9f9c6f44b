//! The command line, and a run.

use crate::cases::{self, Case};
use crate::machine::Machine;
use crate::measure::{Busy, Limits};
use crate::results::{Measured, Results};
use crate::{Outcome, ceilings, compare, document, plots, table};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tensorlogic::{DType, Device};

/// What to measure, and what to do with it
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Measure the cases whose group, operation, size, dtype or mode contains one of these words
    pub words: Vec<String>,
    /// cpu, cuda or metal, with an ordinal if there are several (cuda:1); the fastest there is by default
    #[arg(long)]
    pub device: Option<Device>,
    /// f32, f16, bf16; may be repeated. By default f32 and f16 on a CPU, and bf16 products; f16 on a GPU
    #[arg(long = "dtype", value_name = "DTYPE")]
    pub dtypes: Vec<DType>,
    /// Sections of the table, with commas between them: matmul,rows
    #[arg(long, value_name = "GROUP", value_delimiter = ',')]
    pub groups: Vec<String>,
    /// Small cases only, and a few milliseconds each
    #[arg(long)]
    pub quick: bool,
    /// Print the results as JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Write the results to a file, after each case
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Say what became faster or slower than in a saved run; the exit status is 1 if anything became slower
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// Draw a roofline and bar charts into a folder, as SVG and PNG
    #[arg(long, value_name = "FOLDER")]
    pub plots: Option<PathBuf>,
    /// Measure nothing: print the document that saved runs make; with --plots, with their pictures
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["words", "json", "save", "compare"])]
    pub document: Vec<PathBuf>,
}

/// Bytes of inputs and operations of a case that is small enough for `--quick`.
const QUICK_BYTES: usize = 16 << 20;
const QUICK_SIDE: usize = 512;

/// Does what the options say. The exit status is 1 if a case became slower, 2 if the run failed.
pub fn run(options: &Options) -> ExitCode {
    match outcome(options) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::from(2)
        }
    }
}

fn outcome(options: &Options) -> Outcome<u8> {
    if !options.document.is_empty() {
        return print_document(options);
    }
    // Before anything is measured: a file that cannot be read should not cost a run.
    let old = options.compare.as_deref().map(Results::load).transpose()?;
    let results = measure(options)?;
    print!("{}", if options.json { results.to_json()? } else { table::text(&results) });
    if let Some(folder) = &options.plots {
        plots::draw(&results, folder, &results.machine.device.replace(':', "-"))?;
    }
    let Some(old) = old else { return Ok(0) };
    let comparison = compare(&old, &results);
    // What is on standard output is either JSON or for people.
    if options.json {
        eprint!("{comparison}")
    } else {
        print!("\n{comparison}")
    }
    Ok(u8::from(comparison.regressions() > 0))
}

fn print_document(options: &Options) -> Outcome<u8> {
    let mut runs = Vec::new();
    for file in &options.document {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().to_string();
        runs.push((name, Results::load(file)?));
    }
    for (name, results) in &runs {
        options.plots.as_ref().map_or(Ok(()), |folder| plots::draw(results, folder, name))?;
    }
    print!("{}", document(&runs));
    Ok(0)
}

impl Options {
    fn wants(&self, case: &Case) -> bool {
        let key = case.key();
        // What bf16 has of its own are products.
        if self.dtypes.is_empty() && case.dtype == DType::BF16 && case.group != "matmul" {
            return false;
        }
        if !self.groups.is_empty() && !self.groups.iter().any(|group| group == case.group) {
            return false;
        }
        let small = case.input_bytes() <= QUICK_BYTES
            && !(key.contains("matmul") && case.shapes[0][0] > QUICK_SIDE)
            && !key.contains("batch 1024");
        (small || !self.quick) && (self.words.is_empty() || self.words.iter().any(|word| key.contains(word.as_str())))
    }

    fn dtypes(&self, device: &Device) -> Vec<DType> {
        match (self.dtypes.as_slice(), device.name()) {
            ([], "cpu") => vec![DType::F32, DType::F16, DType::BF16],
            ([], _) => vec![DType::F16],
            (chosen, _) => chosen.to_vec(),
        }
    }
}

/// Measures what is asked for. A case that fails is a result with an error.
pub(crate) fn measure(options: &Options) -> Outcome<Results> {
    let device = options.device.clone().unwrap_or_else(Device::best);
    let dtypes = options.dtypes(&device);
    let limits = if options.quick { Limits::QUICK } else { Limits::full(&device) };
    let mut wanted = cases::all(&device, &dtypes);
    wanted.retain(|case| options.wants(case) && limits.fit(case, &device));
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let machine = Machine::of(&device, arguments);
    eprintln!("{}", machine.describe());
    // Nothing to hold against a ceiling needs none.
    let ceilings = if wanted.iter().all(|case| ["host", "transfers"].contains(&case.group)) {
        Default::default()
    } else {
        ceilings::measure(&device, &dtypes, options.quick)?
    };
    let mut results = Results::new(machine, ceilings, ceilings::uncached_bytes(&device));
    let busy = (device.name() != "cpu").then(|| Busy::new(&device)).transpose()?;
    let bar = ProgressBar::new(wanted.len() as u64);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    for case in &wanted {
        bar.set_message(case.key());
        let measured = case.measure(&device, busy.as_ref(), limits);
        results
            .cases
            .push(measured.unwrap_or_else(|error| Measured { error: Some(error.to_string()), ..Measured::of(case) }));
        // Large inputs leave large buffers of sizes that no other case asks for.
        device.empty_cache();
        options.save.as_deref().map_or(Ok(()), |file| save(&results, file))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    results.settle();
    options.save.as_deref().map_or(Ok(()), |file| save(&results, file))?;
    Ok(results)
}

fn save(results: &Results, file: &Path) -> Outcome<()> {
    Ok(std::fs::write(file, results.to_json()?).map_err(|error| format!("{}: {error}", file.display()))?)
}
