//! The engine as a whole: determinism, threads, memory, long graphs, errors.
//!
//! What counts or limits something of the whole process runs in a child process of its own.

use crate::oracle::{budget, devices, on_every_device};
use crate::process::{self, is_child, resident};
use rayon::prelude::*;
use std::sync::mpsc;
use std::time::Duration;
use tensorlogic::testing::counters;
use tensorlogic::{DType, Device, Error, IntoShape, Result, Tensor, eval};

on_every_device! {
    repeated_steps_need_neither_plans_nor_memory,
    threads_that_share_nodes_agree,
    threads_get_their_own_errors,
    held_values_survive_any_interleaving,
    an_index_out_of_range_is_an_error_that_leaves_the_graph_usable,
    out_of_memory_is_an_error_that_passes,
    a_state_that_is_only_read_through_reductions_needs_no_new_plans,
    views_of_evaluated_tensors_are_read_by_their_strides,
    wide_accumulations,
}

/// Runs a hidden test of this file as a process; the lines that it marked as values.
fn child(test: &str, variables: &[(&str, &str)]) -> Vec<String> {
    process::child(&format!("engine::{test}"), variables)
}

/// Runs a hidden test of this file as a process that sees one device.
fn child_on(device: &Device, test: &str) {
    child(test, &[("TL_DEVICES", device.name())]);
}

/// Numbers in -2..2 that look random.
fn numbers(shape: impl IntoShape) -> Result<Tensor> {
    numbers_on(shape, &Device::cpu())
}

/// The same on a device.
fn numbers_on(shape: impl IntoShape, device: &Device) -> Result<Tensor> {
    let shape = shape.into_shape()?;
    let number = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 22) as f32 - 2.0;
    Tensor::from_vec((0..shape.numel()).map(number).collect(), shape, device)
}

fn f32s(x: &Tensor) -> Result<Vec<f32>> {
    x.to_dtype(DType::F32)?.to_vec()
}

fn bits(x: &Tensor) -> Result<Vec<u32>> {
    Ok(f32s(x)?.into_iter().map(f32::to_bits).collect())
}

/// FNV-1a of the elements' bits.
fn hash(x: &Tensor) -> Result<u64> {
    let mix = |h: u64, word: u32| (h ^ word as u64).wrapping_mul(0x0100_0000_01b3);
    Ok(bits(x)?.into_iter().fold(0xcbf2_9ce4_8422_2325, mix))
}

/// Results whose summation order could depend on the machine: a name and a tensor each.
fn samples() -> Result<Vec<(String, Tensor)>> {
    let mut list = Vec::new();
    for (rows, columns) in [(1, 100_003), (3, 65_537), (257, 129), (4099, 33), (50_000, 3)] {
        let x = numbers((rows, columns))?;
        let weight = numbers(columns)?;
        let mut add = |op: &str, y: Tensor| list.push((format!("{op} {rows}x{columns}"), y));
        add("map", (x.tanh()? * &weight)?.gelu()?);
        add("narrow map", x.to_dtype(DType::F16)?.sigmoid()?.exp()?);
        add("sum", x.sum(())?);
        add("row sums", x.sum(1)?);
        add("column sums", x.sum(0)?);
        add("mean of squares", x.sqr()?.mean(())?);
        add("softmax", x.softmax(1)?);
        add("softmax of columns", x.softmax(0)?);
        add("layer norm", x.layer_norm(&weight, Some(&weight), 1e-5)?);
        add("argmax", x.argmax(1)?);
        add("sum of columns' norms", x.sqr()?.sum(0)?.sqrt()?.sum(0)?);
    }
    for (m, k, n) in [(1, 300, 700), (33, 65, 17), (130, 257, 190)] {
        let (a, b) = (numbers((m, k))?, numbers((k, n))?);
        list.push((format!("matmul f32 {m}x{k}x{n}"), a.matmul(&b)?.relu()?));
        let (a, b) = (a.to_dtype(DType::BF16)?, b.to_dtype(DType::BF16)?);
        list.push((format!("matmul bf16 {m}x{k}x{n}"), a.matmul(&b)?));
    }
    Ok(list)
}

