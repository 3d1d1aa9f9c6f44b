//! What the checker finds.

/// What kind of mistake a kernel, or what dispatched it, made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FaultKind {
    /// Two threads touched the same bytes, one of them wrote, and nothing put them in order.
    Race,
    /// Beyond the end of a buffer or of threadgroup memory.
    OutOfBounds,
    /// Memory that the dispatch did not bind, or that is no longer there.
    Unbound,
    /// Threadgroup memory was read before it was written.
    Uninitialised,
    /// Threads did not come to the same barrier or simdgroup operation.
    Divergence,
    /// A vector access whose address is not a multiple of its size.
    Misaligned,
    /// More threads, buffers, arguments or threadgroup memory than there can be.
    Limit,
}

/// One finding.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub kind: FaultKind,
    pub kernel: String,
    /// Where and between whom.
    pub detail: String,
    /// Where in the kernel's code a call to the checker returned to, for accesses; else 0.
    pub caller: usize,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "kernel {}: {:?}: {}", self.kernel, self.kind, self.detail)
    }
}
