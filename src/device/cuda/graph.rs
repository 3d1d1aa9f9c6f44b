//! Lists of work as CUDA graphs: one launch for all of them. What changed since the last time (addresses, arguments)
//! is set in the nodes that it concerns, which costs a fraction of a launch.

use super::api::{Driver, Failure, KernelNode};
use super::launch::with_parameters;
use crate::device::gpu::driver::{Address, Dispatch, LibraryProduct, Work};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::hash_map::Entry;
use std::ffi::c_void;

/// A stream that takes what is captured; nothing runs on it.
pub(super) struct Capture<'a> {
    pub driver: &'static Driver,
    pub stream: usize,
    /// Asks the library for a product on a stream.
    pub product: &'a mut dyn FnMut(&LibraryProduct, usize) -> Result<bool, Failure>,
}

/// A prepared list.
pub(super) struct Graph {
    driver: &'static Driver,
    exec: usize,
    nodes: Vec<Node>,
    /// Products that nodes have been set to: results come back to the same few places.
    products: FxHashMap<LibraryProduct, Template>,
    /// The nodes are its.
    _template: Template,
}

struct Node {
    handle: usize,
    last: Last,
}

/// What a node was last set to.
enum Last {
    Kernel { function: u64, groups: [u32; 3], threads: u32, buffers: SmallVec<[Address; 8]>, args: SmallVec<[u8; 128]> },
    Product(LibraryProduct),
}

/// A graph of the driver's that is only built with.
struct Template {
    driver: &'static Driver,
    handle: usize,
}

impl Drop for Template {
    fn drop(&mut self) {
        // SAFETY: the graph is alive, and nobody uses it again.
        let _ = unsafe { self.driver.cuGraphDestroy(self.handle) };
    }
}

fn kernel_node(dispatch: &Dispatch, parameters: *const *const c_void) -> KernelNode {
    KernelNode {
        function: dispatch.function.0 as usize,
        groups: dispatch.groups,
        threads: [dispatch.threads, 1, 1],
        shared_bytes: dispatch.block_bytes,
        parameters,
        extra: std::ptr::null(),
        kernel: 0,
        context: 0,
    }
}

impl Last {
    fn of(work: &Work) -> Last {
        match work {
            Work::Dispatch(Dispatch { function, groups, threads, buffers, args, .. }) => Last::Kernel {
                function: function.0,
                groups: *groups,
                threads: *threads,
                buffers: SmallVec::from_slice(buffers),
                args: SmallVec::from_slice(args),
            },
            Work::Product(product) => Last::Product(*product),
        }
    }

    fn is(&self, work: &Work) -> bool {
        match (self, work) {
            (Last::Kernel { function, groups, threads, buffers, args }, Work::Dispatch(d)) => {
                *function == d.function.0
                    && *groups == d.groups
                    && *threads == d.threads
                    && buffers[..] == *d.buffers
                    && args[..] == *d.args
            }
            (Last::Product(last), Work::Product(product)) => *last == *product,
            _ => false,
        }
    }

    /// Whether a node of the one can become one of the other.
    fn is_like(&self, work: &Work) -> bool {
        match (self, work) {
            (Last::Kernel { function, .. }, Work::Dispatch(d)) => *function == d.function.0,
            (Last::Product(_), Work::Product(_)) => true,
            _ => false,
        }
    }
}

impl Capture<'_> {
    /// A product as a graph of its own.
    fn graph_of(&mut self, product: &LibraryProduct) -> Result<Template, Failure> {
        // Of this thread's calls only what goes to the stream is captured, and nothing is forbidden meanwhile.
        const RELAXED: std::ffi::c_int = 2;
        let mut handle = 0;
        // SAFETY: the stream is alive and not being captured.
        unsafe { self.driver.cuStreamBeginCapture_v2(self.stream, RELAXED) }?;
        let asked = (self.product)(product, self.stream);
        // SAFETY: a place for a handle; the capture began above.
        unsafe { self.driver.cuStreamEndCapture(self.stream, &raw mut handle) }?;
        let template = Template { driver: self.driver, handle };
        match asked? {
            true => Ok(template),
            false => Err(Failure { code: -1, text: "the library refused a product that it took before".into() }),
        }
    }
}

