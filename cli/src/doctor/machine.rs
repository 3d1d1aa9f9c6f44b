//! What the report says of the machine: nothing here can fail, what is not known is left out.

use std::process::Command;

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

fn system() -> String {
    let named = if cfg!(target_os = "macos") {
        let versions = ["-productVersion", "-buildVersion"].map(|fact| said("sw_vers", &[fact]).unwrap_or_default());
        Some(format!("macOS {} {}", versions[0], versions[1]))
    } else {
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        name.map(|name| name.trim_matches('"').to_string())
    };
    named.unwrap_or_else(|| std::env::consts::OS.into())
}

/// The chip, as macOS calls it; elsewhere the CPU's device has its name.
fn processor() -> Option<String> {
    if cfg!(target_os = "macos") { said("sysctl", &["-n", "machdep.cpu.brand_string"]) } else { None }
}

/// The first line that a program prints.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let line = String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_string();
    (output.status.success() && !line.is_empty()).then_some(line)
}
