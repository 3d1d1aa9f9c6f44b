//! A text as characters, and batches of stretches of it.

use std::collections::BTreeSet;
use std::path::Path;
use tensorlogic::data::Dataset;
use tensorlogic::{Device, Error, Result, Tensor};

/// The characters of a text, in order.
pub struct Vocabulary(Vec<char>);

impl Vocabulary {
    pub fn of(text: &str) -> Vocabulary {
        Vocabulary(text.chars().collect::<BTreeSet<char>>().into_iter().collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn characters(&self) -> String {
        self.0.iter().collect()
    }

    /// The numbers of characters; what is not in the vocabulary is left out.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        text.chars().filter_map(|c| self.0.binary_search(&c).ok()).map(|i| i as u32).collect()
    }

    pub fn decode(&self, ids: &[u32]) -> String {
        ids.iter().filter_map(|&id| self.0.get(id as usize)).collect()
    }
}

/// A text from a file: what is learnt from, and the last tenth, which is held out.
pub struct Corpus {
    pub vocabulary: Vocabulary,
    pub train: Vec<u32>,
    pub held_out: Vec<u32>,
}

impl Corpus {
    pub fn load(path: &Path) -> Result<Corpus> {
        let failed = |reason: String| Error::Io { op: "text", path: path.display().to_string(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let vocabulary = Vocabulary::of(&text);
        let mut train = vocabulary.encode(&text);
        if train.len() < 20 {
            return Err(failed("too short a text".into()));
        }
        let held_out = train.split_off(train.len() - train.len() / 10);
        Ok(Corpus { vocabulary, train, held_out })
    }
}

/// Stretches of a text, one after another, each with the characters that follow its own.
pub struct Stretches {
    ids: Vec<u32>,
    context: usize,
    device: Device,
}

impl Stretches {
    pub fn new(ids: &[u32], context: usize, device: &Device) -> Stretches {
        Stretches { ids: ids.to_vec(), context, device: device.clone() }
    }
}

impl Dataset for Stretches {
    /// Ids `[batch, context]` and those that follow, u32.
    type Batch = (Tensor, Tensor);

    fn len(&self) -> usize {
        self.ids.len().saturating_sub(1) / self.context
    }

    fn batch(&self, indices: &[usize]) -> Result<(Tensor, Tensor)> {
        let part = |shift: usize| {
            let stretch = |&i: &usize| &self.ids[i * self.context + shift..][..self.context];
            let ids: Vec<u32> = indices.iter().flat_map(stretch).copied().collect();
            Tensor::from_vec(ids, (indices.len(), self.context), &self.device)
        };
        Ok((part(0)?, part(1)?))
    }
}
