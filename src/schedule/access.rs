//! Views as index arithmetic: how a kernel's loop indices reach an element of a node.

use crate::graph::{Op, Snapshot};
use crate::shape::{Dims, MAX_RANK, Shape, Strides};

/// The row-major index of an element of some node, as an affine function of a kernel's loop indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Access {
    /// Step for each loop dimension.
    pub strides: Strides,
    /// Index where all loops stand at 0.
    pub offset: isize,
}

/// Why a view could not be pushed through a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// It could, were loop `dim` two loops, the inner one of `inner` steps.
    Split { dim: usize, inner: usize },
    /// No affine function of the loops reaches the elements.
    NotAffine,
}

/// The coordinates of an element in a shape, each an affine function of the loops.
pub(crate) struct Coordinates {
    loops: usize,
    /// One a dimension of the shape: start, and step for each loop.
    pub dims: Vec<(isize, Strides)>,
}

impl Access {
    /// Reads every element in row-major order.
    #[cfg(test)]
    fn identity(shape: &Shape) -> Access {
        Access { strides: shape.contiguous_strides(), offset: 0 }
    }

    /// Whether loop nest `extents` reads `numel` elements, each once, in order.
    pub fn is_identity(&self, extents: &[usize], numel: usize) -> bool {
        let mut step = 1isize;
        for (&stride, &extent) in self.strides.iter().zip(extents).rev() {
            if extent != 1 && stride != step {
                return false;
            }
            step *= extent as isize;
        }
        self.offset == 0 && step == numel as isize
    }

    /// Coordinates in `shape` of the element that is reached, for loops of `extents`.
    ///
    /// Each loop must walk along one dimension, without ever carrying into the next: then the
    /// coordinates are sums, and any strided view of `shape` composes with this access.
    pub fn decode(&self, extents: &[usize], shape: &Shape) -> Result<Coordinates, Misfit> {
        let steps = shape.contiguous_strides();
        let mut rest = self.offset;
        let mut dims: Vec<(isize, Strides)> = Vec::with_capacity(shape.rank());
        for &step in steps.iter() {
            dims.push((rest / step, Strides::filled(extents.len(), 0)));
            rest %= step;
        }
        for (i, (&stride, &extent)) in self.strides.iter().zip(extents).enumerate() {
            if stride == 0 || extent == 1 {
                continue;
            }
            let fits = |&j: &usize| shape.dims()[j] > 1 && steps[j] <= stride.abs();
            let Some(j) = (0..shape.rank()).find(fits) else { return Err(Misfit::NotAffine) };
            if stride % steps[j] != 0 {
                return Err(Misfit::NotAffine);
            }
            let along = stride / steps[j];
            let room = shape.dims()[j];
            if along.unsigned_abs() * (extent - 1) >= room {
                let inner = room / along.unsigned_abs();
                let splits = inner > 1 && room.is_multiple_of(along.unsigned_abs()) && extent % inner == 0;
                return Err(if splits { Misfit::Split { dim: i, inner } } else { Misfit::NotAffine });
            }
            dims[j].1[i] = along;
        }
        let inside = dims.iter().zip(shape.dims()).all(|((start, along), &size)| {
            let reach = |keep: fn(isize) -> bool| -> isize {
                along.iter().zip(extents).filter(|(s, _)| keep(**s)).map(|(&s, &e)| s * (e as isize - 1)).sum()
            };
            start + reach(|s| s < 0) >= 0 && start + reach(|s| s > 0) < size.max(1) as isize
        });
        if inside { Ok(Coordinates { loops: extents.len(), dims }) } else { Err(Misfit::NotAffine) }
    }

    /// This access to a view's elements, as an access to what it views: `strides` and `offset` say how
    /// the view of shape `shape` reads its base.
    pub fn through(
        &self,
        extents: &[usize],
        shape: &Shape,
        strides: &Strides,
        offset: isize,
    ) -> Result<Access, Misfit> {
        let reshapes = shape.is_contiguous(strides);
        if reshapes {
            return Ok(Access { strides: self.strides, offset: self.offset + offset });
        }
        Ok(self.decode(extents, shape)?.access(strides, offset))
    }
}

impl Coordinates {
    /// The access that reads element `offset + sum(coordinate * stride)`.
    pub fn access(&self, strides: &[isize], offset: isize) -> Access {
        let mut access = Access { strides: Strides::filled(self.loops, 0), offset };
        for ((start, along), &stride) in self.dims.iter().zip(strides) {
            access.offset += start * stride;
            for (total, &step) in access.strides.iter_mut().zip(along.iter()) {
                *total += step * stride;
            }
        }
        access
    }
}

