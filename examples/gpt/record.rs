//! A training, kept so that another engine can repeat it: `tools/gpt_torch.py --follow`.

use super::model::Gpt;
use super::train::Settings;
use std::collections::BTreeMap;
use std::path::Path;
use tensorlogic::io::save_safetensors;
use tensorlogic::nn::Module;
use tensorlogic::{Device, Result, Tensor};

/// The starting weights, and every batch.
pub struct Record {
    weights: BTreeMap<String, Tensor>,
    ids: Vec<i32>,
    targets: Vec<i32>,
}

impl Record {
    /// Of a training that has not begun.
    pub fn new(gpt: &Gpt) -> Record {
        Record { weights: gpt.state(), ids: Vec::new(), targets: Vec::new() }
    }

    /// Keeps the ids of a step, `[rows, positions]`, and what follows them.
    pub fn add(&mut self, ids: &Tensor, targets: &Tensor) -> Result<()> {
        for (list, of) in [(&mut self.ids, ids), (&mut self.targets, targets)] {
            list.extend(of.to_vec::<u32>()?.into_iter().map(|id| id as i32));
        }
        Ok(())
    }

    /// Writes `weights.NAME`, `ids` and `targets` `[steps, rows, positions]`, and `losses` `[steps]`; sizes and settings
    /// are the metadata.
    pub fn save(&self, path: &Path, settings: &Settings, losses: &[f32]) -> Result<()> {
        let (sizes, steps, device) = (settings.sizes, losses.len(), Device::cpu());
        let rows = self.ids.len() / (steps * sizes.context).max(1);
        let batches = |list: &[i32]| Tensor::from_slice(list, (steps, rows, sizes.context), &device);
        let mut tensors: BTreeMap<String, Tensor> =
            self.weights.iter().map(|(name, tensor)| (format!("weights.{name}"), tensor.clone())).collect();
        tensors.insert("ids".into(), batches(&self.ids)?);
        tensors.insert("targets".into(), batches(&self.targets)?);
        tensors.insert("losses".into(), Tensor::from_slice(losses, steps, &device)?);
        let numbers = [
            ("vocabulary", sizes.vocabulary.to_string()),
            ("context", sizes.context.to_string()),
            ("layers", sizes.layers.to_string()),
            ("width", sizes.width.to_string()),
            ("heads", sizes.heads.to_string()),
            ("precision", settings.dtype.to_string()),
            ("steps", settings.steps.to_string()),
            ("learning_rate", settings.learning_rate.to_string()),
            ("dropout", settings.dropout.to_string()),
        ];
        let metadata = numbers.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        save_safetensors(path, &tensors, &metadata)
    }
}