#[test]
#[ignore = "prints, for other tests to compare"]
fn print_hashes() -> Result<()> {
    samples()?.iter().try_for_each(|(name, y)| {
        println!("value: {name}: {:016x}", hash(y)?);
        Ok(())
    })
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let one = child("print_hashes", &[("TL_NUM_THREADS", "1")]);
    assert!(one.len() > 50, "{one:?}");
    for threads in ["1", "2", "7"] {
        assert_eq!(child("print_hashes", &[("TL_NUM_THREADS", threads)]), one, "{threads} threads");
    }
}

/// All but products of floats, which take fused multiply-adds where there are any.
#[test]
fn results_do_not_depend_on_the_instruction_set() {
    let hashes = |isa| {
        let mut lines = child("print_hashes", &[("TL_ISA", isa)]);
        lines.retain(|line| !line.starts_with("matmul"));
        lines
    };
    let plain = hashes("plain");
    assert_eq!(hashes("avx2"), plain);
    assert_eq!(hashes("avx512"), plain);
}

#[test]
fn results_do_not_change_from_run_to_run() -> Result<()> {
    for ((name, once), (_, again)) in samples()?.iter().zip(samples()?) {
        assert_eq!(hash(once)?, hash(&again)?, "{name}");
    }
    Ok(())
}

/// A step of something like training.
fn step(x: Tensor, weight: &Tensor) -> Result<(Tensor, f32)> {
    let x = ((x * 0.99)? + 0.01)?;
    let loss = x.matmul(weight)?.softmax(1)?.sqr()?.sum(())?.item()?;
    Ok((x, loss))
}

#[test]
#[ignore = "counts what the whole process does"]
fn ten_thousand_steps() -> Result<()> {
    if !is_child() {
        return Ok(());
    }
    let device = devices().remove(0);
    let (weight, mut x) = (numbers_on((16, 16), &device)?, numbers_on((16, 16), &device)?);
    let mut warm = (counters(), 0, 0);
    for i in 0..budget(&device, 10_000, 300) {
        let loss;
        (x, loss) = step(x, &weight)?;
        assert!(loss.is_finite());
        let now = (counters(), device.buffer_pool_stats().bytes_in_use, resident());
        match i {
            0 | 1 => warm = now,
            _ => {
                assert_eq!((now.0.plans, now.1), (warm.0.plans, warm.1), "plans and bytes in use at step {i}");
                assert!(now.2 < warm.2 + (16 << 20), "{} bytes resident after {i} steps, {} before", now.2, warm.2);
            }
        }
    }
    Ok(())
}

fn repeated_steps_need_neither_plans_nor_memory(device: &Device) {
    child_on(device, "ten_thousand_steps");
}

/// A held value that the next step starts from must be kept, or graphs and plans grow from step to step.
#[test]
#[ignore = "counts what the whole process does"]
fn steps_that_only_sum() -> Result<()> {
    if !is_child() {
        return Ok(());
    }
    let mut x = numbers_on((16, 16), &devices()[0])?;
    for _ in 0..100 {
        x = ((x * 0.99)? + 0.01)?;
        assert!(x.sum(())?.item::<f32>()?.is_finite());
    }
    assert!(counters().plans <= 4, "{:?}", counters());
    Ok(())
}

fn a_state_that_is_only_read_through_reductions_needs_no_new_plans(device: &Device) {
    child_on(device, "steps_that_only_sum");
}

#[test]
#[ignore = "measures the whole process"]
fn a_million_pending_ops() -> Result<()> {
    if !is_child() {
        return Ok(());
    }
    let mut x = Tensor::zeros(4, DType::F32, &Device::cpu())?;
    let mut warm = 0;
    for i in 0..1_000_000 {
        x = (x + 1.0)?;
        if i == 100_000 {
            warm = resident();
        }
    }
    assert!(resident() < warm + (16 << 20), "{} bytes resident, {warm} before", resident());
    assert_eq!(x.to_vec::<f32>()?, [1e6; 4]);
    Ok(())
}

#[test]
fn long_chains_are_bounded() {
    child("a_million_pending_ops", &[]);
}

