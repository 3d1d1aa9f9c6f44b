//! The fashion example, on a data set of the same format that is made up here: it reads the files, learns, and
//! goes on from a checkpoint to the same bits.

#[path = "../../examples/fashion/data.rs"]
mod data;
#[path = "../../examples/fashion/model.rs"]
mod model;

use crate::process::{child, is_child};
use data::{Fashion, SIDE};
use flate2::{Compression, write::GzEncoder};
use model::Training;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use tensorlogic::data::{DataLoader, Dataset};
use tensorlogic::{DType, Device, Result};

/// Images of a part.
const COUNT: usize = 48;

fn write(path: PathBuf, header: &[u32], bytes: &[u8]) {
    let mut file = GzEncoder::new(File::create(path).unwrap(), Compression::fast());
    header.iter().for_each(|word| file.write_all(&word.to_be_bytes()).unwrap());
    file.write_all(bytes).unwrap();
    file.finish().unwrap();
}

/// Images whose class is the place of a bright bar.
fn write_part(folder: &Path, part: &str) {
    let labels: Vec<u8> = (0..COUNT).map(|i| (i * 7 % 10) as u8).collect();
    let pixel = |i: usize, at: usize| {
        let bar = (at / SIDE) / 2 == labels[i] as usize + 2;
        if bar { 200 + (at % 50) as u8 } else { ((at * 31 + i * 17) % 60) as u8 }
    };
    let pixels: Vec<u8> =
        (0..COUNT).flat_map(|i| (0..SIDE * SIDE).map(move |at| (i, at))).map(|(i, at)| pixel(i, at)).collect();
    let side = SIDE as u32;
    write(folder.join(format!("{part}-images-idx3-ubyte.gz")), &[0x0803, COUNT as u32, side, side], &pixels);
    write(folder.join(format!("{part}-labels-idx1-ubyte.gz")), &[0x0801, COUNT as u32], &labels);
}

#[test]
fn it_learns_and_resumes() {
    child("fashion::learning_and_resuming", &[]);
}

/// In a process of its own: the random stream is one for all.
#[test]
#[ignore = "needs the random stream for itself"]
fn learning_and_resuming() -> Result<()> {
    if !is_child() {
        return Ok(());
    }
    let folder = std::env::temp_dir().join(format!("tensorlogic-fashion-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    write_part(&folder, "train");
    let device = Device::cpu();
    let checkpoint = folder.join("checkpoint.safetensors");
    let data = Fashion::load(&folder, "train", &device)?;
    assert_eq!(data.len(), COUNT);
    let loader = DataLoader::new(data, 20)?.shuffle(1);
    let steps = 60u64;
    let each = loader.len() as u64;
    let train = |training: &mut Training, until: u64| -> Result<f32> {
        let mut last = f32::NAN;
        while training.done < until {
            for batch in loader.epoch_from(training.done / each, (training.done % each) as usize) {
                last = training.step(&batch?)?.item()?;
                if training.done == until {
                    break;
                }
            }
        }
        Ok(last)
    };
    let mut whole = Training::new(DType::F16, 3, steps, &device)?;
    let first = train(&mut whole, 1)?;
    train(&mut whole, 31)?;
    whole.save(&checkpoint)?;
    let last = train(&mut whole, steps)?;
    assert!(last < 0.7 * first, "{first} to {last}");
    let accuracy = whole.accuracy(&loader)?;
    assert!(accuracy > 0.3, "{accuracy}");

    let mut resumed = Training::new(DType::F16, 3, steps, &device)?;
    resumed.load(&checkpoint)?;
    assert_eq!(resumed.done, 31);
    train(&mut resumed, steps)?;
    assert_eq!(whole.fingerprint()?, resumed.fingerprint()?);

    let message = Fashion::load(&folder, "t10k", &device).err().unwrap().to_string();
    assert!(message.contains("dataset-fashion-mnist"), "{message}");
    write(folder.join("train-labels-idx1-ubyte.gz"), &[0x0801, 5], &[1, 2, 3]);
    let message = Fashion::load(&folder, "train", &device).err().unwrap().to_string();
    assert!(message.contains("no IDX file"), "{message}");
    std::fs::remove_dir_all(&folder).unwrap();
    Ok(())
}
