//! Layer 7: tensors in files, in the safetensors format (<https://github.com/huggingface/safetensors>):
//! the length of a header (u64), the header (JSON: the dtype, shape and byte range of every name), and the
//! elements in row-major order, little endian throughout.

use crate::device::Device;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::tensor::{Tensor, eval};
use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::iter::repeat_n;
use std::path::{Path, PathBuf};

/// The longest header there may be, in bytes: the format's own limit.
const HEADER_LIMIT: u64 = 100_000_000;
/// The header's entry for metadata, which no tensor can be named.
const METADATA: &str = "__metadata__";
/// Bytes that are handed to the system at a time.
const WRITE_SIZE: usize = 1 << 20;

/// What a safetensors file holds.
#[derive(Clone, Debug, Default)]
pub struct SafeTensorsFile {
    /// The tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// The file's own notes; empty where it has none.
    pub metadata: BTreeMap<String, String>,
}

/// Writes tensors to a safetensors file, which other programs read too. The same tensors and metadata
/// give the same bytes: wide dtypes first, so that elements are aligned, then by name.
///
/// Either the new file is there, whole and on the disk, or what was there before: the bytes go to another
/// file in the same folder, which then takes the name. That file is removed when something fails; if the
/// machine stops in between, it stays behind as `.NAME.PROCESS-NUMBER.tmp`. A symbolic link of that name is
/// replaced, not followed.
///
/// # Errors
/// A tensor named `__metadata__`; a header of more than 100,000,000 bytes; what evaluation reports; what
/// the system reports.
pub fn save_safetensors(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let at = At { op: "save_safetensors", path: path.as_ref() };
    if tensors.contains_key(METADATA) {
        return Err(at.error(format!("no tensor can be named {METADATA}, which the format keeps for metadata")));
    }
    // Together, as what is pending may have much in common. Views of elements that are there are read in place.
    let pending: Vec<&Tensor> = tensors.values().filter(|t| t.is_pending()).collect();
    eval(&pending)?;
    let mut ordered: Vec<(&String, &Tensor)> = tensors.iter().collect();
    ordered.sort_by_key(|(_, tensor)| Reverse(stored_as(tensor.dtype())));
    let header = header(&ordered, metadata).map_err(|e| at.error(e))?;
    at.replace(|file| {
        file.write_all(&header).map_err(|e| at.error(e))?;
        ordered.iter().try_for_each(|(_, tensor)| file.write_all(&bytes_of(tensor)?).map_err(|e| at.error(e)))
    })
}

/// Reads a safetensors file, whole. The tensors are on `device`, their elements bit for bit those of the
/// file.
///
/// # Errors
/// What the system reports; a file that is no safetensors file or is damaged; a tensor of a dtype that
/// [`DType`] does not have, of too many dimensions, or of booleans other than 0 and 1; out of memory.
pub fn load_safetensors(path: impl AsRef<Path>, device: &Device) -> Result<SafeTensorsFile> {
    let at = At { op: "load_safetensors", path: path.as_ref() };
    let bytes = fs::read(at.path).map_err(|e| at.error(e))?;
    let (header, data) = parsed(&bytes).map_err(|reason| at.error(reason))?;
    // Sorted, so that the first of several errors is always the same.
    let infos: BTreeMap<String, &TensorInfo> = header.tensors().into_iter().collect();
    let mut tensors = BTreeMap::new();
    for (name, info) in infos {
        let about = |reason: String| at.error(format!("tensor {name:?}: {reason}"));
        let shape = Shape::new(&info.shape).map_err(|e| about(e.to_string()))?;
        let dtype = loaded_as(info.dtype).map_err(about)?;
        let (start, end) = info.data_offsets;
        let damaged = || about("a boolean that is neither 0 nor 1".into());
        let tensor = tensor_of(&data[start..end], dtype, shape, device)?.ok_or_else(damaged)?;
        tensors.insert(name, tensor);
    }
    let metadata = header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok(SafeTensorsFile { tensors, metadata })
}

