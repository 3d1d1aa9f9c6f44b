//! What has a gradient and what has none, and graphs with history that are shared, evaluated in pieces,
//! let go of, and deep.

use super::{floats, numbers};
use tensorlogic::testing::{explain, no_fusion};
use tensorlogic::{DType, Device, Error, Result, Tensor, Var, autocast, grad, no_grad};

fn variable(dims: &[usize], seed: u64) -> Result<Var> {
    Var::new(&numbers(dims, seed).upload(&Device::cpu()))
}

fn tensor(values: &[f64]) -> Result<Tensor> {
    Tensor::from_slice(values, values.len(), &Device::cpu())
}

/// The gradient of the sum of all elements.
fn slope(of: &Tensor, at: &Tensor) -> Result<Vec<f64>> {
    floats(&grad(&of.sum_all()?, &[at], false)?[0])
}

fn reason(result: Result<impl Sized>) -> String {
    match result {
        Err(Error::NoGradient { reason, .. }) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a gradient where there is none"),
    }
}

#[test]
fn what_has_no_gradient_gives_none() -> Result<()> {
    let (x, other) = (variable(&[3], 1)?, variable(&[3], 2)?);
    let found = x.tensor().sum_all()?.backward()?;
    assert!(found.get(&other).is_none() && found.len() == 1);
    assert!(reason(tensor(&[1.0])?.backward()).contains("does not depend on any Var"));
    let y = x.tensor().sum_all()?;
    assert!(reason(grad(&y, &[&other.tensor()], false)).contains("does not depend on tensor 0"));
    assert!(reason(grad(&y, &[&x.tensor(), &other.tensor()], false)).contains("does not depend on tensor 1"));
    Ok(())
}

#[test]
fn decisions_have_no_gradient() -> Result<()> {
    let x = variable(&[4], 1)?.tensor();
    let decided = [
        x.gt(0.0)?,
        x.eq(&x)?,
        x.is_nan()?,
        x.argmax(0)?,
        x.to_dtype(DType::I64)?,
        x.gt(0.0)?.to_dtype(DType::F64)?,
        x.to_dtype(DType::I64)?.to_dtype(DType::F64)?,
    ];
    decided.iter().for_each(|y| assert!(!y.is_tracked(), "{y:?}"));
    // One that steps has a gradient of zeros.
    assert_eq!(slope(&x.floor()?, &x)?, [0.0; 4]);
    Ok(())
}

#[test]
fn only_scalars_have_a_gradient_without_a_seed() -> Result<()> {
    let x = variable(&[2, 2], 1)?;
    let y = x.tensor().sqr()?;
    assert!(y.backward().is_err() && grad(&y, &[&x.tensor()], false).is_err());
    let seeds = [Tensor::ones(4, DType::F64, &Device::cpu())?, Tensor::ones((2, 2), DType::F32, &Device::cpu())?];
    assert!(seeds.iter().all(|seed| y.backward_with(seed).is_err()));
    let seed = numbers(&[2, 2], 5).upload(&Device::cpu());
    let found = y.backward_with(&seed)?;
    assert_eq!(floats(found.get(&x).unwrap())?, floats(&((x.tensor() * 2.0)? * &seed)?)?);
    Ok(())
}

#[test]
fn variables_are_checked() -> Result<()> {
    let device = Device::cpu();
    assert!(Var::new(&Tensor::zeros(3, DType::I64, &device)?).is_err());
    let x = variable(&[3], 1)?;
    assert!(x.set(&Tensor::zeros(4, DType::F64, &device)?).is_err());
    assert!(x.set(&Tensor::zeros(3, DType::F32, &device)?).is_err());
    let mut found = x.tensor().sum_all()?.backward()?;
    assert!(found.insert(&x, tensor(&[1.0])?).is_err());
    found.insert(&x, tensor(&[1.0, 2.0, 3.0])?)?;
    assert_eq!(floats(found.get(&x).unwrap())?, [1.0, 2.0, 3.0]);
    Ok(())
}

#[test]
fn shared_values_accumulate() -> Result<()> {
    let x = Var::new(&tensor(&[1.0, -2.0])?)?;
    let h = x.tensor().sqr()?;
    let y = ((&h * &h)? + (&h * &x.tensor())?)?; // x^4 + x^3
    let found = (y + x.tensor())?.sum_all()?.backward()?;
    assert_eq!(floats(found.get(&x).unwrap())?, [8.0, -19.0]);
    Ok(())
}

