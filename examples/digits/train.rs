//! A network of three layers, trained with AdamW in mixed precision.

use super::data::Digits;
use tensorlogic::data::{DataLoader, TensorDataset};
use tensorlogic::nn::{Dropout, Layer, Linear, Module};
use tensorlogic::optim::{AdamW, MixedPrecision, Optimizer, Schedule};
use tensorlogic::{DType, Device, Result, Tensor, autocast, no_grad, testing};

/// What to train with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Type of the matrix products; parameters are f32.
    pub dtype: DType,
    /// Of the shuffle, the starting weights and the order of the batches.
    pub seed: u64,
    pub epochs: u64,
    pub batch: usize,
    pub learning_rate: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { dtype: DType::F32, seed: 0, epochs: 60, batch: 96, learning_rate: 4e-3 }
    }
}

/// 64 pixels to 10 classes.
#[derive(Module)]
pub struct Network {
    first: Linear,
    second: Linear,
    third: Linear,
    dropout: Dropout,
}

impl Network {
    fn new(device: &Device) -> Result<Network> {
        let linear = |inputs, outputs| Linear::new(inputs, outputs, DType::F32, device);
        let (first, second, third) = (linear(64, 256)?, linear(256, 128)?, linear(128, 10)?);
        Ok(Network { first, second, third, dropout: Dropout::new(0.3)? })
    }
}

impl Layer for Network {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.dropout.forward(&self.first.forward(x)?.relu()?)?;
        let x = self.dropout.forward(&self.second.forward(&x)?.relu()?)?;
        self.third.forward(&x)
    }
}

/// How a training went.
pub struct Outcome {
    /// Of the images held out, from 0 to 1.
    pub accuracy: f32,
    /// The mean loss of each epoch.
    pub losses: Vec<f32>,
    /// Kernels of one training step: forward, backward, optimiser.
    pub kernels_a_step: u64,
}

/// Trains on all images but those held out, and classifies these. `progress` is told the epoch and its
/// mean loss.
pub fn train(digits: &Digits, settings: &Settings, mut progress: impl FnMut(u64, f32)) -> Result<Outcome> {
    let (held_out, known) = digits.split(settings.seed)?;
    let device = digits.labels.device();
    device.seed(settings.seed);
    let network = Network::new(device)?;
    let mut optimizer = Optimizer::new(AdamW::default(), network.parameters(), settings.learning_rate)?;
    let mut precision = MixedPrecision::new(settings.dtype, device)?;
    // The data are in memory already: there is nothing to prefetch.
    let data = TensorDataset::new(vec![known.pixels, known.labels])?;
    let loader = DataLoader::new(data, settings.batch)?.shuffle(settings.seed).prefetch(0);
    let schedule = Schedule::cosine(settings.epochs * loader.len() as u64).with_warm_up(loader.len() as u64);

    let mut losses = Vec::new();
    let mut kernels_a_step = 0;
    for epoch in 0..settings.epochs {
        let mut total = 0.0;
        for batch in loader.epoch(epoch) {
            let batch = batch?;
            let before = testing::kernels_of_thread();
            optimizer.set_rate_factor(schedule.factor(optimizer.steps()));
            let (loss, gradients) = precision.backward(|| network.forward(&batch[0])?.cross_entropy(&batch[1]))?;
            optimizer.step(gradients)?;
            kernels_a_step = testing::kernels_of_thread() - before;
            total += loss.item::<f32>()?;
        }
        losses.push(total / loader.len() as f32);
        progress(epoch, losses[epoch as usize]);
    }

    network.set_training(false);
    let logits = no_grad(|| autocast(settings.dtype, || network.forward(&held_out.pixels)))?;
    Ok(Outcome { accuracy: held_out.accuracy(&logits.argmax(1)?)?, losses, kernels_a_step })
}
