//! What the report says of the machine: nothing here can fail, what is not known is left out.

use tensorlogic_bench::machine::{said, system};

/// Versions, processor, and the environment variables that TensorLogic reads.
pub fn lines() -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or("unknown".into(), |n| n.to_string());
    let mut lines = vec![
        format!("tensorlogic {}", env!("CARGO_PKG_VERSION")),
        format!("{}, {}", system(), std::env::consts::ARCH),
        format!("{}{cores} logical cores", processor().map(|name| name + ", ").unwrap_or_default()),
    ];
    let mut variables: Vec<_> =
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TL_")).collect();
    variables.sort();
    lines.extend(variables.iter().map(|(name, value)| format!("{}={}", name.display(), value.display())));
    lines
}

/// The chip, as macOS calls it; elsewhere the CPU's device has its name.
fn processor() -> Option<String> {
    if cfg!(target_os = "macos") { said("sysctl", &["-n", "machdep.cpu.brand_string"]) } else { None }
}
