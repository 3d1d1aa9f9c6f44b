//! What a plan's launches become on a GPU.

use super::driver::{Activation, Address, Function, LibraryProduct, Matrix};
use super::faults::{FaultSite, Watch};
use super::queue::{Bound, Launch, WorkList};
use super::runtime::{Gpu, bound};
use super::selfcheck::{self, Check};
use super::tuning;
use crate::codegen::{self, Binding, Call, Choice, Fill, LibraryEpilogue, Machine, Rendered, SUMS};
use crate::device::memory::Storage;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::Scalar;
use crate::ops::Elementwise;
use crate::schedule::{Gemm, Kernel, Operand, Part};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::sync::Arc;

/// Multiplications from which on a vendor's library multiplies.
const LIBRARY_WORK: usize = 1 << 21;
/// Multiplications, and depth, from which on a library's product and a kernel for what follows beat one
/// kernel of ours that does both: the sums then travel through memory once more.
const PAIR_WORK: usize = 1 << 24;
const PAIR_DEPTH: usize = 64;

/// One launch of a plan.
pub(crate) struct Program(Vec<Step>);

enum Step {
    Kernels(Kernels),
    Product(Box<Product>),
}

/// Dispatches of one source.
pub(super) struct Kernels {
    rendered: Rendered,
    /// Arithmetic operations of each dispatch, about.
    operations: f64,
    /// Of each call, once they are loaded.
    functions: Vec<Function>,
}

/// A product that a vendor's library computes, if it can.
struct Product {
    gemm: Gemm,
    epilogue: LibraryEpilogue,
    /// What follows the library's sums, where it cannot do that itself.
    then: Option<Kernels>,
    /// Our own kernel for all of it.
    otherwise: Kernels,
}

/// What a run of programs works on.
pub(crate) struct Bindings<'a, 'w> {
    /// The memory of a node.
    pub storage: &'a dyn Fn(u32) -> Result<&'a Arc<Storage>>,
    /// The plan's scalar inputs.
    pub params: &'a [Scalar],
    /// Where a node's index that is not below a limit is reported.
    pub site: &'a dyn Fn(u32, usize) -> FaultSite,
    /// There, if the plan reads indices.
    pub watch: Option<&'a Watch>,
    /// What takes the work instead of the queue.
    pub list: Option<&'a RefCell<WorkList<'w>>>,
}

impl Program {
    /// The programs of a plan's launches; all their kernels are ready to run.
    ///
    /// # Errors
    /// [`Error::Compile`]; [`Error::DeviceFailed`] where a product's kernel fails its self-check.
    pub fn compile(gpu: &Gpu, steps: &[Vec<Part>], dtype: &dyn Fn(u32) -> DType) -> Result<Vec<Program>> {
        let mut checks = Vec::new();
        let mut programs: Vec<Program> =
            steps.iter().map(|parts| Program::of(gpu, parts, dtype, &mut checks)).collect();
        let all = || programs.iter().flat_map(|program| &program.0).flat_map(Step::kernels);
        all().try_for_each(|kernels| kernels.check(gpu))?;
        let entries = all().flat_map(Kernels::entries).chain(checks.iter().flat_map(Check::entries));
        gpu.prepare(&entries.collect::<Vec<_>>())?;
        checks.into_iter().try_for_each(|check| check.run(gpu))?;
        // Once a plan has begun nothing may fail: see `engine::run`.
        let mut steps = programs.iter_mut().flat_map(|program| &mut program.0);
        steps.try_for_each(|step| step.kernels_mut().into_iter().try_for_each(|kernels| kernels.load(gpu)))?;
        Ok(programs)
    }

