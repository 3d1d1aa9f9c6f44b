//! Random programs, fused and unfused, against an interpreter in f64 that knows how far off one may be.
//!
//! Every device runs the programs of the same seeds, with f32 in the place of f64 where there is none.
//! `TL_FUZZ_SEEDS=from..to` chooses the programs; a failure is reduced and printed as program text.

mod generate;
mod oracle;
mod program;
mod rng;

use crate::oracle::{budget, on_every_device, rerun, seeds};
use generate::generate;
use oracle::{Val, interpret};
use program::{Program, Step, Values};
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tensorlogic::Device;
use tensorlogic::testing::no_fusion;

/// What the norms add to the mean square.
const EPS: f64 = 1e-3;

/// The elements that a check has compared, and those of them that the oracle was sure of.
#[derive(Default)]
struct Tally {
    compared: usize,
    exact: usize,
}

/// Failures after which no more are sought.
const ENOUGH: usize = 5;

on_every_device! {
    random_programs_agree_with_the_oracle,
}

fn random_programs_agree_with_the_oracle(device: &Device) {
    let mut tally = Tally::default();
    let seeds = seeds(0..budget(device, 2000, 200));
    let failures: Vec<String> = seeds.filter_map(|seed| failure(device, seed, &mut tally)).take(ENOUGH).collect();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    assert!(4 * tally.exact > tally.compared, "{} of {} elements are exact", tally.exact, tally.compared);
}

/// What went wrong with a seed's program, if anything did, and the least program that shows it.
fn failure(device: &Device, seed: u64, tally: &mut Tally) -> Option<String> {
    let (program, vals) = generate(seed, device);
    let first = check(&program, &vals, tally).err()?;
    let (program, vals) = shrink(program, vals);
    let why = check(&program, &vals, tally).err().unwrap_or(first);
    Some(format!("{}: {why}\n{}", rerun(device, seed), text(&program, &vals)))
}

/// Runs a program three times: fused, again (its plan is found), and with a kernel an op.
fn check(program: &Program, vals: &[Val], tally: &mut Tally) -> Result<(), String> {
    let fused = run(program, "fused")?;
    let again = run(program, "again")?;
    let unfused = no_fusion(|| run(program, "unfused"))?;
    for (at, line) in program.reads().enumerate() {
        same(&fused[at], &again[at]).map_err(|why| format!("line {line} differs from run to run: {why}"))?;
        close(&fused[at], &vals[line], tally).map_err(|why| format!("line {line}, fused: {why}"))?;
        close(&unfused[at], &vals[line], tally).map_err(|why| format!("line {line}, unfused: {why}"))?;
        if bitwise(program, vals) {
            same(&fused[at], &unfused[at]).map_err(|why| format!("line {line} changes by fusion: {why}"))?;
        }
    }
    Ok(())
}

fn run(program: &Program, how: &str) -> Result<Vec<Vec<f64>>, String> {
    match catch_unwind(AssertUnwindSafe(|| program.run())) {
        Ok(result) => result.map_err(|error| format!("{how}: {error}")),
        Err(_) => Err(format!("{how}: panic")),
    }
}

/// Whether fusion may not change a bit: nothing is summed, and nothing is held in f32 unrounded.
fn bitwise(program: &Program, vals: &[Val]) -> bool {
    let mut needed = program.needed().into_iter().zip(&program.steps).zip(vals).filter(|((needed, _), _)| *needed);
    needed.all(|((_, step), val)| !step.accumulates() && !val.dtype.is_narrow())
}

fn same(a: &[f64], b: &[f64]) -> Result<(), String> {
    match a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits()) {
        Some(i) => Err(format!("element {i} is {:e} and {:e}", a[i], b[i])),
        None => Ok(()),
    }
}

fn close(got: &[f64], want: &Val, tally: &mut Tally) -> Result<(), String> {
    if got.len() != want.at.len() {
        return Err(format!("{} elements, {} wanted", got.len(), want.at.len()));
    }
    tally.compared += got.len();
    tally.exact += want.at.iter().filter(|x| x.e == 0.0).count();
    match got.iter().zip(&want.at).position(|(got, want)| !(want.e.is_infinite() || (got - want.v).abs() <= want.e)) {
        Some(i) => Err(format!("element {i} is {:e}, not {:e} +- {:.3e}", got[i], want.at[i].v, want.at[i].e)),
        None => Ok(()),
    }
}

/// A smaller program that fails too: fewer lines read, and leaves in the place of computed lines.
fn shrink(mut program: Program, mut vals: Vec<Val>) -> (Program, Vec<Val>) {
    let fails = |program: &Program, vals: &[Val]| check(program, vals, &mut Tally::default()).is_err();
    for at in (0..program.reads().count()).rev() {
        let fewer = program.without_read(at);
        if fails(&fewer, &vals) {
            program = fewer;
        }
    }
    for line in 0..program.steps.len() {
        let Val { shape, dtype, .. } = vals[line].clone();
        let leaf = matches!(program.steps[line], Step::Leaf { .. }); // perhaps of indices
        if leaf || !program.needed()[line] {
            continue;
        }
        let mut simpler = program.clone();
        simpler.steps[line] = Step::Leaf { shape, dtype, values: Values::Grid, seed: line as u64 };
        if let Some(simpler_vals) = interpreted(&simpler).filter(|vals| fails(&simpler, vals)) {
            (program, vals) = (simpler, simpler_vals);
        }
    }
    (program, vals)
}

/// Every line's value, unless an index has become doubtful.
fn interpreted(program: &Program) -> Option<Vec<Val>> {
    let all = || {
        let mut vals = Vec::new();
        program.steps.iter().for_each(|step| vals.push(interpret(step, &vals)));
        vals
    };
    catch_unwind(all).ok()
}

fn text(program: &Program, vals: &[Val]) -> String {
    let mut text = String::new();
    for (line, needed) in program.needed().into_iter().enumerate().filter(|(_, needed)| *needed) {
        let Val { shape, dtype, .. } = &vals[line];
        writeln!(text, "  {line}: {:?} -> {dtype} {shape:?}", program.steps[line]).unwrap();
        debug_assert!(needed);
    }
    writeln!(text, "  evaluated {:?}, then read {:?}", program.roots, program.late).unwrap();
    text
}
