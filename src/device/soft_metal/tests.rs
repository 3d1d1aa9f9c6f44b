//! Right kernels run and give no findings; wrong ones are found out, each for what is wrong with it.

use super::*;

mod dispatches;
mod kernels;
mod runtime;

/// A device, and what tests do with it over and over.
struct Bench {
    device: Arc<SoftMetal>,
}

impl Bench {
    fn new() -> Bench {
        Bench { device: SoftMetal::new().unwrap() }
    }

    fn load(&self, text: &str, name: &str) -> Function {
        let source = format!("#include <metal_stdlib>\nusing namespace metal;\n{text}");
        let binary = self.device.compile(&source).unwrap_or_else(|e| panic!("{e}\n{source}"));
        self.device.load(&binary, name).unwrap()
    }

    fn buffer(&self, bytes: &[u8]) -> Address {
        let address = self.device.alloc(bytes.len()).unwrap();
        self.write(address, bytes);
        address
    }

    fn write(&self, address: Address, bytes: &[u8]) {
        let host = self.device.host(address, bytes.len(), true).unwrap();
        // SAFETY: memory of that many bytes, which nothing on the device uses.
        unsafe { host.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
    }

    /// Once all has run. What was found comes out through `found`.
    fn bytes(&self, address: Address, n: usize) -> Vec<u8> {
        self.wait();
        let host = self.device.host(address, n, false).unwrap();
        // SAFETY: memory of that many bytes, which nothing on the device writes any more.
        unsafe { std::slice::from_raw_parts(host.as_ptr(), n) }.to_vec()
    }

    fn wait(&self) {
        let ticket = self.device.commit().unwrap();
        while !self.device.is_done(ticket) {
            std::thread::yield_now();
        }
    }

    fn floats(&self, address: Address, n: usize) -> Vec<f32> {
        self.bytes(address, n * 4).chunks(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
    }

    fn halves(&self, address: Address, n: usize) -> Vec<f32> {
        let bytes = self.bytes(address, n * 2);
        bytes.chunks(2).map(|b| half::f16::from_ne_bytes(b.try_into().unwrap()).to_f32()).collect()
    }

    /// What was found since the last call, once all has run.
    fn found(&self) -> Vec<Fault> {
        self.wait();
        self.device.take_faults()
    }

    fn dispatch(&self, function: Function, groups: usize, threads: u32, buffers: &[Address], args: &[i32]) {
        self.try_dispatch(function, groups, threads, buffers, args).unwrap();
    }

    fn try_dispatch(
        &self,
        function: Function,
        groups: usize,
        threads: u32,
        buffers: &[Address],
        args: &[i32],
    ) -> DriverResult<()> {
        let args: Vec<u8> = args.iter().flat_map(|a| a.to_ne_bytes()).collect();
        let groups = [groups as u32, 1, 1];
        self.device.dispatch(&Dispatch {
            function,
            name: "test",
            groups,
            threads,
            block_bytes: 0,
            buffers,
            args: &args,
            indirect: &[],
        })
    }
}

fn halves(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(|v| half::f16::from_f32(v).to_ne_bytes()).collect()
}

/// A text with its `n`th `from` (from 1) replaced.
fn replaced(text: &str, from: &str, n: usize, to: &str) -> String {
    let (at, _) = text.match_indices(from).nth(n - 1).unwrap_or_else(|| panic!("no {n}th {from:?}"));
    [&text[..at], to, &text[at + from.len()..]].concat()
}

/// Panics unless what was found holds a fault of this kind, and, if it is none, is empty.
#[track_caller]
fn expect(what: &str, found: &[Fault], kind: Option<FaultKind>) {
    let text = found.iter().map(|f| format!("\n  {f}")).collect::<String>();
    match kind {
        Some(kind) => assert!(found.iter().any(|f| f.kind == kind), "{what}: {kind:?} expected, found:{text}"),
        None => assert!(found.is_empty(), "{what}: nothing expected, found:{text}"),
    }
}
