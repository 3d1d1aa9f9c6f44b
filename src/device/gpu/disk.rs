//! Compiled kernels on disk. Nothing here can fail: what cannot be read is compiled again, what cannot
//! be written is not kept.
//!
//! A file holds the whole key beside the binary, so that a file that is torn, or of another key with the
//! same hash, is no hit.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// Bytes of files that are kept, about.
const MAX_BYTES: u64 = 512 << 20;

/// Writes between two looks at how many bytes there are.
const WRITES_PER_LOOK: u64 = 64;

const MAGIC: &[u8; 8] = b"TLKERN01";

/// A folder of compiled kernels.
pub(crate) struct Disk {
    folder: PathBuf,
    max_bytes: u64,
    writes: AtomicU64,
}

impl Disk {
    pub fn new(folder: PathBuf) -> Disk {
        Disk { folder, max_bytes: MAX_BYTES, writes: AtomicU64::new(0) }
    }

    #[cfg(test)]
    pub fn with_limit(folder: PathBuf, max_bytes: u64) -> Disk {
        Disk { max_bytes, ..Disk::new(folder) }
    }

    /// The user's, unless `TL_CACHE=0`.
    pub fn of_user() -> Option<Disk> {
        if std::env::var("TL_CACHE").is_ok_and(|v| v == "0") {
            return None;
        }
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let caches = || match cfg!(target_os = "macos") {
            true => set("HOME").map(|home| home.join("Library/Caches")),
            false => set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache"))),
        };
        let folder = set("TL_CACHE_DIR").or_else(|| caches().map(|folder| folder.join("tensorlogic/kernels")));
        folder.map(Disk::new)
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{:032x}.kernel", hash(key)))
    }

    /// The binary of a key.
    pub fn read(&self, key: &str) -> Option<Vec<u8>> {
        let file = std::fs::read(self.path(key)).ok()?;
        let rest = file.strip_prefix(MAGIC)?;
        let (head, rest) = rest.split_at_checked(32)?;
        let word = |i: usize| head[i * 8..][..8].try_into().map(u64::from_le_bytes).unwrap_or(0);
        let (found, binary) = rest.split_at_checked(word(0) as usize)?;
        let whole = found == key.as_bytes() && binary.len() as u64 == word(1);
        (whole && hash(binary) == (word(2) as u128) << 64 | word(3) as u128).then(|| binary.to_vec())
    }

    /// Keeps the binary of a key.
    pub fn write(&self, key: &str, binary: &[u8]) {
        if self.writes.fetch_add(1, Ordering::Relaxed).is_multiple_of(WRITES_PER_LOOK) {
            self.trim();
        }
        let sum = hash(binary);
        let words = [key.len() as u64, binary.len() as u64, (sum >> 64) as u64, sum as u64];
        let mut file = MAGIC.to_vec();
        words.iter().for_each(|word| file.extend(word.to_le_bytes()));
        file.extend(key.as_bytes());
        file.extend(binary);
        let _ = write_whole(&self.path(key), &file);
    }

    /// Removes the oldest files until three quarters of the bytes are left, if there are too many.
    fn trim(&self) {
        let mut files = files(&self.folder);
        let mut bytes: u64 = files.iter().map(|file| file.1).sum();
        if bytes <= self.max_bytes {
            return;
        }
        files.sort();
        for (_, size, path) in files {
            if bytes <= self.max_bytes / 4 * 3 {
                return;
            }
            let _ = std::fs::remove_file(path);
            bytes -= size;
        }
    }
}

/// Writes a file aside and renames it, so that no reader sees half of it. Its folder is made if there is none.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    // Threads and processes each write a file of their own.
    static FILES: AtomicU64 = AtomicU64::new(0);
    let count = FILES.fetch_add(1, Ordering::Relaxed);
    let aside = path.with_file_name(format!("{}-{count}.part", std::process::id()));
    let written = std::fs::create_dir_all(path.parent().unwrap_or(path))
        .and_then(|()| std::fs::write(&aside, bytes))
        .and_then(|()| std::fs::rename(&aside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    written
}

/// Age, size and path of the files in a folder.
fn files(folder: &Path) -> Vec<(SystemTime, u64, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let facts = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let about = entry.metadata().ok().filter(|about| about.is_file())?;
        Some((about.modified().ok()?, about.len(), entry.path()))
    };
    entries.filter_map(facts).collect()
}

/// 128 bits that differ between any two values that anyone will meet.
pub(crate) fn hash(value: impl Hash) -> u128 {
    let half = |seed: u64| {
        let mut hasher = DefaultHasher::new();
        (seed, &value).hash(&mut hasher);
        hasher.finish() as u128
    };
    half(1) << 64 | half(2)
}
