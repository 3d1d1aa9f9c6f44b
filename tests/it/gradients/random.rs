//! Random graphs of smooth ops, views, folds, products, joins and gradients of all these: their gradients
//! along random directions against finite differences, however the graph was evaluated; and their values
//! while handles are dropped and results evaluated in any order.
//!
//! Every device runs the graphs of the same seeds, in f32 where there is no f64.
//! `TL_FUZZ_SEEDS=from..to` chooses the graphs; a failure is reduced to the first value that shows it.

use super::{Each, floats, gradients, numbers, values, variables, weights};
use crate::oracle::{Array, budget, on_every_device, rerun, seeds};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tensorlogic::testing::no_fusion;
use tensorlogic::{DType, Device, Error, Result, Tensor, Var, eval, grad};

/// Relative error of gradients in f32.
const IN_F32: f64 = 1e-4;

type Apply = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// An op on earlier values.
struct Step {
    text: String,
    reads: Vec<usize>,
    apply: Apply,
}

struct Graph {
    /// Where it is checked.
    device: Device,
    /// In f64, or in f32 where there is none.
    dtype: DType,
    inputs: Vec<Array>,
    steps: Vec<Step>,
    /// The values that the loss is made of: steps count from the inputs on.
    roots: Vec<usize>,
}

/// Splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn indices(&mut self, count: usize, limit: usize) -> Vec<i64> {
        (0..count).map(|_| self.below(limit) as i64).collect()
    }
}

type Unary = fn(&Tensor) -> Result<Tensor>;

/// Smooth functions that keep numbers small.
const UNARY: [(&str, Unary); 16] = [
    ("tanh", |x| x.tanh()),
    ("sigmoid", |x| x.sigmoid()),
    ("sin", |x| x.sin()),
    ("cos", |x| x.cos()),
    ("softplus", |x| x.softplus()),
    ("gelu", |x| x.gelu()),
    ("gelu_erf", |x| x.gelu_erf()),
    ("silu", |x| x.silu()),
    ("erf", |x| x.erf()),
    ("neg", |x| x.neg()),
    ("exp of tanh", |x| x.tanh()?.exp()),
    ("half the square", |x| x.sqr()? * 0.5),
    ("1 / (x^2 + 1)", |x| (x.sqr()? + 1.0)?.recip()),
    ("ln (x^2 + 1)", |x| (x.sqr()? + 1.0)?.ln()),
    ("sqrt (x^2 + 1)", |x| (x.sqr()? + 1.0)?.sqrt()),
    ("contiguous", |x| x.contiguous()),
];

type Binary = fn(&Tensor, &Tensor) -> Result<Tensor>;

const BINARY: [(&str, Binary); 6] = [
    ("add", |a, b| a + b),
    ("sub", |a, b| a - b),
    ("mul", |a, b| a * b),
    ("a / (b^2 + 1)", |a, b| a / (b.sqr()? + 1.0)?),
    ("a tanh b", |a, b| a * b.tanh()?),
    ("choice", |a, b| {
        let even = Tensor::arange(0i64, a.numel() as i64, a.device())?.reshape(a.shape())?;
        (even % 2)?.eq(0)?.where_cond(a, b)
    }),
];

type Along = fn(&Tensor, usize) -> Result<Tensor>;

const ALONG: [(&str, Along); 11] = [
    ("sum", |x, dim| x.sum(dim)? * 0.5),
    ("sum_keepdim", |x, dim| x.sum_keepdim(dim)? * 0.5),
    ("mean", |x, dim| x.mean(dim)),
    ("prod of tanh", |x, dim| x.tanh()?.prod(dim)),
    ("variance", |x, dim| x.var_with(dim, 0)),
    ("softmax", |x, dim| x.softmax(dim)),
    ("log_softmax", |x, dim| x.log_softmax(dim)),
    ("logsumexp", |x, dim| x.logsumexp(dim)),
    ("cat with itself", |x, dim| Tensor::cat(&[x, &x.tanh()?], dim)),
    ("stack with itself", |x, dim| Tensor::stack(&[x.sin()?, x.clone()], dim as isize)),
    ("difference to the mean", |x, dim| x - x.mean_keepdim(dim)?),
];

