//! Layer 2: the lazy graph. Nodes know shapes and dtypes; devices are opaque handles here.
//!
//! Invariants, checked by [`verify`] before a graph is planned:
//! 1. Inputs stand before their consumers, and have as many operands as their op takes.
//! 2. No node has zero elements: such nodes are born realized.
//! 3. Operands of an elementwise op broadcast to its shape, and have the dtypes its sort asks for.
//! 4. A view's least and greatest index lie within its base.
//! 5. A reduction's axes exist, and its shape is its input's without them (or with them set to 1).
//! 6. A product's inner sizes agree, and its batch dimensions broadcast.
//! 7. Every node of one graph lives on one device.
//! 8. A padded box holds its input; a scatter's indices have the rank of what is scattered.

mod node;
mod snapshot;
mod verify;

pub(crate) use node::{
    Attention, AttentionPart, Inputs, Node, NodeRef, Op, Random, Scalar, Track, View, in_segment, is_recording,
    with_recording,
};
pub(crate) use snapshot::{Entry, Snapshot};
pub(crate) use verify::verify;