/// The values in `state` for each of `wanted`, a name and what stood there before: on its device, of its
/// shape and dtype. `whose` and `kind` are for messages: the model's parameters, say.
///
/// # Errors
/// A name that is missing or unknown; another shape or dtype.
pub(crate) fn matching(
    (whose, kind): (&str, &str),
    wanted: &[(String, Tensor)],
    state: &BTreeMap<String, Tensor>,
) -> Result<Vec<Tensor>> {
    let bad = |reason: String| Error::arg("load_state", reason);
    if let Some(unknown) = state.keys().find(|key| !wanted.iter().any(|(name, _)| name == *key)) {
        return Err(bad(format!("{whose} has no {kind} {unknown}")));
    }
    let value = |(name, old): &(String, Tensor)| {
        let new = state.get(name).ok_or_else(|| bad(format!("{kind} {name} is missing")))?;
        if new.shape() != old.shape() || new.dtype() != old.dtype() {
            let (is, should) = (format!("{} {}", new.dtype(), new.shape()), format!("{} {}", old.dtype(), old.shape()));
            return Err(bad(format!("{kind} {name} is {is} and should be {should}")));
        }
        new.to_device(old.device())
    };
    wanted.iter().map(value).collect()
}

/// The length of the header, and the header, for tensors that follow it in this order.
fn header(
    tensors: &[(&String, &Tensor)],
    metadata: &BTreeMap<String, String>,
) -> std::result::Result<Vec<u8>, SafeTensorError> {
    let mut end = 0usize;
    let entry = |&(name, tensor): &(&String, &Tensor)| {
        let start = end;
        // More than memory holds, for a view that repeats elements; `Metadata::new` finds the size wrong.
        end = end.saturating_add(tensor.numel().saturating_mul(tensor.dtype().size()));
        let (dtype, shape) = (stored_as(tensor.dtype()), tensor.dims().to_vec());
        (name.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) })
    };
    let mut json = serde_json::to_string(&Metadata::new(None, tensors.iter().map(entry).collect())?)?;
    if !metadata.is_empty() {
        // Put in here, as `Metadata` keeps a hash map, whose order differs from run to run.
        let comma = if tensors.is_empty() { "" } else { "," };
        let notes = serde_json::to_string(metadata)?;
        json.replace_range(..1, &format!("{{\"{METADATA}\":{notes}{comma}"));
    }
    // Spaces at its end align the first tensor.
    json.extend(repeat_n(' ', json.len().next_multiple_of(8) - json.len()));
    let length = json.len() as u64;
    if length > HEADER_LIMIT {
        return Err(SafeTensorError::HeaderTooLarge);
    }
    Ok([&length.to_le_bytes(), json.as_bytes()].concat())
}

/// A file's header, checked, and its elements. The offsets lie within the elements.
///
/// `SafeTensors::deserialize` is not used: it adds up the lengths that a file claims without a check for
/// overflow.
fn parsed(file: &[u8]) -> std::result::Result<(Metadata, &[u8]), String> {
    let no_length = || format!("{} bytes; a safetensors file starts with 8 that hold a length", file.len());
    let (length, rest) = file.split_first_chunk().ok_or_else(no_length)?;
    let length = u64::from_le_bytes(*length);
    if length > HEADER_LIMIT {
        return Err(format!("a header of {length} bytes, of at most {HEADER_LIMIT}; is it a safetensors file?"));
    }
    let cut = || format!("cut off: a header of {length} bytes, of which {} are there", rest.len());
    let (header, data) = rest.split_at_checked(length as usize).ok_or_else(cut)?;
    let header: Metadata = serde_json::from_slice(header).map_err(|e| format!("bad header: {e}"))?;
    match header.data_len() {
        length if length == data.len() => Ok((header, data)),
        length => Err(format!("{} bytes of elements where the header says {length}", data.len())),
    }
}

fn stored_as(dtype: DType) -> Dtype {
    match dtype {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::U32 => Dtype::U32,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
    }
}

fn loaded_as(stored: Dtype) -> std::result::Result<DType, String> {
    let names = || DType::ALL.map(|dtype| stored_as(dtype).to_string()).join(", ");
    let known = DType::ALL.into_iter().find(|&dtype| stored_as(dtype) == stored);
    known.ok_or_else(|| format!("dtype {stored} is not supported; there are {}", names()))
}

