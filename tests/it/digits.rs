//! The digits example: its accuracy in every dtype that it is offered in, and its kernels.

#[path = "../../examples/digits/data.rs"]
mod data;
#[path = "../../examples/digits/neighbours.rs"]
mod neighbours;
#[path = "../../examples/digits/train.rs"]
mod train;

use crate::oracle::{budget, on_every_device};
use data::Digits;
use tensorlogic::{DType, Device};
use train::Settings;

on_every_device! {
    nearest_neighbours_reach_their_accuracy_in_each_dtype,
    the_network_reaches_its_accuracy_in_each_dtype,
}

const DTYPES: &[DType] = &[DType::F32, DType::BF16, DType::F16];

/// One neighbour classifies about 98.9% of this data; chance is 10%.
fn nearest_neighbours_reach_their_accuracy_in_each_dtype(device: &Device) {
    let (dtypes, shuffles) = budget(device, (DTYPES, 5), (&[DType::F16], 1));
    for &dtype in dtypes {
        let digits = Digits::load(dtype, device).unwrap();
        assert_eq!(digits.len(), 1797);
        let accuracies: Vec<f32> = (0..shuffles).map(|seed| neighbours::accuracy(&digits, seed).unwrap()).collect();
        let mean = accuracies.iter().sum::<f32>() / shuffles as f32;
        assert!((0.975..1.0).contains(&mean), "{dtype} on {device}: {mean}, of {accuracies:?}");
    }
}

/// The full training reaches 0.984 on average over five shuffles; this is a sixth of it, or where the device is
/// simulated a thirtieth.
fn the_network_reaches_its_accuracy_in_each_dtype(device: &Device) {
    let digits = Digits::load(DType::F32, device).unwrap();
    let (dtypes, seeds, epochs) = budget(device, (DTYPES, 2, 10), (&[DType::F16], 1, 2));
    let (least, of_first_loss) = budget(device, (0.955, 0.2), (0.85, 0.6));
    for &dtype in dtypes {
        let accuracy = |seed| {
            let outcome = train::train(&digits, &Settings { dtype, seed, epochs, ..Settings::default() }, |_, _| {});
            let outcome = outcome.unwrap();
            assert!(outcome.kernels_a_step <= 16, "{dtype}: {} kernels", outcome.kernels_a_step);
            let (first, last) = (outcome.losses[0], outcome.losses[outcome.losses.len() - 1]);
            assert!(last < of_first_loss * first, "{dtype}: {:?}", outcome.losses);
            outcome.accuracy
        };
        let mean = (0..seeds).map(accuracy).sum::<f32>() / seeds as f32;
        assert!((least..1.0).contains(&mean), "{dtype} on {device}: {mean}");
    }
}
