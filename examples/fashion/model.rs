//! A small convolutional network, its training, and its checkpoints.

use super::data::{Fashion, SIDE};
use std::collections::BTreeMap;
use std::path::Path;
use tensorlogic::data::DataLoader;
use tensorlogic::io::{load_safetensors, save_safetensors};
use tensorlogic::nn::{Conv2d, Dropout, Layer, Linear, Module};
use tensorlogic::optim::{AdamW, MixedPrecision, Optimizer, Schedule};
use tensorlogic::{ConvOptions, DType, Device, Error, Result, Tensor, autocast, no_grad};

/// Two convolutions, each followed by pooling, and two linear layers.
#[derive(Module)]
pub struct Network {
    edges: Conv2d,
    parts: Conv2d,
    hidden: Linear,
    output: Linear,
    dropout: Dropout,
}

impl Network {
    pub fn new(device: &Device) -> Result<Network> {
        let same = ConvOptions { padding: 1, ..ConvOptions::default() };
        let conv = |inputs, outputs| Conv2d::new(inputs, outputs, 3, same, DType::F32, device);
        let linear = |inputs, outputs| Linear::new(inputs, outputs, DType::F32, device);
        let pixels = (SIDE / 4) * (SIDE / 4);
        Ok(Network {
            edges: conv(1, 16)?,
            parts: conv(16, 32)?,
            hidden: linear(32 * pixels, 128)?,
            output: linear(128, 10)?,
            dropout: Dropout::new(0.2)?,
        })
    }
}

impl Layer for Network {
    /// Images `[batch, 1, 28, 28]`, u8, to logits `[batch, 10]`.
    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let x = (images.to_dtype(DType::F32)? / 255.0)?;
        let x = self.edges.forward(&x)?.relu()?.max_pool2d(2, 2)?;
        let x = self.parts.forward(&x)?.relu()?.max_pool2d(2, 2)?;
        let x = self.hidden.forward(&x.flatten(1, -1)?)?.relu()?;
        self.output.forward(&self.dropout.forward(&x)?)
    }
}

/// Everything that training goes on from.
pub struct Training {
    pub network: Network,
    optimizer: Optimizer<AdamW>,
    precision: MixedPrecision,
    schedule: Schedule,
    dtype: DType,
    device: Device,
    /// Batches done, in all epochs.
    pub done: u64,
}

/// What a checkpoint's tensors are called by.
const PARTS: [&str; 3] = ["network.", "optimizer.", "precision."];

impl Training {
    /// A fresh start; `steps` is how many there will be.
    pub fn new(dtype: DType, seed: u64, steps: u64, device: &Device) -> Result<Training> {
        device.seed(seed);
        let network = Network::new(device)?;
        let optimizer = Optimizer::new(AdamW::default(), network.parameters(), 2e-3)?;
        let precision = MixedPrecision::new(dtype, device)?;
        let schedule = Schedule::cosine(steps).with_warm_up(100);
        Ok(Training { network, optimizer, precision, schedule, dtype, device: device.clone(), done: 0 })
    }

    /// One step; the loss.
    pub fn step(&mut self, (images, labels): &(Tensor, Tensor)) -> Result<Tensor> {
        self.optimizer.set_rate_factor(self.schedule.factor(self.done));
        let (loss, gradients) = self.precision.backward(|| self.network.forward(images)?.cross_entropy(labels))?;
        self.optimizer.step(gradients)?;
        self.done += 1;
        Ok(loss)
    }

    /// Of all images of a part, from 0 to 1.
    pub fn accuracy(&self, loader: &DataLoader<Fashion>) -> Result<f64> {
        self.network.set_training(false);
        let mut right = 0.0;
        let mut seen = 0;
        for batch in loader.epoch(0) {
            let (images, labels) = batch?;
            let logits = no_grad(|| autocast(self.dtype, || self.network.forward(&images)))?;
            let hits = logits.argmax(1)?.eq(labels.to_dtype(DType::I64)?)?;
            right += hits.to_dtype(DType::F32)?.sum_all()?.item::<f32>()? as f64;
            seen += labels.numel();
        }
        self.network.set_training(true);
        Ok(right / seen as f64)
    }

    /// Writes all that is needed to go on as if nothing had happened.
    pub fn save(&self, path: &Path) -> Result<()> {
        let (slots, steps) = self.optimizer.state();
        let precision = self.precision.state().map(|t| ("state".to_string(), t.clone()));
        let mut tensors = BTreeMap::new();
        for (part, list) in PARTS.into_iter().zip([self.network.state(), slots, precision.into_iter().collect()]) {
            tensors.extend(list.into_iter().map(|(name, tensor)| (format!("{part}{name}"), tensor)));
        }
        let (key, position) = self.device.random_state();
        let numbers = [("done", self.done), ("steps", steps), ("random.key", key), ("random.position", position)];
        let metadata = numbers.into_iter().map(|(name, number)| (name.to_string(), number.to_string())).collect();
        save_safetensors(path, &tensors, &metadata)
    }

    /// Goes on from a checkpoint.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let file = load_safetensors(path, &self.device)?;
        let part = |prefix: &str| -> BTreeMap<String, Tensor> {
            let of_part = file.tensors.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?, t)));
            of_part.map(|(name, tensor)| (name.to_string(), tensor.clone())).collect()
        };
        let number = |name: &str| -> Result<u64> {
            let text = file.metadata.get(name).and_then(|text| text.parse().ok());
            let path = path.display().to_string();
            text.ok_or_else(|| Error::Io { op: "resume", path, reason: format!("no number {name}: no checkpoint") })
        };
        self.network.load_state(&part(PARTS[0]))?;
        self.optimizer.load_state(&part(PARTS[1]), number("steps")?)?;
        self.precision.load_state(part(PARTS[2]).get("state"))?;
        self.done = number("done")?;
        self.device.set_random_state((number("random.key")?, number("random.position")?));
        Ok(())
    }

    /// A number that depends on every bit of the parameters (FNV-1a): equal for equal trainings.
    pub fn fingerprint(&self) -> Result<u64> {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for tensor in self.network.state().values() {
            for byte in tensor.to_vec::<f32>()?.into_iter().flat_map(f32::to_le_bytes) {
                hash = (hash ^ byte as u64).wrapping_mul(0x0100_0000_01b3);
            }
        }
        Ok(hash)
    }
}
