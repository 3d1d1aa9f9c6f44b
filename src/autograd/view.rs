//! The adjoint of a strided view: where each element of the view's gradient goes in its base.

use crate::error::Result;
use crate::graph::View;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// A dimension of a view: how many elements, how far apart in the base.
type Walk = (usize, isize);

/// Adds up, for each element of a base of shape `base`, the elements of `g` whose view reads it.
pub(super) fn adjoint(g: &Tensor, view: &View, base: &Shape) -> Result<Tensor> {
    let walks: Vec<Walk> = g.dims().iter().copied().zip(view.strides.iter().copied()).collect();
    scattered(g, walks, view.offset, base)
}

/// `walks` has an entry a dimension of `g`.
fn scattered(g: &Tensor, walks: Vec<Walk>, mut offset: isize, base: &Shape) -> Result<Tensor> {
    // Repeated elements are summed; dimensions of size 1 say nothing.
    let repeated: Vec<usize> = (0..walks.len()).filter(|&i| walks[i].1 == 0 && walks[i].0 > 1).collect();
    let mut g = if repeated.is_empty() { g.clone() } else { g.sum(&repeated[..])? };
    let mut walks: Vec<Walk> = walks.into_iter().filter(|&(n, stride)| n > 1 && stride != 0).collect();
    g = g.reshape(sizes(&walks))?;
    for (i, (n, stride)) in walks.iter_mut().enumerate().filter(|(_, (_, stride))| *stride < 0) {
        g = g.slice(i, .., -1)?;
        offset += *stride * (*n as isize - 1);
        *stride = -*stride;
    }
    let mut order: Vec<usize> = (0..walks.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(walks[i].1));
    let walks: Vec<Walk> = order.iter().map(|&i| walks[i]).collect();
    g = g.permute(&order)?;
    if let Some(outer) = walks.windows(2).position(|w| w[0].1 < w[1].1 * w[1].0 as isize) {
        return overlapping(&g, &walks, outer, offset, base);
    }
    if g.numel() == base.numel() && offset == 0 {
        return g.reshape(base);
    }
    match digits(&walks, offset, base.numel()) {
        Some((before, radices)) => {
            let mut shape = sizes(&walks);
            shape.push(1);
            g.reshape(shape)?.pad_to(&before, Shape::new(&radices)?)?.reshape(base)
        }
        None => step_by_step(g, &walks, offset, base),
    }
}

fn sizes(walks: &[Walk]) -> Vec<usize> {
    walks.iter().map(|&(n, _)| n).collect()
}

/// Dimensions `outer` and the next reach the same elements (sliding windows): the smaller of them is
/// added up element by element.
fn overlapping(g: &Tensor, walks: &[Walk], outer: usize, offset: isize, base: &Shape) -> Result<Tensor> {
    let dim = if walks[outer].0 < walks[outer + 1].0 { outer } else { outer + 1 };
    let mut rest = walks.to_vec();
    let (n, stride) = rest.remove(dim);
    let term = |i: usize| scattered(&g.select(dim, i)?, rest.clone(), offset + i as isize * stride, base);
    (1..n).try_fold(term(0)?, |sum, i| sum + term(i)?)
}

/// The base's elements as digits in a mixed-radix number, one a walk and one for what lies between: in
/// which of them the view starts, and the radices. `None` where a digit would carry.
fn digits(walks: &[Walk], offset: isize, numel: usize) -> Option<(Vec<usize>, Vec<usize>)> {
    let (mut before, mut radices) = (Vec::new(), Vec::new());
    let (mut above, mut rest) = (numel, usize::try_from(offset).ok()?);
    for (n, step) in walks.iter().map(|&(n, stride)| (n, stride as usize)).chain([(1, 1)]) {
        if !above.is_multiple_of(step) || rest / step + n > above / step {
            return None;
        }
        radices.push(above / step);
        before.push(rest / step);
        rest %= step;
        above = step;
    }
    (radices.len() <= crate::shape::MAX_RANK).then_some((before, radices))
}

/// Spreads one dimension after another, the innermost first.
fn step_by_step(mut g: Tensor, walks: &[Walk], offset: isize, base: &Shape) -> Result<Tensor> {
    // What is done already is a stretch of this many elements of the base, for each of the others.
    let (mut len, mut others) = (1, g.numel());
    for &(n, stride) in walks.iter().rev() {
        let step = stride as usize;
        others /= n;
        g = g.reshape((others, n, len))?.pad_to(&[0; 3], Shape::new(&[others, n, step])?)?;
        len += (n - 1) * step;
        g = g.reshape((others, n * step))?.narrow(1, 0, len)?;
    }
    g.reshape(len)?.pad_to(&[offset.unsigned_abs()], Shape::new(&[base.numel()])?)?.reshape(base)
}
