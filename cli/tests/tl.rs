//! The program as its users call it.

use std::process::{Command, Output};

fn tl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tl")).args(arguments).output().expect("tl runs")
}

#[test]
fn devices_lists_the_cpu_and_says_why_others_are_missing() {
    let output = tl(&["devices"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(text.starts_with("cpu\n  model "), "{text}");
    for label in ["memory", "threads", "simd", "missing"] {
        assert!(text.contains(&format!("\n  {label}")), "no {label} in:\n{text}");
    }
    if !cfg!(target_os = "macos") {
        assert!(text.contains("metal:0\n  not available: Metal exists on macOS only"), "{text}");
    }
}

#[test]
fn a_wrong_command_fails_with_the_usage() {
    let output = tl(&["device"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(text.contains("devices") && text.contains("Usage: tl"), "{text}");
}
