//! What whole processes show: kernels that ran, plans that were made, memory in use.

use super::numbers;
use crate::process::{child, is_child};
use tensorlogic::testing::{counters, kernel_count};
use tensorlogic::{DType, Device, Gradients, Result, Tensor, Var, eval, no_grad};

/// Runs the hidden tests of this file, each in a process of its own.
#[test]
fn alone() {
    hidden::NAMES.iter().for_each(|name| {
        child(&format!("gradients::process::hidden::{name}"), &[]);
    });
}

/// Makes hidden tests of functions.
macro_rules! hidden {
    ($($name:ident),+ $(,)?) => {
        mod hidden {
            pub const NAMES: &[&str] = &[$(stringify!($name)),+];
            $(
                #[test]
                #[ignore = "counts what the whole process does"]
                fn $name() -> tensorlogic::Result<()> {
                    if super::is_child() { super::$name() } else { Ok(()) }
                }
            )+
        }
    };
}
hidden! {
    an_evaluated_loss_costs_no_kernels,
    memory_comes_back,
    history_is_let_go_of,
    steps_need_neither_plans_nor_memory,
}

fn bytes_in_use() -> usize {
    Device::cpu().buffer_pool_stats().bytes_in_use
}

/// Variables of a classifier with one hidden layer and a norm.
fn parameters() -> Result<Vec<Var>> {
    let shapes: [&[usize]; 5] = [&[30, 50], &[50], &[50], &[50, 7], &[7]];
    let var = |(i, dims): (usize, &&[usize])| {
        let values = numbers(dims, i as u64).map(|x| 0.3 * x).upload(&Device::cpu());
        Var::new(&values.to_dtype(DType::F32)?)
    };
    shapes.iter().enumerate().map(var).collect()
}

fn batch() -> Result<(Tensor, Tensor)> {
    let x = numbers(&[20, 30], 9).upload(&Device::cpu()).to_dtype(DType::F32)?;
    x.eval()?;
    Ok((x, Tensor::from_vec((0..20).map(|i| i % 7).collect::<Vec<i64>>(), 20, &Device::cpu())?))
}

fn loss(vars: &[Var], (x, classes): &(Tensor, Tensor)) -> Result<Tensor> {
    let [w, scale, bias, v, offset] = [0, 1, 2, 3, 4].map(|i| vars[i].tensor());
    let hidden = x.matmul(&w)?.layer_norm(&scale, Some(&bias), 1e-5)?.gelu()?;
    (hidden.matmul(&v)? + offset)?.cross_entropy(classes)
}

fn all<'g>(found: &'g Gradients, vars: &[Var]) -> Vec<&'g Tensor> {
    vars.iter().map(|var| found.get(var).unwrap()).collect()
}

fn kernels_of(work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let before = counters().kernels;
    work()?;
    Ok(counters().kernels - before)
}

fn an_evaluated_loss_costs_no_kernels() -> Result<()> {
    let (vars, batch) = (parameters()?, batch()?);
    let plain = no_grad(|| -> Result<_> { kernel_count(&[&loss(&vars, &batch)?]) })? as u64;
    let first = loss(&vars, &batch)?;
    let forward = kernels_of(|| first.eval())?;
    assert_eq!(forward, plain, "what is saved is an output of the same kernels");
    let found = first.backward()?;
    let backward = kernels_of(|| eval(&all(&found, &vars)))?;
    let second = loss(&vars, &batch)?;
    let found = second.backward()?;
    let mut together = all(&found, &vars);
    together.push(&second);
    let whole = kernels_of(|| eval(&together))?;
    assert!(forward + backward <= whole + 1, "{forward} and {backward} kernels, {whole} together");
    Ok(())
}

fn memory_comes_back() -> Result<()> {
    let (vars, batch) = (parameters()?, batch()?);
    let before = bytes_in_use();
    for evaluated in [false, true] {
        for used in [false, true] {
            let loss = loss(&vars, &batch)?;
            if evaluated {
                loss.eval()?;
            }
            let found = loss.backward()?;
            if used {
                eval(&all(&found, &vars))?;
            }
            assert_eq!(bytes_in_use() > before, evaluated || used);
            drop((loss, found));
            assert_eq!(bytes_in_use(), before, "evaluated: {evaluated}, used: {used}");
        }
        let loss = loss(&vars, &batch)?;
        if evaluated {
            loss.eval()?;
        }
        drop(loss);
        assert_eq!(bytes_in_use(), before, "never differentiated");
    }
    // Of other threads, of second derivatives, of results that a failure left behind.
    std::thread::scope(|s| s.spawn(|| loss(&vars, &batch)?.backward().map(drop)).join().unwrap())?;
    let values: Vec<Tensor> = vars.iter().map(Var::tensor).collect();
    let first = tensorlogic::grad(&loss(&vars, &batch)?, &values.iter().collect::<Vec<_>>(), true)?;
    let norm = first[0].sqr()?.sum_all()?;
    norm.eval()?;
    eval(&all(&norm.backward()?, &vars[..1]))?;
    drop((first, norm));
    let wrong = Tensor::from_vec(vec![7i64; 20], 20, &Device::cpu())?;
    let failing = loss(&vars, &(batch.0.clone(), wrong))?;
    assert!(failing.eval().is_err());
    assert!(all(&failing.backward()?, &vars)[0].eval().is_err());
    drop(failing);
    assert_eq!(bytes_in_use(), before);
    Ok(())
}

/// A loss that is still held does not hold what only its derivative needed.
fn history_is_let_go_of() -> Result<()> {
    let (vars, batch) = (parameters()?, batch()?);
    let before = bytes_in_use();
    let untracked = no_grad(|| loss(&vars, &batch))?;
    untracked.eval()?;
    let alone = bytes_in_use() - before;
    drop(untracked);
    for evaluated in [false, true] {
        let loss = loss(&vars, &batch)?;
        if evaluated {
            loss.eval()?;
        }
        let found = loss.backward()?;
        let mut together = all(&found, &vars);
        together.push(&loss);
        eval(&together)?;
        let copies = all(&found, &vars).iter().map(|g| (*g + 0.0)?.contiguous()).collect::<Result<Vec<_>>>()?;
        copies.iter().try_for_each(Tensor::eval)?;
        drop(found);
        let held = bytes_in_use() - before;
        drop(loss);
        assert_eq!(held - (bytes_in_use() - before), alone, "evaluated first: {evaluated}");
    }
    Ok(())
}

fn steps_need_neither_plans_nor_memory() -> Result<()> {
    let (vars, batch) = (parameters()?, batch()?);
    let mut warm = (0, 0);
    let mut losses = Vec::new();
    for step in 0..60 {
        let loss = loss(&vars, &batch)?;
        if step % 2 == 0 {
            losses.push(loss.item::<f32>()?);
        }
        let found = loss.backward()?;
        for var in &vars {
            // Tracked or not: a variable's new value has no history.
            let next = || var.tensor() - (found.get(var).unwrap() * 0.1)?;
            var.set(&if step % 3 == 0 { next()? } else { no_grad(next)? })?;
        }
        drop((loss, found));
        let now = (counters().plans, bytes_in_use());
        match step {
            0..6 => warm = now,
            _ => assert_eq!(now, warm, "plans and bytes in use at step {step}"),
        }
    }
    assert!(losses[losses.len() - 1] < 0.3 * losses[0], "{losses:?}");
    Ok(())
}
