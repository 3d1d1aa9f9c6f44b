//! Derivatives.
use tensorlogic::{DType, Device, Tensor, Var, grad, testing};

#[test]
fn smoke() {
    let d = Device::cpu();
    let x = Var::new(&Tensor::randn((32, 64), DType::F32, &d).unwrap()).unwrap();
    let w = Var::new(&Tensor::randn((64, 10), DType::F32, &d).unwrap()).unwrap();
    let b = Var::new(&Tensor::randn(10, DType::F32, &d).unwrap()).unwrap();
    let t = Tensor::zeros(32, DType::I64, &d).unwrap();
    let f = || {
        let y = (x.tensor().matmul(&w.tensor()).unwrap() + b.tensor()).unwrap();
        y.gelu().unwrap().cross_entropy(&t).unwrap()
    };
    let loss = f();
    let g = loss.backward().unwrap();
    let (gw, gb, gx) = (g.get(&w).unwrap(), g.get(&b).unwrap(), g.get(&x).unwrap());
    println!("{}", testing::kernel_count(&[&loss, gw, gb, gx]).unwrap());
    println!("joint {}", testing::explain(&[&loss, gw, gb, gx]).unwrap());
    println!("joint {}", gx.explain().unwrap());
    tensorlogic::eval(&[&loss, gw, gb, gx]).unwrap();
    let loss = f();
    println!("forward {}", loss.explain().unwrap());
    println!("{:?}", loss.item::<f32>());
    let g = loss.backward().unwrap();
    let (gw2, gb2, gx2) = (g.get(&w).unwrap(), g.get(&b).unwrap(), g.get(&x).unwrap());
    println!("gw {}", gw2.explain().unwrap());
    println!("gb {}", gb2.explain().unwrap());
    println!("gx {}", gx2.explain().unwrap());
    assert_eq!(gx.to_vec::<f32>().unwrap(), gx2.to_vec::<f32>().unwrap());
    let _ = grad;
}