impl Graph {
    fn generate(seed: u64, device: &Device) -> Result<Graph> {
        let mut rng = Rng(seed);
        let sizes = |rng: &mut Rng| (0..1 + rng.below(3)).map(|_| 1 + rng.below(4)).collect::<Vec<_>>();
        let inputs: Vec<Array> =
            (0..2 + rng.below(2) as u64).map(|i| numbers(&sizes(&mut rng), seed % 50 + i)).collect();
        let dtype = if device.supports(DType::F64) { DType::F64 } else { DType::F32 };
        let mut graph = Graph { device: device.clone(), dtype, inputs, steps: Vec::new(), roots: Vec::new() };
        let mut known = values(&variables(&graph.inputs, DType::F64, &Device::cpu())?);
        let wanted = 4 + rng.below(10);
        for _ in 0..200 {
            if graph.steps.len() == wanted {
                break;
            }
            let Some(step) = random_step(&mut rng, &known) else { continue };
            let operands: Vec<Tensor> = step.reads.iter().map(|&at| known[at].clone()).collect();
            let y = match (step.apply)(&operands) {
                // What a gradient is asked of need not depend on what it is asked for.
                Err(Error::NoGradient { .. }) => continue,
                y => y?,
            };
            let small = y.to_vec::<f64>()?.iter().all(|v| v.abs() < 8.0);
            if small && (1..120).contains(&y.numel()) && y.rank() < 6 {
                known.push(y);
                graph.steps.push(step);
            }
        }
        let read = |at: usize| graph.steps.iter().any(|step| step.reads.contains(&at));
        graph.roots = (0..known.len()).filter(|&at| !read(at) || rng.below(6) == 0).collect();
        Ok(graph)
    }

    /// The loss, with the values that `pieces` selects evaluated as soon as they are recorded.
    fn loss(&self, inputs: &[Tensor], pieces: u64) -> Result<Tensor> {
        let mut known = inputs.to_vec();
        for (i, step) in self.steps.iter().enumerate() {
            let operands: Vec<Tensor> = step.reads.iter().map(|&at| known[at].clone()).collect();
            known.push((step.apply)(&operands)?);
            if pieces >> i & 1 == 1 {
                known[inputs.len() + i].eval()?;
            }
        }
        let term = |&root: &usize| (&known[root] * &weights(&known[root], root as u64)?)?.sum_all();
        let terms = self.roots.iter().map(term).collect::<Result<Vec<_>>>()?;
        terms[1..].iter().try_fold(terms[0].clone(), |sum, term| sum + term)
    }

    /// The inputs as variables.
    fn variables(&self) -> Result<Vec<Var>> {
        variables(&self.inputs, self.dtype, &self.device)
    }

    /// What an error may be, relative to what it is an error of: `exact` in f64.
    fn tolerance(&self, exact: f64) -> f64 {
        if self.dtype == DType::F64 { exact } else { IN_F32 }
    }

