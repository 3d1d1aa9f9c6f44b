//! Derivatives: every op against finite differences in f64, and what holds of graphs with history.
//!
//! A [`Case`] is a function of tensors. It is differentiated once, twice, in every float dtype, fused and
//! unfused, before and after it was evaluated; all must agree with differences of its values.

mod attention;
mod behaviour;
mod elementwise;
mod folds;
mod process;
mod products;
mod random;
mod views;

use crate::oracle::{Array, Value, budget, on_every_device, round, unit};
use tensorlogic::testing::no_fusion;
use tensorlogic::{DType, Device, Result, Tensor, Var, grad};

on_every_device! {
    gradients_in_f32, gradients_in_f16, gradients_in_bf16,
}

/// A function of tensors, which takes any float dtype on any device.
type Function = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// For each input, what belongs to its elements.
type Each = Vec<Vec<f64>>;

/// A function, and where to differentiate it.
pub struct Case {
    name: String,
    inputs: Vec<Array>,
    function: Function,
    /// It has a second derivative where it is differentiated.
    smooth: bool,
}

impl Case {
    fn new(
        name: impl Into<String>,
        inputs: impl IntoIterator<Item = Array>,
        function: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
    ) -> Case {
        let inputs = inputs.into_iter().collect();
        Case { name: name.into(), inputs, function: Box::new(function), smooth: true }
    }

    /// Only once differentiable.
    fn rough(self) -> Case {
        Case { smooth: false, ..self }
    }
}

fn cases() -> impl Iterator<Item = Case> {
    let all = [elementwise::cases, views::cases, folds::cases, products::cases, attention::cases];
    all.into_iter().flat_map(|cases| cases())
}

/// Numbers between `lo` and `hi` in no order, of which no two are close (up to a few dozen), nor two of
/// another seed; all of them are numbers of every float dtype.
pub fn spread(dims: &[usize], seed: u64, lo: f64, hi: f64) -> Array {
    let count: usize = dims.iter().product();
    // Any odd step that shares no factor with the count visits every stratum.
    let step =
        (3 + 2 * seed as usize..).find(|step| (2..=*step).all(|d| step % d != 0 || !count.is_multiple_of(d))).unwrap();
    let phase = 0.1 + 0.8 * (seed as f64 * 0.618_034).fract();
    let stratum = |i: usize| (i * step + seed as usize) % count.max(1);
    let value = |i: usize| lo + (hi - lo) * (stratum(i) as f64 + phase) / count as f64;
    Array::floats(DType::F64, dims, (0..count).map(|i| round(value(i), DType::BF16)))
}

/// [`spread`] over -2..2.
pub fn numbers(dims: &[usize], seed: u64) -> Array {
    spread(dims, seed, -2.0, 2.0)
}

/// What a result is contracted with: positive and negative weights of one size, other ones for every seed.
fn weights(like: &Tensor, seed: u64) -> Result<Tensor> {
    let weights = numbers(like.dims(), seed).map(|x| if x < 0.0 { x - 0.5 } else { x + 0.5 });
    Ok(weights.stored(like.dtype()).upload(like.device()))
}

/// The inputs as variables of a dtype.
fn variables(inputs: &[Array], dtype: DType, device: &Device) -> Result<Vec<Var>> {
    inputs.iter().map(|x| Var::new(&x.stored(dtype).upload(device))).collect()
}

fn values(vars: &[Var]) -> Vec<Tensor> {
    vars.iter().map(Var::tensor).collect()
}

/// The function's result, contracted with weights.
fn loss(case: &Case, inputs: &[Tensor]) -> Result<Tensor> {
    let y = (case.function)(inputs)?;
    (&y * &weights(&y, 99)?)?.sum_all()
}

fn floats(x: &Tensor) -> Result<Vec<f64>> {
    Ok(Array::read(x)?.values.into_iter().map(Value::float).collect())
}

