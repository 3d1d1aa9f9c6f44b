//! Kernels by source and name: handles in memory, compiled binaries on disk.

use super::disk::{Disk, hash, write_whole};
use super::driver::{Driver, Function};
use crate::device::cpu::threads;
use crate::device::{lock, logs};
use crate::error::{Error, Result};
use rustc_hash::{FxHashMap, FxHashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

/// Handles that are kept; the least recently used goes first.
const MAX_FUNCTIONS: usize = 4096;

/// Binaries that are kept, for sources of several kernels.
const MAX_BINARIES: usize = 64;

/// The kernels of one device.
pub(crate) struct Kernels {
    driver: Arc<dyn Driver>,
    /// The part of a key on disk that all kernels share.
    toolchain: OnceLock<String>,
    disk: Option<Disk>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// By the hash of source and name: the handle, and when it was last asked for.
    functions: FxHashMap<u128, (Function, u64)>,
    /// By the hash of the source.
    binaries: FxHashMap<u128, (Arc<Vec<u8>>, u64)>,
    tick: u64,
}

impl Kernels {
    pub fn new(driver: Arc<dyn Driver>, disk: Option<Disk>) -> Kernels {
        Kernels { driver, toolchain: OnceLock::new(), disk, known: Mutex::default() }
    }

    fn known<T>(&self, use_it: impl FnOnce(&mut Known) -> T) -> T {
        use_it(&mut lock(&self.known))
    }

    /// The kernel `name` of a source.
    ///
    /// # Errors
    /// [`Error::Compile`].
    pub fn function(&self, source: &str, name: &str) -> Result<Function> {
        let key = hash((source, name));
        if let Some(function) = self.known(|known| known.function(key)) {
            return Ok(function);
        }
        let binary = self.binary(source, name)?;
        let function = self.driver.load(&binary, name).map_err(|reason| self.refused(name, reason))?;
        self.known(|known| known.keep_function(key, function));
        Ok(function)
    }

    /// Makes kernels ready, sources in parallel.
    ///
    /// # Errors
    /// The first [`Error::Compile`], in the order of the list.
    pub fn prepare(&self, list: &[(&str, &str)]) -> Result<()> {
        let mut seen = FxHashSet::default();
        let missing: Vec<_> = self.known(|known| {
            let is_missing = |source: &str, name| !known.functions.contains_key(&hash((source, name)));
            list.iter().filter(|(source, name)| is_missing(source, name) && seen.insert(*source)).collect()
        });
        let errors = Mutex::new(Vec::new());
        threads::for_each(missing.len(), true, &|i| {
            let (source, name) = missing[i];
            if let Err(error) = self.function(source, name) {
                lock(&errors).push((i, error));
            }
        });
        let errors = errors.into_inner().unwrap_or_else(PoisonError::into_inner);
        errors.into_iter().min_by_key(|(i, _)| *i).map_or(Ok(()), |(_, error)| Err(error))
    }

    /// What [`Kernels::keep`] put on disk under a name.
    pub fn kept(&self, name: &str) -> Option<Vec<u8>> {
        self.disk.as_ref()?.read(&format!("{}\n{name}", self.toolchain()))
    }

    /// Keeps a few bytes on disk, for this compiler and chip.
    pub fn keep(&self, name: &str, bytes: &[u8]) {
        self.disk.iter().for_each(|disk| disk.write(&format!("{}\n{name}", self.toolchain()), bytes));
    }

    /// The compiled form of a source, from memory, disk or the compiler. `name` is for messages.
    fn binary(&self, source: &str, name: &str) -> Result<Arc<Vec<u8>>> {
        let key = hash(source);
        if let Some(binary) = self.known(|known| known.binary(key)) {
            return Ok(binary);
        }
        log_source(source, name);
        keep_source(source);
        let text = format!("{}\n{source}", self.toolchain());
        let disk = self.disk.as_ref().filter(|_| self.driver.limits().keeps_binaries);
        let binary = match disk.and_then(|disk| disk.read(&text)) {
            Some(binary) => binary,
            None => {
                let binary = self.driver.compile(source).map_err(|reason| self.refused(name, reason))?;
                disk.iter().for_each(|disk| disk.write(&text, &binary));
                binary
            }
        };
        let binary = Arc::new(binary);
        self.known(|known| known.keep_binary(key, binary.clone()));
        Ok(binary)
    }

    fn toolchain(&self) -> &str {
        self.toolchain.get_or_init(|| format!("tensorlogic {}\n{}", env!("CARGO_PKG_VERSION"), self.driver.compiler()))
    }

    fn refused(&self, kernel: &str, reason: String) -> Error {
        Error::Compile { device: self.driver.name(), kernel: kernel.into(), reason }
    }
}

impl Known {
    fn function(&mut self, key: u128) -> Option<Function> {
        self.tick += 1;
        let (function, used) = self.functions.get_mut(&key)?;
        *used = self.tick;
        Some(*function)
    }

    fn binary(&mut self, key: u128) -> Option<Arc<Vec<u8>>> {
        self.tick += 1;
        let (binary, used) = self.binaries.get_mut(&key)?;
        *used = self.tick;
        Some(binary.clone())
    }

    fn keep_function(&mut self, key: u128, function: Function) {
        make_room(&mut self.functions, MAX_FUNCTIONS);
        self.functions.insert(key, (function, self.tick));
    }

    fn keep_binary(&mut self, key: u128, binary: Arc<Vec<u8>>) {
        make_room(&mut self.binaries, MAX_BINARIES);
        self.binaries.insert(key, (binary, self.tick));
    }
}

/// Removes the least recently used of `max` entries.
fn make_room<T>(map: &mut FxHashMap<u128, (T, u64)>, max: usize) {
    if map.len() >= max {
        let oldest = map.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
        oldest.and_then(|key| map.remove(&key));
    }
}

fn log_source(source: &str, name: &str) {
    if logs("source") {
        eprintln!("tensorlogic source of {name}:\n{source}");
    }
}

/// Keeps a source for `tools/lint-shaders.sh`, if the environment's `TL_SOURCES` names a folder and it is Metal text,
/// which the runtime's tests do not care for. What cannot be written is not kept, which stderr is told once.
pub(crate) fn keep_source(source: &str) {
    static FOLDER: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("TL_SOURCES").filter(|v| !v.is_empty()).map(PathBuf::from));
    static FAILED: OnceLock<()> = OnceLock::new();
    let Some(folder) = FOLDER.as_ref().filter(|_| source.starts_with("#include <metal_stdlib>")) else { return };
    if let Err(error) = keep(folder, source) {
        FAILED.get_or_init(|| eprintln!("tensorlogic: TL_SOURCES: {}: {error}", folder.display()));
    }
}

/// Writes `folder/<hash>.metal`, unless it is there: aside and renamed, since threads and processes write the same.
fn keep(folder: &Path, source: &str) -> std::io::Result<()> {
    let path = folder.join(format!("{:032x}.metal", hash(source)));
    if path.exists() { Ok(()) } else { write_whole(&path, source.as_bytes()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_keep_the_same_sources() {
        let folder = std::env::temp_dir().join(format!("tensorlogic-sources-{}", std::process::id()));
        let sources: Vec<String> = (1..20).map(|i| "kernel\n".repeat(1000 * i)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| sources.iter().for_each(|source| keep(&folder, source).unwrap()));
            }
        });
        let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
        let mut kept: Vec<_> = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        kept.sort_by_key(|text| text.len());
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(kept == sources && files.iter().all(|path| path.extension().unwrap() == "metal"), "{files:?}");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let file = std::env::temp_dir().join(format!("tensorlogic-no-folder-{}", std::process::id()));
        std::fs::write(&file, "").unwrap();
        let kept = keep(&file.join("sources"), "kernel");
        std::fs::remove_file(&file).unwrap();
        assert!(kept.is_err());
    }
}