    /// What the gradients make of directions, and what differences say.
    fn check(&self, seed: u64) -> Result<Option<String>> {
        const STEP: f64 = 1.0 / (1 << 16) as f64;
        let direction = |x: &Array, which: u64| numbers(&x.dims, seed % 40 + 7 + which);
        let want = (0..2).map(|which| {
            let at = |step: f64| {
                let moved = |x: &Array| {
                    let along = direction(x, which);
                    let values = x.values.iter().zip(&along.values).map(|(x, d)| x.float() + step * d.float());
                    Tensor::from_vec(values.collect(), &x.dims, &Device::cpu())
                };
                let inputs = self.inputs.iter().map(|x| Var::new(&moved(x)?)).collect::<Result<Vec<_>>>()?;
                self.loss(&values(&inputs), 0)?.item::<f64>()
            };
            Ok((at(STEP)? - at(-STEP)?) / (2.0 * STEP))
        });
        let want = want.collect::<Result<Vec<f64>>>()?;
        let all = self.gradients(seed)?;
        for (how, found) in &all {
            for (which, want) in want.iter().enumerate() {
                let along = |(x, g): (&Array, &Vec<f64>)| {
                    let terms = direction(x, which as u64).values.into_iter().zip(g).map(|(d, g)| d.float() * g);
                    terms.fold([0.0, 0.0], |[sum, size], term| [sum + term, size + term.abs()])
                };
                let [got, size] =
                    self.inputs.iter().zip(found).map(along).fold([0.0; 2], |a, b| [a[0] + b[0], a[1] + b[1]]);
                let near = (got - want).abs() <= self.tolerance(1e-6) * (1.0 + size);
                if !near {
                    return Ok(Some(format!("{how}: {got} along direction {which}, not {want}")));
                }
            }
            let off = super::off(&format!("{how} or {}", all[0].0), found, &all[0].1, self.tolerance(1e-10), 1.0);
            if off.is_some() {
                return Ok(off);
            }
        }
        Ok(None)
    }

    fn gradients(&self, seed: u64) -> Result<Vec<(&'static str, Each)>> {
        let backward = |pieces: u64, first: bool| {
            let vars = self.variables()?;
            let loss = self.loss(&values(&vars), pieces)?;
            if first {
                loss.eval()?;
            }
            gradients(&loss, &vars)
        };
        let together = || -> Result<_> {
            let inputs = values(&self.variables()?);
            let loss = self.loss(&inputs, 0)?;
            let reached: Vec<&Tensor> = inputs.iter().filter(|x| grad(&loss, &[x], false).is_ok()).collect();
            let found = grad(&loss, &reached, true)?;
            eval(&found.iter().chain([&loss]).collect::<Vec<_>>())?;
            let at = |x: &Tensor| reached.iter().position(|r| std::ptr::eq(*r, x));
            let or_zeros = |x: &Tensor| at(x).map_or(Ok(vec![0.0; x.numel()]), |i| floats(&found[i]));
            inputs.iter().map(or_zeros).collect()
        };
        let pieces = Rng(seed ^ 0x5eed).below(1 << 30) as u64;
        Ok(vec![
            ("at once", backward(0, false)?),
            ("evaluated first", backward(0, true)?),
            ("in pieces", backward(pieces, false)?),
            ("in all pieces", backward(u64::MAX, true)?),
            ("gradients and loss together", together()?),
            ("unfused", no_fusion(|| backward(0, false))?),
            ("unfused, in pieces", no_fusion(|| backward(pieces, true))?),
        ])
    }

    /// The values of the roots, while every value is dropped after its last use and some are evaluated.
    fn live(&self, seed: u64) -> Result<Each> {
        let mut rng = Rng(seed ^ 0x11fe);
        let last_use = |at: usize| {
            let read = self.steps.iter().rposition(|step| step.reads.contains(&at));
            if self.roots.contains(&at) { usize::MAX } else { read.unwrap_or(0) }
        };
        let vars = self.variables()?;
        let mut known: Vec<Option<Tensor>> = values(&vars).into_iter().map(Some).collect();
        for (i, step) in self.steps.iter().enumerate() {
            let operands = step.reads.iter().map(|&at| known[at].clone().expect("a value in use"));
            let y = (step.apply)(&operands.collect::<Vec<_>>())?;
            known.push(Some(y));
            let patience = rng.below(3);
            (0..known.len()).filter(|&at| last_use(at).saturating_add(patience) <= i).for_each(|at| known[at] = None);
            let chosen: Vec<&Tensor> = known.iter().flatten().filter(|_| rng.below(8) == 0).collect();
            eval(&chosen)?;
            // A gradient that nobody reads further, and one that lets go of all there is.
            if rng.below(3) == 0 {
                let at = rng.below(known.len());
                if let Some(y) = known[at].clone().filter(Tensor::is_tracked) {
                    let found = grad(&y.sqr()?.sum_all()?, &[&y], false)?.remove(0);
                    drop(y);
                    found.eval()?;
                }
            }
        }
        let roots: Vec<Tensor> = self.roots.iter().flat_map(|&root| known[root].clone()).collect();
        if rng.below(2) == 0 {
            let terms = roots.iter().map(Tensor::sum_all).collect::<Result<Vec<_>>>()?;
            let sum = terms.iter().try_fold(Tensor::zeros((), self.dtype, &self.device)?, |sum, term| sum + term)?;
            if sum.is_tracked() {
                sum.backward()?;
            }
            drop(known);
        }
        roots.iter().rev().map(floats).collect()
    }

