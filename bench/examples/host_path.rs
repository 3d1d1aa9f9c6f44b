//! What `tools/count-instructions.sh` counts: `host_path PATH COUNT [slow]` goes through a path of the host so often.
//!
//! - `record`: records a unary op and drops it
//! - `record-number`: the same for an op with a number
//! - `plan-hit`: records, evaluates and drops a unary op over 16 elements whose plan is known
//! - `plan-hit-of-20`: the same for a chain of 20 ops, one kernel
//!
//! `slow` records one op more every eighth time: what a regression looks like.

use std::hint::black_box;
use tensorlogic::{DType, Device, Result, Tensor};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, count, rest @ ..] = arguments.as_slice() else { usage() };
    let count: usize = count.parse().unwrap_or_else(|_| usage());
    let x = Tensor::randn(16, DType::F32, &Device::cpu())?;
    x.eval()?;
    let once = || -> Result<()> {
        let chain = |ops: usize| (0..ops).try_fold(x.clone(), |y, _| y.relu());
        match path.as_str() {
            "record" => drop(black_box(x.relu()?)),
            "record-number" => drop(black_box((&x * 0.999)?)),
            "plan-hit" => chain(1)?.eval()?,
            "plan-hit-of-20" => chain(20)?.eval()?,
            _ => usage(),
        }
        Ok(())
    };
    for i in 0..count {
        once()?;
        if !rest.is_empty() && i % 8 == 0 {
            once()?;
        }
    }
    Ok(())
}

fn usage() -> ! {
    eprintln!("host_path record|record-number|plan-hit|plan-hit-of-20 COUNT [slow]");
    std::process::exit(2)
}
