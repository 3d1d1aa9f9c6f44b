//! What the code promises about itself: layers import downwards only, and `unsafe` stays where it is
//! argued.

use std::path::{Path, PathBuf};

/// Modules of the crate and the layer each belongs to; a file may name its own layer and lower ones.
const LAYERS: [(&str, u32); 19] = [
    ("error", 0),
    ("dtype", 0),
    ("shape", 0),
    ("scope", 0),
    ("ops", 1),
    ("codegen", 4),
    ("device", 4), // consumes kernels, which layers 3 and 4 make
    ("graph", 2),
    ("schedule", 3),
    ("engine", 5),
    ("tensor", 6),
    ("autograd", 7),
    ("capture", 7),
    ("data", 7),
    ("io", 7),
    ("nn", 8),
    ("optim", 8),
    ("testing", 9),
    ("lib", 9),
];

/// Handles that stand for a device where no device may be known.
const OPAQUE: [&str; 2] = ["crate::device::{Device, Storage}", "crate::device::Device"];

fn sources(folder: &Path, list: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.path() {
            path if path.is_dir() => sources(&path, list),
            path if path.extension().is_some_and(|e| e == "rs") => list.push(path),
            _ => {}
        }
    }
}

/// Every source file with its path below `src` and its text.
fn files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut list = Vec::new();
    sources(&root, &mut list);
    let name = |path: &Path| path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
    list.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect()
}

fn layer(module: &str) -> u32 {
    LAYERS.iter().find(|(name, _)| *name == module).map_or_else(|| panic!("{module} has no layer"), |(_, layer)| *layer)
}

#[test]
fn imports_point_down() {
    // A layer's tests may make their examples by the layers above.
    for (file, text) in files().into_iter().filter(|(f, _)| !f.ends_with("/tests.rs") && !f.contains("/tests/")) {
        let module = file.split(['/', '.']).next().unwrap();
        let own = if file == "ops/fused.rs" { layer("tensor") } else { layer(module) };
        for line in text.lines().map(str::trim_start).filter(|l| l.starts_with("use crate::")) {
            let imported = line["use crate::".len()..].split([':', ';', '{', ' ']).next().unwrap();
            let opaque = OPAQUE.iter().any(|handle| line == format!("use {handle};"));
            if imported == "for_each_elementwise" || opaque {
                continue;
            }
            assert!(layer(imported) <= own, "{file} (layer {own}) imports {imported}: {line}");
        }
    }
}

#[test]
fn the_compiler_knows_no_device() {
    for (file, text) in files().into_iter().filter(|(f, _)| f.starts_with("graph/") || f.starts_with("schedule/")) {
        assert!(!text.contains("device::cpu"), "{file} names a device");
    }
}

/// Nobody who works on it elsewhere can run the Metal driver: a part that got lost would not be missed.
#[test]
fn the_metal_driver_does_what_it_has_to() {
    let files = files();
    let text = |name: &str| &files.iter().find(|(file, _)| file == name).expect("the file").1;
    let parts = [
        ("device/metal/queue.rs", "MTLDispatchType::Concurrent"),
        ("device/metal/queue.rs", "memoryBarrierWithScope(MTLBarrierScope::Buffers)"),
        ("device/metal/queue.rs", "waitForFence"),
        ("device/metal/queue.rs", "updateFence"),
        ("device/metal/queue.rs", "addCompletedHandler"),
        ("device/metal/queue.rs", "MTLCommandBufferStatus::Error"),
        ("device/metal/queue.rs", "useResource_usage"),
        ("device/metal/driver.rs", "MTLMathMode::Safe"),
        ("device/metal/driver.rs", "MTLMathFloatingPointFunctions::Precise"),
        ("device/metal/driver.rs", "HazardTrackingModeUntracked"),
        ("device/metal/driver.rs", "newBufferWithBytesNoCopy"),
        ("device/metal/driver.rs", "maxTotalThreadsPerThreadgroup"),
        ("device/metal/driver.rs", "self_check: true"),
    ];
    for (file, part) in parts {
        assert!(text(file).contains(part), "{file} has lost {part}");
    }
    // Calls that make objects are wrapped in autorelease pools.
    let pools = text("device/metal/driver.rs").matches("autoreleasepool(|_|").count();
    assert!(pools >= 11, "{pools} autorelease pools");
}

#[test]
fn unsafe_stays_in_device() {
    for (file, text) in files().into_iter().filter(|(f, _)| !f.starts_with("device/")) {
        assert!(!text.contains("unsafe {") && !text.contains("unsafe fn"), "{file} holds unsafe code");
    }
}
