//! Where and when a run took place.

use serde::{Deserialize, Serialize};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use tensorlogic::Device;

/// What figures are published with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// Processor or GPU.
    pub model: String,
    /// Bytes of the device's memory, if known.
    pub memory: Option<usize>,
    /// Threads that kernels run on.
    pub threads: usize,
    /// Instruction set, or a GPU's generation.
    pub simd: String,
    /// The version of a GPU's driver, if it says so.
    pub driver: Option<String>,
    /// The operating system.
    pub system: String,
    /// Of TensorLogic.
    pub version: String,
    /// The commit, where git knows it.
    pub commit: Option<String>,
    /// The day, in UTC: `2026-11-23`.
    pub date: String,
    /// Processes that wanted to run when it began, on average over a minute; what is above 0 shares the processor.
    pub load: Option<f64>,
    /// Arguments of the benchmark.
    pub arguments: Vec<String>,
}

impl Machine {
    /// This one, now.
    pub fn of(device: &Device, arguments: Vec<String>) -> Machine {
        let info = device.info();
        let load = std::fs::read_to_string("/proc/loadavg").ok();
        Machine {
            device: info.name,
            model: info.model.unwrap_or_else(|| "unknown".into()),
            memory: info.memory,
            threads: info.threads,
            simd: info.simd.into(),
            driver: device.name().starts_with("cuda").then(driver).flatten(),
            system: system(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: said("git", &["describe", "--always", "--dirty"]),
            date: today(),
            load: load.and_then(|text| text.split(' ').next()?.parse().ok()),
            arguments,
        }
    }

    /// The device in words.
    pub fn describe(&self) -> String {
        format!("{} ({}, {} threads, {})", self.model, self.device, self.threads, self.simd)
    }
}

fn driver() -> Option<String> {
    said("nvidia-smi", &["--query-gpu=driver_version", "--format=csv,noheader"])
}

/// The operating system, as it calls itself.
pub fn system() -> String {
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

/// The first line that a program prints, if it succeeds.
pub fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let line = String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_string();
    (output.status.success() && !line.is_empty()).then_some(line)
}

fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let [year, month, day] = civil(seconds / 86_400);
    format!("{year}-{month:02}-{day:02}")
}

/// Year, month and day of a number of days since 1970 began.
fn civil(mut days: u64) -> [u64; 3] {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= months[month] {
        days -= months[month];
        month += 1;
    }
    [year, month as u64 + 1, days + 1]
}

#[cfg(test)]
mod tests {
    #[test]
    fn days_have_dates() {
        assert_eq!(super::civil(0), [1970, 1, 1]);
        assert_eq!(super::civil(11_016), [2000, 2, 29]);
        assert_eq!(super::civil(20_780), [2026, 11, 23]);
        assert_eq!(super::civil(20_818), [2026, 12, 31]);
    }
}
