//! A step of training: a perceptron 784-512-512-10 with AdamW.

use tensorlogic::nn::{Layer, Linear, Module};
use tensorlogic::optim::{AdamW, MixedPrecision, Optimizer};
use tensorlogic::{DType, Device, Result, Tensor, capture};

/// Batches that take turns.
const BATCHES: usize = 8;
const CLASSES: usize = 10;

#[derive(Module)]
struct Network {
    first: Linear,
    second: Linear,
    third: Linear,
}

impl Layer for Network {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.first.forward(x)?.relu()?;
        let x = self.second.forward(&x)?.relu()?;
        self.third.forward(&x)
    }
}

/// A network, its optimiser, and random batches.
pub struct Training {
    network: Network,
    optimizer: Optimizer<AdamW>,
    precision: MixedPrecision,
    batches: Vec<(Tensor, Tensor)>,
}

impl Training {
    /// Parameters are f32, products of `dtype`.
    ///
    /// # Errors
    /// A device that fails; a dtype that products cannot have.
    pub fn new(batch: usize, dtype: DType, device: &Device) -> Result<Training> {
        let linear = |inputs, outputs| Linear::new(inputs, outputs, DType::F32, device);
        let network = Network { first: linear(784, 512)?, second: linear(512, 512)?, third: linear(512, CLASSES)? };
        let optimizer = Optimizer::new(AdamW::default(), network.parameters(), 1e-3)?;
        let precision = MixedPrecision::new(dtype, device)?;
        let labels: Vec<i64> = (0..batch).map(|i| (i * 7 % CLASSES) as i64).collect();
        let batches = (0..BATCHES).map(|_| {
            let x = Tensor::randn((batch, 784), DType::F32, device)?;
            x.eval()?;
            Ok((x, Tensor::from_slice(&labels, batch, device)?))
        });
        Ok(Training { network, optimizer, precision, batches: batches.collect::<Result<_>>()? })
    }

    /// Takes a step on a batch, the next as `run` grows; the loss.
    ///
    /// # Errors
    /// A device that fails.
    pub fn step(&mut self, run: usize) -> Result<Tensor> {
        let (x, labels) = self.batches[run % BATCHES].clone();
        self.step_on(&x, &labels)
    }

    /// The same as a captured step.
    pub fn captured(mut self) -> impl FnMut(usize) -> Result<Tensor> {
        let batches = self.batches.clone();
        let mut step = capture(move |inputs: &[Tensor]| self.step_on(&inputs[0], &inputs[1]));
        move |run| {
            let (x, labels) = &batches[run % BATCHES];
            step.run(&[x, labels])
        }
    }

    fn step_on(&mut self, x: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let (loss, gradients) = self.precision.backward(|| self.network.forward(x)?.cross_entropy(labels))?;
        self.optimizer.step(gradients)?;
        Ok(loss)
    }

    /// Arithmetic operations of the products of a step: one forward, two backward (one in the first layer).
    pub fn flops(batch: usize) -> usize {
        let layers = [784 * 512, 512 * 512, 512 * CLASSES];
        2 * batch * (3 * layers.iter().sum::<usize>() - layers[0])
    }
}
