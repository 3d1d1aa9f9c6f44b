//! Which instruction set the CPU kernels use.

use std::sync::LazyLock;

/// An instruction set that kernels are written for, from the least to the most capable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// What the target guarantees: SSE2 on x86-64, NEON on aarch64.
    Plain,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ, on top of [`Isa::Avx2`].
    Avx512,
}

static DETECTED: LazyLock<Isa> = LazyLock::new(|| {
    let cap = match std::env::var("TL_ISA").as_deref() {
        Ok("plain") => Isa::Plain,
        Ok("avx2") => Isa::Avx2,
        _ => Isa::Avx512,
    };
    Isa::of_machine().min(cap)
});

impl Isa {
    /// The best set that this machine has; `TL_ISA=plain|avx2|avx512` lowers it. Decided once.
    pub fn detect() -> Isa {
        *DETECTED
    }

    /// The set's name.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Plain if cfg!(target_arch = "aarch64") => "neon",
            Isa::Plain => "plain",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    /// Whether kernels of this set should use the bf16 dot product of AVX-512: where the processor has it
    /// and it is the faster way. Intel's run it at half the rate of f32 multiply-adds, which makes it no
    /// faster than converting (measured on a Xeon, 2 threads, 2048 cubed: 139 GFLOPS against 220).
    #[cfg(target_arch = "x86_64")]
    pub fn has_bf16_dot(self) -> bool {
        self == Isa::Avx512 && is_x86_feature_detected!("avx512bf16") && is_amd()
    }

    /// Whether kernels of this set should use the bf16 dot product of AVX-512.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn has_bf16_dot(self) -> bool {
        false
    }

    #[cfg(target_arch = "x86_64")]
    fn of_machine() -> Isa {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        match (avx2, avx512) {
            (true, true) => Isa::Avx512,
            (true, false) => Isa::Avx2,
            _ => Isa::Plain,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of_machine() -> Isa {
        Isa::Plain
    }
}

/// Whether the processor says it is one of AMD's.
#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let id = std::arch::x86_64::__cpuid(0);
    [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detection_is_stable_and_named() {
        assert_eq!(Isa::detect(), Isa::detect());
        assert!(Isa::detect() <= Isa::of_machine());
        assert!(["plain", "neon", "avx2", "avx512"].contains(&Isa::detect().name()));
        assert!(!Isa::Plain.has_bf16_dot() && !Isa::Avx2.has_bf16_dot());
    }
}