    /// Adds the checks that are due to `checks`.
    fn of(gpu: &Gpu, parts: &[Part], dtype: &dyn Fn(u32) -> DType, checks: &mut Vec<Check>) -> Program {
        let kernels: Vec<&Kernel> = parts.iter().map(|part| &part.kernel).collect();
        let mut machine = gpu.limits().machine;
        let mut product = None;
        // A kernel with a product is a launch of its own.
        if let [kernel] = &kernels[..]
            && let Some(gemm) = &kernel.gemm
        {
            product = if gpu.has_library() { Product::plan(kernel, &machine, dtype) } else { None };
            if product.is_none() {
                machine.product = tuning::choice(gpu, gemm);
            }
            let check = selfcheck::due(gpu, gemm, Choice::of(gemm, &machine));
            checks.extend(check.filter(|check| checks.iter().all(|other| other.key != check.key)));
        }
        let mut rendered = codegen::render(&kernels, &machine, dtype);
        let operations: f64 = kernels.iter().map(|kernel| kernel.operations() as f64).sum();
        let calls: usize = rendered.iter().map(|rendered| rendered.calls.len()).sum();
        let operations = operations / calls.max(1) as f64;
        if let Some((gemm, epilogue, then)) = product
            && let Some(own) = rendered.pop()
        {
            let then = then.map(|then| Kernels::new(then, operations));
            return Program(vec![Step::Product(Box::new(Product {
                gemm,
                epilogue,
                then,
                otherwise: Kernels::new(own, operations),
            }))]);
        }
        Program(rendered.into_iter().map(|rendered| Step::Kernels(Kernels::new(rendered, operations))).collect())
    }

    /// Memory as [`Program::run`] will ask the pool for. Whoever holds it until then sees to it that a plan that has
    /// begun to write over what nobody will read again does not fail for want of memory.
    ///
    /// # Errors
    /// Out of memory.
    pub fn reserve(&self, gpu: &Gpu) -> Result<Vec<Storage>> {
        let mut held = Vec::new();
        for step in &self.0 {
            let scratch = step.kernels().into_iter().flat_map(|kernels| &kernels.rendered.scratch).copied();
            let sums = match step {
                Step::Product(product) => product.sums(),
                Step::Kernels(_) => None,
            };
            for bytes in scratch.chain(sums) {
                held.push(Storage::new(&gpu.pool, bytes)?);
            }
        }
        Ok(held)
    }

    /// Submits the launch.
    ///
    /// # Errors
    /// A device that fails.
    pub fn run<'w>(&'w self, gpu: &Gpu, bindings: &Bindings<'_, 'w>) -> Result<()> {
        for step in &self.0 {
            match step {
                Step::Kernels(kernels) => kernels.run(gpu, bindings, None)?,
                Step::Product(product) => product.run(gpu, bindings)?,
            }
        }
        Ok(())
    }
}

impl Step {
    fn kernels(&self) -> Vec<&Kernels> {
        match self {
            Step::Kernels(kernels) => vec![kernels],
            Step::Product(product) => [&product.otherwise].into_iter().chain(&product.then).collect(),
        }
    }

    fn kernels_mut(&mut self) -> Vec<&mut Kernels> {
        match self {
            Step::Kernels(kernels) => vec![kernels],
            Step::Product(product) => [&mut product.otherwise].into_iter().chain(&mut product.then).collect(),
        }
    }
}

impl Kernels {
    /// Whether the device takes the calls at all.
    ///
    /// # Errors
    /// [`Error::DeviceFailed`] that names what is too much.
    fn check(&self, gpu: &Gpu) -> Result<()> {
        let machine = &gpu.limits().machine;
        for call in &self.rendered.calls {
            let (buffers, bytes) = (call.buffers.len() + usize::from(!call.args.is_empty()), call.args.len());
            if buffers > machine.buffers || bytes > machine.argument_bytes {
                let reason = format!(
                    "{} takes {buffers} buffers and {bytes} bytes of arguments, of {} and {}; evaluate a part of the \
                     graph first",
                    call.name, machine.buffers, machine.argument_bytes
                );
                return Err(Error::DeviceFailed { device: gpu.name.clone(), op: "binding a kernel", reason });
            }
        }
        Ok(())
    }

    pub fn new(rendered: Rendered, operations: f64) -> Kernels {
        Kernels { rendered, operations, functions: Vec::new() }
    }

    pub fn entries(&self) -> Vec<(&str, &str)> {
        self.rendered.calls.iter().map(|call| (&self.rendered.source[..], &call.name[..])).collect()
    }

    pub fn load(&mut self, gpu: &Gpu) -> Result<()> {
        let functions = self.entries().into_iter().map(|(source, name)| gpu.function(source, name));
        self.functions = functions.collect::<Result<_>>()?;
        for (call, &function) in self.rendered.calls.iter().zip(&self.functions) {
            let most = gpu.max_threads(function);
            if call.threads > most {
                let reason = format!("{} needs {} threads a group, and can have {most}", call.name, call.threads);
                return Err(Error::DeviceFailed { device: gpu.name.clone(), op: "loading a kernel", reason });
            }
        }
        Ok(())
    }

