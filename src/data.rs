//! Layer 7: batches of a data set, in an order that the seed decides, made ahead of their use.

use crate::error::{Error, Result};
use crate::tensor::{Tensor, eval};
use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// Samples that are numbered from 0, and read a batch at a time, so that a batch is put together in
/// one pass.
pub trait Dataset: Send + Sync {
    /// What a batch is: one tensor or several, usually.
    type Batch: Send + 'static;

    /// The number of samples.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The samples of these numbers, in this order. Runs on a [`DataLoader`]'s own thread: what is random
    /// here should come from `indices` and a seed, as the device's stream is drawn from elsewhere too.
    ///
    /// # Errors
    /// A number that is not below [`Dataset::len`]; what cannot be read.
    fn batch(&self, indices: &[usize]) -> Result<Self::Batch>;
}

impl<D: Dataset + ?Sized> Dataset for Arc<D> {
    type Batch = D::Batch;

    fn len(&self) -> usize {
        (**self).len()
    }

    fn batch(&self, indices: &[usize]) -> Result<D::Batch> {
        (**self).batch(indices)
    }
}

/// Tensors `[samples, ..]`; a batch holds the rows of each.
#[derive(Clone, Debug)]
pub struct TensorDataset {
    /// At least one, all of the same first dimension.
    tensors: Vec<Tensor>,
}

impl TensorDataset {
    /// A data set of tensors `[samples, ..]`: inputs `[samples, width]` and labels `[samples]`, say. What
    /// is pending is computed now, once; views of elements that are there are read in place.
    ///
    /// # Errors
    /// No tensors, a scalar, different first dimensions, different devices; what evaluation reports.
    pub fn new(tensors: Vec<Tensor>) -> Result<TensorDataset> {
        const OP: &str = "TensorDataset::new";
        let first = tensors.first().ok_or_else(|| Error::arg(OP, "no tensors given; at least one is wanted"))?;
        for tensor in &tensors {
            if tensor.rank() == 0 {
                return Err(Error::shape(OP, tensor.shape(), "the first dimension must count the samples"));
            }
            if tensor.dims()[0] != first.dims()[0] {
                let reason = "the first dimension counts the samples and must be the same";
                return Err(Error::shapes(OP, first.shape(), tensor.shape(), reason));
            }
            if tensor.device() != first.device() {
                let (lhs, rhs) = (first.device().to_string(), tensor.device().to_string());
                return Err(Error::DeviceMismatch { op: OP, lhs, rhs });
            }
        }
        let pending: Vec<&Tensor> = tensors.iter().filter(|t| t.is_pending()).collect();
        eval(&pending)?;
        Ok(TensorDataset { tensors })
    }
}

impl Dataset for TensorDataset {
    /// `[batch, ..]`, a tensor for each that was given.
    type Batch = Vec<Tensor>;

    fn len(&self) -> usize {
        self.tensors[0].dims()[0]
    }

    fn batch(&self, indices: &[usize]) -> Result<Vec<Tensor>> {
        // What no i64 holds is out of range in any case.
        let index: Vec<i64> = indices.iter().map(|&i| i64::try_from(i).unwrap_or(i64::MAX)).collect();
        let index = Tensor::from_vec(index, indices.len(), self.tensors[0].device())?;
        let batch = self.tensors.iter().map(|t| t.index_select(0, &index)).collect::<Result<Vec<_>>>()?;
        // Here and not by whoever reads it, so that it is this thread that does the work.
        eval(&batch.iter().collect::<Vec<_>>())?;
        Ok(batch)
    }
}