/// The node that `node` is read from by strides, and how: it goes through views, up to the first node for
/// which `stop` holds, or that is no view, or whose elements strides do not reach.
pub(crate) fn strided_base(graph: &Snapshot, node: u32, stop: &dyn Fn(u32) -> bool) -> (u32, Access) {
    let shape = graph.entries[node as usize].node.shape;
    let (mut extents, mut at) = (Dims::from_slice(shape.dims()).unwrap_or_default(), node);
    let mut access = Access { strides: shape.contiguous_strides(), offset: 0 };
    let mut found = (at, access);
    loop {
        let entry = &graph.entries[at as usize];
        let (Op::View(view), Some(&base), false) = (entry.node.op, entry.inputs.first(), stop(at)) else { break };
        match access.through(&extents, &entry.node.shape, &view.strides, view.offset) {
            Ok(through) => {
                (at, access) = (base, through);
                if let Some(strides) = joined(shape.dims(), &extents, &access.strides) {
                    found = (at, Access { strides, ..access });
                }
            }
            // A reshape after a transposition may be undone by an earlier one: dimensions go their own ways meanwhile.
            Err(Misfit::Split { dim, inner }) if extents.len() < MAX_RANK => {
                let step = access.strides[dim];
                extents[dim] /= inner;
                access.strides[dim] = step * inner as isize;
                let has_room = extents.insert(dim + 1, inner) && access.strides.insert(dim + 1, step);
                debug_assert!(has_room, "there are fewer than MAX_RANK");
            }
            Err(_) => break,
        }
    }
    found
}

/// The strides of `dims`, each of which is one or more neighbours of `extents`, if they are walked as one.
fn joined(dims: &[usize], extents: &[usize], strides: &[isize]) -> Option<Strides> {
    let mut parts = extents.iter().zip(strides).rev();
    let mut list = Strides::filled(dims.len(), 0);
    for (joined, &dim) in list.iter_mut().zip(dims).rev() {
        let (&inner, &step) = parts.next()?;
        let mut size = inner;
        while size < dim {
            let (&extent, &stride) = parts.next()?;
            if stride != step * size as isize {
                return None;
            }
            size *= extent;
        }
        *joined = step;
    }
    Some(list)
}

/// Merges neighbouring loops that every access walks as one, and drops loops of one step.
/// `accesses` are changed along with `extents`; the loops keep their order.
pub(crate) fn collapse(extents: &mut Dims<usize>, accesses: &mut [&mut Strides]) {
    let mut i = 0;
    while i < extents.len() {
        if extents[i] == 1 {
            extents.delete(i);
            accesses.iter_mut().for_each(|a| a.delete(i));
        } else if i > 0 && accesses.iter().all(|a| a[i - 1] == a[i] * extents[i] as isize) {
            extents[i] *= extents[i - 1];
            extents.delete(i - 1);
            accesses.iter_mut().for_each(|a| a.delete(i - 1));
        } else {
            i += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(dims: &[usize]) -> Shape {
        Shape::new(dims).unwrap()
    }

    /// Every access that `decode` accepts gives the coordinates that division would.
    #[test]
    fn decoding_agrees_with_division() {
        let base = shape(&[4, 3, 2]);
        let cases: [(&[usize], &[isize], isize); 6] = [
            (&[4, 3, 2], &[6, 2, 1], 0),
            (&[2, 4, 3], &[1, 6, 2], 0),
            (&[4, 2], &[6, -1], 3),
            (&[2, 3], &[12, 2], 7),
            (&[3], &[-2], 22),
            (&[5, 4], &[0, 6], 5),
        ];
        for (extents, strides, offset) in cases {
            let access = Access { strides: Dims::from_slice(strides).unwrap(), offset };
            let coordinates = access.decode(extents, &base).unwrap();
            let again = coordinates.access(&base.contiguous_strides(), 0);
            assert_eq!(again, access);
        }
    }

    #[test]
    fn a_loop_over_two_dimensions_asks_to_be_split() {
        let flat = Access::identity(&shape(&[24]));
        assert_eq!(flat.decode(&[24], &shape(&[4, 6])).err(), Some(Misfit::Split { dim: 0, inner: 6 }));
        let odd = Access { strides: Dims::from_slice(&[1]).unwrap(), offset: 3 };
        assert_eq!(odd.decode(&[4], &shape(&[4, 6])).err(), Some(Misfit::NotAffine));
    }

    #[test]
    fn loops_that_were_split_are_joined_where_they_walk_as_one() {
        let strides = |dims: &[usize], extents: &[usize], strides: &[isize]| {
            joined(dims, extents, strides).map(|list| list.to_vec())
        };
        assert_eq!(strides(&[2, 12], &[2, 3, 4], &[40, 4, 1]), Some(vec![40, 1]));
        assert_eq!(strides(&[2, 12], &[2, 3, 4], &[4, 8, 1]), None);
        assert_eq!(strides(&[1, 6, 1], &[1, 2, 3, 1], &[7, 30, 10, 5]), Some(vec![7, 10, 5]));
    }

    #[test]
    fn collapsing_keeps_what_differs() {
        let mut extents = Dims::from_slice(&[2, 1, 3, 4]).unwrap();
        let mut a = Dims::from_slice(&[12, 7, 4, 1]).unwrap();
        let mut b = Dims::from_slice(&[0, 0, 0, 1]).unwrap();
        collapse(&mut extents, &mut [&mut a, &mut b]);
        assert_eq!((&*extents, &*a, &*b), (&[6, 4][..], &[4, 1][..], &[0, 1][..]));
    }
}
