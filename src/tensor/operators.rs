//! `+ - * / %` and unary `-` on tensors and numbers. Each gives a `Result`.
//!
//! Numbers are f64 or i64 only: with more types, the compiler could not tell what `&x * 2.0` means.
//! The methods (`x.mul(2f32)`) take every number type.

use super::Tensor;
use crate::error::Result;
use std::ops::{Add, Div, Mul, Neg, Rem, Sub};

macro_rules! binary {
    ($($Trait:ident $method:ident;)+) => {$(
        binary!(tensor $Trait $method: &Tensor, &Tensor);
        binary!(tensor $Trait $method: &Tensor, Tensor);
        binary!(tensor $Trait $method: Tensor, &Tensor);
        binary!(tensor $Trait $method: Tensor, Tensor);
        binary!(number $Trait $method: f64 i64);
    )+};
    (tensor $Trait:ident $method:ident: $lhs:ty, $rhs:ty) => {
        impl $Trait<$rhs> for $lhs {
            type Output = Result<Tensor>;
            #[track_caller]
            fn $method(self, rhs: $rhs) -> Result<Tensor> {
                let (lhs, rhs): (&Tensor, &Tensor) = (&self, &rhs);
                Tensor::$method(lhs, rhs)
            }
        }
    };
    (number $Trait:ident $method:ident: $($t:ty)+) => {$(
        impl $Trait<$t> for &Tensor {
            type Output = Result<Tensor>;
            #[track_caller]
            fn $method(self, rhs: $t) -> Result<Tensor> {
                Tensor::$method(self, rhs)
            }
        }
        impl $Trait<$t> for Tensor {
            type Output = Result<Tensor>;
            #[track_caller]
            fn $method(self, rhs: $t) -> Result<Tensor> {
                Tensor::$method(&self, rhs)
            }
        }
        impl $Trait<&Tensor> for $t {
            type Output = Result<Tensor>;
            #[track_caller]
            fn $method(self, rhs: &Tensor) -> Result<Tensor> {
                let lhs = super::Operand::operand(self, stringify!($method), rhs)?;
                Tensor::$method(&lhs, rhs)
            }
        }
        impl $Trait<Tensor> for $t {
            type Output = Result<Tensor>;
            #[track_caller]
            fn $method(self, rhs: Tensor) -> Result<Tensor> {
                $Trait::$method(self, &rhs)
            }
        }
    )+};
}
binary! {
    Add add;
    Sub sub;
    Mul mul;
    Div div;
    Rem rem;
}

impl Neg for &Tensor {
    type Output = Result<Tensor>;
    #[track_caller]
    fn neg(self) -> Result<Tensor> {
        Tensor::neg(self)
    }
}

impl Neg for Tensor {
    type Output = Result<Tensor>;
    #[track_caller]
    fn neg(self) -> Result<Tensor> {
        Tensor::neg(&self)
    }
}