    /// [`Graph::live`] against all values evaluated at once, each by a kernel of its own, and kept.
    fn check_life(&self, seed: u64) -> Result<Option<String>> {
        let want = no_fusion(|| -> Result<Each> {
            let mut known = values(&self.variables()?);
            for step in &self.steps {
                let operands: Vec<Tensor> = step.reads.iter().map(|&at| known[at].clone()).collect();
                known.push((step.apply)(&operands)?);
                known[known.len() - 1].eval()?;
            }
            self.roots.iter().rev().map(|&root| floats(&known[root])).collect()
        })?;
        let lives =
            (0..3).map(|i| Ok(super::off("a life", &self.live(seed + 1000 * i)?, &want, self.tolerance(1e-10), 1.0)));
        lives.collect::<Result<Vec<_>>>().map(|all| all.into_iter().flatten().next())
    }

    /// What is wrong with it.
    fn failure(&self, seed: u64) -> Option<String> {
        match catch_unwind(AssertUnwindSafe(|| Ok(self.check(seed)?.or(self.check_life(seed)?)))) {
            Ok(result) => result.unwrap_or_else(|error: Error| Some(error.to_string())),
            Err(_) => Some("panic".into()),
        }
    }

    /// The steps that the roots need.
    fn text(&self) -> String {
        let mut needed = vec![false; self.inputs.len() + self.steps.len()];
        self.roots.iter().for_each(|&root| needed[root] = true);
        for (i, step) in self.steps.iter().enumerate().rev() {
            if needed[self.inputs.len() + i] {
                step.reads.iter().for_each(|&at| needed[at] = true);
            }
        }
        let inputs = self.inputs.iter().enumerate().map(|(i, x)| (i, format!("input {:?}", x.dims)));
        let steps = self.steps.iter().enumerate();
        let steps = steps.map(|(i, step)| (self.inputs.len() + i, format!("{} of {:?}", step.text, step.reads)));
        let lines = inputs.chain(steps).filter(|(i, _)| needed[*i]).map(|(i, line)| format!("  {i}: {line}\n"));
        lines.collect::<String>() + &format!("  loss of {:?}", self.roots)
    }
}