#[test]
fn long_chains_are_dropped_without_recursion() {
    let build_and_drop = || {
        let chain = (0..4000).try_fold(numbers(4)?, |x, _| x + 1.0)?;
        drop(chain);
        Ok::<(), Error>(())
    };
    let thread = std::thread::Builder::new().stack_size(128 << 10).spawn(build_and_drop).unwrap();
    thread.join().unwrap().unwrap();
}

fn wide_accumulations(device: &Device) {
    let run = || -> Result<()> {
        let count = budget(device, 5000, 600);
        let parts = (0..count).map(|i| Tensor::full(8, i as f64, DType::F32, device)?.contiguous());
        let parts = parts.collect::<Result<Vec<_>>>()?;
        parts.iter().step_by(2).try_for_each(Tensor::eval)?;
        let total = parts[1..].iter().try_fold(parts[0].clone(), |total, part| total + part)?;
        assert_eq!(total.to_vec::<f32>()?, [(count * (count - 1) / 2) as f32; 8]);
        let joined = Tensor::cat(&parts[..300], 0)?.sum(())?;
        assert_eq!(joined.item::<f32>()?, 8.0 * 44_850.0);
        Ok(())
    };
    run().unwrap();
}

/// Tensors that depend on each other and on one leaf.
fn shared_graph(device: &Device) -> Result<Vec<Tensor>> {
    let x = numbers_on((64, 64), device)?;
    let y = x.exp()?.softmax(1)?;
    let z = y.matmul(&x)?;
    Ok(vec![(&y + &z)?, z.sum(0)?, (&z * &y)?.tanh()?, y.t()?.contiguous()?, z, y])
}

/// What each of `threads` threads reads, beginning with another tensor.
fn read_by(threads: usize, tensors: &[Tensor]) -> Vec<Vec<Vec<u32>>> {
    let read = |first: usize| {
        let mut all: Vec<Vec<u32>> = vec![Vec::new(); tensors.len()];
        for i in (0..tensors.len()).map(|i| (first + i) % tensors.len()) {
            all[i] = bits(&tensors[i]).unwrap();
        }
        all
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|first| scope.spawn(move || read(first))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn threads_that_share_nodes_agree(device: &Device) {
    let want = read_by(1, &shared_graph(device).unwrap()).remove(0);
    for threads in [2, 8] {
        for _ in 0..budget(device, 20, 3) {
            let got = read_by(threads, &shared_graph(device).unwrap());
            assert!(got.iter().all(|all| *all == want), "{threads} threads");
        }
    }
}

/// Every other thread reads through an index out of range; each gets its own error, or its own values.
fn threads_get_their_own_errors(device: &Device) {
    let x = numbers_on((50, 8), device).unwrap();
    let rows = f32s(&x).unwrap();
    let read = |thread: usize| {
        for round in 0..budget(device, 100, 10) {
            let at = (thread + round) % 50;
            let wrong = (50 * thread + round + 50) as i64;
            let last = if thread.is_multiple_of(2) { at as i64 } else { wrong };
            let index = Tensor::from_vec(vec![at as i64, last], 2, device).unwrap();
            let picked = x.index_select(0, &index).and_then(|rows| rows + 1.0).unwrap();
            match picked.to_vec::<f32>() {
                Ok(got) if thread.is_multiple_of(2) => {
                    let want: Vec<f32> = rows[8 * at..8 * at + 8].iter().map(|v| v + 1.0).collect();
                    assert_eq!(got, [&want[..], &want].concat());
                }
                Err(Error::IndexOutOfRange { index, size: 50, .. }) if thread % 2 == 1 => assert_eq!(index, wrong),
                other => panic!("thread {thread}, round {round}: {other:?}"),
            }
        }
    };
    std::thread::scope(|scope| (0..8).for_each(|thread| drop(scope.spawn(move || read(thread)))));
}

/// Fails, instead of hanging, when `work` does not end.
fn within(seconds: u64, work: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        work();
        done.send(()).unwrap();
    });
    match wait.recv_timeout(Duration::from_secs(seconds)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("deadlock: no end after {seconds} s"),
        _ => thread.join().unwrap(),
    }
}