#[test]
fn a_second_backward_says_why_not() -> Result<()> {
    let x = variable(&[3], 1)?;
    let h = x.tensor().exp()?;
    let (a, b) = (h.sum_all()?, h.sqr()?.sum_all()?);
    a.backward()?;
    assert!(reason(a.backward()).contains("earlier backward()"));
    assert!(reason(b.backward()).contains("exp"), "it names what was let go of");
    assert!(reason(grad(&b, &[&x.tensor()], false)).contains("earlier backward()"));
    // Elements stay, also those that were not computed before.
    assert_eq!(floats(&b)?.len(), 1);
    assert_eq!(floats(&h)?, floats(&no_grad(|| x.tensor().exp())?)?);
    Ok(())
}

#[test]
fn detached_values_are_constants() -> Result<()> {
    let x = variable(&[2, 3], 1)?.tensor();
    let pending = x.sqr()?;
    for source in [&x, &pending] {
        let detached = source.detach();
        let constants =
            [detached.clone(), detached.t()?, detached.t()?.t()?, detached.reshape(6)?, detached.narrow(1, 0, 2)?];
        for constant in constants {
            assert!(!constant.is_tracked());
            assert!(!constant.exp()?.is_tracked());
        }
        // The value counts as a factor.
        let product = (source * &detached)?;
        let other = (source * &tensor(&floats(source)?)?.reshape((2, 3))?)?;
        assert_eq!(slope(&product, &x)?, slope(&other, &x)?);
    }
    Ok(())
}

#[test]
fn nothing_is_recorded_under_no_grad() -> Result<()> {
    let x = variable(&[2, 3], 1)?.tensor();
    let (turned, pending) = (x.t()?, x.sqr()?);
    no_grad(|| -> Result<()> {
        for source in [&x, &turned, &pending] {
            let untracked = [
                source.exp()?,
                source.t()?,
                source.t()?.t()?,
                source.narrow(0, 0, 1)?,
                source.reshape(6)?,
                source.expand((2, source.dims()[0], source.dims()[1]))?,
                source.contiguous()?,
                source.slice(0, .., -1)?.slice(0, .., -1)?,
            ];
            untracked.iter().enumerate().for_each(|(i, y)| assert!(!y.is_tracked() || std::ptr::eq(y, source), "{i}"));
        }
        Ok(())
    })?;
    let constant = no_grad(|| turned.t())?;
    assert!(!constant.is_tracked(), "a view of a view is not the base");
    let views = [no_grad(|| x.t())?, no_grad(|| pending.t())?, constant];
    for view in views {
        let later = (view.reshape((2, 3))? * &x)?;
        assert_eq!(slope(&later, &x)?, floats(&view)?);
    }
    assert!(
        no_grad(|| std::thread::scope(|s| s.spawn(|| x.exp()).join().unwrap()))?.is_tracked(),
        "another thread records"
    );
    Ok(())
}

#[test]
fn gradients_for_results_on_the_way() -> Result<()> {
    let x = variable(&[2, 3], 1)?.tensor();
    for evaluated in [false, true] {
        let h = x.sin()?;
        let turned = h.t()?;
        if evaluated {
            turned.eval()?;
        }
        let y = (turned.sqr()?.sum_all()? + turned.narrow(0, 0, 1)?.sum_all()?)?;
        let found = grad(&y, &[&turned, &h, &x, &y], false)?;
        let at_turned = ((&turned * 2.0)? + tensor(&[1.0, 0.0, 0.0])?.unsqueeze(1)?)?;
        assert_eq!(floats(&found[0])?, floats(&at_turned)?, "evaluated: {evaluated}");
        assert_eq!(floats(&found[1])?, floats(&at_turned.t()?)?);
        assert_eq!(floats(&found[2])?, floats(&(at_turned.t()? * x.cos()?)?)?);
        assert_eq!(floats(&found[3])?, [1.0]);
    }
    // Those of views that others are made of, however often.
    let [a, b]: [Tensor; 2] = x.chunk(2, 0)?.try_into().expect("two halves");
    let y = (a.slice(1, .., -1)? * b.reshape((1, 3))?)?;
    assert_eq!(slope(&y, &a)?, floats(&b.slice(1, .., -1)?)?);
    assert_eq!(slope(&y, &b)?, floats(&a.slice(1, .., -1)?)?);
    Ok(())
}

#[test]
fn grad_leaves_the_graph_to_others() -> Result<()> {
    let x = variable(&[3], 1)?;
    let h = x.tensor().exp()?;
    let (a, b) = (h.sum_all()?, h.sqr()?.sum_all()?);
    let first = floats(&grad(&a, &[&x.tensor()], false)?[0])?;
    let second = floats(&grad(&b, &[&x.tensor()], false)?[0])?;
    assert_eq!(first, floats(&h)?);
    assert_eq!(floats(&grad(&a, &[&x.tensor()], false)?[0])?, first);
    assert_eq!(floats(b.backward()?.get(&x).unwrap())?, second);
    Ok(())
}

