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

/// A folder that goes away with the test.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("tl-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().into()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The median times of a saved run, multiplied.
fn scaled(json: &str, factor: f64) -> String {
    let line = |line: &str| match line.trim().split_once(": ") {
        Some((name @ ("\"p10\"" | "\"median\"" | "\"p90\""), value)) => {
            let comma = if value.ends_with(',') { "," } else { "" };
            let value: f64 = value.trim_end_matches(',').parse().unwrap();
            format!("{name}: {}{comma}", value * factor)
        }
        _ => line.into(),
    };
    json.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn bench_saves_compares_draws_and_documents() {
    let folder = Folder::new("bench");
    let (saved, pictures) = (folder.file("run.json"), folder.file("pictures"));
    let bench = |more: &[&str]| tl(&[&["bench", "--device", "cpu", "--dtype", "f32", "--quick"], more].concat());

    let output = bench(&["fusion mul_relu", "64x64", "--json", "--save", &saved, "--plots", &pictures]);
    assert!(output.status.success());
    let json = String::from_utf8(output.stdout).unwrap();
    assert_eq!(json, std::fs::read_to_string(&saved).unwrap());
    for part in
        ["\"mul_relu\"", "\"unfused\"", "\"device\"", "\"captured\"", "\"amortised\"", "\"synchronised\"", "\"copy\""]
    {
        assert!(json.contains(part), "no {part} in:\n{json}");
    }
    let png = std::fs::read(folder.file("pictures/cpu-roofline.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG") && png.len() > 10_000);
    assert!(std::fs::read_to_string(folder.file("pictures/cpu-fusion.svg")).unwrap().contains("mul_relu"));

    // A run that was a thousand times as fast, and one that was as much slower.
    for (factor, status, verdict) in [(1e-3, 1, "REGRESSION"), (1e3, 0, "improvement")] {
        let other = folder.file("other.json");
        std::fs::write(&other, scaled(&json, factor)).unwrap();
        let output = bench(&["fusion mul_relu", "--compare", &other]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(status), "{text}");
        assert_eq!(text.matches(&format!("%  {verdict}")).count(), 8, "two cases by four clocks: {text}");
    }

    let output = tl(&["bench", "--document", &saved, &saved]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.matches("| mul_relu | 1M | f32 | 1 for 2 |").count() == 2, "{text}");
}

#[test]
fn bench_says_what_it_cannot_read() {
    let output = tl(&["bench", "--quick", "--compare", "no/such/file.json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no/such/file.json"));
}
