//! Printed tensors, as PyTorch prints them.

use crate::oracle::on_every_device;
use half::f16;
use tensorlogic::{DType, Device, Tensor};

on_every_device! { numbers_stand_in_columns, large_tensors_show_their_edges, debug_computes_nothing }

fn numbers_stand_in_columns(device: &Device) {
    let f32s = |values: &[f32], dims: &[usize]| Tensor::from_slice(values, dims, device).unwrap();
    let whole = Tensor::arange(-2i64, 4, device).unwrap().reshape([2, 3]).unwrap();
    let cube = Tensor::arange(0u8, 8, device).unwrap().reshape([2, 2, 2]).unwrap();
    for (tensor, want) in [
        (f32s(&[1.5], &[]), "tensor(1.5000, dtype=f32)"),
        (f32s(&[1.0, -2.0], &[2]), "tensor([ 1., -2.], dtype=f32)"),
        (f32s(&[1.0, 0.25, f32::NAN, f32::INFINITY], &[4]), "tensor([1.0000, 0.2500,    nan,    inf], dtype=f32)"),
        (f32s(&[1e-5, 12345.678], &[2]), "tensor([1.0000e-05, 1.2346e+04], dtype=f32)"),
        (f32s(&[], &[0]), "tensor([], dtype=f32)"),
        (f32s(&[], &[0, 3]), "tensor([], dtype=f32, shape=[0, 3])"),
        (f32s(&[1.0, 2.0, 3.0, 4.5], &[2, 2]), "tensor([[1.0000, 2.0000],\n        [3.0000, 4.5000]], dtype=f32)"),
        (whole.clone(), "tensor([[-2, -1,  0],\n        [ 1,  2,  3]], dtype=i64)"),
        (whole.t().unwrap(), "tensor([[-2,  1],\n        [-1,  2],\n        [ 0,  3]], dtype=i64)"),
        (whole.gt(0).unwrap().select(1, 0).unwrap(), "tensor([false,  true], dtype=bool)"),
        (cube, "tensor([[[0, 1],\n         [2, 3]],\n\n        [[4, 5],\n         [6, 7]]], dtype=u8)"),
        (Tensor::full(2, f16::from_f32(0.1), DType::F16, device).unwrap(), "tensor([0.1000, 0.1000], dtype=f16)"),
    ] {
        assert_eq!(tensor.to_string(), want);
    }
}

fn large_tensors_show_their_edges(device: &Device) {
    let line = Tensor::arange(0i64, 1001, device).unwrap();
    assert_eq!(line.to_string(), "tensor([   0,    1,    2, ...,  998,  999, 1000], dtype=i64)");
    let square = Tensor::zeros([100, 100], DType::I32, device).unwrap().to_string();
    assert_eq!(square.matches('0').count(), 36);
    assert_eq!(square.matches("...").count(), 7);
    let tall = Tensor::zeros([500, 3], DType::I32, device).unwrap();
    let rows = ["[0, 0, 0]"; 3].join(",\n        ");
    assert_eq!(tall.to_string(), format!("tensor([{rows},\n        ...,\n        {rows}], dtype=i32)"));
}

fn debug_computes_nothing(device: &Device) {
    let pending = Tensor::zeros([2, 3], DType::F32, device).unwrap().exp().unwrap();
    assert_eq!(format!("{pending:?}"), format!("Tensor([2, 3], f32, {device})"));
    assert_eq!(pending.explain().unwrap().kernels(), 1);
}