/// An op on some of these values; `None` where none of the chosen kind fits.
fn random_step(rng: &mut Rng, known: &[Tensor]) -> Option<Step> {
    // Recent values more often than old ones.
    let at = known.len() - 1 - rng.below(known.len()).min(rng.below(known.len()));
    let x = &known[at];
    let one = |text: String, apply: Apply| Some(Step { text, reads: vec![at], apply });
    match rng.below(13) / 2 {
        0 => {
            let (name, f) = rng.pick(&UNARY);
            one(name.into(), Box::new(move |x| f(&x[0])))
        }
        1 => {
            let (name, f) = rng.pick(&BINARY);
            let fits: Vec<usize> = (0..known.len()).filter(|&i| (x + &known[i]).is_ok()).collect();
            let other = rng.pick(&fits);
            Some(Step { text: name.into(), reads: vec![at, other], apply: Box::new(move |x| f(&x[0], &x[1])) })
        }
        2 if x.rank() > 0 => {
            let ((name, f), dim) = (rng.pick(&ALONG), rng.below(x.rank()));
            one(format!("{name} along {dim}"), Box::new(move |x| f(&x[0], dim)))
        }
        3 => random_product(rng, known, at),
        4 if x.rank() > 0 => random_access(rng, known, at),
        5 => random_view(rng, x).and_then(|(text, apply)| one(text, apply)),
        6 => {
            // For an input or a result on the way.
            let target = rng.below(at.max(1));
            let apply = |x: &[Tensor]| {
                let y = (&x[0] * &weights(&x[0], 3)?)?.sum_all()?;
                Ok(grad(&y, &[&x[1]], true)?.remove(0))
            };
            Some(Step { text: "gradient".into(), reads: vec![at, target], apply: Box::new(apply) })
        }
        _ => None,
    }
}

fn random_product(rng: &mut Rng, known: &[Tensor], at: usize) -> Option<Step> {
    let x = &known[at];
    if x.rank() > 1 && rng.below(3) == 0 {
        let apply: Apply = Box::new(|x| x[0].matmul(&x[0].t()?)? * 0.3);
        return Some(Step { text: "x x^T".into(), reads: vec![at], apply });
    }
    let fits: Vec<usize> = (0..known.len()).filter(|&i| x.matmul(&known[i]).is_ok()).collect();
    let other = *fits.get(rng.below(fits.len().max(1)))?;
    let apply: Apply = Box::new(|x| x[0].matmul(&x[1])? * 0.5);
    Some(Step { text: "matmul".into(), reads: vec![at, other], apply })
}

/// Reading or adding through indices, padding, norms.
fn random_access(rng: &mut Rng, known: &[Tensor], at: usize) -> Option<Step> {
    let (x, dim) = (&known[at], rng.below(known[at].rank()));
    let size = x.dims()[dim];
    let (text, apply): (String, Apply) = match rng.below(6) {
        0 => {
            let count = 1 + rng.below(4);
            let indices = rng.indices(count, size);
            let text = format!("index_select along {dim} by {indices:?}");
            (text, Box::new(move |x| x[0].index_select(dim, &vector(&indices, x[0].device())?)))
        }
        1 => {
            let mut dims = x.dims().to_vec();
            dims[dim] = 1 + rng.below(3);
            let indices = rng.indices(dims.iter().product(), size);
            let text = format!("gather along {dim} by {indices:?} {dims:?}");
            (text, Box::new(move |x| x[0].gather(dim, &vector(&indices, x[0].device())?.reshape(&dims[..])?)))
        }
        2 => {
            let indices = rng.indices(size, size + 1);
            let text = format!("index_add along {dim} by {indices:?} to ones");
            let add = move |x: &[Tensor]| {
                let mut dims = x[0].dims().to_vec();
                dims[dim] += 1;
                let ones = Tensor::ones(&dims[..], x[0].dtype(), x[0].device())?;
                ones.index_add(dim, &vector(&indices, x[0].device())?, &x[0])
            };
            (text, Box::new(add))
        }
        3 => {
            let indices = rng.indices(x.numel(), size);
            let text = format!("scatter_add of its sine along {dim} by {indices:?}");
            let add = move |x: &[Tensor]| {
                let index = vector(&indices, x[0].device())?.reshape(x[0].shape())?;
                x[0].scatter_add(dim, &index, &x[0].sin()?)
            };
            (text, Box::new(add))
        }
        4 => {
            let padding: Vec<(usize, usize)> = (0..x.rank()).map(|_| (rng.below(3), rng.below(2))).collect();
            (format!("pad {padding:?}"), Box::new(move |x| x[0].pad(&padding)))
        }
        _ => {
            let norm = |x: &[Tensor]| {
                let rows: Vec<usize> = (0..x[0].rank() - 1).collect();
                let weight = x[0].mean(&rows[..])?.sigmoid()?;
                x[0].layer_norm(&weight, Some(&weight.neg()?), 0.5)?.rms_norm(&weight, 0.5)
            };
            ("two norms".into(), Box::new(norm))
        }
    };
    Some(Step { text, reads: vec![at], apply })
}