/// Goes through a [`Dataset`] in batches, epoch by epoch, shuffled if asked to.
///
/// The order of an epoch follows from the seed and the epoch's number alone, so training that is resumed
/// at an epoch, or with [`DataLoader::epoch_from`] in the middle of one, sees what it would have seen.
/// A thread makes the next batches while one is used; how many changes nothing in what they hold.
///
/// ```
/// use tensorlogic::data::{DataLoader, TensorDataset};
/// use tensorlogic::{DType, Device, Tensor};
/// let device = Device::best();
/// let images = Tensor::rand((100, 8, 8), DType::F32, &device)?;
/// let labels = Tensor::arange(0i64, 100, &device)?;
/// let loader = DataLoader::new(TensorDataset::new(vec![images, labels])?, 32)?.shuffle(7).drop_last(true);
/// for epoch in 0..2 {
///     for batch in loader.epoch(epoch) {
///         let batch = batch?;
///         assert_eq!(batch[0].dims(), [32, 8, 8]);
///         assert_eq!(batch[1].dims(), [32]);
///     }
/// }
/// # Ok::<(), tensorlogic::Error>(())
/// ```
pub struct DataLoader<D> {
    dataset: Arc<D>,
    batch_size: usize,
    seed: Option<u64>,
    drop_last: bool,
    prefetch: usize,
}

impl<D: Dataset + 'static> DataLoader<D> {
    /// Batches of `batch_size` samples, in the order of the data set, two made ahead. A data set that is
    /// used elsewhere too goes in as an `Arc`.
    ///
    /// # Errors
    /// A batch size of 0.
    pub fn new(dataset: D, batch_size: usize) -> Result<DataLoader<D>> {
        if batch_size == 0 {
            return Err(Error::arg("DataLoader::new", "the batch size is 0; a batch needs at least one sample"));
        }
        Ok(DataLoader { dataset: Arc::new(dataset), batch_size, seed: None, drop_last: false, prefetch: 2 })
    }

    /// Shuffles: every epoch has an order of its own, which follows from `seed` and the epoch's number.
    pub fn shuffle(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Whether to leave out the last batch where too few samples remain to fill it. Not done by default.
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = drop_last;
        self
    }

    /// Has a background thread make up to `batches` batches ahead of their use; 0: none, a batch is made by
    /// the thread that asks for it.
    pub fn prefetch(mut self, batches: usize) -> Self {
        self.prefetch = batches;
        self
    }

    /// The data set.
    pub fn dataset(&self) -> &D {
        &self.dataset
    }

    /// The number of batches an epoch.
    pub fn len(&self) -> usize {
        let samples = self.dataset.len();
        if self.drop_last { samples / self.batch_size } else { samples.div_ceil(self.batch_size) }
    }

    /// Whether an epoch has no batches.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The batches of an epoch.
    pub fn epoch(&self, epoch: u64) -> Epoch<D> {
        self.epoch_from(epoch, 0)
    }

    /// The batches of an epoch from number `first_batch` on, without making those before it; none where the
    /// epoch has no more than that.
    pub fn epoch_from(&self, epoch: u64, first_batch: usize) -> Epoch<D> {
        let numbers = first_batch.min(self.len())..self.len();
        let order = order(self.dataset.len(), self.seed, epoch);
        let batches = || Batches {
            dataset: Arc::clone(&self.dataset),
            order: Arc::clone(&order),
            batch_size: self.batch_size,
            numbers: numbers.clone(),
        };
        let ahead = self.prefetch.min(numbers.len());
        let started = if ahead > 0 { batches().start(ahead) } else { None };
        Epoch { left: numbers.len(), source: started.unwrap_or_else(|| Source::Here(batches())) }
    }
}

/// The batches of one epoch; dropping it ends the thread that makes them, after the batch it is at.
///
/// A batch that could not be made is an error in its place, also where the data set panicked; those after
/// it still come.
pub struct Epoch<D: Dataset> {
    source: Source<D>,
    left: usize,
}

enum Source<D: Dataset> {
    /// Made by the thread that asks.
    Here(Batches<D>),
    /// Made ahead by another.
    Ahead(Receiver<Result<D::Batch>>),
}

impl<D: Dataset> Iterator for Epoch<D> {
    type Item = Result<D::Batch>;

