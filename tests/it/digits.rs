//! The digits example: its accuracy in every dtype that it is offered in, and its kernels.

#[path = "../../examples/digits/data.rs"]
mod data;
#[path = "../../examples/digits/neighbours.rs"]
mod neighbours;
#[path = "../../examples/digits/train.rs"]
mod train;

use data::Digits;
use tensorlogic::{DType, Device};
use train::Settings;

/// One neighbour classifies about 98.9% of this data; chance is 10%.
#[test]
fn nearest_neighbours_reach_their_accuracy_in_each_dtype() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let digits = Digits::load(dtype, &Device::best()).unwrap();
        assert_eq!(digits.len(), 1797);
        let accuracies: Vec<f32> = (0..5).map(|seed| neighbours::accuracy(&digits, seed).unwrap()).collect();
        let mean = accuracies.iter().sum::<f32>() / 5.0;
        assert!((0.975..1.0).contains(&mean), "{dtype}: {mean}, of {accuracies:?}");
    }
}

/// The full training reaches 0.984 on average over five shuffles; this is a sixth of it.
#[test]
fn the_network_reaches_its_accuracy_in_each_dtype() {
    let digits = Digits::load(DType::F32, &Device::best()).unwrap();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let accuracy = |seed| {
            let outcome =
                train::train(&digits, &Settings { dtype, seed, epochs: 10, ..Settings::default() }, |_, _| {});
            let outcome = outcome.unwrap();
            assert!(outcome.kernels_a_step <= 16, "{dtype}: {} kernels", outcome.kernels_a_step);
            assert!(outcome.losses[9] < 0.2 * outcome.losses[0], "{dtype}: {:?}", outcome.losses);
            outcome.accuracy
        };
        let mean = (0..2).map(accuracy).sum::<f32>() / 2.0;
        assert!((0.955..1.0).contains(&mean), "{dtype}: {mean}");
    }
}
