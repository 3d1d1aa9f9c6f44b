//! Measured choices, by times that the tests make up.

use super::super::sample::Sample;
use super::super::tuning::choice;
use super::*;
use crate::codegen::{Choice, Layout};
use crate::dtype::DType;
use crate::schedule::Gemm;

fn product(n: usize) -> Gemm {
    let layouts = [Layout::Depth, Layout::Lines];
    Sample { dtype: DType::F32, m: 100, n, k: 40, batch: 1, layouts, by_line: [false; 2] }.gemm()
}

/// A GPU that tunes, over a folder.
fn tuned(folder: &Folder, compiler: &str) -> (Arc<Fake>, Gpu) {
    let driver = Fake::with(0, 0, compiler);
    let gpu = Gpu::with_cache(driver.clone(), Some(Disk::new(folder.0.clone())));
    gpu.tuning.set(true);
    (driver, gpu)
}

/// Of three candidates, five runs each: the second is fastest once.
const TIMES: [u64; 15] = [7, 7, 7, 7, 7, 9, 9, 9, 3, 9, 4, 4, 4, 4, 4];
const FASTEST: Option<Choice> = Some(Choice::Simt { side: 64, depth: 8 });

#[test]
fn the_fastest_is_chosen_and_kept() {
    let folder = Folder::new("tuning");
    let (driver, gpu) = tuned(&folder, "1");
    driver.script(TIMES);
    assert_eq!(choice(&gpu, &product(100)), FASTEST);
    assert_eq!(driver.log().matches("mark matmul").count(), 15);
    // In memory, then on disk, for this compiler and this product only.
    assert_eq!((choice(&gpu, &product(100)), driver.log()), (FASTEST, String::new()));
    let (driver, gpu) = tuned(&folder, "1");
    assert_eq!((choice(&gpu, &product(100)), driver.log()), (FASTEST, String::new()));
    assert_ne!(choice(&gpu, &product(101)), FASTEST);
    assert!(driver.log().contains("mark"));
    let (driver, gpu) = tuned(&folder, "2");
    assert_ne!(choice(&gpu, &product(100)), FASTEST);
    assert!(driver.log().contains("mark"));
}

#[test]
fn what_cannot_be_read_is_measured_again() {
    let folder = Folder::new("tuning-damaged");
    let (driver, gpu) = tuned(&folder, "1");
    driver.script(TIMES);
    choice(&gpu, &product(100));
    for file in folder.files() {
        let mut bytes = std::fs::read(&file).unwrap();
        if String::from_utf8_lossy(&bytes).contains("tuning") {
            // Of the choice's text.
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&file, bytes).unwrap();
        }
    }
    let (driver, gpu) = tuned(&folder, "1");
    driver.script(TIMES.map(|time| if time == 4 { 2 } else { time }));
    assert_eq!(choice(&gpu, &product(100)), Some(Choice::Simt { side: 128, depth: 8 }));
    assert!(driver.log().contains("mark"));
}

#[test]
fn a_choice_that_is_none_of_todays_is_measured_again() {
    let folder = Folder::new("tuning-other");
    let (driver, gpu) = tuned(&folder, "1");
    choice(&gpu, &product(100));
    driver.log();
    let name = super::super::tuning::name(&gpu, &product(100));
    gpu.kernels().keep(&name, b"simt 512x512x512");
    let (driver, gpu) = tuned(&folder, "1");
    driver.script(TIMES);
    assert_eq!(choice(&gpu, &product(100)), FASTEST);
    assert_eq!(gpu.kernels().kept(&name).as_deref(), Some(&b"simt 64x64x8"[..]));
}

#[test]
fn nothing_is_measured_unasked() {
    let (driver, gpu) = gpu();
    gpu.tuning.set(false);
    assert_eq!((choice(&gpu, &product(100)), driver.log(), driver.compiled()), (None, String::new(), 0));
    // Thin products and those of 64-bit integers have no choice.
    gpu.tuning.set(true);
    let thin = Gemm { dtype: DType::I64, ..product(100) };
    assert_eq!((choice(&gpu, &product(3)), choice(&gpu, &thin), driver.log()), (None, None, String::new()));
}