/// The elements as a file has them.
fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    fn encoded<T: Stored>(tensor: &Tensor) -> Result<Vec<u8>> {
        Ok(T::encode(&tensor.to_vec::<T>()?))
    }
    match tensor.dtype() {
        DType::F16 => encoded::<f16>(tensor),
        DType::BF16 => encoded::<bf16>(tensor),
        DType::F32 => encoded::<f32>(tensor),
        DType::F64 => encoded::<f64>(tensor),
        DType::I64 => encoded::<i64>(tensor),
        DType::I32 => encoded::<i32>(tensor),
        DType::U32 => encoded::<u32>(tensor),
        DType::U8 => tensor.to_vec(),
        DType::Bool => encoded::<bool>(tensor),
    }
}

/// A tensor of a file's `bytes`, as many as shape and dtype need; `None` where they are no values of it.
fn tensor_of(bytes: &[u8], dtype: DType, shape: Shape, device: &Device) -> Result<Option<Tensor>> {
    fn decoded<T: Stored>(bytes: &[u8], shape: Shape, device: &Device) -> Result<Option<Tensor>> {
        T::decode(bytes).map(|values| Tensor::from_vec(values, shape, device)).transpose()
    }
    match dtype {
        DType::F16 => decoded::<f16>(bytes, shape, device),
        DType::BF16 => decoded::<bf16>(bytes, shape, device),
        DType::F32 => decoded::<f32>(bytes, shape, device),
        DType::F64 => decoded::<f64>(bytes, shape, device),
        DType::I64 => decoded::<i64>(bytes, shape, device),
        DType::I32 => decoded::<i32>(bytes, shape, device),
        DType::U32 => decoded::<u32>(bytes, shape, device),
        DType::U8 => Tensor::from_slice(bytes, shape, device).map(Some),
        DType::Bool => decoded::<bool>(bytes, shape, device),
    }
}

/// Element types and their form in files.
trait Stored: Element {
    fn encode(values: &[Self]) -> Vec<u8>;

    /// `None` where the bytes are no values of the type.
    fn decode(bytes: &[u8]) -> Option<Vec<Self>>;
}

macro_rules! stored_little_endian {
    ($($t:ty)+) => {$(
        impl Stored for $t {
            fn encode(values: &[Self]) -> Vec<u8> {
                values.iter().map(|value| value.to_le_bytes()).collect::<Vec<_>>().into_flattened()
            }
            fn decode(bytes: &[u8]) -> Option<Vec<Self>> {
                Some(bytes.as_chunks().0.iter().map(|&value| Self::from_le_bytes(value)).collect())
            }
        }
    )+};
}
stored_little_endian!(f16 bf16 f32 f64 i64 i32 u32);

impl Stored for bool {
    fn encode(values: &[bool]) -> Vec<u8> {
        values.iter().map(|&value| value.into()).collect()
    }

    fn decode(bytes: &[u8]) -> Option<Vec<bool>> {
        bytes.iter().all(|&byte| byte <= 1).then(|| bytes.iter().map(|&byte| byte == 1).collect())
    }
}

/// A call and its file, for messages.
#[derive(Clone, Copy)]
struct At<'a> {
    op: &'static str,
    path: &'a Path,
}