/// Gradients for all variables, zeros where there is none.
fn gradients(of: &Tensor, vars: &[Var]) -> Result<Each> {
    let zeros = || vars.iter().map(|v| vec![0.0; v.numel()]).collect();
    if !of.is_tracked() {
        return Ok(zeros());
    }
    let found = of.backward()?;
    let gradient = |var: &Var| match found.get(var) {
        Some(gradient) => {
            assert_eq!((gradient.shape(), gradient.dtype()), (&var.shape(), var.dtype()));
            floats(gradient)
        }
        None => Ok(vec![0.0; var.numel()]),
    };
    vars.iter().map(gradient).collect()
}

/// Central differences of a scalar function, for every element of every input.
fn differences(inputs: &[Array], f: impl Fn(&[Tensor]) -> Result<f64>) -> Result<Each> {
    /// Inputs are multiples of a larger power of two: both steps from them are exact.
    const STEP: f64 = 1.0 / (1 << 17) as f64;
    let device = Device::cpu();
    let mut tensors: Vec<Tensor> = inputs.iter().map(|x| x.upload(&device)).collect();
    let mut all = Vec::new();
    for (i, input) in inputs.iter().enumerate() {
        let original = tensors[i].clone();
        let mut at = |element: usize, step: f64| {
            let mut moved: Vec<f64> = input.values.iter().map(|v| v.float()).collect();
            moved[element] += step;
            tensors[i] = Tensor::from_vec(moved, &input.dims, &device)?;
            f(&tensors)
        };
        let slope = |element: usize| Ok((at(element, STEP)? - at(element, -STEP)?) / (2.0 * STEP));
        all.push((0..input.values.len()).map(slope).collect::<Result<Vec<f64>>>()?);
        tensors[i] = original;
    }
    Ok(all)
}

/// What is wrong unless each input's gradient is within `tolerance` of `want`, relative to the largest
/// element of that or `floor`.
fn off(what: &str, got: &Each, want: &Each, tolerance: f64, floor: f64) -> Option<String> {
    assert_eq!(got.len(), want.len(), "{what}");
    got.iter().zip(want).enumerate().find_map(|(input, (got, want))| {
        let largest = want.iter().fold(floor, |a, x| a.max(x.abs()));
        let near = |(g, w): (&f64, &f64)| (g - w).abs() <= tolerance * largest;
        let i = got.iter().zip(want).position(|pair| !near(pair))?;
        let error = (got[i] - want[i]).abs() / largest / tolerance;
        Some(format!("{what}: input {input}, {error:.1} times what is allowed at {i}: {got:?}, not {want:?}"))
    })
}

