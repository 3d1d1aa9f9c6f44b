//! Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): photographs of clothes, 28x28, in ten classes.

use flate2::read::GzDecoder;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use tensorlogic::data::Dataset;
use tensorlogic::{Device, Error, Result, Tensor};

/// Height and width of an image.
pub const SIDE: usize = 28;

/// One part of the data set, in host memory.
pub struct Fashion {
    pixels: Vec<u8>,
    labels: Vec<u8>,
    device: Device,
}

impl Fashion {
    /// `part` is `train` (60,000 images) or `t10k` (10,000).
    pub fn load(folder: &Path, part: &str, device: &Device) -> Result<Fashion> {
        let images = idx(&folder.join(format!("{part}-images-idx3-ubyte.gz")), &[SIDE, SIDE])?;
        let labels = idx(&folder.join(format!("{part}-labels-idx1-ubyte.gz")), &[])?;
        if images.len() != labels.len() * SIDE * SIDE || labels.iter().any(|&label| label > 9) {
            return Err(failed(folder, "the labels do not fit the images"));
        }
        Ok(Fashion { pixels: images, labels, device: device.clone() })
    }
}

impl Dataset for Fashion {
    /// Images `[batch, 1, 28, 28]`, u8, and labels `[batch]`.
    type Batch = (Tensor, Tensor);

    fn len(&self) -> usize {
        self.labels.len()
    }

    fn batch(&self, indices: &[usize]) -> Result<(Tensor, Tensor)> {
        let image = |&i: &usize| &self.pixels[i * SIDE * SIDE..(i + 1) * SIDE * SIDE];
        let pixels: Vec<u8> = indices.iter().flat_map(image).copied().collect();
        let labels: Vec<u8> = indices.iter().map(|&i| self.labels[i]).collect();
        let images = Tensor::from_vec(pixels, (indices.len(), 1, SIDE, SIDE), &self.device)?;
        Ok((images, Tensor::from_vec(labels, indices.len(), &self.device)?))
    }
}

/// The bytes of a compressed IDX file whose items have these dimensions.
fn idx(path: &Path, item: &[usize]) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| {
        failed(
            path,
            format!("{e}; the Debian package dataset-fashion-mnist has it, or name another folder with --data"),
        )
    })?;
    let mut bytes = Vec::new();
    GzDecoder::new(file).read_to_end(&mut bytes).map_err(|e| failed(path, e))?;
    // Two zero bytes, the type (8: u8), the number of dimensions, and these as big-endian u32.
    let rank = item.len() + 1;
    let word = |i: usize| bytes.get(4 * i..4 * i + 4).map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]]) as usize);
    let fits = word(0) == Some(0x0800 + rank) && item.iter().enumerate().all(|(i, &size)| word(i + 2) == Some(size));
    let start = 4 + 4 * rank;
    let wanted = word(1).map(|count| start + count * item.iter().product::<usize>());
    if !fits || wanted != Some(bytes.len()) {
        return Err(failed(path, "it is no IDX file of this data set"));
    }
    bytes.drain(..start);
    Ok(bytes)
}

fn failed(path: &Path, reason: impl ToString) -> Error {
    Error::Io { op: "fashion", path: path.display().to_string(), reason: reason.to_string() }
}