    /// `sums` is the memory of [`SUMS`].
    pub fn run<'w>(&'w self, gpu: &Gpu, bindings: &Bindings<'_, 'w>, sums: Option<&Storage>) -> Result<()> {
        let scratch = self.rendered.scratch.iter().map(|&bytes| Storage::new(&gpu.pool, bytes));
        let scratch = scratch.collect::<Result<SmallVec<[Storage; 2]>>>()?;
        let memory = |binding: &Binding| -> Result<Bound> {
            match *binding {
                Binding::Read(SUMS) => {
                    bound(sums.ok_or_else(|| Error::internal("gpu::program", "no sums to read"))?, false)
                }
                Binding::Read(node) => bound((bindings.storage)(node)?, false),
                Binding::Write(node) => bound((bindings.storage)(node)?, true),
                Binding::Scratch(i, writes) => bound(&scratch[i], writes),
                Binding::Fault => {
                    let record = bindings.watch.and_then(Watch::record);
                    record.ok_or_else(|| Error::internal("gpu::program", "no record for faults"))
                }
            }
        };
        for (call, &function) in self.rendered.calls.iter().zip(&self.functions) {
            let buffers = call.buffers.iter().map(memory).collect::<Result<SmallVec<[Bound; 8]>>>()?;
            let mut indirect: SmallVec<[Bound; 8]> = SmallVec::new();
            let args = arguments(gpu, call, bindings, |binding| {
                let bound = memory(binding)?;
                indirect.push(bound);
                Ok(bound.address)
            })?;
            let Call { name, groups, threads, block_bytes, .. } = call;
            let (groups, threads, block_bytes) = (*groups, *threads, *block_bytes);
            let operations = self.operations;
            let launch = Launch {
                function,
                name,
                groups,
                threads,
                block_bytes,
                buffers: &buffers,
                args: &args,
                indirect: &indirect,
                operations,
            };
            match bindings.list {
                Some(list) => list.borrow_mut().launch(name, &launch),
                None => gpu.submit(&launch)?,
            }
        }
        if let Some(list) = bindings.list {
            list.borrow_mut().held.extend(scratch);
        }
        Ok(())
    }
}

/// The bytes of a call's arguments, with everything filled in.
fn arguments(
    gpu: &Gpu,
    call: &Call,
    bindings: &Bindings,
    mut address: impl FnMut(&Binding) -> Result<Address>,
) -> Result<SmallVec<[u8; 256]>> {
    let mut bytes: SmallVec<[u8; 256]> = SmallVec::from_slice(&call.args);
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    for patch in &call.patches {
        match &patch.fill {
            Fill::Param(param, class) => put_scalar(bindings.params[*param as usize], *class, |v| put(patch.at, v)),
            Fill::Tag { node, limit } => {
                let site = (bindings.site)(*node, *limit);
                put(patch.at, &bindings.watch.map_or(0, |watch| watch.tag(site)).to_le_bytes());
            }
            Fill::Address(binding) => put(patch.at, &address(binding)?.0.to_le_bytes()),
            Fill::TensorMap(map) => put(patch.at, &gpu.tensor_map(address(&map.binding)?, map)?),
            &Fill::Shifted { offset, shift, wide } => {
                let at = offset + bindings.params[shift.param as usize].both().1 * shift.stride as i64;
                if wide { put(patch.at, &at.to_le_bytes()) } else { put(patch.at, &(at as i32).to_le_bytes()) }
            }
            Fill::Known(_) | Fill::Product(..) | Fill::Scatter(..) | Fill::Attention(..) => {}
        }
    }
    Ok(bytes)
}

/// A scalar as the kernel's arguments hold it.
fn put_scalar(scalar: Scalar, class: DType, mut put: impl FnMut(&[u8])) {
    let (float, int) = scalar.both();
    match class {
        DType::F32 => put(&(float as f32).to_le_bytes()),
        DType::I64 => put(&int.to_le_bytes()),
        DType::U8 => put(&u32::from(int as u8).to_le_bytes()),
        _ => put(&(int as i32).to_le_bytes()),
    }
}

