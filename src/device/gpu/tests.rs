//! The runtime over a driver that only pretends.

use super::disk::Disk;
use super::driver::{Driver, Function};
use super::fake::Fake;
use super::faults::{FaultSite, Watch};
use super::queue::{Bound, Launch};
use super::runtime::{Gpu, bound};
use crate::device::memory::Storage;
use crate::error::{Error, Result};
use std::panic::Location;
use std::path::PathBuf;
use std::sync::Arc;

#[cfg(feature = "soft-metal")]
mod products;
mod tuning;

const SOURCE: &str = "kernels: fill copy fault work";

fn gpu() -> (Arc<Fake>, Gpu) {
    gpu_of(Fake::new())
}

fn gpu_of(driver: Arc<Fake>) -> (Arc<Fake>, Gpu) {
    let gpu = Gpu::with_cache(driver.clone(), None);
    (driver, gpu)
}

fn batches_of(batch: usize) -> (Arc<Fake>, Gpu) {
    gpu_of(Fake::with(batch, 0, ""))
}

fn launch(gpu: &Gpu, name: &str, buffers: &[Bound], args: &[u8]) -> Result<()> {
    let function: Function = gpu.function(SOURCE, name)?;
    gpu.submit(&Launch {
        function,
        name,
        groups: [1; 3],
        threads: 32,
        block_bytes: 0,
        buffers,
        args,
        indirect: &[],
        operations: 0.0,
    })
}

fn reads(storage: &Storage) -> Bound {
    bound(storage, false).unwrap()
}

fn writes(storage: &Storage) -> Bound {
    bound(storage, true).unwrap()
}

fn storages<const N: usize>(gpu: &Gpu) -> [Storage; N] {
    std::array::from_fn(|_| Storage::new(&gpu.pool, 256).unwrap())
}

fn download(gpu: &Gpu, storage: &Storage) -> Result<Vec<u8>> {
    let mut out = vec![0; storage.len()];
    gpu.download(storage, 0, &mut out)?;
    Ok(out)
}

