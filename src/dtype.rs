//! Element types.

use half::{bf16, f16};

/// The element type of a tensor.
///
/// `F16` and `BF16` are storage formats: arithmetic on them is done in f32 and rounded once, when a
/// result is stored (to nearest, ties to even). `F64` exists on the CPU only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DType {
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of an f32.
    BF16,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64 (CPU only).
    F64,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 32-bit unsigned integer.
    U32,
    /// 8-bit unsigned integer.
    U8,
    /// Truth value, one byte, 0 or 1.
    Bool,
}

impl DType {
    /// Every dtype.
    pub const ALL: [DType; 9] =
        [DType::F16, DType::BF16, DType::F32, DType::F64, DType::I64, DType::I32, DType::U32, DType::U8, DType::Bool];

    /// Bytes an element.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::U8 | DType::Bool => 1,
        }
    }

    /// The name as it is printed: `f16`, `bf16`, `i64`, `bool`, ...
    pub const fn name(self) -> &'static str {
        match self {
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::U32 => "u32",
            DType::U8 => "u8",
            DType::Bool => "bool",
        }
    }

    /// f16, bf16, f32 or f64.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    }

    /// i64, i32, u32 or u8 (not bool).
    pub const fn is_int(self) -> bool {
        matches!(self, DType::I64 | DType::I32 | DType::U32 | DType::U8)
    }

    /// f16 or bf16: stored narrow, computed in f32.
    pub const fn is_narrow(self) -> bool {
        matches!(self, DType::F16 | DType::BF16)
    }

    /// The type that arithmetic on this dtype is done in: f32 for f16 and bf16, else itself.
    pub const fn compute(self) -> DType {
        match self {
            DType::F16 | DType::BF16 => DType::F32,
            other => other,
        }
    }

    /// What a kernel holds while it computes on this dtype: as [`DType::compute`], and u8 for bool.
    pub(crate) const fn held(self) -> DType {
        match self {
            DType::Bool => DType::U8,
            other => other.compute(),
        }
    }

    /// The dtype of a sum: i64 for integers and bool, else itself.
    pub const fn sum(self) -> DType {
        if self.is_float() { self } else { DType::I64 }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = crate::Error;

    /// Parses the printed name.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        DType::ALL.into_iter().find(|d| d.name() == s).ok_or_else(|| {
            let names = DType::ALL.map(DType::name).join(", ");
            crate::Error::arg("DType::from_str", format!("no dtype {s:?}; there are {names}"))
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that is the host form of a [`DType`].
pub trait Element: sealed::Sealed + Copy + Default + Send + Sync + std::fmt::Debug + PartialEq + 'static {
    /// The dtype of this type.
    const DTYPE: DType;

    /// The value as f64 (integers above 2^53 round).
    fn to_f64(self) -> f64;
}

macro_rules! element {
    ($($t:ty, $d:ident, |$v:ident| $f64:expr;)+) => {$(
        impl sealed::Sealed for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            fn to_f64(self) -> f64 {
                let $v = self;
                $f64
            }
        }
    )+};
}

element! {
    f16, F16, |v| v.to_f64();
    bf16, BF16, |v| v.to_f64();
    f32, F32, |v| v as f64;
    f64, F64, |v| v;
    i64, I64, |v| v as f64;
    i32, I32, |v| v as f64;
    u32, U32, |v| v as f64;
    u8, U8, |v| v as f64;
    bool, Bool, |v| v as u8 as f64;
}
