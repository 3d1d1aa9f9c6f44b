//! Tests that need a process of their own: they count what all of it does, or measure its memory.

use std::process::Command;

/// Set in child processes.
const CHILD: &str = "TL_TEST_CHILD";

/// Runs a hidden (ignored) test of this binary, named with its module, as a process; the lines that it
/// marked as values.
pub fn child(test: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", test])
        .envs(variables.iter().copied())
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{test} {variables:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{test} did not run: {text}");
    text.lines().filter_map(|line| line.split_once("value: ")).map(|(_, value)| value.to_string()).collect()
}

/// Whether this is such a process.
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Resident bytes of this process; 0 where the system does not say.
pub fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()).map_or(0, |kb| kb * 1024)
}
