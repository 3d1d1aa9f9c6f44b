//! `tl doctor`: what a device computes, held to plain f64 arithmetic, and how fast; a report to paste into an issue.

mod checks;
mod machine;
mod timings;

use crate::devices;
use checks::{Check, Verdict};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use tensorlogic::Device;
use timings::Timing;

/// Columns of the report.
const WIDTH: usize = 80;

/// Columns of what is checked or timed, before the result.
const LABEL: usize = 26;

/// What to examine.
#[derive(Args)]
pub struct Options {
    /// cpu, cuda:0, metal:0; may be repeated. By default all there are, but for soft Metal
    #[arg(long = "device", value_name = "NAME")]
    devices: Vec<Device>,
    /// Time smaller sizes, fewer times
    #[arg(long)]
    quick: bool,
}

/// The report, and what came of the checks.
#[derive(Default)]
struct Report {
    text: String,
    passed: usize,
    failed: usize,
}

/// Prints the report. The exit status is 1 if a check failed.
pub fn run(options: &Options) -> ExitCode {
    let mut devices = options.devices.clone();
    if devices.is_empty() {
        devices = Device::enumerate().into_iter().filter(|device| device.name() != "soft-metal").collect();
    }
    let report = Report::of(&devices, &checks::all(), &timings::all(options.quick));
    print!("{}", report.text);
    ExitCode::from(report.status())
}

impl Report {
    fn of(devices: &[Device], checks: &[Check], timings: &[Timing]) -> Report {
        let bar = ProgressBar::new((devices.len() * (checks.len() + timings.len())) as u64);
        bar.set_style(
            ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}").unwrap_or(ProgressStyle::default_bar()),
        );
        let mut report = Report::default();
        report.lines("```text");
        machine::lines().iter().for_each(|line| report.lines(line));
        for device in devices {
            report.lines("");
            devices::describe(&device.info()).lines().for_each(|line| report.lines(line));
            // What is checked is the device, not the CPU beside it.
            let threshold = device.cpu_threshold();
            device.set_cpu_threshold(0);
            for check in checks {
                bar.set_message(format!("{device}: {}", check.name));
                let verdict = caught(|| (check.run)(device));
                report.check(&check.name, verdict);
                bar.inc(1);
            }
            device.set_cpu_threshold(threshold);
            for timing in timings {
                bar.set_message(format!("{device}: {}", timing.name));
                let result = caught(|| Ok((timing.run)(device)?)).unwrap_or_else(|verdict| verdict.to_string());
                report.result(&timing.name, &result);
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        report.lines("");
        report.lines(&format!("{} checks passed, {} failed", report.passed, report.failed));
        report.lines("```");
        report
    }

    fn check(&mut self, name: &str, verdict: Result<(), Verdict>) {
        match &verdict {
            Ok(()) => self.passed += 1,
            Err(Verdict::Failed(_)) => self.failed += 1,
            Err(Verdict::Skipped(_)) => {}
        }
        self.result(name, &verdict.map_or_else(|verdict| verdict.to_string(), |()| "ok".into()));
    }

    fn result(&mut self, name: &str, result: &str) {
        self.lines(&format!("  {name:<LABEL$} {}", result.replace('\n', " ")));
    }

    /// Adds a line, broken between words where it is too wide; what goes on is indented.
    fn lines(&mut self, line: &str) {
        let mut column = 0;
        for word in line.trim_end().split_inclusive(' ') {
            if column > 0 && column + word.trim_end().chars().count() > WIDTH {
                self.text.truncate(self.text.trim_end().len());
                self.text += "\n      ";
                column = 6;
            }
            self.text += word;
            column += word.chars().count();
        }
        self.text.push('\n');
    }

    fn status(&self) -> u8 {
        (self.failed > 0).into()
    }
}

/// What `work` returns; a panic is a failure too.
fn caught<T>(work: impl FnOnce() -> Result<T, Verdict>) -> Result<T, Verdict> {
    let said = |panic: Box<dyn Any + Send>| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().unwrap_or(&"no message").to_string(),
    };
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Verdict::Failed(format!("panic: {}", said(panic)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(run: impl Fn(&Device) -> Result<(), Verdict> + 'static) -> Report {
        let good = Check::new("good", |_| Ok(()));
        Report::of(&[Device::cpu()], &[good, Check::new("injected", run)], &[])
    }

    #[test]
    fn a_check_that_fails_makes_the_exit_status_1() {
        let report = report(|_| Err(Verdict::Failed("2 instead of 3".into())));
        assert!(report.text.contains("  injected                   FAILED: 2 instead of 3\n"), "{}", report.text);
        assert!(report.text.ends_with("\n1 checks passed, 1 failed\n```\n"), "{}", report.text);
        assert_eq!(report.status(), 1);
    }

    #[test]
    fn a_panic_and_an_error_are_failures() {
        assert_eq!(report(|_| panic!("at {}", 7)).status(), 1);
        let unlike = report(|device| Ok(tensorlogic::Tensor::from_slice(&[0u8], 2, device).map(drop)?));
        assert_eq!(unlike.status(), 1);
    }

    #[test]
    fn what_a_device_lacks_is_no_failure() {
        let report = report(|_| Err(Verdict::Skipped("no f64".into())));
        assert!(report.text.contains("skipped: no f64\n") && report.status() == 0, "{}", report.text);
    }

    #[test]
    fn lines_are_narrow() {
        let mut report = Report::default();
        report.result("name", &"words and words, ".repeat(20));
        assert!(
            report.text.lines().count() > 3 && report.text.lines().all(|line| line.len() <= WIDTH),
            "{}",
            report.text
        );
        assert_eq!(report.text.split_whitespace().count(), 61);
    }
}