fn assert_none(failures: Vec<String>) {
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// Relative error of a central difference whose values are of about the size of the gradient: rounding
/// errors 1e-16 over a step of 1e-5, and a third derivative of up to some hundreds times its square.
const DIFFERENCE: f64 = 1e-7;

/// Relative error of a gradient in f64, computed twice.
const SAME: f64 = 1e-12;

#[test]
fn every_op_against_finite_differences() {
    let failure = |case: &Case| -> Result<Option<String>> {
        let want = differences(&case.inputs, |x| loss(case, x)?.item::<f64>())?;
        let all = first_order(case, DType::F64, &Device::cpu())?;
        let compared = |(how, got): &(&str, Each)| {
            off(&format!("{}, {how}", case.name), got, &want, DIFFERENCE, 1.0)
                .or_else(|| off(&format!("{}, {how} or {}", case.name, all[0].0), got, &all[0].1, SAME, 1.0))
        };
        Ok(all.iter().find_map(compared))
    };
    assert_none(cases().filter_map(|case| named(failure, &case)).collect());
}

/// Gradients computed in several ways.
fn first_order(case: &Case, dtype: DType, device: &Device) -> Result<Vec<(&'static str, Each)>> {
    let fresh = || -> Result<_> {
        let vars = variables(&case.inputs, dtype, device)?;
        let loss = loss(case, &values(&vars))?;
        Ok((vars, loss))
    };
    let (vars, l) = fresh()?;
    let together = gradients(&l, &vars)?;
    let (vars, l) = fresh()?;
    l.eval()?;
    let evaluated = gradients(&l, &vars)?;
    let (vars, l) = fresh()?;
    let values = values(&vars);
    let by_grad = grad(&l, &values.iter().collect::<Vec<_>>(), true)?.iter().map(floats).collect::<Result<_>>()?;
    let (unfused, apart) = no_fusion(|| -> Result<_> {
        let (vars, l) = fresh()?;
        let unfused = gradients(&l, &vars)?;
        let (vars, l) = fresh()?;
        l.eval()?;
        Ok((unfused, gradients(&l, &vars)?))
    })?;
    Ok(vec![
        ("backward()", together),
        ("backward() of an evaluated loss", evaluated),
        ("grad()", by_grad),
        ("unfused", unfused),
        ("unfused, of an evaluated loss", apart),
    ])
}

/// How many units of roundoff a gradient in another dtype may be off, relative to its largest element: a
/// rounding a kernel, unfused an op, where values are not much larger than the result.
const UNITS: f64 = 16.0;

/// The sum of all gradients, each contracted with weights: a function whose gradient is of second order.
fn slope(case: &Case, inputs: &[Tensor]) -> Result<Tensor> {
    let found = grad(&loss(case, inputs)?, &inputs.iter().collect::<Vec<_>>(), true)?;
    let contracted = |(i, g): (usize, &Tensor)| (g * &weights(g, 200 + i as u64)?)?.sum_all();
    let terms = found.iter().enumerate().map(contracted).collect::<Result<Vec<_>>>()?;
    terms[1..].iter().try_fold(terms[0].clone(), |sum, term| sum + term)
}

#[test]
fn second_derivatives_against_finite_differences() {
    let failure = |case: &Case| -> Result<Option<String>> {
        let moved = |inputs: &[Tensor]| {
            let vars = inputs.iter().map(Var::new).collect::<Result<Vec<_>>>()?;
            slope(case, &values(&vars))?.item::<f64>()
        };
        let want = differences(&case.inputs, moved)?;
        let got = |evaluated: bool| {
            let vars = variables(&case.inputs, DType::F64, &Device::cpu())?;
            let slope = slope(case, &values(&vars))?;
            if evaluated {
                slope.eval()?;
            }
            gradients(&slope, &vars)
        };
        let all = [("at once", got(false)?), ("evaluated first", got(true)?), ("unfused", no_fusion(|| got(true))?)];
        let compared =
            |(how, got): &(&str, Each)| off(&format!("{}, {how}", case.name), got, &want, 10.0 * DIFFERENCE, 1.0);
        Ok(all.iter().find_map(compared))
    };
    assert_none(cases().filter(|case| case.smooth).filter_map(|case| named(failure, &case)).collect());
}

fn gradients_in_f32(device: &Device) {
    gradients_in(DType::F32, 0, device);
}

fn gradients_in_f16(device: &Device) {
    gradients_in(DType::F16, 1, device);
}

fn gradients_in_bf16(device: &Device) {
    gradients_in(DType::BF16, 2, device);
}

/// Against those in f64 of the same inputs, which every float dtype holds. Where the device is simulated, cases
/// take the three dtypes in turns.
fn gradients_in(dtype: DType, turn: usize, device: &Device) {
    let unit = match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => unit(dtype),
    };
    let failure = |case: &Case| -> Result<Option<String>> {
        let want = first_order(case, DType::F64, &Device::cpu())?.swap_remove(0).1;
        let compared =
            |(how, got): &(&str, Each)| off(&format!("{} in {dtype}, {how}", case.name), got, &want, UNITS * unit, 0.0);
        Ok(first_order(case, dtype, device)?.iter().find_map(compared))
    };
    let taken = |at: usize| budget(device, true, at % 3 == turn);
    let failures = cases().enumerate().filter(|(at, _)| taken(*at)).filter_map(|(_, case)| named(failure, &case));
    assert_none(failures.collect());
}

/// What is wrong with a case; an error names it.
fn named(failure: impl Fn(&Case) -> Result<Option<String>>, case: &Case) -> Option<String> {
    failure(case).unwrap_or_else(|error| Some(format!("{}: {error}", case.name)))
}