impl Graph {
    /// A chain of the work, in order.
    pub fn new(work: &[Work], capture: &mut Capture) -> Result<Graph, Failure> {
        const DEFAULT: u32 = 0;
        let driver = capture.driver;
        let mut handle = 0;
        // SAFETY: a place for a handle.
        unsafe { driver.cuGraphCreate(&raw mut handle, DEFAULT) }?;
        let graph = Template { driver, handle };
        let mut nodes: Vec<Node> = Vec::with_capacity(work.len());
        for item in work {
            let mut handle = 0;
            let before = nodes.last().map(|node| node.handle);
            let (list, count) =
                (before.as_ref().map_or(std::ptr::null(), std::ptr::from_ref), usize::from(before.is_some()));
            match item {
                Work::Dispatch(dispatch) => with_parameters(dispatch, |parameters| {
                    let node = kernel_node(dispatch, parameters);
                    // SAFETY: a place for a handle; `count` nodes of this graph; parameters as of a launch, which are
                    // copied before this returns.
                    unsafe {
                        driver.cuGraphAddKernelNode_v2(&raw mut handle, graph.handle, list, count, &raw const node)
                    }
                })?,
                Work::Product(product) => {
                    let child = capture.graph_of(product)?;
                    // SAFETY: as above; the child is cloned.
                    unsafe {
                        driver.cuGraphAddChildGraphNode(&raw mut handle, graph.handle, list, count, child.handle)
                    }?;
                }
            }
            nodes.push(Node { handle, last: Last::of(item) });
        }
        let mut exec = 0;
        // SAFETY: a place for a handle; the graph is alive.
        unsafe { driver.cuGraphInstantiateWithFlags(&raw mut exec, graph.handle, 0) }?;
        Ok(Graph { driver, exec, nodes, products: FxHashMap::default(), _template: graph })
    }

    /// Whether the work differs from this by addresses and arguments at most.
    pub fn fits(&self, work: &[Work]) -> bool {
        self.nodes.len() == work.len() && self.nodes.iter().zip(work).all(|(node, item)| node.last.is_like(item))
    }

    /// Sets what changed, and launches.
    pub fn run(&mut self, work: &[Work], capture: &mut Capture, stream: usize) -> Result<(), Failure> {
        const PRODUCTS: usize = 8; // kept for each node
        let driver = self.driver;
        if self.products.len() > PRODUCTS * self.nodes.len() {
            self.products.clear();
        }
        for (node, item) in self.nodes.iter_mut().zip(work) {
            if node.last.is(item) {
                continue;
            }
            match item {
                Work::Dispatch(dispatch) => with_parameters(dispatch, |parameters| {
                    let params = kernel_node(dispatch, parameters);
                    // SAFETY: the node is one of this graph's kernels; parameters as of a launch, which are copied.
                    // Launches that are under way keep theirs.
                    unsafe { driver.cuGraphExecKernelNodeSetParams_v2(self.exec, node.handle, &raw const params) }
                })?,
                Work::Product(product) => {
                    let child = match self.products.entry(*product) {
                        Entry::Occupied(known) => known.into_mut(),
                        Entry::Vacant(place) => place.insert(capture.graph_of(product)?),
                    };
                    // SAFETY: the node is a product of this graph; what the child says is copied.
                    unsafe { driver.cuGraphExecChildGraphNodeSetParams(self.exec, node.handle, child.handle) }?;
                }
            }
            node.last = Last::of(item);
        }
        // SAFETY: graph and stream are alive.
        unsafe { driver.cuGraphLaunch(self.exec, stream) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the graph is alive, and nobody uses it again; launches under way go on.
        let _ = unsafe { self.driver.cuGraphExecDestroy(self.exec) };
    }
}