#[test]
fn gradients_are_tracked_if_asked() -> Result<()> {
    let x = variable(&[3], 1)?.tensor();
    let y = x.sin()?.sum_all()?;
    assert!(!grad(&y, &[&x], false)?[0].is_tracked());
    let mut derivative = grad(&y, &[&x], true)?.remove(0);
    for expected in [x.sin()?.neg()?, x.cos()?.neg()?, x.sin()?] {
        derivative = grad(&derivative.sum_all()?, &[&x], true)?.remove(0);
        assert_eq!(floats(&derivative)?, floats(&expected)?);
    }
    Ok(())
}

#[test]
fn a_variable_may_change() -> Result<()> {
    let x = Var::new(&tensor(&[1.0, 2.0])?)?;
    let old = x.tensor();
    let pending = old.sqr()?.sum_all()?;
    let evaluated = old.exp()?.sum_all()?;
    evaluated.eval()?;
    x.set(&(&old * 10.0)?)?;
    assert_eq!(floats(&old)?, [1.0, 2.0]);
    assert_eq!(floats(&x.tensor())?, [10.0, 20.0]);
    assert_eq!(floats(pending.backward()?.get(&x).unwrap())?, [2.0, 4.0]);
    assert_eq!(floats(evaluated.backward()?.get(&x).unwrap())?, [1f64.exp(), 2f64.exp()]);
    let (x2, x3) = ((old * 2.0)?, (x.tensor() * 3.0)?);
    assert_eq!(
        floats((x2 + x3)?.sum_all()?.backward()?.get(&x).unwrap())?,
        [5.0, 5.0],
        "both values are the variable's"
    );
    Ok(())
}

/// Two layers, a norm and a residual in f32, every result of which is evaluated at once if `pieces` says so.
fn network(vars: &[Var], pieces: u64) -> Result<Tensor> {
    let [x, w, v, scale] = [0, 1, 2, 3].map(|i| vars[i].tensor());
    let mut count = 0;
    let mut step = |y: Result<Tensor>| -> Result<Tensor> {
        let y = y?;
        count += 1;
        if pieces >> (count - 1) & 1 == 1 {
            y.eval()?;
        }
        Ok(y)
    };
    let normed = step(x.layer_norm(&scale, Some(&scale), 1e-5))?;
    let product = step(normed.matmul(&w))?;
    let hidden = step(product.gelu())?;
    let back = step(hidden.matmul(&v))?;
    let sum = step(&back + &x)?;
    let turned = step(sum.t())?;
    let soft = step(turned.softmax(1))?;
    let windows = step(soft.unfold(1, 5, 2))?;
    let powers = step(windows.sqr()?.sum(-1))?;
    step(powers.mean_all())
}

fn network_variables() -> Result<Vec<Var>> {
    let device = Device::cpu();
    let shapes: [&[usize]; 4] = [&[33, 40], &[40, 70], &[70, 40], &[40]];
    let var = |(i, dims): (usize, &&[usize])| Var::new(&numbers(dims, i as u64).upload(&device).to_dtype(DType::F32)?);
    shapes.iter().enumerate().map(var).collect()
}

#[test]
fn evaluating_in_pieces_changes_no_bit() -> Result<()> {
    let vars = network_variables()?;
    let bits = |pieces: u64| -> Result<Vec<Vec<u32>>> {
        let found = network(&vars, pieces)?.backward()?;
        let bits = |var: &Var| Ok(found.get(var).unwrap().to_vec::<f32>()?.into_iter().map(f32::to_bits).collect());
        vars.iter().map(bits).collect()
    };
    let whole = bits(0)?;
    for pieces in (0..10).map(|i| 1 << i).chain([0x3ff, 0x155, 0x2aa]) {
        for (i, (whole, parts)) in whole.iter().zip(bits(pieces)?).enumerate() {
            assert_eq!(*whole, parts, "variable {i}, pieces {pieces:#b}");
        }
    }
    Ok(())
}

/// How many products a plan for these tensors computes.
fn products(tensors: &[&Tensor]) -> Result<usize> {
    Ok(explain(tensors)?.to_string().lines().filter(|line| line.contains(": matmul [] x ")).count())
}

