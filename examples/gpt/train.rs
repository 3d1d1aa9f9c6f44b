//! Training, and what it goes on from.

use super::model::{Gpt, Sizes};
use std::collections::BTreeMap;
use std::path::Path;
use tensorlogic::data::{DataLoader, Dataset};
use tensorlogic::io::{load_safetensors, save_safetensors};
use tensorlogic::nn::Module;
use tensorlogic::optim::{AdamW, Group, MixedPrecision, Optimizer, Schedule};
use tensorlogic::{DType, Device, Error, Result, Tensor, autocast, no_grad};

/// Largest norm of the gradients.
const CLIP: f64 = 1.0;

/// What to train with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub sizes: Sizes,
    /// Type of the matrix products; parameters are f32.
    pub dtype: DType,
    pub seed: u64,
    pub steps: u64,
    pub learning_rate: f64,
    pub dropout: f64,
    /// Parts of a batch, computed one after another.
    pub accumulate: usize,
}

impl Settings {
    /// For a training of `steps` steps.
    pub fn new(sizes: Sizes, dtype: DType, steps: u64) -> Settings {
        Settings { sizes, dtype, steps, seed: 0, learning_rate: 1e-3, dropout: 0.0, accumulate: 1 }
    }
}

/// Everything that training goes on from.
pub struct Training {
    pub gpt: Gpt,
    optimizer: Optimizer<AdamW>,
    precision: MixedPrecision,
    schedule: Schedule,
    settings: Settings,
    device: Device,
    /// Steps done.
    pub done: u64,
    /// The loss of each step, and of each validation with the steps done before it.
    pub losses: Vec<f32>,
    pub held_out: Vec<[f32; 2]>,
}

/// What a checkpoint's tensors are called by.
const PARTS: [&str; 4] = ["gpt.", "optimizer.", "precision.", "curve."];

impl Training {
    /// A fresh start.
    pub fn new(settings: Settings, device: &Device) -> Result<Training> {
        device.seed(settings.seed);
        let gpt = Gpt::new(settings.sizes, settings.dropout, device)?;
        // Only matrices decay.
        let (matrices, others) = gpt.parameters().into_iter().partition(|var| var.shape().rank() > 1);
        let group =
            |parameters, decay| Group { parameters, learning_rate: settings.learning_rate, weight_decay: Some(decay) };
        let rule = AdamW { betas: (0.9, 0.95), ..AdamW::default() };
        let optimizer = Optimizer::with_groups(rule, vec![group(matrices, 0.1), group(others, 0.0)])?;
        let precision = MixedPrecision::new(settings.dtype, device)?;
        let schedule = Schedule::cosine(settings.steps).with_warm_up(settings.steps.min(100)).with_floor(0.1);
        let (done, losses, held_out, device) = (0, Vec::new(), Vec::new(), device.clone());
        Ok(Training { gpt, optimizer, precision, schedule, settings, device, done, losses, held_out })
    }

    /// One step over ids `[batch, positions]` and what follows them; the loss.
    pub fn step(&mut self, ids: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let parts = self.settings.accumulate;
        let rows = ids.dim(0)? / parts;
        self.optimizer.set_rate_factor(self.schedule.factor(self.done));
        let (loss, mut gradients) = self.precision.backward_each(parts, |part| {
            let of = |x: &Tensor| x.narrow(0, part * rows, rows);
            self.gpt.loss(&of(ids)?, &of(targets)?)
        })?;
        gradients.clip_norm(CLIP)?;
        self.optimizer.step(gradients)?;
        self.done += 1;
        Ok(loss)
    }

    /// The mean loss of the first `batches` batches.
    pub fn loss_of<D>(&self, loader: &DataLoader<D>, batches: usize) -> Result<f32>
    where
        D: Dataset<Batch = (Tensor, Tensor)> + 'static,
    {
        self.gpt.set_training(false);
        let (mut sum, mut count) = (0.0, 0);
        for batch in loader.epoch(0).take(batches) {
            let (ids, targets) = batch?;
            let loss = no_grad(|| autocast(self.settings.dtype, || self.gpt.loss(&ids, &targets)))?;
            sum += loss.item::<f32>()?;
            count += 1;
        }
        self.gpt.set_training(true);
        Ok(sum / count as f32)
    }

    /// Writes all that is needed to go on as if nothing had happened. `vocabulary` is what the ids stand for.
    pub fn save(&self, path: &Path, vocabulary: &str) -> Result<()> {
        let (slots, steps) = self.optimizer.state();
        let precision = self.precision.state().map(|t| ("state".to_string(), t.clone()));
        let curve = |name: &str, values: Vec<f32>| {
            Ok((name.to_string(), Tensor::from_slice(&values, values.len(), &Device::cpu())?))
        };
        let held_out = self.held_out.iter().flatten().copied().collect();
        let curves = [curve("train", self.losses.clone()), curve("held_out", held_out)];
        let curves = curves.into_iter().collect::<Result<BTreeMap<_, _>>>()?;
        let mut tensors = BTreeMap::new();
        let lists = [self.gpt.state(), slots, precision.into_iter().collect(), curves];
        for (part, list) in PARTS.into_iter().zip(lists) {
            tensors.extend(list.into_iter().map(|(name, tensor)| (format!("{part}{name}"), tensor)));
        }
        let (key, position) = self.device.random_state();
        let numbers = [("done", self.done), ("steps", steps), ("random.key", key), ("random.position", position)];
        let mut metadata: BTreeMap<String, String> =
            numbers.into_iter().map(|(name, number)| (name.to_string(), number.to_string())).collect();
        metadata.insert("vocabulary".into(), vocabulary.into());
        save_safetensors(path, &tensors, &metadata)
    }

    /// Goes on from a checkpoint.
    pub fn load(&mut self, path: &Path, vocabulary: &str) -> Result<()> {
        let file = load_safetensors(path, &self.device)?;
        let failed = |reason: String| Error::Io { op: "resume", path: path.display().to_string(), reason };
        let part = |prefix: &str| -> BTreeMap<String, Tensor> {
            let of_part = file.tensors.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?, t)));
            of_part.map(|(name, tensor)| (name.to_string(), tensor.clone())).collect()
        };
        let number = |name: &str| -> Result<u64> {
            let text = file.metadata.get(name).and_then(|text| text.parse().ok());
            text.ok_or_else(|| failed(format!("no number {name}: no checkpoint")))
        };
        if file.metadata.get("vocabulary").map(String::as_str) != Some(vocabulary) {
            return Err(failed("its vocabulary is not that of this text".into()));
        }
        self.gpt.load_state(&part(PARTS[0]))?;
        self.optimizer.load_state(&part(PARTS[1]), number("steps")?)?;
        self.precision.load_state(part(PARTS[2]).get("state"))?;
        let curve = |name: &str| part(PARTS[3]).get(name).map_or(Ok(Vec::new()), Tensor::to_vec::<f32>);
        self.losses = curve("train")?;
        self.held_out = curve("held_out")?.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect();
        self.done = number("done")?;
        self.device.set_random_state((number("random.key")?, number("random.position")?));
        Ok(())
    }

    /// A number that depends on every bit of the parameters (FNV-1a): equal for equal trainings.
    pub fn fingerprint(&self) -> Result<u64> {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for tensor in self.gpt.state().values() {
            for byte in tensor.to_vec::<f32>()?.into_iter().flat_map(f32::to_le_bytes) {
                hash = (hash ^ byte as u64).wrapping_mul(0x0100_0000_01b3);
            }
        }
        Ok(hash)
    }
}