    fn next(&mut self) -> Option<Result<D::Batch>> {
        self.left = self.left.checked_sub(1)?;
        match &mut self.source {
            Source::Here(batches) => batches.next(),
            Source::Ahead(batches) => batches.recv().ok(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<D: Dataset> ExactSizeIterator for Epoch<D> {}

/// Makes the batches `numbers` of an epoch.
struct Batches<D> {
    dataset: Arc<D>,
    order: Arc<[usize]>,
    batch_size: usize,
    numbers: Range<usize>,
}

impl<D: Dataset + 'static> Batches<D> {
    /// Has a thread of its own make them, at most `ahead` (1 or more) before they are asked for; `None` where
    /// the system has no more threads to give.
    fn start(self, ahead: usize) -> Option<Source<D>> {
        // One more waits in the thread's hands for room.
        let (sender, receiver) = sync_channel(ahead - 1);
        // Sending fails when the epoch was dropped; what is made then is dropped too.
        let work = move || self.map(|batch| sender.send(batch)).take_while(Result::is_ok).for_each(drop);
        std::thread::Builder::new().name("tensorlogic-data".into()).spawn(work).ok()?;
        Some(Source::Ahead(receiver))
    }
}

impl<D: Dataset> Iterator for Batches<D> {
    type Item = Result<D::Batch>;

    fn next(&mut self) -> Option<Result<D::Batch>> {
        let number = self.numbers.next()?;
        let indices = self.order.chunks(self.batch_size).nth(number)?;
        let made = catch_unwind(AssertUnwindSafe(|| self.dataset.batch(indices)));
        Some(made.unwrap_or_else(|panic| Err(panicked(number, panic.as_ref()))))
    }
}

fn panicked(number: usize, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    Error::arg("DataLoader", format!("the data set panicked at batch {number}: {text}"))
}

/// `0..samples`, shuffled if there is a seed (Fisher and Yates 1938; Durstenfeld 1964).
fn order(samples: usize, seed: Option<u64>, epoch: u64) -> Arc<[usize]> {
    let mut order: Vec<usize> = (0..samples).collect();
    if let Some(seed) = seed {
        let mut random = SplitMix64::of(seed, epoch);
        for last in (1..samples).rev() {
            order.swap(last, random.below(last as u64 + 1) as usize);
        }
    }
    order.into()
}

/// SplitMix64 (Steele, Lea and Flood 2014, figure 17).
struct SplitMix64(u64);

impl SplitMix64 {
    /// The stream of an epoch. The seed is mixed first, or seed 1, epoch 2 would be seed 2, epoch 1.
    fn of(seed: u64, epoch: u64) -> SplitMix64 {
        let mixed = SplitMix64(seed).next();
        SplitMix64(SplitMix64(mixed.wrapping_add(epoch)).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..n`, each as likely as the others (Lemire 2019, "Fast random integer generation in an
    /// interval"): the upper half of a product, drawn again where the lower half shows the product to be one
    /// of the `2^64 mod n` that some numbers would have more of.
    fn below(&mut self, n: u64) -> u64 {
        let excess = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.next()) * u128::from(n);
            if product as u64 >= excess {
                return (product >> 64) as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::dtype::DType;
    use std::sync::Mutex;
    use std::time::{Duration, Instant};

    /// Gives the indices back, and remembers them.
    #[derive(Default)]
    struct Echo {
        len: usize,
        asked: Mutex<Vec<Vec<usize>>>,
        /// The batch that holds this sample panics.
        panics_at: Option<usize>,
        /// The batch that holds this sample is an error.
        fails_at: Option<usize>,
    }

    impl Dataset for Echo {
        type Batch = Vec<usize>;

        fn len(&self) -> usize {
            self.len
        }

        fn batch(&self, indices: &[usize]) -> Result<Vec<usize>> {
            self.asked.lock().unwrap().push(indices.to_vec());
            assert!(!self.panics_at.is_some_and(|bad| indices.contains(&bad)), "sample {:?} is bad", self.panics_at);
            if self.fails_at.is_some_and(|bad| indices.contains(&bad)) {
                return Err(Error::arg("Echo", "unreadable"));
            }
            Ok(indices.to_vec())
        }
    }

    fn echo(len: usize, batch_size: usize) -> DataLoader<Echo> {
        DataLoader::new(Echo { len, ..Echo::default() }, batch_size).unwrap()
    }

    fn all<D: Dataset>(epoch: Epoch<D>) -> Vec<D::Batch> {
        epoch.map(Result::unwrap).collect()
    }

    fn wait_until(what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(20), "{what} does not come");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn batches_are_the_samples_in_order() {
        assert_eq!(all(echo(5, 2).epoch(3)), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(all(echo(5, 2).drop_last(true).epoch(3)), [[0, 1], [2, 3]]);
        assert_eq!(all(echo(3, usize::MAX).epoch(0)), [[0, 1, 2]]);
        assert_eq!((echo(5, 2).len(), echo(5, 2).drop_last(true).len(), echo(4, 2).len()), (3, 2, 2));
        assert_eq!(echo(5, 2).epoch(0).len(), 3);
    }

    #[test]
    fn an_epoch_can_be_empty() {
        assert!(echo(0, 4).is_empty());
        assert_eq!(echo(0, 4).epoch(0).count(), 0);
        assert_eq!(echo(3, 4).drop_last(true).shuffle(1).epoch(0).count(), 0);
        assert_eq!(echo(3, 4).epoch_from(0, usize::MAX).count(), 0);
    }

    #[test]
    fn a_batch_size_of_0_is_an_error() {
        let error = DataLoader::new(Echo::default(), 0).err().unwrap();
        assert!(error.to_string().starts_with("DataLoader::new: the batch size is 0"), "{error}");
    }

    #[test]
    fn an_order_is_a_permutation_that_seed_and_epoch_decide() {
        let shuffled = |seed, epoch| order(1000, Some(seed), epoch).to_vec();
        let mut sorted = shuffled(7, 0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert_eq!(shuffled(7, 0), shuffled(7, 0));
        let orders = [shuffled(1, 1), shuffled(1, 2), shuffled(2, 1), shuffled(0, 3), shuffled(3, 0)];
        for (i, a) in orders.iter().enumerate() {
            assert!(orders[..i].iter().all(|b| a != b));
        }
    }

    /// What was trained with one version is resumed with the next: orders must not change.
    #[test]
    fn orders_stay_what_they_are() {
        assert_eq!(*order(8, Some(7), 0), [7, 1, 3, 6, 0, 5, 2, 4]);
        assert_eq!(*order(8, Some(7), 1), [0, 1, 3, 6, 2, 5, 4, 7]);
        // The reference implementation's first numbers for seed 1234567.
        let mut random = SplitMix64(1234567);
        assert_eq!([random.next(), random.next()], [6457827717110365317, 3203168211198807973]);
    }

    /// Each of the 24 orders of 4 samples is as likely as the others: of 24,000 epochs each has 1,000, with a
    /// deviation of sqrt(24000 * 1/24 * 23/24) = 31; 5 deviations are allowed.
    #[test]
    fn orders_are_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for epoch in 0..24_000 {
            *counts.entry(order(4, Some(5), epoch)).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|count| count.abs_diff(1000) < 155), "{counts:?}");
    }

    /// A third of `0..3 * 2^62` can be divided by 3; without drawing again, half of the numbers could be.
    #[test]
    fn numbers_below_a_bound_are_equally_likely() {
        let mut random = SplitMix64(0);
        let low = (0..30_000).filter(|_| random.below(3 << 62).is_multiple_of(3)).count();
        assert!(low.abs_diff(10_000) < 5 * 82, "{low}");
        assert!((0..100).all(|_| random.below(1) == 0));
    }

    #[test]
    fn prefetching_changes_no_batch() {
        let epoch = |prefetch| all(echo(103, 10).shuffle(9).prefetch(prefetch).epoch(4));
        for prefetch in [1, 2, 7, usize::MAX] {
            assert_eq!(epoch(prefetch), epoch(0), "prefetch {prefetch}");
        }
    }

    #[test]
    fn an_epoch_resumes_without_making_what_was_before() {
        for prefetch in [0, 2] {
            let loader = echo(103, 10).shuffle(9).prefetch(prefetch);
            let rest = all(loader.epoch_from(4, 8));
            assert_eq!(rest.len(), 3);
            assert_eq!(*loader.dataset().asked.lock().unwrap(), rest);
            assert_eq!(rest, all(loader.epoch(4))[8..]);
        }
    }

    #[test]
    fn no_more_is_made_ahead_than_was_asked_for() {
        let loader = echo(1000, 1).prefetch(3);
        let asked = || loader.dataset().asked.lock().unwrap().len();
        let mut epoch = loader.epoch(0);
        epoch.next();
        wait_until("the third batch ahead", || asked() >= 4);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(asked(), 4);
    }

    #[test]
    fn the_thread_ends_when_its_epoch_is_dropped() {
        let dataset = Arc::new(Echo { len: 1_000_000, ..Echo::default() });
        let mut epoch = DataLoader::new(Arc::clone(&dataset), 1).unwrap().epoch(0);
        epoch.next();
        assert!(Arc::strong_count(&dataset) > 1);
        drop(epoch);
        wait_until("the thread's end", || Arc::strong_count(&dataset) == 1);
        assert!(dataset.asked.lock().unwrap().len() <= 5);
    }

    #[test]
    fn a_panic_and_an_error_are_errors_in_their_place() {
        for prefetch in [0, 2] {
            let dataset = Echo { len: 8, panics_at: Some(2), fails_at: Some(5), ..Echo::default() };
            let loader = DataLoader::new(dataset, 2).unwrap().prefetch(prefetch);
            let mut epoch = loader.epoch(0);
            assert_eq!(epoch.next(), Some(Ok(vec![0, 1])));
            let error = epoch.next().unwrap().unwrap_err().to_string();
            assert_eq!(error, "DataLoader: the data set panicked at batch 1: sample Some(2) is bad");
            assert_eq!(epoch.next(), Some(Err(Error::arg("Echo", "unreadable"))));
            assert_eq!(epoch.next(), Some(Ok(vec![6, 7])));
            assert_eq!(epoch.next(), None);
        }
    }

    #[test]
    fn tensors_are_batched_by_rows() -> Result<()> {
        let device = Device::cpu();
        let inputs = (Tensor::arange(0f32, 12.0, &device)?.reshape((6, 2))? * 2.0)?;
        let labels = Tensor::arange(0i64, 6, &device)?.slice(0, .., -1)?;
        let dataset = TensorDataset::new(vec![inputs, labels])?;
        let batch = dataset.batch(&[4, 0, 4])?;
        assert!(batch.iter().all(|tensor| tensor.0.depth() == 0), "the loader's thread has computed it");
        assert_eq!(batch[0].to_vec2::<f32>()?, [[16.0, 18.0], [0.0, 2.0], [16.0, 18.0]]);
        assert_eq!(batch[1].to_vec1::<i64>()?, [1, 5, 1]);
        assert_eq!(dataset.batch(&[])?[0].dims(), [0, 2]);
        Ok(())
    }

    #[test]
    fn tensor_batches_come_through_a_loader() -> Result<()> {
        let samples = Tensor::arange(0i64, 50, &Device::cpu())?;
        let loader = DataLoader::new(TensorDataset::new(vec![samples])?, 8)?.shuffle(3);
        let mut seen = Vec::new();
        for batch in loader.epoch(0) {
            seen.extend(batch?[0].to_vec::<i64>()?);
        }
        assert_eq!(seen, order(50, Some(3), 0).iter().map(|&i| i as i64).collect::<Vec<_>>());
        Ok(())
    }

    #[test]
    fn unfit_tensors_are_refused() -> Result<()> {
        let device = Device::cpu();
        let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &device);
        let message = |tensors| TensorDataset::new(tensors).unwrap_err().to_string();
        assert!(message(vec![]).contains("no tensors given"));
        assert!(message(vec![ones(&[])?]).contains("must count the samples"));
        let text = message(vec![ones(&[3, 2])?, ones(&[4])?]);
        assert!(text.ends_with("must be the same: [3, 2] and [4]"), "{text}");
        let dataset = TensorDataset::new(vec![ones(&[3, 2])?])?;
        for bad in [3, usize::MAX] {
            assert!(matches!(dataset.batch(&[0, bad]), Err(Error::IndexOutOfRange { size: 3, .. })));
        }
        Ok(())
    }
}
