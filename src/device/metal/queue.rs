//! Command buffers: what is asked of the device, on its way there.
//!
//! One concurrent encoder a command buffer: dispatches overlap unless a barrier is between them. Resources are not
//! tracked, so encoders are kept in order by a fence that each waits for and updates. Metal tells the device's time at
//! the ends of command buffers; while somebody takes times, each mark ends one.

use super::driver::{Memory, Object};
use crate::device::gpu::driver::{Dispatch, DriverResult, Mark, Ticket};
use crate::device::gpu::progress::Progress;
use block2::RcBlock;
use objc2::runtime::ProtocolObject;
use objc2_metal::{
    MTLBarrierScope, MTLCommandBuffer, MTLCommandBufferStatus, MTLCommandEncoder, MTLCommandQueue,
    MTLComputeCommandEncoder, MTLComputePipelineState, MTLDevice, MTLDispatchType, MTLFence, MTLResource,
    MTLResourceUsage, MTLSize,
};
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

/// The front of the queue.
pub(super) struct Commands {
    queue: Object<dyn MTLCommandQueue>,
    fence: Object<dyn MTLFence>,
    progress: Arc<Progress>,
    open: Option<Open>,
    last: Ticket,
    times: Times,
}

/// A command buffer that takes dispatches.
struct Open {
    buffer: Object<dyn MTLCommandBuffer>,
    encoder: Object<dyn MTLComputeCommandEncoder>,
}

/// Command buffers that were sent off while somebody took times.
#[derive(Default)]
struct Times {
    /// Marks that have not been asked for yet.
    marks: usize,
    /// How many command buffers came before those in the list.
    dropped: u64,
    sent: VecDeque<Object<dyn MTLCommandBuffer>>,
}

// SAFETY: command buffers and encoders may be used by any thread, one at a time, which `&mut self` sees to.
unsafe impl Send for Commands {}

impl Commands {
    pub fn new(device: &ProtocolObject<dyn MTLDevice>, progress: Arc<Progress>) -> DriverResult<Commands> {
        let queue = device.newCommandQueue().ok_or("no command queue")?;
        let fence = device.newFence().ok_or("no fence")?;
        Ok(Commands { queue, fence, progress, open: None, last: Ticket(0), times: Times::default() })
    }

    fn open(&mut self) -> DriverResult<&Open> {
        if self.open.is_none() {
            // What it uses is kept by others: buffers until their tickets have passed, kernels for good.
            let buffer = self.queue.commandBufferWithUnretainedReferences().ok_or("no command buffer")?;
            let encoder = buffer.computeCommandEncoderWithDispatchType(MTLDispatchType::Concurrent);
            let encoder = encoder.ok_or("no encoder")?;
            encoder.waitForFence(&self.fence);
            self.open = Some(Open { buffer, encoder });
        }
        self.open.as_ref().ok_or_else(|| "no command buffer".into())
    }

    pub fn dispatch(
        &mut self,
        pipeline: &ProtocolObject<dyn MTLComputePipelineState>,
        dispatch: &Dispatch,
        memory: &Memory,
    ) -> DriverResult<()> {
        let &Dispatch { name, groups, threads, buffers, args, indirect, .. } = dispatch;
        let encoder = &self.open()?.encoder;
        encoder.setComputePipelineState(pipeline);
        for (index, &address) in buffers.iter().enumerate() {
            let (allocation, offset) = memory.find(address).map_err(|reason| format!("{name}: {reason}"))?;
            // SAFETY: the buffer is alive until the runtime frees it, once this has run; the offset is inside.
            unsafe { encoder.setBuffer_offset_atIndex(Some(&allocation.buffer), offset, index) };
        }
        if !args.is_empty() {
            // SAFETY: the bytes are copied; the index follows the buffers'.
            unsafe { encoder.setBytes_length_atIndex(NonNull::from(args).cast(), args.len(), buffers.len()) };
        }
        for &address in indirect {
            let (allocation, _) = memory.find(address).map_err(|reason| format!("{name}: {reason}"))?;
            let resource: &ProtocolObject<dyn MTLResource> = ProtocolObject::from_ref(&*allocation.buffer);
            encoder.useResource_usage(resource, MTLResourceUsage::Read | MTLResourceUsage::Write);
        }
        let [width, height, depth] = groups.map(|count| count as usize);
        let group = MTLSize { width: threads as usize, height: 1, depth: 1 };
        encoder.dispatchThreadgroups_threadsPerThreadgroup(MTLSize { width, height, depth }, group);
        Ok(())
    }

    /// Between command buffers the fence does what this does within one.
    pub fn barrier(&mut self) {
        if let Some(open) = &self.open {
            open.encoder.memoryBarrierWithScope(MTLBarrierScope::Buffers);
        }
    }

    pub fn commit(&mut self) -> DriverResult<Ticket> {
        self.open()?; // a ticket belongs to a command buffer, also if nothing is in it
        self.last.0 += 1;
        self.send(Some(self.last));
        Ok(self.last)
    }

    /// Sends off what is open, and has its end told.
    fn send(&mut self, ticket: Option<Ticket>) {
        let Some(Open { buffer, encoder }) = self.open.take() else { return };
        encoder.updateFence(&self.fence);
        encoder.endEncoding();
        let progress = self.progress.clone();
        let completed = RcBlock::new(move |buffer: NonNull<ProtocolObject<dyn MTLCommandBuffer>>| {
            // SAFETY: Metal hands over the command buffer that has completed.
            let buffer = unsafe { buffer.as_ref() };
            if buffer.status() == MTLCommandBufferStatus::Error {
                let reason = buffer.error().map(|error| error.localizedDescription().to_string());
                progress.fail(reason.unwrap_or_else(|| "a command buffer failed".into()));
            }
            if let Some(ticket) = ticket {
                progress.pass(ticket);
            }
        });
        // SAFETY: the block has the handler's type; Metal copies it.
        unsafe { buffer.addCompletedHandler(RcBlock::as_ptr(&completed)) };
        buffer.commit();
        if self.times.marks > 0 {
            self.times.sent.push_back(buffer);
        }
    }

    pub fn mark(&mut self) -> DriverResult<Mark> {
        self.send(None);
        let times = &mut self.times;
        times.marks += 1;
        Ok(Mark(times.dropped + times.sent.len() as u64))
    }

    /// From when the first command buffer between two marks began to when the last one ended; all have run.
    pub fn elapsed(&mut self, from: Mark, to: Mark) -> DriverResult<Duration> {
        let times = &mut self.times;
        let place = |mark: Mark| mark.0.checked_sub(times.dropped).map(|place| place as usize);
        let between = match (place(from), place(to)) {
            (Some(from), Some(to)) if from <= to && to <= times.sent.len() => times.sent.range(from..to),
            _ => return Err(format!("marks {} and {}: one is not in use", from.0, to.0)),
        };
        let ends = between.clone().next().zip(between.last());
        let seconds = ends.map_or(0.0, |(first, last)| last.GPUEndTime() - first.GPUStartTime());
        times.marks = times.marks.saturating_sub(2);
        if times.marks == 0 {
            times.dropped += times.sent.len() as u64;
            times.sent.clear();
        }
        Ok(Duration::try_from_secs_f64(seconds).unwrap_or_default())
    }
}