#[test]
fn no_forward_product_runs_again() -> Result<()> {
    let vars = network_variables()?;
    for how in ["together", "loss first", "loss read between", "one gradient after another"] {
        let loss = network(&vars, 0)?;
        let mut count = 0;
        if how == "loss first" {
            count += products(&[&loss])?;
            loss.eval()?;
        }
        let found = loss.backward()?;
        if how == "loss read between" {
            count += products(&[&loss])?;
            loss.eval()?;
        }
        let gradients: Vec<&Tensor> = vars.iter().map(|var| found.get(var).unwrap()).collect();
        if how == "one gradient after another" {
            for gradient in &gradients {
                count += products(&[gradient])?;
                gradient.eval()?;
            }
        } else {
            count += products(&gradients)?;
        }
        assert_eq!(count, 6, "{how}: two forward, four backward");
    }
    Ok(())
}

#[test]
fn gradients_where_powers_are_flat() -> Result<()> {
    let x = Var::new(&tensor(&[0.0, 2.0])?)?.tensor();
    assert_eq!(slope(&x.pow(0.0)?, &x)?, [0.0, 0.0]);
    let second = |power: f64| -> Result<Vec<f64>> { slope(&grad(&x.pow(power)?.sum_all()?, &[&x], true)?[0], &x) };
    assert_eq!(second(2.0)?, [2.0, 2.0]);
    assert_eq!(second(3.0)?, [0.0, 12.0]);
    Ok(())
}

#[test]
fn ties_share_whatever_their_number() -> Result<()> {
    const COUNT: usize = 70_000; // more than f16 counts to
    let x = Var::new(&Tensor::zeros(COUNT, DType::F16, &Device::cpu())?)?;
    let share = || -> Result<Vec<f64>> { floats(x.tensor().max_all()?.backward()?.get(&x).unwrap()) };
    for found in [share()?, no_fusion(share)?] {
        assert!(found.iter().all(|&g| (g * COUNT as f64 - 1.0).abs() < 0.01), "{}", found[0]);
    }
    Ok(())
}

#[test]
fn steps_in_every_one_of_eight_dimensions() -> Result<()> {
    let x = Var::new(&Tensor::ones([3; 8], DType::F64, &Device::cpu())?)?.tensor();
    let corners = (0..8).try_fold(x.clone(), |y, dim| y.slice(dim, .., 2))?;
    let found = slope(&corners, &x)?;
    let is_corner = |mut at: usize| (0..8).all(|_| (at % 3 != 1, at /= 3).0);
    assert!(found.iter().enumerate().all(|(at, &g)| g == is_corner(at) as u8 as f64));
    Ok(())
}

#[test]
fn autocast_gives_gradients_in_the_variables_dtype() -> Result<()> {
    let vars = network_variables()?;
    let loss = || -> Result<Tensor> {
        let [x, w, v, scale] = [0, 1, 2, 3].map(|i| vars[i].tensor());
        ((x.matmul(&w)?.sigmoid()?.matmul(&v)? - &x)? * &scale)?.sqr()?.mean_all()
    };
    let whole = loss()?.backward()?;
    let narrow = autocast(DType::BF16, loss)?.backward()?;
    for var in &vars {
        let (want, got) = (whole.get(var).unwrap(), narrow.get(var).unwrap());
        assert_eq!(got.dtype(), DType::F32);
        let (want, got) = (floats(want)?, floats(got)?);
        let largest = want.iter().fold(0f64, |a, x| a.max(x.abs()));
        let off = got.iter().zip(&want).fold(0f64, |a, (g, w)| a.max((g - w).abs() / largest));
        assert!(off < 0.05, "{off}");
    }
    Ok(())
}

#[test]
fn deep_graphs() -> Result<()> {
    let x = Var::new(&tensor(&[0.5, -0.5])?)?;
    let mut y = x.tensor();
    for _ in 0..20_000 {
        y = (y * 0.9999)?;
    }
    let found = y.sum_all()?.backward()?;
    let want = 0.9999f64.powi(20_000);
    assert!(floats(found.get(&x).unwrap())?.iter().all(|g| (g - want).abs() < 1e-9 * want));
    Ok(())
}

/// A graph of as many nodes as wanted, evaluated on the way and with all its history.
fn chain(nodes: usize) -> Result<Tensor> {
    let x = Var::new(&tensor(&[0.5, -0.5])?)?;
    (0..nodes).try_fold(x.tensor(), |y, _| y.neg())
}

#[test]
fn dropping_a_long_history_needs_no_stack() -> Result<()> {
    let small_stack = |work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap();
    };
    let y = chain(1_000_000)?;
    small_stack(Box::new(move || drop(y)));
    let loss = chain(100_000)?.sum_all()?;
    let found = loss.backward()?;
    small_stack(Box::new(move || drop((loss, found))));
    Ok(())
}
