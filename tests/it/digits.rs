//! The digits example's accuracy, in every dtype that it is offered in.

#[path = "../../examples/digits/neighbours.rs"]
mod neighbours;

use neighbours::Digits;
use tensorlogic::{DType, Device};

/// One neighbour classifies about 98.9% of this data; chance is 10%.
#[test]
fn nearest_neighbours_reach_their_accuracy_in_each_dtype() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let digits = Digits::load(dtype, &Device::best()).unwrap();
        assert_eq!(digits.len(), 1797);
        let accuracies: Vec<f32> = (0..5).map(|seed| digits.accuracy(seed).unwrap()).collect();
        let mean = accuracies.iter().sum::<f32>() / 5.0;
        assert!((0.975..1.0).contains(&mean), "{dtype}: {mean}, of {accuracies:?}");
    }
}
