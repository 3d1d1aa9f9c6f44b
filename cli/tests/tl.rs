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

#[test]
fn doctor_examines_the_cpu() {
    let output = tl(&["doctor", "--device", "cpu", "--quick"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.starts_with("```text\ntensorlogic ") && text.ends_with(" checks passed, 0 failed\n```\n"), "{text}");
    let checks = [
        "maps f16",
        "maps bf16",
        "maps f32",
        "maps f64",
        "maps i64",
        "maps i32",
        "maps u32",
        "maps u8",
        "maps bool",
        "long chain",
        "strided views",
        "sums of ragged rows",
        "softmax of ragged rows",
        "column sums",
        "matmul f16",
        "matmul bf16",
        "matmul f32",
        "index out of range",
        "threads",
        "training step",
        "buffer pool",
    ];
    for check in checks {
        assert!(text.contains(&format!("\n  {check:<26} ok\n")), "no {check} in:\n{text}");
    }
    for (timing, unit) in [("launch and wait", "us"), ("f16 add", "GB/s"), ("f16 matmul 1024", "TFLOPS")] {
        let line = text.lines().find(|line| line.trim_start().starts_with(timing)).unwrap_or_default();
        assert!(line.contains(unit), "{timing}: {line:?} in:\n{text}");
    }
    assert!(text.contains(&format!("\n{} checks passed", checks.len())), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn doctor_says_that_a_device_is_not_there() {
    let output = tl(&["doctor", "--device", "cuda:99"]);
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("cuda:99"));
}
