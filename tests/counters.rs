//! What must not regress, counted: kernels, bytes, requests of memory, heap allocations of the host; on soft Metal
//! dispatches and what they load and store. A test binary of its own, since it counts what its whole process does.
//!
//! `tests/counters.txt` holds what is allowed. `TL_GOLDEN=write cargo test --features soft-metal --test counters` writes
//! it anew. Instructions are counted by `tools/count-instructions.sh`.

use allocation_counter::measure;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tensorlogic::testing::kernels_of_thread;
use tensorlogic::{DType, Device, Tensor, eval};
use tensorlogic_bench::cases::{self, Call, Case, Work};
use tensorlogic_bench::training::Training;

/// The pools, the counters and the file are the process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line of the file: what was counted, and its numbers by name.
struct Line {
    name: String,
    counts: Vec<(&'static str, u64)>,
}

impl Line {
    fn text(&self) -> String {
        let counts = self.counts.iter().map(|(name, count)| format!(", {name} {count}"));
        self.name.clone() + &counts.collect::<String>()
    }
}

/// Holds the lines of a section (those whose names begin with it) to the file, or writes them there.
fn hold(section: &str, lines: &[Line]) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/counters.txt");
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    if std::env::var("TL_GOLDEN").is_ok_and(|value| value == "write") {
        let others = text.lines().filter(|line| !line.starts_with(section)).map(String::from);
        let mut all: Vec<String> = others.chain(lines.iter().map(Line::text)).collect();
        all.sort();
        std::fs::write(file, all.join("\n") + "\n").unwrap();
        return;
    }
    let mut failures = Vec::new();
    for line in lines {
        let start = format!("{}, ", line.name);
        let Some(allowed) = text.lines().find_map(|known| known.strip_prefix(&start)) else {
            failures.push(format!("{}: not in tests/counters.txt", line.name));
            continue;
        };
        for (name, count) in &line.counts {
            let known = allowed.split(", ").find_map(|part| part.strip_prefix(name)?.trim().parse::<u64>().ok());
            match known {
                Some(known) if *count <= known => {}
                _ => failures.push(format!("{}: {name} {count}, allowed {known:?}", line.name)),
            }
        }
    }
    assert!(failures.is_empty(), "more than tests/counters.txt allows:\n{}", failures.join("\n"));
}

fn op(case: &Case, device: &Device) -> (Call, Vec<Tensor>) {
    let Work::Op(call) = case.work else { panic!("{} is no op", case.key()) };
    (call, case.inputs(1, device).unwrap().remove(0))
}

/// Small ones: so much that one thread does them, whatever the machine has.
fn small(dtype: DType) -> Vec<Case> {
    let mut list = cases::elementwise(1000, dtype);
    list.extend(cases::fusible(1000, 16, dtype));
    list
}

#[test]
fn the_host_does_no_more_than_it_did() {
    let _alone = alone();
    let device = Device::cpu();
    let mut lines = Vec::new();
    for case in [DType::F32, DType::F16].into_iter().flat_map(small) {
        let (call, inputs) = op(&case, &device);
        // Makes the plan, and finds memory that the pool then keeps.
        (0..3).for_each(|_| call(&inputs).unwrap().eval().unwrap());
        let bytes = call(&inputs).unwrap().explain().unwrap().bytes() as u64;
        let (before, kernels) = (device.buffer_pool_stats(), kernels_of_thread());
        let mut result = None;
        let recorded = measure(|| result = Some(call(&inputs).unwrap()));
        let hit = measure(|| result.iter().for_each(|y| y.eval().unwrap()));
        let (after, kernels) = (device.buffer_pool_stats(), kernels_of_thread() - kernels);
        let requests = after.allocation_count - before.allocation_count;
        let fresh = requests - (after.reuse_count - before.reuse_count);
        lines.push(Line {
            name: format!("cpu {}", case.key()),
            counts: vec![
                ("kernels", kernels),
                ("bytes", bytes),
                ("requests", requests),
                ("fresh", fresh),
                ("heap to record", recorded.count_total),
                ("heap to evaluate", hit.count_total),
            ],
        });
    }
    hold("cpu ", &lines);
}

/// Forward, backward and AdamW.
#[test]
fn a_training_step_does_no_more_than_it_did() {
    let _alone = alone();
    let device = Device::cpu();
    let mut lines = Vec::new();
    for dtype in [DType::F32, DType::F16] {
        let mut training = Training::new(2, dtype, &device).unwrap();
        (0..3).for_each(|run| drop(training.step(run).unwrap()));
        let (before, kernels) = (device.buffer_pool_stats(), kernels_of_thread());
        let mut loss = None;
        let _ = measure(|| loss = Some(training.step(3).unwrap()));
        let (after, kernels) = (device.buffer_pool_stats(), kernels_of_thread() - kernels);
        let requests = after.allocation_count - before.allocation_count;
        let fresh = requests - (after.reuse_count - before.reuse_count);
        let counts = vec![("kernels", kernels), ("requests", requests), ("fresh", fresh)];
        lines.push(Line { name: format!("step {dtype}"), counts });
    }
    hold("step ", &lines);
}

/// What a known plan costs must not depend on how many evaluations came before.
#[test]
fn evaluations_leave_nothing_on_the_heap() {
    let _alone = alone();
    let case = cases::elementwise(1000, DType::F32).remove(0);
    let (call, inputs) = op(&case, &Device::cpu());
    (0..100).for_each(|_| call(&inputs).unwrap().eval().unwrap());
    let many = measure(|| (0..1000).for_each(|_| eval(&[&call(&inputs).unwrap()]).unwrap()));
    assert_eq!(many.count_current, 0, "{many:?}");
}

#[cfg(feature = "soft-metal")]
#[test]
fn gpu_kernels_move_no_more_than_they_did() {
    use tensorlogic::testing::traffic;
    let _alone = alone();
    let device = Device::soft_metal().unwrap();
    let mut lines = Vec::new();
    // Each is a kernel or two for the C++ compiler.
    for case in small(DType::F16).into_iter().filter(|case| case.operation != "mul") {
        let (call, inputs) = op(&case, &device);
        // The first product of a kind is checked against a slow one.
        call(&inputs).unwrap().eval().unwrap();
        let (result, dispatches) = traffic(&device, || {
            let result = call(&inputs)?;
            result.eval().map(|()| result)
        })
        .unwrap();
        drop(result.unwrap());
        let sum = |of: fn(&tensorlogic::testing::AllocationTraffic) -> u64| {
            dispatches.iter().flat_map(|dispatch| &dispatch.allocations).map(of).sum::<u64>()
        };
        lines.push(Line {
            name: format!("soft-metal {}", case.key()),
            counts: vec![
                ("dispatches", dispatches.len() as u64),
                ("loaded", sum(|a| a.loaded)),
                ("stored", sum(|a| a.stored)),
            ],
        });
    }
    hold("soft-metal ", &lines);
}