#[test]
#[ignore = "a deadlock would hold the engine's lock for good"]
fn evaluations_inside_rayon() {
    within(20, || {
        let sums = (0..200usize).into_par_iter().map(|i| {
            let x = numbers((300, 200 + i)).unwrap();
            x.softmax(1).unwrap().sum(()).unwrap().item::<f32>().unwrap()
        });
        assert!(sums.collect::<Vec<_>>().iter().all(|sum| (sum - 300.0).abs() < 1e-2));
    });
}

#[test]
fn evaluating_inside_rayon_does_not_deadlock() {
    for threads in ["1", "2", "4"] {
        child("evaluations_inside_rayon", &[("TL_NUM_THREADS", threads), ("RAYON_NUM_THREADS", "4")]);
    }
}

#[test]
fn a_dead_operand_is_written_over_and_a_held_one_is_not() -> Result<()> {
    let in_place = |y: Tensor| Ok::<_, Error>(y.explain()?.to_string().contains("in place"));
    let x = numbers(1000)?;
    assert!(!in_place((&x + 1.0)?)?);
    assert!(!in_place((x.clone() * 2.0)?)?);
    assert!(in_place((x + 1.0)?)?);
    let mut x = numbers(1000)?;
    for _ in 0..10 {
        x = (x + 1.0)?;
        x.eval()?;
    }
    assert_eq!(
        f32s(&x)?,
        f32s(&numbers(1000)?)?.into_iter().map(|v| (0..10).fold(v, |v, _| v + 1.0)).collect::<Vec<_>>()
    );
    Ok(())
}

/// A tensor someone holds, and what it must hold.
type Held = (Tensor, Vec<f32>);

/// One of the ops that may write over an operand, computed both ways.
fn apply(op: usize, a: &Held, b: &Held) -> Result<Held> {
    let zip = |f: fn(f32, f32) -> f32| a.1.iter().zip(&b.1).map(|(&a, &b)| f(a, b)).collect();
    Ok(match op {
        0 => ((&a.0 + 0.5)?, zip(|a, _| a + 0.5)),
        1 => (a.0.maximum(&b.0)?, zip(f32::max)),
        2 => (((&a.0 - &b.0)? * 0.5)?, zip(|a, b| (a - b) * 0.5)),
        3 => (a.0.slice(0, .., -1)?.neg()?, a.1.iter().rev().map(|a| -a).collect()),
        4 => (a.0.reshape((8, 8))?.t()?.reshape(64)?, (0..64).map(|i| a.1[i % 8 * 8 + i / 8]).collect()),
        _ => (Tensor::cat(&[a.0.narrow(0, 32, 32)?, b.0.narrow(0, 0, 32)?], 0)?, [&a.1[32..], &b.1[..32]].concat()),
    })
}

fn held_values_survive_any_interleaving(device: &Device) {
    interleave(device, budget(device, 4000, 400)).unwrap();
}

fn interleave(device: &Device, steps: usize) -> Result<()> {
    let mut state = 7u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let leaf = numbers_on(64, device)?;
    let mut held: Vec<Held> = vec![(leaf.clone(), f32s(&leaf)?)];
    for _ in 0..steps {
        let (a, b) = (below(held.len()), below(held.len()));
        match below(8) {
            0..=3 => held.push(apply(below(6), &held[a], &held[b])?),
            4 if held.len() > 1 => drop(held.swap_remove(a)),
            5 if held.len() > 12 => held.truncate(6),
            6 => eval(&[&held[a].0, &held[b].0])?,
            _ => assert_eq!(held[a].0.to_vec::<f32>()?, held[a].1),
        }
    }
    held.iter().try_for_each(|(x, want)| {
        assert_eq!(x.to_vec::<f32>()?, *want);
        Ok(())
    })
}

fn an_index_out_of_range_is_an_error_that_leaves_the_graph_usable(device: &Device) {
    out_of_range(device).unwrap();
}