impl Product {
    /// How a library may compute a kernel, if it is worth it: the product, its epilogue, and the kernel that
    /// follows if that is not all.
    fn plan(
        kernel: &Kernel,
        machine: &Machine,
        dtype: &dyn Fn(u32) -> DType,
    ) -> Option<(Gemm, LibraryEpilogue, Option<Rendered>)> {
        let gemm = kernel.gemm.clone()?;
        let work = [gemm.n, gemm.k, gemm.products()].into_iter().fold(gemm.m, usize::saturating_mul);
        let float = matches!(gemm.dtype, DType::F16 | DType::BF16 | DType::F32);
        if !float || gemm.batch.len() > 1 || gemm.m.min(gemm.n) <= 4 || work < LIBRARY_WORK {
            return None;
        }
        let paired = work >= PAIR_WORK && gemm.k >= PAIR_DEPTH;
        if let Some(epilogue) = codegen::library(kernel, dtype).filter(|epilogue| paired || !epilogue.relu) {
            let then = epilogue.relu.then(|| codegen::relu_in_place(kernel, machine, dtype));
            return Some((gemm, epilogue, then));
        }
        if !paired {
            return None;
        }
        let then = codegen::epilogue_alone(kernel, machine, dtype);
        // Rounded as if the product stood alone: the sums travel through memory.
        let epilogue = LibraryEpilogue { output: SUMS, dtype: gemm.dtype, ..LibraryEpilogue::default() };
        Some((gemm, epilogue, Some(then)))
    }

    /// Bytes of the product's sums, if they are not its output.
    fn sums(&self) -> Option<usize> {
        let Gemm { m, n, .. } = self.gemm;
        (self.epilogue.output == SUMS).then(|| m * n * self.gemm.products() * self.epilogue.dtype.size())
    }

    fn run<'w>(&'w self, gpu: &Gpu, bindings: &Bindings<'_, 'w>) -> Result<()> {
        let Product { gemm, epilogue, then, otherwise } = self;
        let sums = self.sums().map(|bytes| Storage::new(&gpu.pool, bytes)).transpose()?;
        let matrix = |operand: &Operand| -> Result<(Bound, Matrix)> {
            let memory = bound((bindings.storage)(operand.node)?, false)?;
            let address = memory.address.at(operand.offset as usize * gemm.dtype.size());
            let batch_stride = operand.batch.first().copied().unwrap_or(0);
            let (row_stride, col_stride) = (operand.row_stride, operand.col_stride);
            Ok((memory, Matrix { address, row_stride, col_stride, batch_stride }))
        };
        let ((a_memory, a), (b_memory, b)) = (matrix(&gemm.a)?, matrix(&gemm.b)?);
        let out_memory = match &sums {
            Some(sums) => bound(sums, true)?,
            None => bound((bindings.storage)(epilogue.output)?, true)?,
        };
        let mut buffers: SmallVec<[Bound; 4]> = [a_memory, b_memory, out_memory].into_iter().collect();
        let mut bias = None;
        if let Some((node, offset)) = epilogue.bias {
            let memory = bound((bindings.storage)(node)?, false)?;
            buffers.push(memory);
            bias = Some(memory.address.at(offset * epilogue.dtype.size()));
        }
        let mut before = None;
        if let Some(node) = epilogue.before {
            let memory = bound((bindings.storage)(node)?, true)?;
            buffers.push(memory);
            before = Some(memory.address);
        }
        let (row_stride, batch_stride) = (gemm.n as isize, (gemm.m * gemm.n) as isize);
        let product = LibraryProduct {
            dtype: gemm.dtype,
            out_dtype: epilogue.dtype,
            m: gemm.m,
            n: gemm.n,
            k: gemm.k,
            batch: gemm.products(),
            a,
            b,
            out: Matrix { address: out_memory.address, row_stride, col_stride: 1, batch_stride },
            bias,
            activation: match epilogue.activation {
                Some(Elementwise::Relu) => Activation::Relu,
                Some(_) => Activation::Gelu,
                None => Activation::None,
            },
            before,
        };
        let done = match bindings.list {
            Some(_) if !gpu.queue().driver().takes_product(&product) => false,
            Some(list) => {
                list.borrow_mut().product(&product, &buffers);
                true
            }
            None => gpu.library_product(&product, &buffers)?,
        };
        if !done {
            return otherwise.run(gpu, bindings, None);
        }
        if let Some(then) = then {
            then.run(gpu, bindings, sums.as_ref())?;
        }
        if let Some(list) = bindings.list {
            list.borrow_mut().held.extend(sums);
        }
        Ok(())
    }
}