/// A folder that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = Folder(std::env::temp_dir().join(format!("tensorlogic-{name}-{}", std::process::id())));
        let _ = std::fs::remove_dir_all(&folder.0);
        folder
    }

    fn files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// What the compiler is asked when a new process wants two kernels of one source.
    fn compiles(&self, compiler: &str, source: &str) -> usize {
        let driver = Fake::with(0, 0, compiler);
        let gpu = Gpu::with_cache(driver.clone(), Some(Disk::new(self.0.clone())));
        assert!(gpu.function(source, "fill").is_ok() && gpu.function(source, "copy").is_ok());
        driver.compiled()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn only_what_depends_waits() -> Result<()> {
    let (driver, gpu) = gpu();
    let [a, b, c] = storages(&gpu);
    let cases: [(&[Bound], &str); 8] = [
        (&[reads(&a), writes(&b)], "work"),
        (&[reads(&a), writes(&c)], "work"),   // reads what is only read
        (&[reads(&b), writes(&a)], "| work"), // reads what was written, writes what was read
        (&[reads(&c)], "work"),               // was written before the barrier
        (&[writes(&b)], "| work"),            // writes what was read
        (&[writes(&b)], "| work"),            // writes what was written
        (&[reads(&a)], "work"),
        (&[reads(&a), writes(&a)], "| work"), // in place
    ];
    for (i, (buffers, want)) in cases.into_iter().enumerate() {
        launch(&gpu, "work", buffers, &[])?;
        assert_eq!(driver.log(), want, "case {i}");
    }
    let function = gpu.function(SOURCE, "work")?;
    let indirect = [reads(&a)];
    let args: &[u8] = &[];
    gpu.submit(&Launch {
        function,
        name: "",
        groups: [1; 3],
        threads: 32,
        block_bytes: 0,
        buffers: &[],
        args,
        indirect: &indirect,
        operations: 0.0,
    })?;
    assert_eq!(driver.log(), "| work");
    Ok(())
}

#[test]
fn copies_wait_as_kernels_do() -> Result<()> {
    let (driver, gpu) = gpu();
    let [a, b, c] = storages(&gpu);
    launch(&gpu, "fill", &[writes(&a)], &[3])?;
    gpu.copy(&a, 16, &b, 64)?;
    gpu.queue().zero(writes(&c))?;
    gpu.queue().zero(writes(&a))?;
    assert_eq!(driver.log(), "fill | copies zero | zero");
    assert_eq!(download(&gpu, &b)?[..64], [3; 64]);
    assert_eq!(download(&gpu, &a)?, [0; 256]);
    Ok(())
}

#[test]
fn a_buffer_that_comes_back_is_waited_for() -> Result<()> {
    let (driver, gpu) = gpu();
    let first = Storage::new(&gpu.pool, 256)?;
    launch(&gpu, "work", &[reads(&first)], &[])?;
    let address = first.address();
    drop(first);
    let second = Storage::new(&gpu.pool, 256)?;
    assert_eq!(second.address(), address);
    launch(&gpu, "work", &[writes(&second)], &[])?;
    drop(second);
    assert_eq!(download(&gpu, &Storage::zeroed(&gpu.pool, 256)?)?, [0; 256]);
    assert_eq!(driver.log(), "work | work | zero commit | read");
    Ok(())
}

#[test]
fn batches_grow_while_the_device_is_busy() -> Result<()> {
    let (driver, gpu) = batches_of(4);
    let submit = |n: usize| (0..n).try_for_each(|_| launch(&gpu, "work", &[], &[]));
    submit(12)?;
    assert_eq!(driver.log(), "work commit work work commit work work work work commit work work work work commit work");
    let ticket = gpu.commit()?;
    assert_eq!((driver.log(), driver.is_done(ticket)), ("commit".into(), false));
    assert_eq!(gpu.commit()?, ticket);
    gpu.synchronize()?;
    assert_eq!((driver.log(), driver.is_done(ticket)), ("".into(), true));
    // The queue is idle again.
    submit(1)?;
    assert_eq!(driver.log(), "work commit");
    Ok(())
}

#[test]
fn a_device_that_has_run_dry_starts_at_once() -> Result<()> {
    let (driver, gpu) = batches_of(100);
    let submit = |n: usize| (0..n).try_for_each(|_| launch(&gpu, "work", &[], &[]));
    submit(3)?;
    let ticket = gpu.commit()?;
    submit(1)?;
    driver.log();
    // Of two commits; one dispatch is waiting for company.
    gpu.queue().wait(ticket)?;
    submit(1)?;
    assert_eq!(driver.log(), "work commit");
    Ok(())
}

#[test]
fn a_plan_that_runs_again_becomes_a_list() -> Result<()> {
    let driver = Fake::new();
    let device = driver.device();
    let x = crate::Tensor::from_slice(&[1f32; 24], (4, 6), &device)?;
    let w = crate::Tensor::from_slice(&[1f32; 36], (6, 6), &device)?;
    let run = || -> Result<String> {
        driver.log();
        // Three launches: a product each.
        x.matmul(&w)?.matmul(&w)?.matmul(&w)?.eval()?;
        Ok(driver.log())
    };
    // Whether a barrier comes first depends on what was asked for before.
    let logs: Vec<String> = (0..4).map(|_| Ok(run()?.trim_start_matches("| ").to_string())).collect::<Result<_>>()?;
    assert_eq!(logs, ["matmul | matmul | matmul", "matmul | matmul | matmul", "new list of 3", "list of 3"]);
    Ok(())
}

#[test]
fn what_takes_long_is_sent_off_at_once() -> Result<()> {
    let (driver, gpu) = batches_of(100);
    let [a] = storages(&gpu);
    let large = Bound { bytes: 1 << 30, ..reads(&a) };
    (0..8).try_for_each(|_| launch(&gpu, "work", &[], &[]))?;
    driver.log();
    launch(&gpu, "work", &[large], &[])?;
    assert_eq!(driver.log(), "work commit");
    Ok(())
}

#[test]
fn what_is_estimated_to_take_long_is_sent_off() -> Result<()> {
    let (driver, gpu) = batches_of(100);
    let function = gpu.function(SOURCE, "work")?;
    // A tenth of a second, at a million operations a microsecond.
    let work = |operations| Launch {
        function,
        name: "work",
        groups: [1; 3],
        threads: 32,
        block_bytes: 0,
        buffers: &[],
        args: &[],
        indirect: &[],
        operations,
    };
    (0..8).try_for_each(|_| gpu.submit(&work(0.0)))?;
    driver.log();
    gpu.submit(&work(0.6e11))?;
    assert_eq!(driver.log(), "work");
    gpu.submit(&work(0.6e11))?;
    assert_eq!(driver.log(), "work commit");
    Ok(())
}

#[test]
fn a_driver_without_batches_is_committed_when_asked() -> Result<()> {
    let (driver, gpu) = gpu();
    (0..100).try_for_each(|_| launch(&gpu, "work", &[], &[]))?;
    assert!(!driver.log().contains("commit"));
    gpu.commit()?;
    assert_eq!(driver.log(), "commit");
    Ok(())
}

#[test]
fn a_source_is_compiled_once() -> Result<()> {
    let (driver, gpu) = gpu();
    let fill = gpu.function(SOURCE, "fill")?;
    assert_ne!(gpu.function(SOURCE, "copy")?, fill);
    assert_eq!((gpu.function(SOURCE, "fill")?, driver.compiled()), (fill, 1));
    gpu.prepare(&[(SOURCE, "work"), ("a", "a"), ("b", "b"), ("a", "a")])?;
    assert_eq!(driver.compiled(), 3);
    gpu.prepare(&[("a", "a"), ("b", "b")])?;
    assert_eq!(driver.compiled(), 3);
    Ok(())
}

#[test]
fn a_source_that_does_not_compile_is_an_error() {
    let (_, gpu) = gpu();
    let reason = "line 1: #error".to_string();
    let want = Error::Compile { device: "fake".into(), kernel: "x".into(), reason };
    assert_eq!(gpu.function("#error", "x").unwrap_err(), want);
    assert_eq!(gpu.prepare(&[("a", "a"), ("#error", "x"), ("#error b", "b")]).unwrap_err(), want);
    assert!(matches!(gpu.function(SOURCE, "other"), Err(Error::Compile { .. })));
}

#[test]
fn kernels_on_disk_serve_their_compiler_only() {
    let folder = Folder::new("kernels");
    assert_eq!(folder.compiles("1", SOURCE), 1);
    assert_eq!(folder.compiles("1", SOURCE), 0);
    assert_eq!(folder.compiles("2", SOURCE), 1);
    assert_eq!(folder.compiles("1", "fill copy"), 1);
    assert_eq!(folder.files().len(), 3);
}

#[test]
fn damaged_files_are_no_hits() {
    let folder = Folder::new("damaged");
    folder.compiles("1", SOURCE);
    let [file] = &folder.files()[..] else { panic!("one file") };
    let whole = std::fs::read(file).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut of_another = whole.clone();
    of_another[50] ^= 1;
    for bytes in [&whole[..0], &whole[..20], &whole[..whole.len() - 1], &flipped, &of_another] {
        std::fs::write(file, bytes).unwrap();
        assert_eq!(folder.compiles("1", SOURCE), 1);
        assert_eq!(std::fs::read(file).unwrap(), whole);
    }
}

#[test]
fn a_folder_that_cannot_be_is_no_error() {
    let folder = Folder::new("file");
    std::fs::write(&folder.0, "").unwrap();
    assert_eq!(folder.compiles("1", SOURCE), 1);
    std::fs::remove_file(&folder.0).unwrap();
}

#[test]
fn the_oldest_files_go_first() {
    let folder = Folder::new("oldest");
    let file = vec![7; 1000];
    let disk = Disk::with_limit(folder.0.clone(), 5000);
    for (i, key) in ["a", "b", "c", "d", "e", "f"].into_iter().enumerate() {
        disk.write(key, &file);
        let age = std::time::Duration::from_secs(1000 - i as u64);
        for path in folder.files() {
            let written = std::fs::File::options().write(true).open(&path).unwrap();
            if written.metadata().unwrap().modified().unwrap().elapsed().unwrap().as_secs() < 100 {
                written.set_modified(std::time::SystemTime::now() - age).unwrap();
            }
        }
    }
    // The first write of a process looks.
    Disk::with_limit(folder.0.clone(), 5000).write("g", &file);
    let kept = ["a", "b", "c", "d", "e", "f", "g"].map(|key| disk.read(key).is_some());
    assert_eq!(kept, [false, false, false, true, true, true, true]);
}

const CALL: &Location<'static> = Location::caller();

/// An evaluation that reads `inputs` and fills `output`, perhaps with a fault.
fn evaluate(gpu: &Gpu, op: Option<&'static str>, faults: bool, inputs: &[&Storage], output: &Storage) -> Result<()> {
    let watch = gpu.watch(op.is_some(), inputs.iter().copied())?;
    if let (Some(op), Some(watch)) = (op, &watch) {
        let [_, tag] = [op, op].map(|op| watch.tag(FaultSite { op, site: CALL, limit: 5 }));
        let record = watch.record().ok_or_else(|| Error::internal("test", "no record"))?;
        launch(gpu, if faults { "fault" } else { "work" }, &[record, writes(output)], &tag.to_le_bytes())?;
    }
    launch(gpu, "fill", &[writes(output)], &[1])?;
    output.set_verdict(watch.map(|watch: Watch| gpu.finish(watch)));
    Ok(())
}

fn out_of_range(op: &'static str) -> Error {
    Error::IndexOutOfRange { op, index: 7, size: 5, site: CALL.to_string() }
}

#[test]
fn faults_show_where_they_belong() -> Result<()> {
    let (_, gpu) = gpu();
    let [bad, good, plain, from_bad, from_both] = storages(&gpu);
    evaluate(&gpu, Some("gather"), true, &[], &bad)?;
    evaluate(&gpu, Some("scatter"), false, &[], &good)?;
    evaluate(&gpu, None, false, &[], &plain)?;
    evaluate(&gpu, None, false, &[&bad], &from_bad)?;
    evaluate(&gpu, Some("embedding"), false, &[&plain, &from_bad, &good], &from_both)?;
    assert_eq!((download(&gpu, &plain)?, download(&gpu, &good)?), (vec![1; 256], vec![1; 256]));
    for storage in [&bad, &from_bad, &from_both, &bad] {
        assert_eq!(download(&gpu, storage), Err(out_of_range("gather")));
    }
    // Now it is known, and an evaluation fails at once.
    assert_eq!(evaluate(&gpu, None, false, &[&from_both], &plain), Err(out_of_range("gather")));
    assert_eq!(gpu.synchronize(), Ok(()));
    // The record serves again.
    evaluate(&gpu, Some("gather"), false, &[&good], &bad)?;
    assert_eq!(download(&gpu, &bad)?, [1; 256]);
    Ok(())
}

#[test]
fn the_device_reports_what_nobody_read() -> Result<()> {
    let (_, gpu) = gpu();
    let [a, b] = storages(&gpu);
    evaluate(&gpu, Some("gather"), true, &[], &a)?;
    drop(a);
    assert_eq!(gpu.synchronize(), Err(out_of_range("gather")));
    assert_eq!(gpu.synchronize(), Ok(()));
    evaluate(&gpu, Some("scatter"), true, &[], &b)?;
    assert_eq!(gpu.synchronize(), Err(out_of_range("scatter")));
    assert_eq!(download(&gpu, &b), Err(out_of_range("scatter")));
    Ok(())
}

#[test]
fn evaluations_without_end_get_records() -> Result<()> {
    let (_, gpu) = gpu();
    let [a] = storages(&gpu);
    for _ in 0..3000 {
        evaluate(&gpu, Some("gather"), false, &[&a], &a)?;
    }
    evaluate(&gpu, Some("scatter"), true, &[&a], &a)?;
    for _ in 0..10_000 {
        if let Err(error) = evaluate(&gpu, None, false, &[&a], &a) {
            assert_eq!(error, out_of_range("scatter"));
        }
    }
    assert_eq!(download(&gpu, &a), Err(out_of_range("scatter")));
    Ok(())
}

#[test]
fn memory_that_is_still_busy_is_waited_for() -> Result<()> {
    let (driver, gpu) = gpu_of(Fake::with(0, 4096, ""));
    let first = Storage::new(&gpu.pool, 4096)?;
    launch(&gpu, "work", &[writes(&first)], &[])?;
    drop(first);
    assert_eq!(gpu.pool.stats().buffers_cached, 1);
    let second = Storage::new(&gpu.pool, 1024)?;
    assert_eq!(driver.log(), "work commit");
    let refused = Storage::new(&gpu.pool, 4096).map(|_| ()).unwrap_err();
    assert!(matches!(refused, Error::OutOfMemory { requested: 4096, in_use: 1024, .. }), "{refused}");
    drop(second);
    assert_eq!(Storage::new(&gpu.pool, 0)?.len(), 0);
    Ok(())
}

#[test]
fn threads_share_a_queue() {
    let (_, gpu) = batches_of(8);
    std::thread::scope(|scope| {
        for value in 0..4u8 {
            let gpu = &gpu;
            scope.spawn(move || {
                for round in 0..200 {
                    let [from, to] = storages(gpu);
                    launch(gpu, "fill", &[writes(&from)], &[value]).unwrap();
                    launch(gpu, "copy", &[reads(&from), writes(&to)], &[]).unwrap();
                    let faults = round % 7 == 0;
                    evaluate(gpu, Some("gather"), faults, &[], &from).unwrap();
                    assert_eq!(download(gpu, &to).unwrap(), [value; 256]);
                    assert_eq!(download(gpu, &from).is_err(), faults);
                }
            });
        }
    });
    assert_eq!(gpu.synchronize(), Ok(()));
}

#[test]
fn the_time_of_each_dispatch_is_told() -> Result<()> {
    let (driver, gpu) = gpu();
    let [a] = storages(&gpu);
    let work = || launch(&gpu, "fill", &[writes(&a)], &[1]).and_then(|()| launch(&gpu, "work", &[reads(&a)], &[]));
    let (result, list) = gpu.profile(work)?;
    result?;
    let list: Vec<_> = list.iter().map(|(name, time)| (&name[..], time.as_micros())).collect();
    assert_eq!(list, [("fill", 5), ("work", 5)]);
    assert_eq!(driver.log(), "| mark fill | mark | mark work | mark commit");
    launch(&gpu, "work", &[], &[])?;
    assert_eq!(driver.log(), "work");
    Ok(())
}

#[test]
fn the_devices_time_is_told() -> Result<()> {
    let (driver, gpu) = gpu();
    let (result, time) = gpu.timed(|| launch(&gpu, "work", &[], &[]))?;
    assert_eq!((result, time.as_micros()), (Ok(()), 5));
    assert_eq!(driver.log(), "| mark work | mark commit");
    Ok(())
}