impl At<'_> {
    fn error(&self, reason: impl Display) -> Error {
        Error::Io { op: self.op, path: self.path.display().to_string(), reason: reason.to_string() }
    }

    /// Puts what `write` writes in the place of the file, or leaves that as it is.
    fn replace(&self, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (temporary, file) = self.temporary(folder)?;
        let mut buffered = BufWriter::with_capacity(WRITE_SIZE, file);
        write(&mut buffered)?;
        let file = buffered.into_inner().map_err(|e| self.error(e.error()))?;
        file.sync_all().map_err(|e| self.error(e))?;
        drop(file);
        temporary.rename(self.path).map_err(|e| self.error(format!("cannot be replaced: {e}")))?;
        sync_folder(folder).map_err(|e| self.error(format!("written, but perhaps not to the disk yet: {e}")))
    }

    /// A new file that no other save writes to: what is there, left by a crash or in use, is passed by.
    fn temporary(&self, folder: &Path) -> Result<(Temporary, File)> {
        let target = self.path.file_name().ok_or_else(|| self.error("the path names no file"))?;
        let mut number = 0u64;
        loop {
            let mut name = OsString::from(".");
            name.push(target);
            name.push(format!(".{}-{number}.tmp", std::process::id()));
            let path = folder.join(name);
            match File::create_new(&path) {
                Ok(file) => return Ok((Temporary { path, renamed: false }, file)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(e) => return Err(self.error(format!("cannot create {}: {e}", path.display()))),
            }
        }
    }
}

/// A file that is removed when this is dropped, unless it was renamed: another save may have the name then.
struct Temporary {
    path: PathBuf,
    renamed: bool,
}

impl Temporary {
    fn rename(mut self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // Nothing can be done about a failure here, and what led here is reported.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Waits until the folder's entries are on the disk, where the file system can say so.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        result => result,
    }
}

