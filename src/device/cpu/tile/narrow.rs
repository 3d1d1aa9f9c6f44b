//! Ops that read f16 and bf16 where they lie, and write them, with no tile of f32 in between: where one op is
//! all that a kernel does, conversions as passes of their own take longer than the op.

use super::*;

/// Elements that a loop reads, computes and writes at once.
const BLOCK: usize = 8;

/// Where a loop finds an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In a tile of f32.
    Tile,
    /// In memory of the narrow dtype.
    Memory,
    /// In one f32, the same for all elements.
    One,
}

/// How operands and results of a loop lie in memory.
pub(super) trait Stored: Copy {
    /// Reads a block.
    ///
    /// # Safety
    /// A block of elements at `p`; the type's instruction set.
    unsafe fn load(p: *const Self) -> [f32; BLOCK];
    /// Writes a block.
    ///
    /// # Safety
    /// Room for a block of elements at `p`; the type's instruction set.
    unsafe fn store(p: *mut Self, values: [f32; BLOCK]);
    fn widen(self) -> f32;
    fn narrow(x: f32) -> Self;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; BLOCK] {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f32; BLOCK]>().read() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, values: [f32; BLOCK]) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f32; BLOCK]>().write(values) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
}

macro_rules! stored_bits {
    ($($t:ident)+) => {$(
        impl Stored for $t {
            #[inline(always)]
            unsafe fn load(p: *const $t) -> [f32; BLOCK] {
                // SAFETY: the caller's promise.
                unsafe { p.cast::<[$t; BLOCK]>().read() }.map(f32::convert)
            }
            #[inline(always)]
            unsafe fn store(p: *mut $t, values: [f32; BLOCK]) {
                // SAFETY: the caller's promise.
                unsafe { p.cast::<[$t; BLOCK]>().write(values.map($t::convert)) }
            }
            #[inline(always)]
            fn widen(self) -> f32 {
                f32::convert(self)
            }
            #[inline(always)]
            fn narrow(x: f32) -> $t {
                $t::convert(x)
            }
        }
    )+};
}
stored_bits!(F16Bits Bf16Bits);

/// A real type that is an f32.
pub(super) trait Single: Real {
    fn of(x: f32) -> Self;
    fn get(self) -> f32;
}

