//! Convolution as a matrix product over unfolded windows, and pooling.

use super::Tensor;
use crate::error::{Error, Result};

/// How windows lie on an image.
///
/// ```
/// use tensorlogic::ConvOptions;
/// let same = ConvOptions { padding: 1, ..ConvOptions::default() };
/// assert_eq!((same.stride, same.groups), (1, 1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvOptions {
    /// From one window to the next, in both directions.
    pub stride: usize,
    /// Zeros on every side.
    pub padding: usize,
    /// From one element of a window to the next.
    pub dilation: usize,
    /// Parts into which the channels are divided, each seen by its own outputs only.
    pub groups: usize,
}

impl Default for ConvOptions {
    fn default() -> Self {
        ConvOptions { stride: 1, padding: 0, dilation: 1, groups: 1 }
    }
}

impl Tensor {
    /// Cross-correlation of images `[batch, inputs, height, width]` with windows `weight` `[outputs,
    /// inputs / groups, rows, columns]`: `[batch, outputs, ..]`.
    ///
    /// # Errors
    /// Shapes that do not fit, windows larger than the padded image, dtypes that differ.
    #[track_caller]
    pub fn conv2d(&self, weight: &Tensor, options: &ConvOptions) -> Result<Tensor> {
        let op = "conv2d";
        let bad = |reason: &str| Error::shapes(op, self.shape(), weight.shape(), reason);
        let (&[batch, inputs, _, _], &[outputs, inputs_each, rows, columns]) = (self.dims(), weight.dims()) else {
            return Err(bad(
                "images [batch, inputs, height, width] and a weight [outputs, inputs, rows, columns] wanted",
            ));
        };
        let ConvOptions { stride, padding, dilation, groups } = *options;
        if groups == 0 || inputs_each.checked_mul(groups) != Some(inputs) || !outputs.is_multiple_of(groups) {
            return Err(bad(&format!("{groups} groups do not divide the channels: inputs / groups and outputs")));
        }
        let windows = self
            .pad(&[(0, 0), (0, 0), (padding, padding), (padding, padding)])?
            .windows(op, 2, rows, stride, dilation)?
            .windows(op, 3, columns, stride, dilation)?;
        let (height, width) = (windows.dims()[2], windows.dims()[3]);
        // [batch, inputs, height, width, rows, columns] to a column of the product a window.
        let columns = windows.permute([0, 1, 4, 5, 2, 3])?;
        let window = inputs_each * rows * columns.dims()[3];
        if groups == 1 {
            let columns = columns.reshape((batch, window, height * width))?;
            let product = weight.reshape((outputs, window))?.matmul(&columns)?;
            return product.reshape((batch, outputs, height, width));
        }
        let columns = columns.reshape((batch, groups, window, height * width))?;
        let product = weight.reshape((groups, outputs / groups, window))?.matmul(&columns)?;
        product.reshape((batch, outputs, height, width))
    }

    /// The largest element of each `size` x `size` window, one every `stride` elements, of images `[..,
    /// height, width]`; what does not fill a window is left out.
    ///
    /// # Errors
    /// Fewer than two dimensions, an image smaller than a window, a size or stride of 0.
    #[track_caller]
    pub fn max_pool2d(&self, size: usize, stride: usize) -> Result<Tensor> {
        self.pooled("max_pool2d", size, stride)?.max([-2, -1])
    }

    /// The mean of each `size` x `size` window, one every `stride` elements, of images `[.., height,
    /// width]`; what does not fill a window is left out.
    ///
    /// # Errors
    /// As [`Tensor::max_pool2d`]; a dtype that is no float.
    #[track_caller]
    pub fn avg_pool2d(&self, size: usize, stride: usize) -> Result<Tensor> {
        self.pooled("avg_pool2d", size, stride)?.mean([-2, -1])
    }

    /// Windows as two new dimensions at the end.
    #[track_caller]
    fn pooled(&self, op: &'static str, size: usize, stride: usize) -> Result<Tensor> {
        if self.rank() < 2 {
            return Err(Error::shape(op, self.shape(), "an image [.., height, width] is wanted"));
        }
        let dim = self.rank() - 2;
        self.windows(op, dim, size, stride, 1)?.windows(op, dim + 1, size, stride, 1)
    }
}