fn vector(indices: &[i64], device: &Device) -> Result<Tensor> {
    Tensor::from_slice(indices, indices.len(), device)
}

fn random_view(rng: &mut Rng, x: &Tensor) -> Option<(String, Apply)> {
    let rank = x.rank();
    if rank == 0 {
        return Some(("expand to [2, 3]".into(), Box::new(|x| x[0].expand((2, 3)))));
    }
    let dim = rng.below(rank);
    let size = x.dims()[dim];
    let (start, len) = (rng.below(size), 1 + rng.below(size));
    let len = len.min(size - start);
    Some(match rng.below(8) {
        0 => {
            let mut order: Vec<usize> = (0..rank).collect();
            (0..rank).for_each(|i| order.swap(i, rng.below(rank)));
            (format!("permute {order:?}"), Box::new(move |x| x[0].permute(&order)))
        }
        1 => (format!("narrow {dim} {start} {len}"), Box::new(move |x| x[0].narrow(dim, start, len))),
        2 => {
            let step = rng.pick(&[-3, -2, -1, 2, 3]);
            (format!("slice {dim} {start}.. {step}"), Box::new(move |x| x[0].slice(dim, start.., step)))
        }
        3 => {
            let rest = x.numel();
            let factors: Vec<usize> = (1..=rest).filter(|n| rest.is_multiple_of(*n)).collect();
            let first = rng.pick(&factors);
            let second = rng.pick(&factors);
            let dims = if (rest / first).is_multiple_of(second) {
                vec![second, first, rest / first / second]
            } else {
                vec![first, rest / first]
            };
            (format!("reshape {dims:?}"), Box::new(move |x| x[0].reshape(&dims[..])))
        }
        4 => {
            let mut dims = x.dims().to_vec();
            dims.iter_mut().filter(|d| **d == 1).for_each(|d| *d = 2);
            dims.insert(0, 2);
            (format!("expand {dims:?}"), Box::new(move |x| x[0].expand(&dims[..])))
        }
        5 => (format!("select {dim} {start}"), Box::new(move |x| x[0].select(dim, start))),
        6 => (format!("unsqueeze {dim}"), Box::new(move |x| x[0].unsqueeze(dim as isize))),
        _ => {
            let (window, step) = (1 + rng.below(size), 1 + rng.below(2));
            (format!("unfold {dim} {window} {step}"), Box::new(move |x| x[0].unfold(dim, window, step)))
        }
    })
}

/// What went wrong with a seed's graph, and the first value of it that shows it alone.
fn failure(seed: u64, device: &Device) -> Option<String> {
    let mut graph = Graph::generate(seed, device).unwrap();
    let first = graph.failure(seed)?;
    let all = graph.roots.clone();
    let alone = (0..graph.inputs.len() + graph.steps.len()).find_map(|value| {
        graph.roots = vec![value];
        graph.failure(seed)
    });
    if alone.is_none() {
        graph.roots = all;
    }
    Some(format!("{}: {}\n{}", rerun(device, seed), alone.unwrap_or(first), graph.text()))
}

fn run(seeds: Range<u64>, device: &Device) {
    /// Failures after which no more are sought.
    const ENOUGH: usize = 5;
    let failures: Vec<String> = seeds.filter_map(|seed| failure(seed, device)).take(ENOUGH).collect();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

on_every_device! {
    gradients_of_random_graphs,
}

fn gradients_of_random_graphs(device: &Device) {
    run(seeds(0..budget(device, 300, 100)), device);
}

#[test]
#[ignore = "takes minutes"]
fn gradients_of_many_random_graphs() {
    run(seeds(300..20_000), &Device::cpu());
}