fn out_of_range(device: &Device) -> Result<()> {
    let x = numbers_on((10, 4), device)?;
    let want = f32s(&x.exp()?)?;
    for bad in [10i64, -1, i64::MAX] {
        let index = Tensor::from_vec(vec![0, 9, bad], 3, device)?;
        let shared = x.exp()?;
        let wrong = (shared.index_select(0, &index)? + 1.0)?;
        for _ in 0..2 {
            let error = wrong.to_vec::<f32>().unwrap_err();
            assert!(matches!(error, Error::IndexOutOfRange { index, size: 10, .. } if index == bad), "{error}");
        }
        // On a GPU, only reading it shows.
        let both = eval(&[&shared.sum(0)?, &wrong]);
        assert!(both.is_err() || *device != Device::cpu());
        assert_eq!(f32s(&shared)?, want);
        let right = shared.index_select(0, &index.narrow(0, 0, 2)?)?;
        assert_eq!(f32s(&right)?, [&want[..4], &want[36..]].concat());
    }
    Ok(())
}

/// The operand that would be written over is needed for the second attempt. On a GPU the evaluation was recorded
/// and stays failed.
#[test]
fn a_failed_evaluation_overwrites_nothing() -> Result<()> {
    let index = Tensor::from_vec(vec![0i64, 64], 2, &Device::cpu())?;
    let doubled = (numbers(64)? * 2.0)?;
    let wrong = doubled.gather(0, &index)?;
    assert!(eval(&[&wrong, &doubled]).is_err());
    assert!(wrong.eval().is_err());
    drop(wrong);
    let want: Vec<f32> = f32s(&numbers(64)?)?.iter().map(|v| v * 2.0).collect();
    assert_eq!(f32s(&doubled)?, want);
    Ok(())
}

#[test]
#[ignore = "limits the memory of the whole process"]
fn limited_memory() -> Result<()> {
    if !is_child() {
        return Ok(());
    }
    let device = devices().remove(0);
    let size = budget(&device, 512, 64);
    let room = size * size * 4;
    let x = numbers_on((size, size), &device)?;
    let y = x.exp()?.matmul(&x)?;
    device.set_memory_limit(Some(device.buffer_pool_stats().bytes_in_use + room + 1000));
    for _ in 0..2 {
        let error = y.eval().unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
        assert!(matches!(numbers_on((2 * size, 2 * size), &device), Err(Error::OutOfMemory { .. })));
    }
    assert_eq!(x.relu()?.to_vec::<f32>()?.len(), size * size, "what fits still runs");
    device.set_memory_limit(None);
    let in_use = device.buffer_pool_stats().bytes_in_use;
    let want = numbers_on((size, size), &device)?.exp()?.matmul(&x)?;
    assert_eq!(hash(&y)?, hash(&want)?);
    drop((y, want));
    assert_eq!(device.buffer_pool_stats().bytes_in_use, in_use, "nothing leaks");
    Ok(())
}

fn out_of_memory_is_an_error_that_passes(device: &Device) {
    child_on(device, "limited_memory");
}

fn views_of_evaluated_tensors_are_read_by_their_strides(device: &Device) {
    evaluated_views(device).unwrap();
}

fn evaluated_views(device: &Device) -> Result<()> {
    let x = (numbers_on((3, 4), device)? + 1.0)?;
    let v = x.to_vec::<f32>()?;
    let at = |list: &[usize]| list.iter().map(|&i| v[i]).collect::<Vec<_>>();
    assert_eq!(x.t()?.to_vec::<f32>()?, at(&[0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]));
    assert_eq!(x.slice(1, .., -2)?.to_vec::<f32>()?, at(&[3, 1, 7, 5, 11, 9]));
    assert_eq!(x.narrow(0, 1, 1)?.expand((2, 4))?.to_vec::<f32>()?, at(&[4, 5, 6, 7, 4, 5, 6, 7]));
    assert_eq!(x.t()?.reshape(12)?.narrow(0, 2, 3)?.to_vec::<f32>()?, at(&[8, 1, 5]));
    assert_eq!(x.select(1, 3)?.to_vec::<f32>()?, at(&[3, 7, 11]));
    Ok(())
}