impl Single for f32 {
    #[inline(always)]
    fn of(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
}

impl Single for Narrow {
    #[inline(always)]
    fn of(x: f32) -> Narrow {
        Narrow(x)
    }
    #[inline(always)]
    fn get(self) -> f32 {
        self.0
    }
}

/// An op of one or two operands, these and the result stored as `A`, `B` and `C`.
///
/// # Safety
/// As for [`TileFn`], the second operand being `one` if that is given; the types' instruction sets.
#[inline(always)]
pub(super) unsafe fn stored_body<O: RealFn, R: Single, A: Stored, B: Stored, C: Stored>(
    out: *mut u8,
    x: [*const u8; 3],
    n: usize,
    one: Option<f32>,
) {
    let (out, a, b) = (out.cast::<C>(), x[0].cast::<A>(), x[1].cast::<B>());
    let call = |a: f32, b: f32| O::call([R::of(a), R::of(b), R::of(b)]).get();
    let whole = n / BLOCK * BLOCK;
    // SAFETY: the caller's promise; nothing is read or written from `n` on, nor a second operand that is not there.
    unsafe {
        for i in (0..whole).step_by(BLOCK) {
            let left = A::load(a.add(i));
            let right = match one {
                Some(one) => [one; BLOCK],
                None if O::ARITY == 1 => left,
                None => B::load(b.add(i)),
            };
            let mut values = [0.0; BLOCK];
            for (value, (&left, &right)) in values.iter_mut().zip(left.iter().zip(&right)) {
                *value = call(left, right);
            }
            C::store(out.add(i), values);
        }
        for i in whole..n {
            let left = (*a.add(i)).widen();
            let right = one.unwrap_or_else(|| if O::ARITY == 1 { left } else { (*b.add(i)).widen() });
            out.add(i).write(C::narrow(call(left, right)));
        }
    }
}

/// The loop of `op` on values of `dtype` whose operands lie as `sources` says and whose result goes to a tile, or
/// to `memory`, the narrow dtype of operands in memory. `None` where there is none, or no need for one.
pub fn elementwise(
    isa: Isa,
    op: Elementwise,
    dtype: DType,
    memory: DType,
    sources: [Source; 2],
    to_memory: bool,
) -> Option<TileFn> {
    // Without the instructions conversions are long, and better as loops of their own.
    if isa == Isa::Plain {
        return None;
    }
    on!(isa, S => match memory {
        DType::F16 => loops::<S, <S as Simd>::Half>(op, dtype, sources, to_memory),
        _ => loops::<S, <S as Simd>::Brain>(op, dtype, sources, to_memory),
    })
}

/// Whether [`elementwise`] has loops for `op` on values of `dtype`.
pub fn reads_memory(isa: Isa, op: Elementwise, dtype: DType) -> bool {
    elementwise(isa, op, dtype, DType::F16, [Source::Memory; 2], false).is_some()
}

fn loops<S: Simd, H: Stored>(op: Elementwise, dtype: DType, sources: [Source; 2], to_memory: bool) -> Option<TileFn> {
    use Source::{Memory, One, Tile};
    macro_rules! unary {
        ($V:ident $R:ty) => {
            match (sources[0], to_memory) {
                (Memory, true) => Some(S::stored::<functor::$V, $R, H, H, H> as TileFn),
                (Memory, false) => Some(S::stored::<functor::$V, $R, H, H, f32> as TileFn),
                (_, true) => Some(S::stored::<functor::$V, $R, f32, f32, H> as TileFn),
                _ => None,
            }
        };
    }
    macro_rules! binary {
        ($V:ident) => {
            match (sources, to_memory) {
                ([Memory, Memory], true) => Some(S::stored::<functor::$V, f32, H, H, H> as TileFn),
                ([Memory, Memory], false) => Some(S::stored::<functor::$V, f32, H, H, f32> as TileFn),
                ([Memory, Tile], true) => Some(S::stored::<functor::$V, f32, H, f32, H> as TileFn),
                ([Memory, Tile], false) => Some(S::stored::<functor::$V, f32, H, f32, f32> as TileFn),
                ([Memory, One], true) => Some(S::stored_by_one::<functor::$V, H, H> as TileFn),
                ([Memory, One], false) => Some(S::stored_by_one::<functor::$V, H, f32> as TileFn),
                ([_, Memory], true) => Some(S::stored::<functor::$V, f32, f32, H, H> as TileFn),
                ([_, Memory], false) => Some(S::stored::<functor::$V, f32, f32, H, f32> as TileFn),
                ([_, Tile], true) => Some(S::stored::<functor::$V, f32, f32, f32, H> as TileFn),
                ([_, One], true) => Some(S::stored_by_one::<functor::$V, f32, H> as TileFn),
                _ => None,
            }
        };
    }
    macro_rules! rows {
        ($($Num:ident)+; $($Float:ident)+; $($Binary:ident)+) => {
            match op {
                $(Elementwise::$Num => unary!($Num f32),)+
                $(Elementwise::$Float if dtype.is_narrow() => unary!($Float Narrow),)+
                $(Elementwise::$Binary => binary!($Binary),)+
                _ => None,
            }
        };
    }
    if dtype.held() != DType::F32 {
        return None;
    }
    rows!(Neg Abs Sqr Relu; Exp Tanh Sigmoid Silu Gelu GeluErf Sqrt Rsqrt; Add Sub Mul Div)
}

/// [`super::fold`] with elements in memory of a narrow `dtype`, where there are such loops.
pub fn fold(isa: Isa, op: Reduction, dtype: DType) -> Option<(TileFn, TileFn)> {
    fn take<S: Simd, A: Copy>(op: Reduction) -> TileFn
    where
        f32: Convert<A>,
    {
        match op {
            Reduction::Max => S::accumulate::<Max, f32, A>,
            Reduction::Min => S::accumulate::<Min, f32, A>,
            _ => S::accumulate::<Sum, f32, A>,
        }
    }
    let fold = super::registers::fold(isa, op, dtype)?;
    Some((
        fold,
        on!(isa, S => match dtype {
            DType::F16 => take::<S, <S as Simd>::Half>(op),
            _ => take::<S, Bf16Bits>(op),
        }),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Elementwise::*;
    use Source::*;

    /// Every f16 or bf16 that is no NaN, in an order without pattern.
    fn numbers(dtype: DType) -> Vec<u16> {
        let all = (0..=u16::MAX).map(|i| i.wrapping_mul(40_503).wrapping_add(7));
        let is_nan = |bits: u16| match dtype {
            DType::F16 => bits & 0x7fff > 0x7c00,
            _ => bits & 0x7fff > 0x7f80,
        };
        all.filter(|&bits| !is_nan(bits)).take(60_005).collect()
    }

    /// Runs a loop over the first `n` elements.
    fn run<T: Copy + Default>(f: TileFn, x: [*const u8; 2], n: usize) -> Vec<T> {
        let mut out = vec![T::default(); n];
        // SAFETY: the callers hand over `n` elements of the loop's types, or one; the set is the machine's.
        unsafe { f(out.as_mut_ptr().cast(), [x[0], x[1], x[1]], n) };
        out
    }

    #[test]
    fn loops_over_memory_are_loops_over_tiles_and_conversions() {
        let sets = [Isa::Avx2, Isa::Avx512].into_iter().filter(|&isa| isa <= Isa::detect());
        for (isa, dtype) in sets.flat_map(|isa| [(isa, DType::F16), (isa, DType::BF16)]) {
            let (load, store) = (load(isa, dtype).unwrap(), store(isa, dtype).unwrap());
            let narrow = numbers(dtype);
            let n = narrow.len() - 100;
            let memory = [narrow[100..].as_ptr().cast::<u8>(), narrow.as_ptr().cast()];
            let wide = memory.map(|m| run::<f32>(load, [m; 2], n));
            for op in [Neg, Relu, Gelu, Sqrt, Add, Sub, Mul, Div] {
                for (a, b) in [Memory, Tile].into_iter().flat_map(|a| [(a, Memory), (a, Tile), (a, One)]) {
                    let at = |source, i: usize| if source == Memory { memory[i] } else { wide[i].as_ptr().cast() };
                    let tiles = if b == One { super::super::elementwise_by_one(isa, op, dtype) } else { None };
                    let Some(slow) = tiles.or_else(|| super::super::elementwise(isa, op, dtype)) else { continue };
                    let want = run::<f32>(slow, wide.each_ref().map(|w| w.as_ptr().cast()), n);
                    let want_narrow = run::<u16>(store, [want.as_ptr().cast(); 2], n);
                    let loops = |to_memory| elementwise(isa, op, dtype, dtype, [a, b], to_memory);
                    if let Some(fast) = loops(false) {
                        let got = run::<f32>(fast, [at(a, 0), at(b, 1)], n);
                        let same =
                            got.iter().zip(&want).all(|(g, w)| g.to_bits() == w.to_bits() || w.is_nan() && g.is_nan());
                        assert!(same, "{isa:?} {dtype} {op:?} {a:?} {b:?}");
                    }
                    if let Some(fast) = loops(true) {
                        let got = run::<u16>(fast, [at(a, 0), at(b, 1)], n);
                        let nan = |i: usize| want[i].is_nan() && f32_of(dtype, got[i]).is_nan();
                        assert!(
                            (0..n).all(|i| got[i] == want_narrow[i] || nan(i)),
                            "{isa:?} {dtype} {op:?} {a:?} {b:?}"
                        );
                    }
                }
            }
            for op in [Reduction::Sum, Reduction::Max, Reduction::Min] {
                let ((fast, take), (slow, _)) =
                    (fold(isa, op, dtype).unwrap(), super::super::fold(isa, op, DType::F32));
                for n in [0, 1, 63, 64, 65, 1000, 1024] {
                    let (got, want) = (
                        run::<f32>(fast, [memory[0]; 2], n.max(1)),
                        run::<f32>(slow, [wide[0].as_ptr().cast(); 2], n.max(1)),
                    );
                    assert_eq!(got[0].to_bits(), want[0].to_bits(), "{isa:?} {dtype} {op:?} {n}");
                }
                let both = |f: TileFn, x| {
                    let mut out = wide[1].clone();
                    // SAFETY: `n` elements at both.
                    unsafe { f(out.as_mut_ptr().cast(), [x; 3], n) };
                    out
                };
                let slow = super::super::fold(isa, op, DType::F32).1;
                let (got, want) = (both(take, memory[0]), both(slow, wide[0].as_ptr().cast()));
                assert!(got.iter().zip(&want).all(|(g, w)| g.to_bits() == w.to_bits() || w.is_nan() && g.is_nan()));
            }
        }
    }

    fn f32_of(dtype: DType, bits: u16) -> f32 {
        if dtype == DType::F16 { f16::from_bits(bits).to_f32() } else { bf16::from_bits(bits).to_f32() }
    }
}