#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::View;
    use std::borrow::Cow;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    type Notes = BTreeMap<String, String>;

    /// An empty folder, removed in the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("tensorlogic-io-{}-{test}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn file(&self) -> PathBuf {
            self.0.join("file.safetensors")
        }

        /// Writes `bytes` and loads them.
        fn load(&self, bytes: &[u8]) -> Result<SafeTensorsFile> {
            fs::write(self.file(), bytes).unwrap();
            load_safetensors(self.file(), &Device::cpu())
        }

        /// What loading `bytes` reports, after the call and the path.
        fn refusal(&self, bytes: &[u8]) -> String {
            let text = self.load(bytes).unwrap_err().to_string();
            let start = format!("load_safetensors: {}: ", self.file().display());
            text.strip_prefix(&start).unwrap_or_else(|| panic!("{text}")).to_string()
        }

        fn names(&self) -> Vec<OsString> {
            fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn save(path: &Path, tensors: &[(&str, Tensor)], notes: &[(&str, &str)]) -> Result<()> {
        let tensors = tensors.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
        let notes: Notes = notes.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        save_safetensors(path, &tensors, &notes)
    }

    /// Tensors of every dtype, with the values that are easily lost, and of unusual shapes.
    fn zoo() -> Vec<(&'static str, Tensor)> {
        fn tensor<T: Element>(values: &[T]) -> Tensor {
            Tensor::from_slice(values, values.len(), &Device::cpu()).unwrap()
        }
        let f16s = [0x7e01, 0xfdff, 0x7c01, 0x8000, 0x0001, 0x7c00].map(f16::from_bits);
        let bf16s = [0x7fc1, 0xffbf, 0x7f81, 0x8000, 0x0001].map(bf16::from_bits);
        let f32s = [0x7fc0_1234, 0xff80_0001, 0x8000_0000, 0x0000_0001, 0x7f80_0000].map(f32::from_bits);
        let f64s = [0x7ff8_0000_dead_beef, 0xfff0_0000_0000_0001, 1 << 63, 1].map(f64::from_bits);
        let table = tensor(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).reshape((2, 3)).unwrap();
        vec![
            ("f16", tensor(&f16s)),
            ("bf16", tensor(&bf16s)),
            ("f32", tensor(&f32s)),
            ("f64", tensor(&f64s)),
            ("i64", tensor(&[i64::MIN, -1, i64::MAX])),
            ("i32", tensor(&[i32::MIN, -1, i32::MAX])),
            ("u32", tensor(&[0, 0x0102_0304, u32::MAX])),
            ("u8", tensor(&[0u8, 1, 255])),
            ("bool", tensor(&[true, false, true])),
            ("none", tensor::<f32>(&[]).reshape((3, 0, 2)).unwrap()),
            ("scalar", tensor(&[7i64]).reshape(()).unwrap()),
            ("rank 8", tensor(&[8u8]).reshape([1; 8]).unwrap()),
            ("a view", table.t().unwrap()),
            ("not computed yet", (table * 2.0).unwrap()),
            ("name \"in\" \\ quotes,\n\u{1}\u{e9}\u{1f600}", tensor(&[1u8])),
            ("", tensor(&[2u8])),
        ]
    }

    /// A file of one tensor named `x`.
    fn file_of(dtype: &str, shape: &str, offsets: &str, elements: &[u8]) -> Vec<u8> {
        let entry = format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}");
        file_with(&format!("{{\"x\":{entry}}}"), elements)
    }

    fn file_with(header: &str, elements: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), elements].concat()
    }

    #[test]
    fn every_dtype_survives_bit_for_bit() -> Result<()> {
        let folder = Folder::new("dtypes");
        let notes = [("b", "2"), ("a", "\u{e9}\"\n")];
        save(&folder.file(), &zoo(), &notes)?;
        let loaded = load_safetensors(folder.file(), &Device::cpu())?;
        assert_eq!(loaded.tensors.len(), zoo().len());
        for (name, tensor) in zoo() {
            let back = &loaded.tensors[name];
            assert_eq!((back.dtype(), back.dims()), (tensor.dtype(), tensor.dims()), "{name}");
            assert_eq!(bytes_of(back)?, bytes_of(&tensor)?, "{name}");
        }
        assert_eq!(loaded.metadata.iter().map(|(k, v)| (&k[..], &v[..])).collect::<Vec<_>>(), [notes[1], notes[0]]);
        Ok(())
    }

    #[test]
    fn a_file_may_hold_nothing_or_notes_alone() -> Result<()> {
        let folder = Folder::new("nothing");
        for notes in [&[][..], &[("step", "12")]] {
            save(&folder.file(), &[], notes)?;
            let loaded = load_safetensors(folder.file(), &Device::cpu())?;
            assert_eq!((loaded.tensors.len(), loaded.metadata.len()), (0, notes.len()));
        }
        Ok(())
    }

    impl View for &Tensor {
        fn dtype(&self) -> Dtype {
            stored_as(Tensor::dtype(self))
        }

        fn shape(&self) -> &[usize] {
            self.dims()
        }

        fn data(&self) -> Cow<'_, [u8]> {
            bytes_of(self).unwrap().into()
        }

        fn data_len(&self) -> usize {
            self.numel() * Tensor::dtype(self).size()
        }
    }

    /// The slow, obvious twin, where it is deterministic: with one note at most.
    #[test]
    fn files_are_what_the_safetensors_crate_writes() -> Result<()> {
        let folder = Folder::new("twin");
        let zoo = zoo();
        for notes in [&[][..], &[("step", "12")]] {
            save(&folder.file(), &zoo, notes)?;
            let map = notes.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            let tensors = zoo.iter().map(|(name, tensor)| (*name, tensor));
            let wanted = safetensors::serialize(tensors, Some(map).filter(|_| !notes.is_empty())).unwrap();
            assert!(fs::read(folder.file()).unwrap() == wanted);
        }
        Ok(())
    }

    #[test]
    fn notes_are_sorted_and_elements_aligned() -> Result<()> {
        let folder = Folder::new("sorted");
        let keys: Vec<String> = (0..50).map(|i| format!("{i:02}")).collect();
        let notes: Vec<(&str, &str)> = keys.iter().rev().map(|key| (&key[..], "")).collect();
        save(&folder.file(), &zoo(), &notes)?;
        let bytes = fs::read(folder.file()).unwrap();
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap());
        assert_eq!(length % 8, 0);
        let start: String = keys.iter().map(|key| format!("\"{key}\":\"\",")).collect();
        let start = format!("{{\"{METADATA}\":{{{}}},", start.trim_end_matches(','));
        assert!(bytes[8..].starts_with(start.as_bytes()));
        for (name, info) in parsed(&bytes).unwrap().0.tensors() {
            assert_eq!(info.data_offsets.0 * 8 % info.dtype.bitsize(), 0, "{name}");
        }
        Ok(())
    }

    #[test]
    fn a_failed_save_leaves_the_old_file_and_nothing_else() -> Result<()> {
        let folder = Folder::new("failed");
        save(&folder.file(), &zoo(), &[])?;
        let old = fs::read(folder.file()).unwrap();
        let file = folder.file();
        let at = At { op: "save_safetensors", path: &file };

        let interrupted = |file: &mut dyn Write| {
            file.write_all(&[7; 2 * WRITE_SIZE]).unwrap();
            assert_eq!(folder.names().len(), 2);
            Err(at.error("the disk is full"))
        };
        assert!(at.replace(interrupted).unwrap_err().to_string().ends_with("the disk is full"));
        let panicking = |_: &mut dyn Write| panic!("a bug in the middle of writing");
        assert!(catch_unwind(AssertUnwindSafe(|| at.replace(panicking))).is_err());
        let index = Tensor::scalar(9i64, &Device::cpu())?.reshape(1)?;
        let bad = Tensor::ones(3, DType::F32, &Device::cpu())?.index_select(0, &index)?;
        assert!(matches!(save(&file, &[("bad", bad)], &[]), Err(Error::IndexOutOfRange { index: 9, .. })));
        let error = save(&file, &[(METADATA, Tensor::scalar(1f32, &Device::cpu())?)], &[]).unwrap_err();
        assert!(error.to_string().contains("no tensor can be named __metadata__"), "{error}");

        assert!(fs::read(&file).unwrap() == old);
        assert_eq!(folder.names(), ["file.safetensors"]);
        Ok(())
    }

    #[test]
    fn what_cannot_be_replaced_or_created_is_an_error() {
        let folder = Folder::new("places");
        let inner = folder.0.join("folder");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("kept"), "").unwrap();
        assert!(save(&inner, &[], &[]).unwrap_err().to_string().contains("cannot be replaced"));
        let error = save(&folder.0.join("missing/file"), &[], &[]).unwrap_err();
        assert!(error.to_string().contains("cannot create"), "{error}");
        for path in ["", "/", ".."] {
            let error = save(Path::new(path), &[], &[]).unwrap_err();
            assert_eq!(error.to_string(), format!("save_safetensors: {path}: the path names no file"));
        }
        assert_eq!(folder.names(), ["folder"]);
    }

    #[test]
    fn a_crash_that_left_a_file_does_not_disturb() -> Result<()> {
        let folder = Folder::new("crash");
        let left = folder.0.join(format!(".file.safetensors.{}-0.tmp", std::process::id()));
        fs::write(&left, "half of a file").unwrap();
        save(&folder.file(), &zoo(), &[])?;
        assert_eq!(load_safetensors(folder.file(), &Device::cpu())?.tensors.len(), zoo().len());
        assert_eq!(fs::read(left).unwrap(), b"half of a file");
        Ok(())
    }

    #[test]
    fn saves_at_the_same_time_do_not_mix() -> Result<()> {
        let folder = Folder::new("threads");
        let tensors: Vec<Tensor> =
            (0..4u8).map(|i| Tensor::from_vec(vec![i; 100_000], 100_000, &Device::cpu())).collect::<Result<_>>()?;
        std::thread::scope(|scope| {
            for tensor in &tensors {
                scope.spawn(|| (0..5).for_each(|_| save(&folder.file(), &[("x", tensor.clone())], &[]).unwrap()));
            }
        });
        let x = load_safetensors(folder.file(), &Device::cpu())?.tensors["x"].to_vec::<u8>()?;
        assert!(x.iter().all(|&value| value == x[0]));
        assert_eq!(folder.names(), ["file.safetensors"]);
        Ok(())
    }

    #[test]
    fn a_view_that_repeats_beyond_memory_is_an_error() -> Result<()> {
        let folder = Folder::new("beyond");
        let one = Tensor::scalar(1f64, &Device::cpu())?;
        let many = one.expand(1usize << 59)?;
        let tensors = ["a", "b", "c", "d", "e", "f"].map(|name| (name, many.clone()));
        assert!(save(&folder.file(), &tensors, &[]).is_err());
        assert!(folder.names().is_empty());
        Ok(())
    }

    #[test]
    fn files_that_are_none_say_why() {
        let folder = Folder::new("none");
        let missing = load_safetensors(folder.file(), &Device::cpu()).unwrap_err().to_string();
        assert!(missing.starts_with("load_safetensors: ") && missing.contains("os error 2"), "{missing}");
        let cases: [(Vec<u8>, &str); 12] = [
            (vec![], "0 bytes; a safetensors file starts with 8"),
            (vec![1, 2, 3], "3 bytes; "),
            (vec![b'P'; 100], "a header of 5787213827046133840 bytes, of at most 100000000"),
            (100_000_000u64.to_le_bytes().to_vec(), "cut off: a header of 100000000 bytes, of which 0 are there"),
            (file_with("", &[]), "bad header: EOF"),
            (file_with("[1]", &[]), "bad header: "),
            (file_with(&"[".repeat(100_000), &[]), "bad header: "),
            (file_of("F32", "[2]", "[0,8]", &[0; 7]), "7 bytes of elements where the header says 8"),
            (file_of("F32", "[2]", "[0,8]", &[0; 9]), "9 bytes of elements where the header says 8"),
            (file_of("F32", "[3]", "[0,8]", &[0; 8]), "bad header: invalid shape, data type, or offset"),
            (file_of("F32", "[2]", "[8,16]", &[0; 16]), "bad header: invalid offset for tensor `x`"),
            (file_of("Q4", "[2]", "[0,1]", &[0]), "bad header: unknown variant `Q4`"),
        ];
        for (bytes, wanted) in cases {
            let reason = folder.refusal(&bytes);
            assert!(reason.starts_with(wanted), "{reason:?} where {wanted:?} is wanted");
        }
    }

    #[test]
    fn tensors_that_cannot_be_are_named() {
        let folder = Folder::new("named");
        let supported = "F16, BF16, F32, F64, I64, I32, U32, U8, BOOL";
        let reason = folder.refusal(&file_of("I8", "[2]", "[0,2]", &[0; 2]));
        assert_eq!(reason, format!("tensor \"x\": dtype I8 is not supported; there are {supported}"));
        let reason = folder.refusal(&file_of("BOOL", "[2]", "[0,2]", &[1, 2]));
        assert_eq!(reason, "tensor \"x\": a boolean that is neither 0 nor 1");
        let reason = folder.refusal(&file_of("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]", &[0]));
        assert_eq!(reason, "tensor \"x\": shape: 9 dimensions; at most 8 are supported");
    }

    /// Lengths that add up to 2^64 and more, so that unchecked sums would agree with the file's length.
    #[test]
    fn lengths_that_overflow_are_errors() {
        let folder = Folder::new("overflow");
        let chunk = (1u64 << 61) - 1;
        let entry = |i: u64| {
            let (start, end) = (i * chunk, (i + 1) * chunk);
            format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[{chunk}],\"data_offsets\":[{start},{end}]}}")
        };
        let header = (0..8).map(entry).collect::<Vec<_>>().join(",");
        let reason = folder.refusal(&file_with(&format!("{{{header}}}"), &[]));
        assert!(reason.starts_with("0 bytes of elements where the header says 18446744073709551608"), "{reason}");
        for shape in ["[18446744073709551615,2]", "[9223372036854775808,0]", "[99999999999999999999]", "[-1]"] {
            folder.refusal(&file_of("F64", shape, "[0,0]", &[]));
        }
    }

    #[test]
    fn damage_anywhere_never_panics() -> Result<()> {
        let folder = Folder::new("damage");
        let tensors = [("w", Tensor::scalar(1f32, &Device::cpu())?), ("b", Tensor::scalar(true, &Device::cpu())?)];
        save(&folder.file(), &tensors, &[("k", "v")])?;
        let whole = fs::read(folder.file()).unwrap();
        for length in 0..whole.len() {
            assert!(folder.load(&whole[..length]).is_err(), "cut off at {length}");
        }
        for position in 0..whole.len() {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[position] ^= 1 << bit;
                let _ = folder.load(&damaged);
            }
        }
        Ok(())
    }
}
