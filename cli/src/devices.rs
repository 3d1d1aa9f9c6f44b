//! `tl devices`.

use std::fmt::Write;
use tensorlogic::device::DeviceInfo;
use tensorlogic::{Device, Error};

/// Every device there is, one block each, then every kind that there is not, with the reason.
pub fn report() -> String {
    let mut text: String = Device::enumerate().iter().map(|device| describe(&device.info())).collect();
    for error in [Device::metal(0), Device::cuda(0)].into_iter().filter_map(Result::err) {
        text += &unavailable(&error);
    }
    text
}

/// What a device is, the first line its name.
pub fn describe(info: &DeviceInfo) -> String {
    let mut text = format!("{}\n", info.name);
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(text, "  {label:<9}{value}");
    };
    line("model", info.model.as_deref().unwrap_or("unknown"));
    line("memory", &info.memory.map_or("unknown".into(), gibibytes));
    line("threads", &info.threads.to_string());
    line("simd", info.simd);
    if info.missing.is_empty() {
        line("missing", "nothing");
    }
    for missing in &info.missing {
        line("missing", missing);
    }
    text
}

fn unavailable(error: &Error) -> String {
    match error {
        Error::DeviceUnavailable { device, reason } => format!("{device}\n  not available: {reason}\n"),
        other => format!("{other}\n"),
    }
}

fn gibibytes(bytes: usize) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_facts_are_said_to_be_unknown() {
        let info =
            DeviceInfo { name: "x".into(), model: None, memory: None, threads: 4, simd: "plain", missing: vec![] };
        let want = "x\n  model    unknown\n  memory   unknown\n  threads  4\n  simd     plain\n  missing  nothing\n";
        assert_eq!(describe(&info), want);
    }

    #[test]
    fn each_missing_thing_has_a_line() {
        let missing = vec!["A: slow".into(), "B: slower".into()];
        let info = DeviceInfo { name: "x".into(), model: None, memory: Some(3 << 29), threads: 1, simd: "", missing };
        let text = describe(&info);
        assert!(text.contains("memory   1.5 GiB\n"), "{text}");
        assert!(text.ends_with("  missing  A: slow\n  missing  B: slower\n"), "{text}");
    }
}
